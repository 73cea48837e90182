// What applications and the observer do.

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/fuse.h>

#include <algorithm>

#include "fusefs/changes.h"
#include "tests/sim/world.h"
#include "tests/sim/world_say.h"

namespace livemv::sim {

using core::Result;
using core::Status;
using fusefs::Caller;
using fusefs::Entry;
using fusefs::OpenReply;

namespace {

// rename(2) of directories excludes all others (s_vfs_rename_mutex).
constexpr uint64_t kRenameKey = ~1ull;
constexpr size_t kMostBytes = 50'000;

Caller Somebody() {
  return Caller{.uid = 0, .gid = 0, .pid = 1, .umask = 0};
}

// What may be mapped is treated otherwise than what may not.
int FlagsFrom(uint64_t draw) {
  return draw % 3 == 0 ? O_RDWR : O_WRONLY;
}

std::string NameOf(uint64_t draw) {
  return std::string(1, "abc"[draw % 3]);
}

}  // namespace

template <class R>
R World::Ask(uint32_t opcode, std::string text,
             std::function<R(SimWorker*, Request*)> serve) {
  auto reply = std::make_shared<std::optional<R>>();
  Post(opcode, std::move(text),
       [reply, serve = std::move(serve)](SimWorker* w, Request* request) {
         reply->emplace(serve(w, request));
       });
  std::shared_ptr<Request> request = queue_.back();
  fibers_.WaitUntil([&request] { return request->done; }, -1);
  return std::move(**reply);
}

void World::StartApplications() {
  applications_ = 2;
  to_reopen_.clear();
  fibers_.Spawn("re-anchorer", kApplications, [this] { Reopen(); });
  if (observing_)
    fibers_.Spawn("observer", kApplications, [this] { Observe(); });
  for (int who = 0; who < 2; who++)
    fibers_.Spawn(who == 0 ? "application A" : "application B", kApplications,
                  [this, who] { Application(who); });
}

void World::Application(int who) {
  fibers_.WaitUntil([this] { return !observing_ || Failed(); }, -1);
  while (next_op_[who] < plan_.ops[who].size() && !Failed()) {
    const Op& op = plan_.ops[who][next_op_[who]++];
    ops_begun_++;
    Say("-- ", Describe(op));
    Act(who, op);
  }
  applications_--;
}

Node* World::Pick(const std::vector<Node*>& from, uint64_t draw) {
  return from.empty() ? nullptr : from[draw % from.size()];
}

std::vector<Node*> World::Usable() {
  std::vector<Node*> files = model_.Files();
  if (!plan_.world->deleted)
    return files;
  for (const auto& [id, node] : model_.nodes())
    if (node->IsFile() && node->links == 0 && !node->kept.empty())
      files.push_back(node.get());
  return files;
}

void World::Act(int, const Op& op) {
  switch (op.what) {
    case Do::kWrite:
    case Do::kOverwrite:
    case Do::kAppend:
    case Do::kTruncate:
    case Do::kPunch: {
      Node* file = Pick(Usable(), op.a);
      if (file == nullptr)
        return;
      DataOp change;
      change.kind = op.what == Do::kTruncate ? DataOp::kTruncate
                    : op.what == Do::kPunch  ? DataOp::kZero
                                             : DataOp::kWrite;
      change.value = value_ = value_ % 250 + 1;
      change.off = AnyOffset(file, op.b);
      change.len = 1 + (op.c % 3) * (op.d % 7000);
      if (op.what == Do::kOverwrite) {
        const uint64_t size = file->data.content().size();
        if (size == 0)
          return;
        change.off %= size;
        change.len = std::min(change.len, size - change.off);
      }
      if (op.what == Do::kPunch) {
        change.off &= ~uint64_t{4095};
        change.len = (1 + op.c % 3) * 4096;
      }
      // kNoFile stands for "at the end".
      if (op.what == Do::kAppend)
        change.off = ~0ull;
      return Change(file, change);
    }
    case Do::kRead:
      if (Node* file = Pick(Usable(), op.a))
        ReadSome(file, op);
      return;
    case Do::kStat:
      if (Node* node = Pick(model_.Objects(), op.a))
        StatIt(node);
      return;
    case Do::kFSync:
      if (Node* file = Pick(Usable(), op.a))
        SyncIt(file, op.b % 2 == 0);
      return;
    case Do::kFSyncDir:
      return SyncIt(Pick(model_.Dirs(), op.a), false);
    case Do::kOpen:
      if (Node* file = Pick(model_.Files(), op.a)) {
        if (auto open = Open(file, FlagsFrom(op.b)))
          file->kept.push_back(open);
      }
      return;
    case Do::kClose: {
      std::vector<Node*> open;
      for (const auto& [id, node] : model_.nodes())
        if (!node->kept.empty() && !locked_.contains(id))
          open.push_back(node.get());
      if (Node* file = Pick(open, op.a)) {
        auto closing = file->kept.back();
        file->kept.pop_back();
        if (op.b % 3 == 0 && closing->flags == O_RDWR && closing->backing)
          file->mapping = closing->backing;
        Close(file, closing);
      }
      return;
    }
    case Do::kCreate:
    case Do::kMkDir:
    case Do::kSymLink:
      return MakeObject(op);
    case Do::kUnlink:
    case Do::kRmDir:
      return Remove(op);
    case Do::kRename:
    case Do::kExchange:
      return Rename(op);
    case Do::kLink:
      return LinkIt(op);
    case Do::kChMod:
    case Do::kXattr:
      return Attributes(op);
    case Do::kList:
      return List(Pick(model_.Dirs(), op.a));
    case Do::kPause:
      fibers_.Sleep(static_cast<int64_t>(op.a % 12'000) * 1'000'000);
      return;
    case Do::kMeet:
      return AwaitStall();
  }
}

uint64_t World::AnyOffset(const Node* file, uint64_t draw) const {
  const uint64_t size = file->data.content().size();
  const uint64_t how = draw % 3, more = draw / 3;
  if (how == 0)
    return size - std::min<uint64_t>(size, (more % 3) * 3000);
  static const int64_t kNear[] = {-4097, -1, 0, 1, 100, 4096};
  if (how == 1)
    return static_cast<uint64_t>(
        std::max<int64_t>(0, static_cast<int64_t>(more % 5 * 4096) +
                                 kNear[more / 5 % 6]));
  return more % 22'000;
}

// ---------------------------------------------------------------------- bytes

std::shared_ptr<OpenFile> World::Open(Node* file, int flags) {
  const FileId id = file->id;
  file->opening++;
  for (int tries = 0; tries < 4; tries++) {
    const bool second = file->second;
    // As dispatch_ops.cc: an inode that is direct is open by its first number.
    auto opened = Ask<Result<OpenReply>>(
        FUSE_OPEN, "open " + std::to_string(id) + (second ? "'" : ""),
        [id, flags, second](SimWorker* w, Request*) -> Result<OpenReply> {
          auto is_for = [&](uint32_t backing) {
            return second == (backing == 0 && w->passthrough->NumberOf(id) != id);
          };
          if (!is_for(0))
            return core::Fail(core::ErrorCode::kConflict, "not its number");
          auto reply = w->fs->Open(id, flags);
          if (reply && !is_for(reply->backing)) {
            w->fs->Release(id, reply->fh);
            return core::Fail(core::ErrorCode::kConflict, "not its number");
          }
          return reply;
        });
    if (!opened && opened.error().code == core::ErrorCode::kConflict) {
      file->second = !second;  // looked up again
      continue;
    }
    file->opening--;
    if (!opened) {
      if (!MayFail() && !file->unlinking)
        Fail("open: " + opened.error().ToString());
      LastNameGone(file);
      return nullptr;
    }
    auto open = kernel_.Opened(*file, flags, second, *opened);
    file->opens.push_back(open);
    return open;
  }
  Fail("open: stale by either number");
  return nullptr;
}

void World::PostRelease(Node* file, uint64_t fh) {
  const FileId id = file->id;
  Post(FUSE_RELEASE, "release " + std::to_string(id),
       [this, id, fh](SimWorker* w, Request*) {
         w->fs->Release(id, fh);
         Node* node = model_.Find(id);
         LastNameGone(node);
       });
}

void World::Close(Node* file, const std::shared_ptr<OpenFile>& open) {
  std::erase(file->opens, open);
  PostRelease(file, open->fh);
}

void World::CloseAll(Node* file) {
  file->kept.clear();
  file->mapping = nullptr;
  while (!file->opens.empty())
    Close(file, std::shared_ptr<OpenFile>(file->opens.back()));
}

// ---------------------------------------------------------------- direct files

void World::AskToReopen() {
  while (!over_) {
    fibers_.Sleep(100'000'000);
    if (!aborting_)
      continue;
    std::vector<FileId> direct = worker_->passthrough->Direct();
    if (direct.empty())
      continue;
    to_reopen_ = std::move(direct);
    fibers_.WaitUntil([this] { return to_reopen_.empty(); }, -1);
    // Who was opened meanwhile is asked for again.
    if (Status left = worker_->LeaveDirect(); !left)
      Say("leave direct: ", left.error().ToString());
  }
}

void World::Reopen() {
  while (!over_) {
    fibers_.WaitUntil([this] { return !to_reopen_.empty() || over_; }, -1);
    // Their holders are frozen at once.
    std::set<uint64_t> all(to_reopen_.begin(), to_reopen_.end());
    Lock(all);
    for (FileId id : to_reopen_) {
      Node* file = model_.Find(id);
      if (file == nullptr || file->links == 0)
        continue;
      file->mapping = nullptr;  // mapped again, under the second number
      const auto opens = file->opens;
      for (const auto& open : opens) {
        if (!open->backing)
          continue;
        auto again = Open(file, open->flags);
        if (!again)
          continue;
        std::erase(file->opens, again);
        std::swap(*open, *again);
        Say("reopened ", id);
        PostRelease(file, again->fh);
      }
    }
    to_reopen_.clear();
    Unlock(all);
  }
}

void World::LastNameGone(Node* node) {
  if (node->links == 0 && node->opens.empty() && node->opening == 0)
    forgets_.push_back(node->id);
}

std::optional<std::string> World::ReadAll(FileId id) {
  for (int tries = 0; tries < 30; tries++) {
    auto bytes = std::make_shared<std::string>(2 * kMostBytes, '\0');
    auto got = Ask<Result<size_t>>(
        FUSE_READ, "read all of " + std::to_string(id),
        [id, bytes](SimWorker* w, Request*) {
          return w->fs->Read(id, 0, *bytes);
        });
    if (got) {
      bytes->resize(*got);
      return std::move(*bytes);
    }
    if (!MayFail()) {
      Fail("read: " + got.error().ToString());
      return std::nullopt;
    }
  }
  Fail("a file cannot be read");
  return std::nullopt;
}

void World::Change(Node* file, const DataOp& asked) {
  const FileId id = file->id;
  Lock({id});
  if (file->links == 0 && file->kept.empty())
    return Unlock({id});
  const auto value = static_cast<size_t>(asked.value);
  const bool opens = file->kept.empty();
  const auto open = opens ? Open(file, FlagsFrom(value))
                          : file->kept[value % file->kept.size()];
  if (!open)
    return Unlock({id});
  DataOp op = asked;
  if (op.off == ~0ull)
    op.off = file->data.content().size();
  if (op.kind == DataOp::kWrite && op.off + op.len > kMostBytes)
    op.off = 0;
  const size_t index = file->data.Begin(op);
  const std::string text = " " + std::to_string(id) + " at " +
                           std::to_string(op.off) + "+" +
                           std::to_string(op.len);
  uint64_t done = 0;
  std::string error;
  if (op.kind == DataOp::kWrite) {
    auto wrote = Write(file, op, open);
    done = wrote ? *wrote : 0;
    if (!wrote)
      error = wrote.error().ToString();
    else if (done < op.len)
      error = "short write";
  } else if (op.kind == DataOp::kTruncate) {
    auto cut = Ask<Result<core::Stat>>(
        FUSE_SETATTR, "truncate" + text, [id, op](SimWorker* w, Request*) {
          fusefs::AttrChange change;
          change.size = op.off;
          return w->fs->SetAttr(id, change, Somebody());
        });
    if (!cut)
      error = cut.error().ToString();
    else if (cut->stx_size != op.off)
      Fail("truncated to " + std::to_string(op.off) + ", stat says " +
           std::to_string(cut->stx_size));
    done = 1;
  } else {
    auto punched = Ask<Status>(
        FUSE_FALLOCATE, "punch" + text, [id, op](SimWorker* w, Request*) {
          return w->fs->FAllocate(
              id, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, op.off, op.len);
        });
    if (!punched)
      error = punched.error().ToString();
    done = 1;
  }
  // What the source refuses goes to the target and is synced there, which may
  // tell of a write that was lost before: then neither has it.
  if (error.empty()) {
    file->data.End(index, done);
  } else if (!MayFail() && !(source_full_ && writeback_)) {
    Fail("change of " + std::to_string(id) + ": " + error);
  } else if (auto now = ReadAll(id)) {
    if (std::string wrong = file->data.EndAsSeen(index, *now); !wrong.empty())
      Fail("file " + std::to_string(id) + " " + wrong);
  }
  if (opens)
    Close(file, open);
  Unlock({id});
}

Result<size_t> World::Write(Node* file, const DataOp& op,
                            const std::shared_ptr<OpenFile>& open) {
  const FileId id = file->id;
  const std::string bytes(op.len, static_cast<char>(op.value));
  const std::string text = std::to_string(op.value) + " to " +
                           std::to_string(id) + " at " +
                           std::to_string(op.off) + "+" +
                           std::to_string(op.len);
  const bool inside = op.off + op.len <= file->data.content().size();
  if (auto object = file->mapping && inside ? file->mapping : open->backing) {
    Say(object == file->mapping ? "stores " : "writes directly ", text);
    return sys_.PWrite(object->Get(), bytes.data(), bytes.size(),
                       static_cast<off_t>(op.off));
  }
  return Ask<Result<size_t>>(
      FUSE_WRITE, "write " + text, [id, op, bytes](SimWorker* w, Request*) {
        return w->fs->Write(id, op.off, bytes, O_RDWR, false);
      });
}

void World::ReadSome(Node* file, const Op& op) {
  const FileId id = file->id;
  if (file->links == 0 && file->kept.empty())
    return;
  const auto open = Open(file, O_RDONLY);
  if (!open)
    return;
  const uint64_t off = AnyOffset(file, op.b), len = 1 + op.c % 9000;
  auto watch = file->data.Start();
  auto bytes = std::make_shared<std::string>(len, '\0');
  const auto backing = open->backing;  // it may be opened again meanwhile
  auto got = backing
                 ? sys_.PRead(backing->Get(), bytes->data(), len,
                              static_cast<off_t>(off))
                 : Ask<Result<size_t>>(
                       FUSE_READ,
                       "read " + std::to_string(id) + " at " +
                           std::to_string(off) + "+" + std::to_string(len),
                       [id, off, bytes](SimWorker* w, Request*) {
                         return w->fs->Read(id, off, *bytes);
                       });
  if (got) {
    bytes->resize(*got);
    std::string wrong = file->data.CheckRead(watch, off, len, *bytes);
    if (!wrong.empty())
      Fail("file " + std::to_string(id) + " " + wrong);
  } else if (!MayFail()) {
    Fail("read: " + got.error().ToString());
  }
  Close(file, open);
}

void World::StatIt(Node* node) {
  const FileId id = node->id;
  auto watch = node->data.Start();
  const int begun = node->attr_begun;
  const bool quiet = begun == node->attr_ended;
  auto st = Ask<Result<core::Stat>>(
      FUSE_GETATTR, "stat " + std::to_string(id),
      [id](SimWorker* w, Request*) { return w->fs->GetAttr(id); });
  if (!st) {
    if (!MayFail() && node->links > 0 && !node->unlinking)
      Fail("stat: " + st.error().ToString());
    return;
  }
  if (quiet && begun == node->attr_begun && st->stx_mode != node->mode)
    Fail("stat of " + std::to_string(id) + ": mode " +
         std::to_string(st->stx_mode) + " instead of " +
         std::to_string(node->mode));
  if (node->IsFile())
    if (std::string wrong = node->data.CheckSize(watch, st->stx_size);
        !wrong.empty())
      Fail("file " + std::to_string(id) + " " + wrong);
}

void World::SyncIt(Node* node, bool data_only) {
  const FileId id = node->id;
  std::shared_ptr<OpenFile> open;
  if (node->IsFile()) {
    if (node->links > 0 || !node->kept.empty())
      open = Open(node, data_only ? O_WRONLY : O_RDWR);
    if (!open)
      return;
  }
  auto bytes = node->data.Start();
  auto names = model_.Start();
  const int begun = node->attr_begun;
  const bool quiet = begun == node->attr_ended;
  const std::string xattr = node->xattr;
  const mode_t mode = node->mode;
  auto synced = Ask<Status>(
      node->IsDir() ? FUSE_FSYNCDIR : FUSE_FSYNC,
      "fsync " + std::to_string(id), [id, data_only](SimWorker* w, Request*) {
        return w->fs->FSync(id, data_only);
      });
  if (!synced) {
    if (!MayFail() && !writeback_ && (node->links > 0 || id == state::kRootId)
        && !node->unlinking)
      Fail("fsync: " + synced.error().ToString());
  } else {
    if (node->IsFile())
      node->data.Synced(bytes);
    if (!data_only) {
      // Of a directory: of all names, the source being what it is.
      model_.Synced(names, node->IsDir() ? nullptr : node);
      if (quiet && begun == node->attr_begun) {
        node->modes = {mode};
        node->xattrs = {xattr};
      }
    }
  }
  if (open)
    Close(node, open);
}

// ---------------------------------------------------------------------- names

Result<Entry> World::Lookup(Node* dir, const std::string& name) {
  const FileId id = dir->id;
  return Ask<Result<Entry>>(
      FUSE_LOOKUP, "lookup " + std::to_string(id) + "/" + name,
      [id, name](SimWorker* w, Request*) {
        return w->fs->Lookup(id, name.c_str());
      });
}

void World::NameChange(const std::set<uint64_t>& keys,
                       std::vector<NameEffect> effects,
                       const std::function<bool()>& valid,
                       const std::function<Status(size_t)>& act,
                       const std::function<void()>& happened) {
  Lock(keys);
  if (!valid())
    return Unlock(keys);
  const NameEffect first = effects.front();
  const size_t index = model_.BeginChange(std::move(effects));
  Status status = act(index);
  if (status) {
    happened();
  } else if (!MayFail()) {
    Fail("change of a name: " + status.error().ToString());
  } else {
    // Its application was told that it failed; it may have happened.
    for (int tries = 0; tries < 30; tries++) {
      auto entry = Lookup(model_.Find(first.dir), first.name);
      if (!entry && entry.error().Errno() != ENOENT)
        continue;
      const FileId is = entry ? entry->id : state::kNoFile;
      if (first.becomes == kNewFile ? is != state::kNoFile
                                    : is == first.becomes) {
        if (first.becomes == kNewFile) {
          made_entry_ = *entry;
          model_.Made(index, {first.dir, first.name, is});
        }
        happened();
      }
      break;
    }
  }
  model_.EndChange(index);
  Unlock(keys);
}

void World::MakeObject(const Op& op) {
  Node* dir = Pick(model_.Dirs(), op.a);
  const std::string name = NameOf(op.b);
  const FileId at = dir->id;
  const std::string text =
      Describe(op) + " " + std::to_string(at) + "/" + name;
  Node* made = nullptr;
  std::optional<OpenReply> reply;
  const int flags = FlagsFrom(op.d);
  auto act = [&](size_t index) -> Status {
    Result<Entry> result = Entry{};
    if (op.what == Do::kMkDir) {
      result = Ask<Result<Entry>>(
          FUSE_MKDIR, text, [this, at, name](SimWorker* w, Request* r) {
            auto once = MakeOnce(w, *r);
            return fusefs::MkDirOnce(&once, w->fs.get(), at, name.c_str(),
                                     0755, Somebody());
          });
    } else if (op.what == Do::kSymLink) {
      result = Ask<Result<Entry>>(
          FUSE_SYMLINK, text, [this, at, name](SimWorker* w, Request* r) {
            auto once = MakeOnce(w, *r);
            return fusefs::SymLinkOnce(&once, w->fs.get(), at, name.c_str(),
                                       "text", Somebody());
          });
    } else {
      auto both = Ask<Result<std::pair<Entry, OpenReply>>>(
          FUSE_CREATE, text, [this, at, name, flags](SimWorker* w, Request* r) {
            auto once = MakeOnce(w, *r);
            return fusefs::CreateOnce(&once, w->fs.get(), at, name.c_str(),
                                      flags | O_CREAT | O_EXCL, 0644,
                                      Somebody());
          });
      if (both)
        result = both->first, reply = both->second;
      else
        result = std::unexpected(both.error());
    }
    if (!result)
      return std::unexpected(result.error());
    made_entry_ = *result;
    model_.Made(index, {at, name, result->id});
    return {};
  };
  NameChange(
      {at}, {{at, name, kNewFile}},
      [&] {
        return model_.IsBelow(dir, model_.root()) && !dir->kids.contains(name);
      },
      act,
      [&] {
        if (model_.Find(made_entry_.id) != nullptr)
          return Fail("a new object has the number of an old one");
        made = model_.Make(made_entry_.id, made_entry_.attr.stx_mode);
        if (made->IsLink())
          made->text = "text";
        model_.Put(dir, name, made);
        if (reply) {
          made->opens.push_back(kernel_.Opened(*made, flags, false, *reply));
          made->kept.push_back(made->opens.back());
        }
      });
  if (made == nullptr || !made->IsFile() || Failed())
    return;
  if (op.c % 3 != 0)
    Change(made, {DataOp::kWrite, op.d % 2 == 0 ? 0 : op.d % 20'000,
                  1 + op.c % 6000, value_ = value_ % 250 + 1});
  if (op.c % 2 == 0 && !made->kept.empty()) {
    auto closing = made->kept.back();
    made->kept.pop_back();
    Close(made, closing);
  }
}

void World::Remove(const Op& op) {
  Node* dir = Pick(model_.Dirs(), op.a);
  if (dir->kids.empty())
    return;
  auto it = dir->kids.begin();
  std::advance(it, op.b % dir->kids.size());
  const std::string name = it->first;
  Node* victim = it->second;
  const FileId at = dir->id;
  const bool is_dir = victim->IsDir();
  NameChange(
      {at, victim->id}, {{at, name, state::kNoFile}},
      [&] {
        auto now = dir->kids.find(name);
        const bool ok = model_.IsBelow(dir, model_.root()) &&
                        now != dir->kids.end() && now->second == victim &&
                        victim->kids.empty();
        victim->unlinking = victim->unlinking || ok;
        return ok;
      },
      [&](size_t) {
        return Ask<Status>(
            is_dir ? FUSE_RMDIR : FUSE_UNLINK,
            (is_dir ? "rmdir " : "unlink ") + std::to_string(at) + "/" + name,
            [this, at, name, is_dir](SimWorker* w, Request* r) {
              auto once = MakeOnce(w, *r);
              return is_dir ? fusefs::RmDirOnce(&once, w->fs.get(), at,
                                                name.c_str())
                            : fusefs::UnlinkOnce(&once, w->fs.get(), at,
                                                 name.c_str());
            });
      },
      [&] {
        model_.Take(dir, name);
        LastNameGone(victim);
      });
}

void World::Rename(const Op& op) {
  Node* from = Pick(model_.Dirs(), op.a);
  Node* to = Pick(model_.Dirs(), op.c);
  if (from->kids.empty())
    return;
  auto it = from->kids.begin();
  std::advance(it, op.b % from->kids.size());
  const std::string name = it->first, new_name = NameOf(op.d);
  Node* moving = it->second;
  auto at_new = to->kids.find(new_name);
  Node* victim = at_new == to->kids.end() ? nullptr : at_new->second;
  const bool swap = op.what == Do::kExchange;
  if (victim == moving || (from == to && name == new_name) ||
      (swap && victim == nullptr))
    return;
  std::set<uint64_t> keys{kRenameKey, from->id, to->id, moving->id};
  if (victim != nullptr)
    keys.insert(victim->id);
  std::vector<NameEffect> effects{
      {to->id, new_name, moving->id},
      {from->id, name, swap ? victim->id : state::kNoFile}};
  const FileId from_id = from->id, to_id = to->id;
  auto valid = [&] {
    auto now = from->kids.find(name);
    auto there = to->kids.find(new_name);
    Node* is = there == to->kids.end() ? nullptr : there->second;
    if (now == from->kids.end() || now->second != moving || is != victim ||
        !model_.IsBelow(from, model_.root()) ||
        !model_.IsBelow(to, model_.root()) ||
        (moving->IsDir() && model_.IsBelow(to, moving)))
      return false;
    if (victim == nullptr)
      return true;
    if (swap)
      return !(victim->IsDir() && model_.IsBelow(from, victim));
    const bool ok =
        victim->IsDir() == moving->IsDir() && victim->kids.empty();
    victim->unlinking = victim->unlinking || ok;
    return ok;
  };
  NameChange(
      keys, effects, valid,
      [&](size_t) {
        return Ask<Status>(
            FUSE_RENAME2,
            Describe(op) + " " + std::to_string(from_id) + "/" + name +
                " to " + std::to_string(to_id) + "/" + new_name,
            [this, from_id, name, to_id, new_name, swap](SimWorker* w,
                                                         Request* r) {
              auto once = MakeOnce(w, *r);
              return fusefs::RenameOnce(&once, w->fs.get(), from_id,
                                        name.c_str(), to_id, new_name.c_str(),
                                        swap ? RENAME_EXCHANGE : 0u);
            });
      },
      [&] {
        model_.Take(from, name);
        if (victim != nullptr)
          model_.Take(to, new_name);
        model_.Put(to, new_name, moving);
        if (swap)
          model_.Put(from, name, victim);
        else if (victim != nullptr)
          LastNameGone(victim);
      });
}

void World::LinkIt(const Op& op) {
  std::vector<Node*> objects = model_.Objects();
  std::erase_if(objects, [](Node* n) { return n->IsDir(); });
  Node* node = Pick(objects, op.a);
  Node* dir = Pick(model_.Dirs(), op.b);
  const std::string name = NameOf(op.c);
  if (node == nullptr)
    return;
  const FileId id = node->id, at = dir->id;
  NameChange(
      {id, at}, {{at, name, id}},
      [&] {
        return node->links > 0 && model_.IsBelow(dir, model_.root()) &&
               !dir->kids.contains(name);
      },
      [&](size_t) -> Status {
        auto linked = Ask<Result<Entry>>(
            FUSE_LINK,
            "link " + std::to_string(id) + " at " + std::to_string(at) + "/" +
                name,
            [this, id, at, name](SimWorker* w, Request* r) {
              auto once = MakeOnce(w, *r);
              return fusefs::LinkOnce(&once, w->fs.get(), id, at,
                                      name.c_str());
            });
        if (!linked)
          return std::unexpected(linked.error());
        if (linked->id != id)
          Fail("link made another file");
        return {};
      },
      [&] { model_.Put(dir, name, node); });
}

void World::Attributes(const Op& op) {
  std::vector<Node*> objects = model_.Objects();
  std::erase_if(objects, [](Node* n) { return n->IsLink(); });
  Node* node = Pick(objects, op.a);
  if (node == nullptr)
    return;
  const FileId id = node->id;
  Lock({id});
  if (node->links == 0 && node->kept.empty())
    return Unlock({id});
  node->attr_begun++;
  if (op.what == Do::kChMod) {
    const mode_t mode =
        (node->mode & S_IFMT) | 0600 | static_cast<mode_t>(op.b & 0177);
    node->modes.insert(mode);
    auto changed = Ask<Result<core::Stat>>(
        FUSE_SETATTR, "chmod " + std::to_string(id),
        [id, mode](SimWorker* w, Request*) {
          fusefs::AttrChange change;
          change.mode = mode & 07777;
          return w->fs->SetAttr(id, change, Somebody());
        });
    if (!changed && !MayFail())
      Fail("chmod: " + changed.error().ToString());
    // The source's inode has it before anything else can fail.
    node->mode = mode;
  } else {
    const std::string value = std::to_string(op.b % 100);
    node->xattrs.insert(value);
    auto set = Ask<Status>(
        FUSE_SETXATTR, "setxattr " + std::to_string(id),
        [this, id, value](SimWorker* w, Request* r) {
          auto once = MakeOnce(w, *r);
          return fusefs::SetXattrOnce(&once, w->fs.get(), id, "user.x", value,
                                      0);
        });
    if (!set && !MayFail())
      Fail("setxattr: " + set.error().ToString());
    node->xattr = value;
  }
  node->attr_ended++;
  Unlock({id});
}

void World::List(Node* dir) {
  const FileId id = dir->id;
  Lock({id});
  if (model_.IsBelow(dir, model_.root())) {
    auto items = Ask<Result<std::vector<fusefs::DirItem>>>(
        FUSE_READDIR, "list " + std::to_string(id),
        [id](SimWorker* w, Request*) {
          return w->fs->ReadDir(id, 0, 1 << 16, false);
        });
    std::set<std::string> names, want;
    if (items)
      for (const auto& item : *items)
        if (item.entry.name != "." && item.entry.name != "..")
          names.insert(item.entry.name);
    for (const auto& [name, kid] : dir->kids)
      want.insert(name);
    if (!items && !MayFail())
      Fail("readdir: " + items.error().ToString());
    if (items && names != want)
      Fail("directory " + std::to_string(id) + " lists " +
           std::to_string(names.size()) + " names instead of " +
           std::to_string(want.size()));
  }
  Unlock({id});
}

// --------------------------------------------------------------- the observer

bool World::Look(FileId dir, Model::Seen* seen) {
  auto items = Ask<Result<std::vector<fusefs::DirItem>>>(
      FUSE_READDIR, "observe " + std::to_string(dir),
      [dir](SimWorker* w, Request*) {
        return w->fs->ReadDir(dir, 0, 1 << 16, false);
      });
  if (!items)
    return false;
  for (const auto& item : *items) {
    const std::string& name = item.entry.name;
    if (name == "." || name == "..")
      continue;
    auto entry = Ask<Result<Entry>>(
        FUSE_LOOKUP, "lookup " + std::to_string(dir) + "/" + name,
        [dir, name](SimWorker* w, Request*) {
          return w->fs->Lookup(dir, name.c_str());
        });
    if (!entry)
      return false;
    (*seen)[dir].kids[name] = entry->id;
    if (seen->contains(entry->id))
      continue;
    const FileId id = entry->id;
    Model::SeenObject& object = (*seen)[id];
    object.id = id;
    object.mode = entry->attr.stx_mode;
    object.size = entry->attr.stx_size;
    auto xattr = Ask<Result<std::string>>(
        FUSE_GETXATTR, "getxattr", [id](SimWorker* w, Request*) {
          return w->fs->GetXattr(id, "user.x");
        });
    if (xattr)
      object.xattr = *xattr;
    else if (xattr.error().Errno() != ENODATA)
      return false;
    if (S_ISDIR(object.mode) && !Look(id, seen))
      return false;
    if (S_ISREG(object.mode)) {
      auto bytes = ReadAll(id);
      if (!bytes)
        return false;
      (*seen)[id].content = *bytes;
      if (bytes->size() != (*seen)[id].size)
        Fail("file " + std::to_string(id) + ": stat says " +
             std::to_string((*seen)[id].size) + " bytes, read returns " +
             std::to_string(bytes->size()));
    }
  }
  return true;
}

void World::Observe() {
  // A write of a dead worker for a dead application may land until that
  // worker is gone (rule 1: the successor serves meanwhile). Nobody was told
  // that it happened, nor that it did not; what is seen afterwards stays.
  fibers_.WaitUntil([this] { return ghosts_.empty() || Failed(); }, -1);
  for (int tries = 0; tries < 30 && !Failed(); tries++) {
    Model::Seen seen;
    Model::SeenObject& root = seen[state::kRootId];
    root.id = state::kRootId;
    root.mode = model_.root()->mode;
    if (!Look(state::kRootId, &seen)) {
      if (!MayFail())
        Fail("the tree cannot be read after a crash");
      continue;
    }
    if (Failed())
      return;
    std::string wrong = model_.Adopt(seen, after_cut_);
    if (!wrong.empty())
      return Fail(wrong);
    // What lost its last name in a request that died with its application: the
    // kernel lets go of it at the lookups above.
    for (const auto& [id, node] : model_.nodes())
      LastNameGone(node.get());
    Say("observed: ", seen.size(), " objects");
    observing_ = after_cut_ = false;
    return;
  }
  Fail("the tree cannot be read");
}

}  // namespace livemv::sim
