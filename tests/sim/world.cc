// The host: requests, fate, crashes and the end. What applications do is in
// world_ops.cc.

#include "tests/sim/world.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <sstream>

#include "fusefs/fuse_wire.h"
#include "tests/sim/world_say.h"

namespace livemv::sim {

using fake::FakeSyscalls;

World::World(const Plan& plan, const Switches& on, bool trace)
    : plan_(plan), on_(on), trace_(trace), fibers_(plan.interleaving),
      kernel_(&sys_, [this](const std::string& why) { Fail(why); }),
      transport_(-1, &saved_init_) {
  source_ = sys_.AddFs(FakeSyscalls::Kind::kLocal);
  target_ = sys_.AddFs(plan.target);
  journal_ = sys_.AddFs(FakeSyscalls::Kind::kOrdered);
  orphans_ = std::make_unique<Orphans>(&sys_);
  intents_ = std::make_unique<char[]>(fusefs::IntentTable::Bytes());
  sys_.on_call = [this](const FakeSyscalls::Call& call) {
    return OnCall(call);
  };
  sys_.lying_sync = [this](FakeSyscalls::FsId fs, const char* call) {
    if (fs == source_ && std::strcmp(call, "syncfs") == 0)
      return !on_.barrier_sync;
    return fs == journal_ && !ready_ && !on_.recovery_sync;
  };
}

World::~World() {
  // Fibers that were dropped leave their frames' memory behind; what the
  // workers owned is freed here, outside the scheduler.
  sys_.on_call = nullptr;
}

void World::Fail(const std::string& why) {
  if (failure_.empty())
    failure_ = why;
  Say("FAILED: ", why);
}

// ---------------------------------------------------------------- the kernel

fusefs::Once World::MakeOnce(SimWorker* w, const Request& request) {
  header_ = {};
  header_.opcode = request.opcode;
  header_.unique = request.unique;
  if (request.resent && on_.intents)
    header_.unique |= fusefs::wire::kResentBit;
  transport_.SetRequest(&header_);
  return fusefs::Once(w->intents.get());
}

void World::Post(uint32_t opcode, std::string text,
                 std::function<void(SimWorker*, Request*)> serve) {
  auto request = std::make_shared<Request>();
  request->unique = next_unique_;
  next_unique_ += 2;
  request->opcode = opcode;
  request->text = std::move(text);
  request->serve = std::move(serve);
  queue_.push_back(std::move(request));
}

void World::Serve(SimWorker* w) {
  for (;;) {
    fibers_.WaitUntil([this] { return !queue_.empty() || !forgets_.empty(); },
                      -1);
    if (!forgets_.empty()) {
      FileId id = forgets_.front();
      forgets_.pop_front();
      Say("forget ", id);
      w->fs->Forget(id);
      continue;
    }
    std::shared_ptr<Request> request = queue_.front();
    queue_.pop_front();
    taken_.push_back(request);
    fibers_.Yield();
    Say(request->resent ? "serves again: " : "serves: ", request->text);
    request->serve(w, request.get());
    Say("answers: ", request->text);
    request->done = true;
    std::erase(taken_, request);
  }
}

void World::Lock(std::set<uint64_t> keys) {
  auto free = [&] {
    for (uint64_t key : keys)
      if (locked_.contains(key))
        return false;
    return true;
  };
  fibers_.WaitUntil(free, -1);
  locked_.insert(keys.begin(), keys.end());
}

void World::Unlock(const std::set<uint64_t>& keys) {
  for (uint64_t key : keys)
    locked_.erase(key);
}

// ------------------------------------------------------------------- the host

void World::Plant() {
  core::UniqueFd root = sys_.OpenRoot(source_);
  auto id_of = [&](const std::string& path) {
    auto handle = sys_.NameToHandle(root.Get(), path.c_str());
    return *state::NodeTable::Pack(*handle);
  };
  auto add = [&](const std::string& path, mode_t mode) {
    size_t slash = path.rfind('/');
    Node* dir = model_.root();
    if (slash != std::string::npos)
      dir = model_.Paths()[path.substr(0, slash)];
    Node* node = model_.Find(id_of(path));
    if (node == nullptr)
      node = model_.Make(id_of(path), mode);
    model_.Put(dir, path.substr(slash + 1), node);
    return node;
  };
  bool ok = true;
  for (const char* dir : {"a", "b", "b/c"}) {
    ok = ok && sys_.MkDirAt(root.Get(), dir, 0755);
    add(dir, S_IFDIR | 0755);
  }
  int files = plan_.world->files;
  for (const char* file : {"c", "a/a", "b/c/b"}) {
    if (files-- <= 0)
      break;
    auto fd = sys_.OpenAt(root.Get(), file, O_RDWR | O_CREAT, 0644);
    uint64_t size = std::min<uint64_t>(
        fibers_.Draw(5) * 8192 / 2 + fibers_.Draw(3) * 2049, 20000);
    std::string bytes(size, static_cast<char>(251));
    for (uint64_t at = 0; at < size; at += 4096)
      if (fibers_.Draw(4) == 0)  // holes
        std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(at),
                    std::min<uint64_t>(4096, size - at), '\0');
    ok = ok && fd && sys_.FTruncate(fd->Get(), size);
    for (uint64_t at = 0; at < size; at += 4096)
      if (bytes[at] != 0)
        ok = ok && sys_.PWrite(fd->Get(), bytes.data() + at,
                               std::min<uint64_t>(4096, size - at),
                               static_cast<off_t>(at));
    add(file, S_IFREG | 0644)->data.Reset(bytes);
  }
  if (plan_.world->files > 1) {
    auto fd = sys_.OpenAt(root.Get(), "a/a", O_PATH, 0);
    ok = ok && fd && sys_.LinkFd(fd->Get(), root.Get(), "b/b");
    add("b/b", S_IFREG | 0644);
  }
  sys_.MakeAllDurable(source_);
  state::JournalOptions options;
  options.reserve_bytes = options.step_bytes = 16 << 10;
  core::UniqueFd dir = sys_.OpenRoot(journal_);
  auto handle = sys_.NameToHandle(root.Get(), "");
  auto made = state::JournalFile::Create(
      &sys_, dir.Get(), "journal",
      state::MigrationFact{"sim", "/source", "/target", *handle}, options);
  if (!ok || !made)
    Fail("the stage cannot be set");
  Settled();
}

// Initial names are durable.
void World::Settled() {
  Model::Watch all = model_.Start();
  model_.Synced(all, nullptr);
}

std::string World::Run() {
  Plant();
  if (!Failed()) {
    fibers_.Spawn("fate", kOutside, [this] { Fate(); });
    if (!fibers_.Run([this] { return over_ || Failed(); }, 400'000) &&
        !Failed())
      Fail("stuck or too long: " + fibers_.Stuck());
  }
  for (int group : {int{kApplications}, group_, int{kOutside}})
    fibers_.Kill(group);
  return failure_;
}

void World::StartWorker() {
  group_++;
  lives_++;
  ready_ = false;
  Host host;
  host.sys = &sys_;
  host.source = source_;
  host.target = target_;
  host.journal = journal_;
  host.fibers = &fibers_;
  host.on = &on_;
  host.orphans = orphans_.get();
  host.backing_ids = &kernel_;
  host.same_mount = served_;
  host.intents = intents_.get();
  host.boot_id = "boot " + std::to_string(on_.boot_id ? boots_ : 1);
  host.group = group_;
  host.aborting = aborting_;
  host.durable_target = plan_.target == FakeSyscalls::Kind::kNfs;
  host.predecessor_alive = !ghosts_.empty();
  host.batch_bytes = plan_.batch_bytes;
  host.verify = plan_.verify;
  // After a host crash nobody holds descriptors that were not counted, but
  // the daemon calls every worker but the first a successor.
  host.resume = lives_ > 1;
  host.scanned = scanned_;
  fibers_.Spawn("start", group_, [this, host] {
    for (int tries = 0;; tries++) {
      auto made = SimWorker::Make(host);
      if (made) {
        worker_ = std::move(*made);
        break;
      }
      if (!trouble_ || tries > 20)
        return Fail("the worker does not start: " + made.error().ToString());
    }
    worker_->Start();
    for (int i = 0; i < 3; i++)
      fibers_.Spawn("server", host.group, [this] { Serve(worker_.get()); });
    fibers_.Spawn("reopen", host.group, [this] { AskToReopen(); });
    ready_ = served_ = true;
    Say("worker ", lives_, " serves");
  });
}

void World::Bury() {
  ready_ = false;
  stalling_ = 0;
  if (!worker_)
    return;
  scanned_ = worker_->Scanned();
  dead_.push_back(std::move(worker_));
}

void World::Kill(bool applications) {
  Say(applications ? "=== kill -9 of the worker and all applications"
                   : "=== kill -9 of the worker");
  fibers_.Kill(group_);
  Bury();
  for (auto& hanging : hanging_)
    if (hanging->group == group_)
      ghosts_.push_back(std::move(hanging->ghost));
  hanging_.clear();
  std::set<int> kept;
  for (const auto& [id, fd] : orphans_->fds)
    kept.insert(fd.Get());
  for (const Ghost& ghost : ghosts_)
    kept.insert(ghost.fd.Get());
  kept.merge(kernel_.Held());
  sys_.CloseAllBut(kept);
  if (applications) {
    fibers_.Kill(kApplications);
    queue_.clear();
    taken_.clear();
    locked_.clear();
    // Their descriptors close.
    for (const auto& [id, node] : model_.nodes()) {
      CloseAll(node.get());
      if (node->links == 0)
        forgets_.push_back(id);
    }
    observing_ = true;
  } else {
    while (!taken_.empty()) {
      taken_.back()->resent = true;
      queue_.push_front(taken_.back());
      taken_.pop_back();
    }
  }
  if (fibers_.Draw(2) == 0)
    LandGhosts();
  if (!ghosts_.empty())
    fibers_.Spawn("ghosts", kOutside, [this] {
      while (!ghosts_.empty()) {
        int64_t wait = ghosts_.front().when - fibers_.NowNs();
        if (wait > 0)
          fibers_.Sleep(wait);
        else
          LandOne();
      }
      fibers_.WaitUntil([this] { return ready_ || over_; }, -1);
      if (worker_ && ghosts_.empty())
        worker_->ledger->SetPredecessorAlive(false);
    });
  StartWorker();
  if (applications)
    StartApplications();
}

void World::LandOne() {
  Ghost ghost = std::move(ghosts_.front());
  ghosts_.pop_front();
  Say("a dead worker's write of ", ghost.bytes.size(), " bytes at ", ghost.off,
      " lands");
  sys_.SetYield(false);
  // Whether it succeeds is nobody's business any more.
  (void)sys_.PWrite(ghost.fd.Get(), ghost.bytes.data(), ghost.bytes.size(),
                    static_cast<off_t>(ghost.off));
  sys_.SetYield(true);
}

void World::LandGhosts() {
  while (!ghosts_.empty())
    LandOne();
}

void World::PowerCut() {
  Say("=== power cut");
  fibers_.Kill(group_);
  fibers_.Kill(kApplications);
  Bury();
  queue_.clear();
  taken_.clear();
  forgets_.clear();
  locked_.clear();
  hanging_.clear();
  stalls_.clear();
  ghosts_.clear();
  orphans_->fds.clear();
  kernel_.Clear();
  served_ = false;
  to_reopen_.clear();
  for (const auto& [id, node] : model_.nodes()) {
    node->opens.clear();
    node->kept.clear();
    node->mapping = nullptr;
    node->second = false;
  }
  sys_.ClearFailures();
  sys_.PowerCut(fibers_.rng());
  std::memset(intents_.get(), 0, fusefs::IntentTable::Bytes());
  boots_++;
  observing_ = after_cut_ = true;
  StartWorker();
  StartApplications();
}

int World::OnCall(const FakeSyscalls::Call& call) {
  if (trace_)
    Say(call.name, " fs ", call.fs, " ino ", call.ino, " off ", call.off,
        " len ", call.len);
  if (fibers_.CurrentGroup() != group_)
    return 0;
  if (awaited_ != nullptr && Is(*awaited_, call))
    awaited_ = nullptr;
  for (auto it = stalls_.begin(); it != stalls_.end(); ++it) {
    if (!Is(*it->call, call) || it->skip-- > 0)
      continue;
    const int64_t ns = it->ns;
    stalls_.erase(it);
    Say("stalls in ", call.name, " of ", call.ino, " at ", call.off);
    stalling_++;
    fibers_.Sleep(ns);
    stalling_--;
    break;
  }
  if (hangs_left_ == 0 || call.fs != target_)
    return 0;
  const bool write = std::strcmp(call.name, "PWrite") == 0;
  if (!write && std::strcmp(call.name, "FSync") != 0)
    return 0;
  hangs_left_--;
  Say("target hangs in ", call.name, " at ", call.off);
  auto hanging = std::make_shared<Hanging>();
  if (write) {
    hanging->group = group_;
    hanging->ghost = {sys_.Dup(call.fd), std::string(call.bytes, call.len),
                      call.off, fibers_.NowNs() + hang_ns_};
    hanging_.push_back(hanging);
  }
  fibers_.Sleep(hang_ns_);
  std::erase(hanging_, hanging);
  return 0;
}

bool World::Is(const CallAt& at, const FakeSyscalls::Call& call) const {
  const FakeSyscalls::FsId fs = at.where == Where::kSource   ? source_
                                : at.where == Where::kTarget ? target_
                                                             : journal_;
  return call.fs == fs && std::strcmp(call.name, at.name) == 0 &&
         (*at.who == 0 || std::strcmp(fibers_.CurrentName(), at.who) == 0);
}

void World::AwaitCall(const CallAt& call, uint64_t times) {
  const int64_t end_ns = fibers_.NowNs() + 15'000'000'000;
  for (; times > 0; times--) {
    awaited_ = &call;
    fibers_.WaitUntil([this] { return awaited_ == nullptr || Failed(); },
                      end_ns);
  }
  awaited_ = nullptr;
}

void World::AwaitStall() {
  constexpr int64_t kLongestNs = 12'000'000'000;
  fibers_.WaitUntil([this] { return stalling_ > 0 || Failed(); },
                    fibers_.NowNs() + kLongestNs);
}

void World::LoseWriteback(uint64_t draw) {
  if (!worker_)
    return;
  std::vector<Node*> files = model_.Files();
  for (size_t i = 0; i < files.size(); i++) {
    Node* file = files[(i + draw) % files.size()];
    fusefs::FileRef r = worker_->table->Find(file->id);
    auto object = worker_->objects->Find(file->id);
    if (!r || !object || !file->data.Quiet(file->data.Start()))
      continue;
    // Only bytes that the source has too: others are lost by right.
    if (!r->direct && r->facts.size_known && r->facts.pinned && !r->cut &&
        r->becoming_remote.empty() && r->facts.map.RemoteBytes() == 0 &&
        r->facts.size == r->facts.map.local_end() &&
        sys_.LoseWriteback(target_, object->ino, fibers_.rng())) {
      Say("=== the target lost a write of ", file->id);
      return;
    }
  }
}

void World::Happen(const Event& event) {
  mishaps_++;
  switch (event.what) {
    case Mishap::kKill:
      return Kill(false);
    case Mishap::kKillAll:
      return Kill(true);
    case Mishap::kPowerCut:
      return PowerCut();
    case Mishap::kTargetFails: {
      static const char* const kCalls[] = {"PWrite", "FSync", "FTruncate",
                                           "PRead",  "SyncFs", "RenameAt",
                                           "ChMod",  "StatAt"};
      trouble_ = true;
      Say("=== target will fail ", kCalls[event.a % 8]);
      sys_.FailNext(kCalls[event.a % 8], target_,
                    event.a % 2 == 0 ? EIO : ENOSPC,
                    1 + static_cast<int>(event.a / 8 % 3));
      return;
    }
    case Mishap::kSourceFull:
      source_full_ = true;
      Say("=== source will refuse writes");
      sys_.FailNext("PWrite", source_, event.a % 2 == 0 ? ENOSPC : EIO,
                    1 + static_cast<int>(event.a % 3));
      return;
    case Mishap::kWriteback:
      writeback_ = true;
      return LoseWriteback(event.a);
    case Mishap::kHang:
      hangs_left_ = 1 + static_cast<int>(event.a % 2);
      hang_ns_ = static_cast<int64_t>(500 + event.a * 8) * 1'000'000;
      return;
    case Mishap::kStall: {
      // From "the others get their turn" to longer than a barrier's pause.
      static const int64_t kMs[] = {1, 400, 3000, 6000};
      stalls_.push_back({event.call, event.a % 2 * (event.a / 8 % 4),
                         kMs[event.a / 2 % 4] * 1'000'000});
      return;
    }
    case Mishap::kAbort:
      fibers_.WaitUntil([this] { return ready_; }, -1);
      Say("=== abort");
      aborting_ = true;
      fibers_.Spawn("abort", group_, [this] {
        if (auto begun = worker_->BeginAbort(); !begun)
          Fail("abort: " + begun.error().ToString());
      });
      return;
  }
}

void World::Fate() {
  StartWorker();
  StartApplications();
  for (const Event& event : plan_.events) {
    fibers_.WaitUntil(
        [&] { return ops_begun_ >= event.after_ops || applications_ == 0; },
        -1);
    if (event.a % 5 == 0)
      fibers_.Sleep(static_cast<int64_t>(event.a) * 15'000'000);
    if (event.in_stall)
      AwaitStall();
    if (event.call != nullptr && event.what != Mishap::kStall)
      AwaitCall(*event.call, event.times);
    for (uint64_t i = 0; i < event.steps && !Failed(); i++)
      fibers_.Yield();
    if (Failed())
      return;
    Happen(event);
  }
  fibers_.WaitUntil([this] { return applications_ == 0 || Failed(); }, -1);
  if (!Failed())
    Finish();
  over_ = true;
}

// -------------------------------------------------------------------- the end

void World::Finish() {
  Say("=== applications are done");
  sys_.ClearFailures();
  hangs_left_ = 0;
  stalls_.clear();
  for (const auto& [id, node] : model_.nodes())
    CloseAll(node.get());
  std::string why = "no worker";
  for (int i = 0; i < 1500 && !Failed(); i++) {
    fibers_.Sleep(i < 100 ? 20'000'000 : 1'000'000'000);
    if (!ready_ || !queue_.empty() || !taken_.empty() || !forgets_.empty())
      continue;
    if (aborting_) {
      why = "copy-back goes on";
      if (!worker_->back_done)
        continue;
      auto committed = worker_->CommitSource();
      if (committed)
        return CheckBack();
      why = committed.error().ToString();
      continue;
    }
    why = worker_->Proof().WhyNotSynced().value_or("");
    if (!why.empty())
      continue;
    Say("=== synced");
    auto committed = worker_->Commit();
    if (committed)
      return CheckMoved();
    why = committed.error().ToString();
    Say("commit: ", why);
  }
  if (!Failed())
    Fail((aborting_ ? "does not come back: " : "does not become synced: ") +
         why);
}

namespace {

// Without what may differ: bytes and sizes are compared elsewhere, the mark of
// placeholders is ours, times of what is direct are the target's.
std::string Strip(const std::string& line, bool times) {
  std::istringstream in(line);
  std::string out, word;
  while (in >> word)
    if (word[0] != '#' && !word.starts_with("size=") &&
        !word.starts_with(fusefs::kMarkXattr) &&
        (times || !word.starts_with("mtime=")))
      out += word + " ";
  return out;
}

}  // namespace

void World::CheckTree(FakeSyscalls::FsId fs, const char* where) {
  auto paths = model_.Paths();
  std::set<std::string> known{"."};
  for (const auto& [path, node] : paths) {
    known.insert(path);
    auto ino = sys_.InoOf(fs, path);
    if (!ino)
      return Fail(std::string(where) + " lacks " + path);
    if (node->IsFile()) {
      const std::string bytes = sys_.Content(fs, *ino);
      const std::string& want = node->data.content();
      size_t at = 0;
      while (at < bytes.size() && at < want.size() && bytes[at] == want[at])
        at++;
      if (bytes != want)
        return Fail(std::string(where) + ": " + path + " (" +
                    std::to_string(node->id) + ") differs from byte " +
                    std::to_string(at) + ", " + std::to_string(bytes.size()) +
                    " bytes instead of " + std::to_string(want.size()));
    }
  }
  for (const std::string& line : sys_.Tree(fs)) {
    std::string path = line.substr(0, line.find(' '));
    if (!known.contains(path))
      return Fail(std::string(where) + " has " + path);
    if (path == ".")
      continue;
    const Node* node = paths[path];
    char mode[16];
    snprintf(mode, sizeof mode, " %06o ", static_cast<unsigned>(node->mode));
    if (line.find(mode) == std::string::npos)
      return Fail(std::string(where) + ": " + line + " should be" + mode);
    if (!node->xattr.empty() &&
        line.find(" user.x=" + node->xattr) == std::string::npos)
      return Fail(std::string(where) + ": " + line + " should have " +
                  node->xattr);
  }
}

void World::CheckMoved() {
  CheckTree(target_, "the target");
  if (Failed())
    return;
  std::vector<std::string> source = sys_.Tree(source_, {}, true);
  std::vector<std::string> target = sys_.Tree(target_, {}, true);
  const std::vector<FileId> direct = worker_->passthrough->Direct();
  auto paths = model_.Paths();
  for (size_t i = 0; i < source.size() && i < target.size(); i++) {
    auto it = paths.find(source[i].substr(0, source[i].find(' ')));
    const bool times =
        it == paths.end() || std::ranges::find(direct, it->second->id) == direct.end();
    if (Strip(source[i], times) != Strip(target[i], times))
      return Fail("the target has " + Strip(target[i], times) + " for " +
                  Strip(source[i], times));
  }
  if (plan_.target != FakeSyscalls::Kind::kNfs)
    return;
  // What was proved is durable.
  fibers_.Kill(group_);
  dead_.push_back(std::move(worker_));
  sys_.PowerCut(fibers_.rng());
  CheckTree(target_, "the target after a power cut");
}

void World::CheckBack() {
  CheckTree(source_, "the source");
}

}  // namespace livemv::sim
