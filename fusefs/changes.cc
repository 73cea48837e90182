#include "fusefs/changes.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>
#include <cerrno>
#include <string>

namespace livemv::fusefs {
namespace {

using core::Result;
using core::Status;

bool Is(const core::Error& error, int err) {
  return error.Errno() == err;
}

// A removal again: that the thing is gone is what was asked.
Status OrGone(Status status, int gone) {
  if (!status && Is(status.error(), gone))
    return {};
  return status;
}

// A kill can fall between making an inode as root and giving it to the
// caller. What belongs to anybody but root is finished, or not ours.
Result<Entry> MendOwner(FsCore* core, FileId dir, Entry entry, mode_t mode,
                        const Caller& caller) {
  if (entry.attr.stx_uid != 0 || (caller.uid == 0 && caller.gid == 0))
    return entry;
  ASSIGN_OR_RETURN(core::Stat parent, core->GetAttr(dir));
  AttrChange change;
  gid_t gid = (parent.stx_mode & S_ISGID) != 0 ? parent.stx_gid : caller.gid;
  if (entry.attr.stx_uid == caller.uid && entry.attr.stx_gid == gid)
    return entry;
  change.uid = caller.uid;
  change.gid = gid;
  // chown drops setuid and setgid; the filesystem computed the rest of the
  // mode (default ACL, umask) when it made the inode.
  if (!S_ISLNK(entry.attr.stx_mode) && (mode & 07000) != 0)
    change.mode = (entry.attr.stx_mode | mode) & 07777;
  ASSIGN_OR_RETURN(entry.attr, core->SetAttr(entry.id, change, caller));
  return entry;
}

// The repetition of something that makes a name: if it is there now, the
// predecessor made it, given that it looks as asked.
template <class Make>
Result<Entry> MakeAgain(FsCore* core, FileId dir, const char* name, mode_t mode,
                        const Caller& caller, Make make) {
  Result<Entry> made = make();
  if (made || !Is(made.error(), EEXIST))
    return made;
  Result<Entry> found = core->Lookup(dir, name);
  if (!found || (found->attr.stx_mode & S_IFMT) != (mode & S_IFMT))
    return made;
  return MendOwner(core, dir, *found, mode, caller);
}

template <class Make>
Result<Entry> MakeOnce(Once* once, FsCore* core, FileId dir, const char* name,
                       mode_t mode, const Caller& caller, Make make) {
  return once->Do<Result<Entry>>(
      make, [&] { return MakeAgain(core, dir, name, mode, caller, make); },
      [&] { return core->Lookup(dir, name); });
}

Result<std::pair<Entry, OpenReply>> OpenMade(FsCore* core, FileId dir,
                                             const char* name, int flags) {
  ASSIGN_OR_RETURN(Entry entry, core->Lookup(dir, name));
  ASSIGN_OR_RETURN(
      OpenReply open,
      core->Open(entry.id, flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_NOCTTY)));
  return std::pair(entry, open);
}

Status Nothing() {
  return {};
}

}  // namespace

Status UnlinkOnce(Once* once, FsCore* core, FileId dir, const char* name) {
  auto run = [&] { return core->Unlink(dir, name); };
  return once->Do<Status>(
      run, [&] { return OrGone(run(), ENOENT); }, Nothing);
}

Status RmDirOnce(Once* once, FsCore* core, FileId dir, const char* name) {
  auto run = [&] { return core->RmDir(dir, name); };
  return once->Do<Status>(
      run, [&] { return OrGone(run(), ENOENT); }, Nothing);
}

Status RenameOnce(Once* once, FsCore* core, FileId dir, const char* name,
                  FileId new_dir, const char* new_name, unsigned flags) {
  // After an exchange or a whiteout the old name still exists: only what it
  // named before tells whether it happened.
  bool swaps = (flags & (RENAME_EXCHANGE | RENAME_WHITEOUT)) != 0;
  if (swaps && once->Fresh()) {
    ASSIGN_OR_RETURN(Entry before, core->Lookup(dir, name));
    once->SetNote(before.id);
  }
  auto run = [&] { return core->Rename(dir, name, new_dir, new_name, flags); };
  auto repair = [&]() -> Status {
    if (swaps) {
      Result<Entry> now = core->Lookup(dir, name);
      if (now && now->id == once->note())
        return run();
      if (!now && !Is(now.error(), ENOENT))
        return std::unexpected(now.error());
      return {};
    }
    Status status = run();
    // Gone from the old name and there at the new one: it happened.
    if (!status && Is(status.error(), ENOENT) &&
        core->Lookup(new_dir, new_name))
      return {};
    return status;
  };
  return once->Do<Status>(run, repair, Nothing);
}

Result<Entry> MkDirOnce(Once* once, FsCore* core, FileId dir, const char* name,
                        mode_t mode, const Caller& caller) {
  return MakeOnce(once, core, dir, name, (mode & 07777) | S_IFDIR, caller,
                  [&] { return core->MkDir(dir, name, mode, caller); });
}

Result<Entry> MkNodOnce(Once* once, FsCore* core, FileId dir, const char* name,
                        mode_t mode, dev_t dev, const Caller& caller) {
  mode_t full = (mode & S_IFMT) != 0 ? mode : mode | S_IFREG;
  return MakeOnce(once, core, dir, name, full, caller,
                  [&] { return core->MkNod(dir, name, mode, dev, caller); });
}

Result<Entry> SymLinkOnce(Once* once, FsCore* core, FileId dir,
                          const char* name, const char* text,
                          const Caller& caller) {
  return MakeOnce(once, core, dir, name, S_IFLNK | 0777, caller,
                  [&] { return core->SymLink(dir, name, text, caller); });
}

Result<Entry> LinkOnce(Once* once, FsCore* core, FileId id, FileId dir,
                       const char* name) {
  auto run = [&] { return core->Link(id, dir, name); };
  auto repair = [&]() -> Result<Entry> {
    Result<Entry> made = run();
    if (made || !Is(made.error(), EEXIST))
      return made;
    Result<Entry> found = core->Lookup(dir, name);
    return found && found->id == id ? found : made;
  };
  return once->Do<Result<Entry>>(run, repair,
                                 [&] { return core->Lookup(dir, name); });
}

Result<std::pair<Entry, OpenReply>> CreateOnce(Once* once, FsCore* core,
                                               FileId dir, const char* name,
                                               int flags, mode_t mode,
                                               const Caller& caller) {
  using Made = Result<std::pair<Entry, OpenReply>>;
  auto run = [&] { return core->Create(dir, name, flags, mode, caller); };
  auto repair = [&]() -> Made {
    Made made = run();
    if (!made && Is(made.error(), EEXIST)) {
      Made opened = OpenMade(core, dir, name, flags);
      if (!opened || !S_ISREG(opened->first.attr.stx_mode)) {
        if (opened)
          core->Release(opened->first.id, opened->second.fh);
        return made;
      }
      made = std::move(opened);
    }
    if (!made)
      return made;
    Result<Entry> mended =
        MendOwner(core, dir, made->first, mode & 07777, caller);
    if (!mended) {
      core->Release(made->first.id, made->second.fh);
      return std::unexpected(mended.error());
    }
    made->first = *mended;
    return made;
  };
  return once->Do<Made>(run, repair,
                        [&] { return OpenMade(core, dir, name, flags); });
}

Result<OpenReply> OpenOnce(Once* once, FsCore* core, FileId id, int flags) {
  auto run = [&] { return core->Open(id, flags); };
  return once->Do<Result<OpenReply>>(
      run, run, [&] { return core->Open(id, flags & ~O_TRUNC); });
}

Status SetXattrOnce(Once* once, FsCore* core, FileId id, const char* name,
                    std::string_view value, int flags) {
  auto run = [&] { return core->SetXattr(id, name, value, flags); };
  auto repair = [&]() -> Status {
    Status status = run();
    if (status || !Is(status.error(), EEXIST))
      return status;
    Result<std::string> now = core->GetXattr(id, name);
    return now && *now == value ? Status{} : status;
  };
  return once->Do<Status>(run, repair, Nothing);
}

Status RemoveXattrOnce(Once* once, FsCore* core, FileId id, const char* name) {
  auto run = [&] { return core->RemoveXattr(id, name); };
  return once->Do<Status>(
      run, [&] { return OrGone(run(), ENODATA); }, Nothing);
}

Result<size_t> AppendOnce(Once* once, FsCore* core, FileId id, uint64_t off,
                          std::span<const char> data, int open_flags,
                          bool kill_suidgid) {
  if (once->Fresh()) {
    ASSIGN_OR_RETURN(core::Stat before, core->GetAttr(id));
    once->SetNote(before.stx_size);
  }
  auto run = [&]() -> Result<size_t> {
    Result<size_t> wrote = core->Write(id, off, data, open_flags, kill_suidgid);
    if (wrote)
      once->SetValue(*wrote);
    return wrote;
  };
  auto repair = [&]() -> Result<size_t> {
    ASSIGN_OR_RETURN(core::Stat now, core->GetAttr(id));
    // What came since the note, others' records included, as far as it is
    // sensible to look: ours lies near the note.
    constexpr uint64_t kLookAt = 16u << 20;
    if (now.stx_size > once->note()) {
      std::string tail(std::min<uint64_t>(now.stx_size - once->note(), kLookAt),
                       '\0');
      ASSIGN_OR_RETURN(size_t got, core->Read(id, once->note(), tail));
      tail.resize(got);
      if (tail.find(std::string_view(data.data(), data.size())) !=
          std::string::npos) {
        once->SetValue(data.size());
        return data.size();
      }
    }
    return run();
  };
  return once->Do<Result<size_t>>(run, repair, [&]() -> Result<size_t> {
    return static_cast<size_t>(once->recorded_value());
  });
}

}  // namespace livemv::fusefs
