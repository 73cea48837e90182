#include "fusefs/tree_ops.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

#include <cerrno>

#include "core/acting.h"
#include "core/fault_points.h"
#include "core/log.h"
#include "fusefs/capability.h"

namespace livemv::fusefs {
namespace {

constexpr char kDefaultAcl[] = "system.posix_acl_default";
constexpr size_t kPlusEntries = 32;
constexpr mode_t kSetIds = S_ISUID | S_ISGID;

bool IsDots(const char* name) {
  std::string_view n = name;
  return n == "." || n == "..";
}

// The filesystem has no such attribute, or no attributes at all.
bool IsNoXattr(const core::Error& e) {
  return e.sys_errno == ENODATA || e.sys_errno == EOPNOTSUPP;
}

}  // namespace

core::Result<TreeOps::Met> TreeOps::Meet(FileId dir, const char* name) {
  if (tree_->Hidden(dir, name))
    return core::FailSys(ENOENT, "hidden name");
  // The root's ".." is the root (path_resolution(7)).
  if (dir == state::kRootId && std::string_view(name) == "..")
    name = ".";
  ASSIGN_OR_RETURN(SharedFd dirfd, tree_->Path(dir));
  ASSIGN_OR_RETURN(core::UniqueFd fd,
                   sys_->OpenAt(dirfd->Get(), name, O_PATH | O_NOFOLLOW));
  return MeetOpen(std::move(fd));
}

core::Result<TreeOps::Met> TreeOps::MeetOpen(core::UniqueFd fd) {
  Met met;
  ASSIGN_OR_RETURN(met.st, sys_->StatAt(fd.Get(), ""));
  ASSIGN_OR_RETURN(met.id, tree_->Meet(std::move(fd), met.st, &met.fd));
  return met;
}

core::Result<Entry> TreeOps::Lookup(FileId dir, const char* name) {
  ASSIGN_OR_RETURN(Met met, Meet(dir, name));
  return Entry{met.id, met.st};
}

core::Result<core::Stat> TreeOps::GetAttr(FileId id) {
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Path(id));
  return sys_->StatAt(fd->Get(), "");
}

core::Status TreeOps::ChangeAttrs(FileId id, const AttrChange& change) {
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Path(id));
  // chown clears set-id bits (chown(2)), so the mode comes after the owner.
  if (change.uid || change.gid)
    TRY(sys_->ChOwn(fd->Get(), change.uid.value_or(kSameOwner),
                    change.gid.value_or(static_cast<gid_t>(-1))));
  if (change.mode)
    TRY(sys_->ChMod(fd->Get(), *change.mode & 07777));
  if (change.atime || change.mtime) {
    TRY(sys_->UTimens(fd->Get(), change.Times().data()));
  }
  return {};
}

core::Result<bool> TreeOps::HasPrivileges(FileId id) {
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Path(id));
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(fd->Get(), "", STATX_MODE));
  if (!S_ISREG(st.stx_mode))
    return false;
  if ((st.stx_mode & S_ISUID) != 0 ||
      (st.stx_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP))
    return true;
  // File capabilities matter to programs only.
  if ((st.stx_mode & 0111) == 0)
    return false;
  ASSIGN_OR_RETURN(std::string capability, CapabilityOf(sys_, fd->Get()));
  return !capability.empty();
}

core::Status TreeOps::DropPrivileges(FileId id) {
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Path(id));
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(fd->Get(), "", STATX_MODE));
  mode_t mode = st.stx_mode & 07777;
  mode_t kept = mode & ~static_cast<mode_t>(S_ISUID);
  if ((mode & S_IXGRP) != 0)
    kept &= ~static_cast<mode_t>(S_ISGID);
  if (kept != mode)
    TRY(sys_->ChMod(fd->Get(), kept));
  auto removed = sys_->RemoveXattr(fd->Get(), kCapability);
  if (!removed && !IsNoXattr(removed.error()))
    return removed;
  return {};
}

core::Result<std::string> TreeOps::ReadLink(FileId id) {
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Path(id));
  return sys_->ReadLinkAt(fd->Get(), "");
}

// --- making

core::Result<bool> TreeOps::HasDefaultAcl(int dirfd) {
  auto acl = sys_->GetXattr(dirfd, kDefaultAcl);
  if (acl)
    return true;
  if (IsNoXattr(acl.error()))
    return false;
  return core::Fail(std::move(acl).error());
}

core::Result<bool> TreeOps::GiveTo(const Met& met, int dirfd, mode_t mode,
                                   const Caller& caller) {
  // As a rule it was made right: as the caller, under no umask.
  if (!S_ISDIR(mode) && met.st.stx_uid == caller.uid &&
      met.st.stx_gid == caller.gid &&
      (S_ISLNK(mode) ||
       (met.st.stx_mode & 07777) == (mode & 07777 & ~caller.umask)))
    return false;
  ASSIGN_OR_RETURN(core::Stat parent, sys_->StatAt(dirfd, ""));
  // The group comes from a set-group-id directory, or by the mount option
  // grpid: then it is not ours (0) already.
  const bool inherits =
      (parent.stx_mode & S_ISGID) != 0 ||
      (met.st.stx_gid != 0 && met.st.stx_gid == parent.stx_gid);
  const gid_t gid = inherits ? parent.stx_gid : caller.gid;
  const bool chown = met.st.stx_uid != caller.uid || met.st.stx_gid != gid;
  if (chown)
    TRY(sys_->ChOwn(met.fd->Get(), caller.uid, gid));
  if (S_ISLNK(mode))
    return chown;
  ASSIGN_OR_RETURN(bool acl, HasDefaultAcl(dirfd));
  mode_t want = mode & 07777 & ~caller.umask;
  if (S_ISDIR(mode) && (parent.stx_mode & S_ISGID) != 0)
    want |= S_ISGID;
  if (acl)  // the kernel has applied the ACL; set-id bits may be lost by chown
    want = met.st.stx_mode & 07777;
  const bool chmod = (met.st.stx_mode & 07777) != want ||
                     (chown && (want & kSetIds) != 0);
  if (chmod)
    TRY(sys_->ChMod(met.fd->Get(), want));
  return chown || chmod;
}

core::Result<Entry> TreeOps::Given(Met met, int dirfd, mode_t mode,
                                   const Caller& caller) {
  ASSIGN_OR_RETURN(bool changed, GiveTo(met, dirfd, mode, caller));
  if (changed) {
    ASSIGN_OR_RETURN(met.st, sys_->StatAt(met.fd->Get(), ""));
  }
  return Entry{met.id, met.st};
}

// As the caller, so that it belongs to nobody else for a moment, nor for good
// on a server that lets root give nothing away.
core::Status TreeOps::MakeObject(int at, const char* name, mode_t mode,
                                 dev_t dev, const char* text,
                                 const Caller& caller) {
  core::Acting acting(sys_, {caller.uid, caller.gid, {}});
  TRY(acting.status());
  const mode_t perm = mode & 07777;
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return sys_->MkDirAt(at, name, perm);
    case S_IFLNK:
      return sys_->SymLinkAt(text, at, name);
    case S_IFREG: {
      auto fd = sys_->OpenAt(at, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW,
                             perm);
      if (!fd)
        return core::Fail(std::move(fd).error());
      return {};
    }
    default:
      return sys_->MkNodAt(at, name, mode, dev);
  }
}

core::Result<Entry> TreeOps::Make(FileId dir, const char* name, mode_t mode,
                                  dev_t dev, const char* text,
                                  const Caller& caller) {
  if (tree_->Hidden(dir, name))
    return core::FailSys(EEXIST, "hidden name");
  ASSIGN_OR_RETURN(SharedFd dirfd, tree_->Path(dir));
  const int at = dirfd->Get();
  mode_t perm = mode & 07777;
  if (!S_ISLNK(mode)) {
    ASSIGN_OR_RETURN(perm, Masked(at, perm, caller));
  }
  TRY(MakeObject(at, name, (mode & S_IFMT) | perm, dev, text, caller));
  TRY(core::FaultPoint("tree.made"));
  ASSIGN_OR_RETURN(Met met, Meet(dir, name));
  return Given(std::move(met), at, mode, caller);
}

core::Result<mode_t> TreeOps::Masked(int dirfd, mode_t mode,
                                     const Caller& caller) {
  if ((caller.umask & mode) == 0)
    return mode;
  ASSIGN_OR_RETURN(bool acl, HasDefaultAcl(dirfd));
  return acl ? mode : mode & ~caller.umask;
}

core::Result<Entry> TreeOps::MakeNameless(FileId dir, mode_t mode,
                                          const Caller& caller) {
  ASSIGN_OR_RETURN(SharedFd dirfd, tree_->Path(dir));
  const int at = dirfd->Get();
  ASSIGN_OR_RETURN(mode_t perm, Masked(at, mode & 07777, caller));
  core::UniqueFd fd;
  {
    core::Acting acting(sys_, {caller.uid, caller.gid, {}});
    TRY(acting.status());
    // Without O_EXCL, so that it can be linked; whether the caller's can be is
    // the kernel's to say.
    ASSIGN_OR_RETURN(fd, sys_->OpenAt(at, ".", O_RDWR | O_TMPFILE, perm));
  }
  ASSIGN_OR_RETURN(Met met, MeetOpen(std::move(fd)));
  return Given(std::move(met), at, mode | S_IFREG, caller);
}

core::Result<Entry> TreeOps::FinishMake(FileId dir, const char* name,
                                        mode_t mode, const Caller& caller) {
  ASSIGN_OR_RETURN(SharedFd dirfd, tree_->Path(dir));
  ASSIGN_OR_RETURN(Met met, Meet(dir, name));
  if ((met.st.stx_mode & S_IFMT) != (mode & S_IFMT))
    return core::FailSys(EEXIST, fmt::format("\"{}\" is something else", name));
  return Given(std::move(met), dirfd->Get(), mode, caller);
}

core::Result<Entry> TreeOps::Link(FileId id, FileId dir, const char* name) {
  if (tree_->Hidden(dir, name))
    return core::FailSys(EEXIST, "hidden name");
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Path(id));
  ASSIGN_OR_RETURN(SharedFd dirfd, tree_->Path(dir));
  TRY(sys_->LinkFd(fd->Get(), dirfd->Get(), name));
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(fd->Get(), ""));
  return Entry{id, st};
}

core::Status TreeOps::Unlink(FileId dir, const char* name, int flags) {
  if (tree_->Hidden(dir, name))
    return core::FailSys(ENOENT, "hidden name");
  ASSIGN_OR_RETURN(SharedFd dirfd, tree_->Path(dir));
  return sys_->UnlinkAt(dirfd->Get(), name, flags);
}

core::Status TreeOps::Rename(FileId dir, const char* name, FileId new_dir,
                             const char* new_name, unsigned flags) {
  if (tree_->Hidden(dir, name) || tree_->Hidden(new_dir, new_name))
    return core::FailSys(ENOENT, "hidden name");
  // Needs a place for a whiteout on both sides, and overlayfs alone uses it.
  if ((flags & ~static_cast<unsigned>(RENAME_NOREPLACE | RENAME_EXCHANGE)) !=
      0)
    return core::FailSys(EINVAL, "rename flags");
  ASSIGN_OR_RETURN(SharedFd from, tree_->Path(dir));
  ASSIGN_OR_RETURN(SharedFd to, tree_->Path(new_dir));
  return sys_->RenameAt(from->Get(), name, to->Get(), new_name, flags);
}

// --- listing

core::Result<std::vector<DirItem>> TreeOps::ReadDir(FileId dir, int64_t offset,
                                                    size_t max_bytes,
                                                    bool plus) {
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Dir(dir));
  std::vector<DirItem> items;
  // A piece that held hidden names only must not look like the end.
  while (items.empty()) {
    std::vector<core::DirEntry> entries;
    {
      core::MutexLock lock(tree_->DirLock(dir));
      ASSIGN_OR_RETURN(entries, sys_->ReadDir(fd->Get(), offset, max_bytes));
    }
    if (entries.empty())
      return items;
    // A few at a time: the kernel asks for attributes with the first piece of
    // every directory, and with the next ones only if these were looked at
    // (fs/fuse/readdir.c, fuse_use_readdirplus).
    if (plus && entries.size() > kPlusEntries)
      entries.resize(kPlusEntries);
    offset = entries.back().next_offset;
    for (core::DirEntry& entry : entries) {
      if (tree_->Hidden(dir, entry.name.c_str()))
        continue;
      DirItem item;
      item.entry = std::move(entry);
      if (plus && !IsDots(item.entry.name.c_str())) {
        auto met = Meet(dir, item.entry.name.c_str());
        // Gone since the listing: an item without attributes is allowed.
        if (met) {
          item.id = met->id;
          item.attr = met->st;
        } else if (met.error().sys_errno != ENOENT) {
          return core::Fail(std::move(met).error());
        }
      }
      items.push_back(std::move(item));
    }
  }
  return items;
}

// --- extended attributes

core::Result<std::string> TreeOps::GetXattr(FileId id, const char* name) {
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Path(id));
  return sys_->GetXattr(fd->Get(), name);
}

core::Status TreeOps::SetXattr(FileId id, const char* name,
                               std::string_view value, int flags) {
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Path(id));
  return sys_->SetXattr(fd->Get(), name, value, flags);
}

core::Result<std::vector<std::string>> TreeOps::ListXattr(FileId id) {
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Path(id));
  return sys_->ListXattr(fd->Get());
}

core::Status TreeOps::RemoveXattr(FileId id, const char* name) {
  ASSIGN_OR_RETURN(SharedFd fd, tree_->Path(id));
  return sys_->RemoveXattr(fd->Get(), name);
}

}  // namespace livemv::fusefs
