// Names and attributes: the source's until cutover, with a redo record begun
// before each change (rule 3).

#include <fcntl.h>

#include <cerrno>

#include "core/fault_points.h"
#include "core/log.h"
#include "fusefs/capability.h"
#include "fusefs/overlay_fs.h"

namespace livemv::fusefs {

core::Result<Redo::Change> OverlayFs::Begin(const Pass& pass,
                                            std::vector<Place> places) {
  if (!pass.Split())
    return Redo::Change();
  return parts_.redo->Begin(std::move(places));
}

core::Result<Redo::Change> OverlayFs::BeginAdding(const Pass& pass, FileId dir,
                                                  const char* name) {
  if (!pass.Split())
    return Redo::Change();
  return parts_.redo->BeginAdding({dir, name});
}

core::Result<Entry> OverlayFs::Completed(core::Result<Entry> entry) {
  if (entry && S_ISREG(entry->attr.stx_mode))
    TRY(parts_.data->Complete(entry->id, &entry->attr));
  return entry;
}

core::Result<Entry> OverlayFs::Lookup(FileId dir, const char* name) {
  Pass pass(this, Pass::Kind::kBytes);
  return LookAgain([&] { return Completed(pass.ops().Lookup(dir, name)); });
}

core::Result<core::Stat> OverlayFs::GetAttr(FileId id) {
  Pass pass(this, Pass::Kind::kBytes);
  return GetAttrIn(pass, id);
}

core::Result<core::Stat> OverlayFs::GetAttrIn(const Pass& pass, FileId id) {
  return LookAgain([&]() -> core::Result<core::Stat> {
    ASSIGN_OR_RETURN(core::Stat st, pass.ops().GetAttr(id));
    if (S_ISREG(st.stx_mode))
      TRY(parts_.data->Complete(id, &st));
    return st;
  });
}

core::Status OverlayFs::DropPrivileges(const Pass& pass, FileId id) {
  ASSIGN_OR_RETURN(bool has, pass.ops().HasPrivileges(id));
  if (!has)
    return {};
  ASSIGN_OR_RETURN(Redo::Change change, Begin(pass, {Place{id, {}}}));
  return parts_.data->ChangeAttrs(
      id, {.capability = ""}, [&] { return pass.ops().DropPrivileges(id); });
}

core::Result<core::Stat> OverlayFs::SetAttr(FileId id, const AttrChange& change,
                                            const Caller& caller) {
  Pass pass(this, Pass::Kind::kBytes);
  if (change.uid == kSameOwner) {
    ASSIGN_OR_RETURN(bool others, OnlyAnnounces(pass, id, caller));
    // Of a write that the worker will not see this is all it is told.
    if (others && parts_.data->IsDirect(id))
      TRY(DropPrivileges(pass, id));
    if (others)
      return GetAttrIn(pass, id);
  }
  TRY(RefuseGiving(pass, id, change));
  if (change.kill_suidgid)
    TRY(DropPrivileges(pass, id));
  // The size first: it moves times, which the rest may set.
  if (change.size)
    TRY(parts_.data->Truncate(id, *change.size, false));
  if (change.mode || change.uid || change.gid || change.atime ||
      change.mtime) {
    ASSIGN_OR_RETURN(Redo::Change redo, Begin(pass, {Place{id, {}}}));
    const auto times = change.Times();
    DataPath::AttrsChange changed;
    if (change.atime || change.mtime)
      changed.times = times.data();
    if (change.uid || change.gid)
      changed.capability = "";
    TRY(parts_.data->ChangeAttrs(
        id, changed, [&] { return pass.ops().ChangeAttrs(id, change); }));
  }
  return GetAttrIn(pass, id);
}

// With killpriv v2 the kernel says the same of chown(-1, -1) as of a write that
// is about to take privileges away (fs/fuse/dir.c, fuse_setattr: nothing is left
// of ATTR_KILL_SUID). The write will say so itself, so where the two differ in
// what the caller may take, nothing is done here.
core::Result<bool> OverlayFs::OnlyAnnounces(const Pass& pass, FileId id,
                                            const Caller& caller) {
  ASSIGN_OR_RETURN(bool takes, pass.ops().HasPrivileges(id));
  if (!takes)
    return false;
  if (caller.uid == 0)  // its writes take nothing but capabilities
    return pass.ops().GetXattr(id, kCapability).has_value();
  ASSIGN_OR_RETURN(core::Stat st, pass.ops().GetAttr(id));
  return st.stx_uid != caller.uid;
}

// What the target will not do after the cutover is refused before it.
core::Status OverlayFs::RefuseGiving(const Pass& pass, FileId id,
                                     const AttrChange& change) {
  if (!change.uid || parts_.holds.gives_owners ||
      pass.mode() != Serving::kRedirect)
    return {};
  ASSIGN_OR_RETURN(core::Stat st, pass.ops().GetAttr(id));
  if (*change.uid == st.stx_uid || *change.uid == kSameOwner)
    return {};
  return core::FailSys(EPERM, "the target's server gives no files away");
}

core::Result<std::string> OverlayFs::ReadLink(FileId id) {
  Pass pass(this);
  return pass.ops().ReadLink(id);
}

// --- making

core::Status OverlayFs::BecomePlaceholder(const Pass& pass,
                                          const Entry& entry) {
  if (!pass.Split() || !S_ISREG(entry.attr.stx_mode))
    return {};
  // An abort takes the marks off and would have to look for this one again.
  if (pass.mode() == Serving::kAborting)
    return parts_.data->NewFile(entry.id);
  ASSIGN_OR_RETURN(SharedFd fd, parts_.source->Path(entry.id));
  // Without the mark the file still counts right: it is empty, so its local
  // end is 0 either way. The mark tells it from a file that was emptied.
  if (auto marked =
          parts_.source->sys()->SetXattr(fd->Get(), kMarkXattr, "1", 0);
      !marked)
    LOG_DEBUG("no mark on {:x}: {}", entry.id, marked.error().ToString());
  return parts_.data->NewFile(entry.id);
}

core::Result<Entry> OverlayFs::MakeNode(const Pass& pass, FileId dir,
                                        const char* name, mode_t mode,
                                        dev_t dev, const char* text,
                                        const Caller& caller) {
  ASSIGN_OR_RETURN(Redo::Change change, BeginAdding(pass, dir, name));
  ASSIGN_OR_RETURN(Entry entry,
                   pass.ops().Make(dir, name, mode, dev, text, caller));
  if (pass.Split())
    parts_.redo->Born(entry.id, dir);
  TRY(BecomePlaceholder(pass, entry));
  TRY(core::FaultPoint("overlay.made"));
  return entry;
}

core::Result<Entry> OverlayFs::MkNod(FileId dir, const char* name, mode_t mode,
                                     dev_t dev, const Caller& caller) {
  Pass pass(this);
  if ((mode & S_IFMT) == 0)
    mode |= S_IFREG;  // mknod(2)
  return Completed(MakeNode(pass, dir, name, mode, dev, nullptr, caller));
}

core::Result<Entry> OverlayFs::MkDir(FileId dir, const char* name, mode_t mode,
                                     const Caller& caller) {
  Pass pass(this);
  return MakeNode(pass, dir, name, (mode & 07777) | S_IFDIR, 0, nullptr,
                  caller);
}

core::Result<Entry> OverlayFs::SymLink(FileId dir, const char* name,
                                       const char* text, const Caller& caller) {
  Pass pass(this);
  return MakeNode(pass, dir, name, S_IFLNK | 0777, 0, text, caller);
}

core::Result<Entry> OverlayFs::FinishMake(FileId dir, const char* name,
                                          mode_t mode, const Caller& caller) {
  Pass pass(this);
  ASSIGN_OR_RETURN(Redo::Change change, BeginAdding(pass, dir, name));
  ASSIGN_OR_RETURN(Entry entry,
                   pass.ops().FinishMake(dir, name, mode, caller));
  // What was made and not answered has no bytes yet.
  if (entry.attr.stx_size == 0)
    TRY(BecomePlaceholder(pass, entry));
  return Completed(std::move(entry));
}

core::Result<Entry> OverlayFs::Link(FileId id, FileId dir, const char* name) {
  Pass pass(this);
  ASSIGN_OR_RETURN(Redo::Change change, BeginAdding(pass, dir, name));
  ASSIGN_OR_RETURN(Entry entry, pass.ops().Link(id, dir, name));
  NoOrphanAnyMore(pass, id);
  if (pass.Split())
    NameChanged(id);
  // The name is there: a target that is away is no reason to say otherwise,
  // and the kernel would go on knowing that there is none.
  auto complete = Completed(entry);
  return complete ? complete : core::Result<Entry>(std::move(entry));
}

// --- taking names away

core::Status OverlayFs::Unlink(FileId dir, const char* name) {
  Pass pass(this);
  ASSIGN_OR_RETURN(Victim victim, BeforeLosingName(pass, dir, name));
  core::Status status = [&]() -> core::Status {
    ASSIGN_OR_RETURN(Redo::Change change, Begin(pass, {Place{dir, name}}));
    return pass.ops().Unlink(dir, name, 0);
  }();
  AfterLosingName(pass, victim, status.has_value());
  return status;
}

core::Status OverlayFs::RmDir(FileId dir, const char* name) {
  Pass pass(this);
  ASSIGN_OR_RETURN(Victim victim, BeforeLosingName(pass, dir, name));
  core::Status status = [&]() -> core::Status {
    ASSIGN_OR_RETURN(Redo::Change change, Begin(pass, {Place{dir, name}}));
    return pass.ops().Unlink(dir, name, AT_REMOVEDIR);
  }();
  AfterLosingName(pass, victim, status.has_value());
  return status;
}

core::Status OverlayFs::Rename(FileId dir, const char* name, FileId new_dir,
                               const char* new_name, unsigned flags) {
  Pass pass(this);
  Victim victim;
  if ((flags & (RENAME_NOREPLACE | RENAME_EXCHANGE)) == 0) {
    ASSIGN_OR_RETURN(victim, BeforeLosingName(pass, new_dir, new_name));
    // rename(2) of one inode onto itself does nothing.
    if (auto moved = pass.ops().Lookup(dir, name);
        moved && moved->id == victim.id) {
      AfterLosingName(pass, victim, false);
      victim = {};
    }
  }
  core::Status status = [&]() -> core::Status {
    ASSIGN_OR_RETURN(
        Redo::Change change,
        Begin(pass, {Place{dir, name}, Place{new_dir, new_name}}));
    return pass.ops().Rename(dir, name, new_dir, new_name, flags);
  }();
  AfterLosingName(pass, victim, status.has_value());
  if (status)
    TRY(NamesMoved(pass, dir, name, new_dir, new_name, flags));
  return status;
}

// As on the source alone, where the inode is part of the change: whoever syncs
// a file that was linked or renamed finds the new name after a crash.
void OverlayFs::NameChanged(FileId id) {
  core::MutexLock lock(named_mu_);
  named_.insert(id);
  if (named_.size() > kMostNamed) {
    named_.clear();
    all_named_ = true;
  }
}

bool OverlayFs::TakeNamed(FileId id) {
  core::MutexLock lock(named_mu_);
  return named_.erase(id) != 0 || all_named_;
}

core::Status OverlayFs::NamesMoved(const Pass& pass, FileId dir,
                                   const char* name, FileId new_dir,
                                   const char* new_name, unsigned flags) {
  if (!pass.Split())
    return {};
  if (auto moved = pass.ops().Lookup(new_dir, new_name))
    NameChanged(moved->id);
  if ((flags & RENAME_EXCHANGE) != 0) {
    if (auto other = pass.ops().Lookup(dir, name))
      NameChanged(other->id);
  }
  return {};
}

// --- extended attributes

core::Status OverlayFs::RefusePrivate(const char* xattr, int err) const {
  if (std::string_view(xattr) == kMarkXattr)
    return core::FailSys(err, "livemv's own attribute");
  return {};
}

core::Result<std::string> OverlayFs::GetXattr(FileId id, const char* name) {
  Pass pass(this);
  TRY(RefusePrivate(name, ENODATA));
  return pass.ops().GetXattr(id, name);
}

core::Status OverlayFs::SetXattr(FileId id, const char* name,
                                 std::string_view value, int flags) {
  Pass pass(this);
  TRY(RefusePrivate(name, EPERM));
  if (pass.mode() == Serving::kRedirect && !parts_.holds.Holds(name))
    return core::FailSys(EOPNOTSUPP, "the target stores no " +
                                         std::string(name));
  ASSIGN_OR_RETURN(Redo::Change change, Begin(pass, {Place{id, {}}}));
  DataPath::AttrsChange changed;
  if (IsCapability(name))
    changed.capability = value;
  return parts_.data->ChangeAttrs(id, changed, [&] {
    return pass.ops().SetXattr(id, name, value, flags);
  });
}

core::Result<std::vector<std::string>> OverlayFs::ListXattr(FileId id) {
  Pass pass(this);
  ASSIGN_OR_RETURN(std::vector<std::string> names, pass.ops().ListXattr(id));
  std::erase(names, kMarkXattr);
  return names;
}

core::Status OverlayFs::RemoveXattr(FileId id, const char* name) {
  Pass pass(this);
  TRY(RefusePrivate(name, ENODATA));
  ASSIGN_OR_RETURN(Redo::Change change, Begin(pass, {Place{id, {}}}));
  DataPath::AttrsChange changed;
  if (IsCapability(name))
    changed.capability = "";
  return parts_.data->ChangeAttrs(
      id, changed, [&] { return pass.ops().RemoveXattr(id, name); });
}

}  // namespace livemv::fusefs
