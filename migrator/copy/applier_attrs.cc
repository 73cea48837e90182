// Owner, mode, extended attributes and times.

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "core/log.h"
#include "fusefs/tree_ops.h"
#include "migrator/copy/applier.h"

namespace livemv::copy {

using fusefs::SharedFd;

namespace {

constexpr char kAccessAcl[] = "system.posix_acl_access";
constexpr char kDefaultAcl[] = "system.posix_acl_default";
// The target's security policy labels it; a label is not the user's data.
constexpr char kLabel[] = "security.selinux";

bool IsAcl(const std::string& name) {
  return name == kAccessAcl || name == kDefaultAcl;
}

// What belongs to the user and is to be the same on both sides.
bool IsCopied(const std::string& name) {
  return name != fusefs::kMarkXattr &&
         (name.starts_with("user.") || name.starts_with("trusted.") ||
          name.starts_with("security.") || IsAcl(name));
}

bool IsTimeEqual(const struct statx_timestamp& a,
                 const struct statx_timestamp& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

timespec ToTimespec(const struct statx_timestamp& t) {
  return {static_cast<time_t>(t.tv_sec), static_cast<long>(t.tv_nsec)};
}

core::Result<std::vector<std::string>> CopiedXattrs(core::Syscalls* sys,
                                                    int fd) {
  auto names = sys->ListXattr(fd);
  if (!names) {
    if (names.error().sys_errno == EOPNOTSUPP)
      return std::vector<std::string>{};
    return core::Fail(std::move(names).error());
  }
  std::erase_if(*names, [](const std::string& n) { return !IsCopied(n); });
  return names;
}

// Remembers the first refusal and lets the rest go on, so that one attribute
// that the target does not hold does not keep the mode from being right.
class Refusals {
 public:
  // OK for a refusal, which is kept; other errors come back.
  core::Status Take(core::Status status, const std::string& what) {
    if (status)
      return {};
    core::Error error = std::move(status).error().With(what);
    if (!Applier::IsRefusal(error))
      return core::Fail(std::move(error));
    if (!first_)
      first_ = std::move(error);
    return {};
  }
  core::Status First() const {
    if (first_)
      return core::Fail(*first_);
    return {};
  }

 private:
  std::optional<core::Error> first_;
};

}  // namespace

core::Status Applier::CopyXattrs(int source_fd, int target_fd) {
  ASSIGN_OR_RETURN(std::vector<std::string> names,
                   CopiedXattrs(sys_, source_fd));
  ASSIGN_OR_RETURN(std::vector<std::string> old,
                   CopiedXattrs(sys_, target_fd));
  Refusals refusals;
  for (const std::string& name : names) {
    auto value = sys_->GetXattr(source_fd, name.c_str());
    if (!value && value.error().sys_errno == ENODATA)
      continue;  // removed meanwhile; its record follows
    if (!value)
      return core::Fail(std::move(value).error().With(name));
    if (std::find(old.begin(), old.end(), name) != old.end()) {
      auto have = sys_->GetXattr(target_fd, name.c_str());
      if (have && *have == *value)
        continue;
    }
    auto set = sys_->SetXattr(target_fd, name.c_str(), *value, 0);
    if (set || name == kLabel)
      continue;
    const bool unheld = set.error().sys_errno == EOPNOTSUPP ||
                        set.error().sys_errno == EINVAL ||
                        set.error().sys_errno == EPERM ||
                        set.error().sys_errno == E2BIG;
    if (unheld && (IsAcl(name) ? lane_->losses.acls : lane_->losses.xattrs))
      continue;
    TRY(refusals.Take(std::move(set), "extended attribute " + name));
  }
  for (const std::string& name : old) {
    if (name == kLabel ||
        std::find(names.begin(), names.end(), name) != names.end())
      continue;
    auto removed = sys_->RemoveXattr(target_fd, name.c_str());
    if (!removed && removed.error().sys_errno == ENODATA)
      continue;
    TRY(refusals.Take(std::move(removed), "extended attribute " + name));
  }
  return refusals.First();
}

core::Status Applier::CopyTimes(FileId id, int target_fd,
                                const core::Stat& want,
                                const core::Stat& have) {
  if (IsTimeEqual(want.stx_mtime, have.stx_mtime) &&
      IsTimeEqual(want.stx_atime, have.stx_atime))
    return {};
  // The times of a direct file are the object's, and it becomes one with its
  // write_mu held. That of others is left alone: their writers must not wait
  // for the target.
  fusefs::FileRef file = lane_->files != nullptr ? lane_->files->Find(id)
                                                 : fusefs::FileRef();
  core::MutexLock writes;
  if (file && fusefs::IsWhollyRemote(*file)) {
    writes = core::MutexLock(file->write_mu);
    core::MutexLock lock(file->mu);
    if (file->direct)
      return {};
  }
  const timespec times[2] = {ToTimespec(want.stx_atime),
                             ToTimespec(want.stx_mtime)};
  return sys_->UTimens(target_fd, times);
}

core::Status Applier::SyncAttrs(FileId id) {
  if (!lane_->objects->Find(id))
    return {};  // whoever places an object marks its attributes
  PlaceLocks::Hold hold(&locks_);
  hold.Acquire({PlaceLocks::KeyOf(id)});
  auto source = lane_->source->Path(id);
  if (!source) {
    ASSIGN_OR_RETURN(bool dead, lane_->source->IsDead(id));
    if (dead)
      return {};
    return core::Fail(std::move(source).error());
  }
  auto target = lane_->objects->Path(id);
  if (!target) {
    if (!lane_->objects->Find(id))
      return {};
    return core::Fail(std::move(target).error());
  }
  const int from = (*source)->Get();
  const int to = (*target)->Get();
  ASSIGN_OR_RETURN(core::Stat want, sys_->StatAt(from, ""));
  ASSIGN_OR_RETURN(core::Stat have, sys_->StatAt(to, ""));

  Refusals refusals;
  bool owned = true;
  if (want.stx_uid != have.stx_uid || want.stx_gid != have.stx_gid) {
    auto given = sys_->ChOwn(to, want.stx_uid, want.stx_gid);
    owned = given.has_value();
    if (!owned && lane_->losses.owners && IsRefusal(given.error()))
      given = {};
    TRY(refusals.Take(std::move(given),
                      fmt::format("owner {}:{}", want.stx_uid, want.stx_gid)));
  }
  // An access ACL carries the mode's group bits, so it comes before the mode.
  core::Status copied = CopyXattrs(from, to);
  if (!copied && copied.error().sys_errno == EACCES &&
      (S_ISREG(want.stx_mode) || S_ISDIR(want.stx_mode))) {
    // Where root counts for nothing an object's own mode can keep its owner
    // out. It is given its mode below.
    TRY(refusals.Take(sys_->ChMod(to, (have.stx_mode & 07777) | S_IRWXU),
                      "mode for extended attributes"));
    copied = CopyXattrs(from, to);
  }
  TRY(refusals.Take(std::move(copied), "on the target"));
  if (!S_ISLNK(want.stx_mode)) {
    mode_t mode = want.stx_mode & 07777;
    // With a wrong owner a set-id bit would hand out somebody else's rights.
    if (!owned)
      mode &= 01777;
    ASSIGN_OR_RETURN(have, sys_->StatAt(to, ""));
    if ((have.stx_mode & 07777) != mode)
      TRY(refusals.Take(sys_->ChMod(to, mode), fmt::format("mode {:o}", mode)));
  }
  auto timed = CopyTimes(id, to, want, have);
  if (!timed && lane_->losses.times && IsRefusal(timed.error()))
    timed = {};
  TRY(refusals.Take(std::move(timed), "times"));
  return refusals.First();
}

}  // namespace livemv::copy
