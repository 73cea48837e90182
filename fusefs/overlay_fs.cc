// Modes, listing, statfs and the pins of deleted inodes. Names and attributes
// are in overlay_names.cc, descriptors and bytes in overlay_io.cc.

#include "fusefs/overlay_fs.h"

#include <algorithm>
#include <cerrno>

#include "core/log.h"

namespace livemv::fusefs {
namespace {

// Deleted directories kept for processes that may stand in them, at most.
constexpr size_t kMaxUncounted = 4096;

}  // namespace

OverlayFs::OverlayFs(const Parts& parts, Serving mode)
    : parts_(parts), target_(parts.objects), source_ops_(parts.source),
      target_ops_(&target_), mode_(mode) {
  parts_.data->SetServing(mode);
  for (FileId id : parts_.source->PinnedIds())
    orphans_.insert(id);
}

// --- modes

OverlayFs::Pass::Pass(OverlayFs* fs, Kind kind) : fs_(fs), kind_(kind) {
  core::MutexLock lock(fs_->gate_mu_);
  while (fs_->closing_)
    fs_->gate_.Wait(lock);
  fs_->inside_++;
  fs_->inside_bytes_ += kind_ == Kind::kBytes;
  mode_ = fs_->mode_;
}

OverlayFs::Pass::~Pass() {
  core::MutexLock lock(fs_->gate_mu_);
  fs_->inside_--;
  fs_->inside_bytes_ -= kind_ == Kind::kBytes;
  if (fs_->closing_)
    fs_->gate_.NotifyAll();
}

core::Status OverlayFs::SetServing(
    Serving mode, int64_t deadline_ns,
    const std::function<core::Status()>& commit) {
  core::MutexLock lock(gate_mu_);
  while (closing_)  // one change of mode at a time
    gate_.Wait(lock);
  closing_ = true;
  core::Status status;
  // From the redirect into an abort bytes are handled alike, and what waits
  // for a target that is away must not keep the abort, and everybody else with
  // it.
  const bool alike = mode_ == Serving::kRedirect && mode == Serving::kAborting;
  auto left_inside = [&] { return inside_ - (alike ? inside_bytes_ : 0); };
  while (left_inside() != 0) {
    int64_t left = -1;
    if (deadline_ns >= 0) {
      left = deadline_ns - parts_.source->sys()->MonotonicNs();
      if (left <= 0) {
        status = core::Fail(
            core::ErrorCode::kTimeout,
            fmt::format("{} operations did not finish in time", left_inside()));
        break;
      }
    }
    gate_.WaitFor(lock, left);
  }
  if (status && commit) {
    // New operations wait; nobody needs the lock meanwhile but them.
    lock.unlock();
    status = commit();
    lock.lock();
  }
  if (status) {
    mode_ = mode;
    parts_.data->SetServing(mode);
  }
  closing_ = false;
  gate_.NotifyAll();
  return status;
}

Serving OverlayFs::serving() {
  core::MutexLock lock(gate_mu_);
  return mode_;
}

namespace {

// All changes go through the kernel, which so knows of them; the limit is for
// those of which it forgets to take note, as the ctime after an ioctl.
constexpr double kLongSeconds = 30, kShortSeconds = 1;

}  // namespace

double OverlayFs::CacheSeconds() {
  switch (serving()) {
    case Serving::kRedirect:
      return CanDropCaches() ? kLongSeconds : kShortSeconds;
    case Serving::kAborting:  // some files get another number
      return kShortSeconds;
    case Serving::kSourceOnly:
    case Serving::kTargetOnly:
      break;
  }
  return 0;
}

FileId OverlayFs::KernelNumber(FileId id) {
  return parts_.passthrough != nullptr ? parts_.passthrough->NumberOf(id) : id;
}

bool OverlayFs::IsWrittenBeside(FileId id) {
  return CacheSeconds() <= 0 || parts_.data->IsDirect(id);
}

double OverlayFs::AttrSeconds(FileId id, const core::Stat& attr) {
  if (parts_.passthrough != nullptr && parts_.passthrough->IsUnseen(id))
    return 0;
  const double seconds = CacheSeconds();
  // The times of a direct file become the source's some time after its last
  // close. A write takes set-id bits away, which the kernel leaves to us and
  // does not look at again before it executes the file.
  const bool moves = (S_ISREG(attr.stx_mode) &&
                      (attr.stx_mode & (S_ISUID | S_ISGID)) != 0) ||
                     parts_.data->IsDirect(id);
  return moves ? std::min(seconds, kShortSeconds) : seconds;
}

// --- deleted inodes

bool OverlayFs::InUse(FileId id) {
  if (parts_.data->IsOpen(id))
    return true;
  core::MutexLock lock(orphans_mu_);
  return orphans_.contains(id);
}

core::Result<OverlayFs::Victim> OverlayFs::BeforeLosingName(const Pass& pass,
                                                            FileId dir,
                                                            const char* name) {
  auto entry = pass.ops().Lookup(dir, name);
  if (!entry) {
    if (entry.error().sys_errno == ENOENT)
      return Victim{};
    return core::Fail(std::move(entry).error());
  }
  Victim victim{entry->id,
                S_ISDIR(entry->attr.stx_mode) || entry->attr.stx_nlink == 1,
                S_ISDIR(entry->attr.stx_mode)};
  if (!victim.last_name)
    return victim;
  core::MutexLock lock(orphans_mu_);
  // Before the unlink: if this process dies in between, the inode must live on
  // in the keeper. A working directory is no open descriptor, and after a
  // restart descriptors are not counted: those are let go by Forget alone.
  if (victim.directory || parts_.resumed || parts_.data->IsOpen(victim.id)) {
    TRY(pass.ops().tree()->Pin(victim.id));
    orphans_.insert(victim.id);
  }
  losing_.insert(victim.id);
  return victim;
}

void OverlayFs::AfterLosingName(const Pass& pass, const Victim& victim,
                                bool happened) {
  if (!victim.last_name)
    return;
  Tree* tree = pass.ops().tree();
  core::MutexLock lock(orphans_mu_);
  losing_.erase(victim.id);
  if (!happened) {
    if (orphans_.erase(victim.id) != 0)
      tree->Drop(victim.id);
    return;
  }
  if (!orphans_.contains(victim.id) && parts_.data->IsOpen(victim.id)) {
    // Where one side is served alone opening pins nothing; the descriptor is
    // still in the tree's cache.
    if (auto pin = tree->Pin(victim.id); pin)
      orphans_.insert(victim.id);
    else
      LOG_WARN("deleted while being opened: {}", pin.error().ToString());
  }
  if (!orphans_.contains(victim.id)) {
    tree->Drop(victim.id);
    parts_.graveyard->Add(victim.id);
    return;
  }
  if (parts_.resumed || !victim.directory)
    return;
  uncounted_.push_back(victim.id);
  if (uncounted_.size() <= kMaxUncounted)
    return;
  FileId oldest = uncounted_.front();
  uncounted_.pop_front();
  if (orphans_.contains(oldest) && !parts_.data->IsOpen(oldest)) {
    orphans_.erase(oldest);
    tree->Drop(oldest);
    parts_.graveyard->Add(oldest);
  }
}

void OverlayFs::NoOrphanAnyMore(const Pass& pass, FileId id) {
  core::MutexLock lock(orphans_mu_);
  if (orphans_.erase(id) != 0)
    pass.ops().tree()->Drop(id);
}

void OverlayFs::LastUseGone(FileId id) {
  {
    core::MutexLock lock(orphans_mu_);
    // Opened and deleted since the caller's look: its pin is that one's now.
    // Opening counts under this lock, and a pin goes under it, too.
    if (parts_.data->IsOpen(id) || orphans_.erase(id) == 0)
      return;
    parts_.source->Drop(id);
  }
  target_.Drop(id);  // may wait for the target
  parts_.graveyard->Add(id);
}

void OverlayFs::Forget(FileId id) {
  // A file that is open or mapped is not evicted; what is open now was opened
  // under the same number after the eviction.
  if (!parts_.data->IsOpen(id))
    LastUseGone(id);
}

// --- listing and statfs

core::Result<std::vector<DirItem>> OverlayFs::ReadDir(FileId dir,
                                                      int64_t offset,
                                                      size_t max_bytes,
                                                      bool plus) {
  Pass pass(this);
  const uint64_t ended = Ended();
  ASSIGN_OR_RETURN(std::vector<DirItem> items,
                   pass.ops().ReadDir(dir, offset, max_bytes, plus));
  if (!plus || !pass.Split())
    return items;
  for (DirItem& item : items) {
    if (item.id == state::kNoFile || !S_ISREG(item.attr.stx_mode))
      continue;
    // Without a size the kernel asks for this one by itself; nor is the target
    // asked once for each name here.
    if (parts_.data->IsDirect(item.id) ||
        !parts_.data->Complete(item.id, &item.attr) || ended != Ended())
      item.id = state::kNoFile;
  }
  return items;
}

core::Result<struct statfs> OverlayFs::StatFs() {
  Pass pass(this);
  const int source_fd = parts_.source->RootFd();
  core::Syscalls* sys = parts_.source->sys();
  if (pass.mode() == Serving::kSourceOnly)
    return sys->FStatFs(source_fd);
  ASSIGN_OR_RETURN(struct statfs fs, sys->FStatFs(parts_.objects->RootFd()));
  if (pass.Split()) {
    // The room is the target's, the names are still the source's as well.
    ASSIGN_OR_RETURN(struct statfs source, sys->FStatFs(source_fd));
    fs.f_namelen = std::min(fs.f_namelen, source.f_namelen);
    fs.f_fsid = source.f_fsid;
  }
  return fs;
}

}  // namespace livemv::fusefs
