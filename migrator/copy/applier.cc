// The loop over records, the two looks and SyncEntry. How objects are moved is
// in applier_moves.cc, attributes in applier_attrs.cc.

#include "migrator/copy/applier.h"

#include <fcntl.h>

#include <cerrno>

#include "core/fault_points.h"
#include "core/log.h"

namespace livemv::copy {
namespace {

constexpr int64_t kIdleNs = 200'000'000;
// What was set aside is tried again now and then: an operator may have changed
// the target.
constexpr int64_t kRetryAsideNs = 60'000'000'000;

// For messages only: where the directory is now, as the kernel sees it.
std::string PathForHumans(fusefs::SourceTree* source, FileId dir) {
  if (auto fd = source->Path(dir); fd) {
    auto path = source->sys()->ReadLinkAt(
        AT_FDCWD, fmt::format("/proc/self/fd/{}", (*fd)->Get()).c_str());
    if (path)
      return *path;
  }
  return fmt::format("inode {:x}", dir);
}

}  // namespace

Applier::Applier(const NameLane* lane)
    : lane_(lane), sys_(lane->source->sys()) {}

void Applier::Adopt(const state::RecoveredState& state) {
  {
    core::MutexLock lock(mu_);
    for (const auto& [id, place] : state.placed)
      spots_[id] = Spot{place.dir, place.name};
  }
  if (lane_->host_went_down)
    DropLostObjects(state);
}

bool Applier::IsRefusal(const core::Error& error) {
  switch (error.code) {
    case core::ErrorCode::kUnsupported:
    case core::ErrorCode::kCorrupt:
    case core::ErrorCode::kConflict:
      return true;
    case core::ErrorCode::kSystem:
      break;
    default:
      return false;
  }
  switch (error.sys_errno) {
    case EACCES:
    case EPERM:
    case ENAMETOOLONG:
    case EILSEQ:
    case EINVAL:
    case EOPNOTSUPP:
    case EMLINK:
    case E2BIG:
    case ERANGE:
    case EOVERFLOW:
      return true;
    default:
      return false;
  }
}

bool Applier::IsSillyName(const std::string& name) {
  // fs/nfs/unlink.c: ".nfs", the fileid and a counter in hex.
  return name.size() == 4 + 16 + 8 && name.starts_with(".nfs") &&
         name.find_first_not_of("0123456789abcdef", 4) == std::string::npos;
}

// --- the loop

bool Applier::Step() {
  auto job = lane_->redo->Take();
  if (!job)
    return false;
  if (auto fault = core::FaultPoint("applier.taken"); !fault) {
    Finish(*job, fault);
    return true;
  }
  const FileId id = job->place.id;
  if (!job->place.IsEntry()) {
    Finish(*job, SyncAttrs(id));
    return true;
  }
  core::Status status = [&]() -> core::Status {
    ASSIGN_OR_RETURN(Seen seen, SyncEntry(id, job->place.name));
    // The scanner leaves to us what fails at first, and goes no deeper there.
    if (seen.id != state::kNoFile && S_ISDIR(seen.st.stx_mode) && scan_wanted_)
      scan_wanted_(seen.id);
    if (seen.id != state::kNoFile && lane_->host_went_down)
      TRY(lane_->redo->Mark({seen.id, {}}));
    // The directory's times moved on the source, whatever the target needed.
    // Once for all its names, when they have come to rest.
    if (lane_->objects->Find(id))
      TRY(lane_->redo->MarkLazily(id));
    return {};
  }();
  Finish(*job, status);
  return true;
}

void Applier::Finish(const fusefs::Redo::Job& job, const core::Status& status) {
  if (status) {
    if (auto done = lane_->redo->Done(job); !done)
      LOG_WARN("a finished redo record: {}", done.error().ToString());
    return;
  }
  if (!IsRefusal(status.error())) {
    lane_->redo->Retry(job, status.error());
    return;
  }
  const std::string where = PathForHumans(lane_->source, job.place.id);
  lane_->redo->SetAside(
      job, job.place.IsEntry()
               ? fmt::format("name \"{}\" in {}: {}", job.place.name, where,
                             status.error().ToString())
               : fmt::format("attributes of {}: {}", where,
                             status.error().ToString()));
}

void Applier::Run(const std::atomic<bool>& stop) {
  int64_t retry_ns = sys_->MonotonicNs() + kRetryAsideNs;
  while (!stop.load()) {
    if (!Step())
      lane_->redo->WaitForWork(kIdleNs);
    if (sys_->MonotonicNs() < retry_ns)
      continue;
    retry_ns = sys_->MonotonicNs() + kRetryAsideNs;
    if (lane_->redo->Count().set_aside != 0)
      lane_->redo->RetryAll(false);
  }
}

core::Status Applier::Drain(int64_t deadline_ns, bool lazy) {
  fusefs::Redo::Rush rush(lane_->redo);
  if (lazy)
    lane_->redo->RetryAll(true);
  for (;;) {
    if (sys_->MonotonicNs() >= deadline_ns) {
      auto count = lane_->redo->Count();
      return core::Fail(
          core::ErrorCode::kTimeout,
          fmt::format("the time was not enough to bring names and attributes "
                      "to the target: {} left, {} in work",
                      count.pending, count.taken));
    }
    if (Step())
      continue;
    // Others may still be at work on what they took.
    auto count = lane_->redo->Count();
    if (count.pending == count.set_aside && count.taken == 0)
      return {};
    lane_->redo->WaitForWork(1'000'000);
  }
}

// --- looks

core::Result<Applier::SourceEntry> Applier::LookAtSource(
    FileId dir, const std::string& name) {
  SourceEntry entry;
  if (lane_->source->Hidden(dir, name.c_str()))
    return entry;
  auto dirfd = lane_->source->Path(dir);
  if (!dirfd) {
    ASSIGN_OR_RETURN(bool dead, lane_->source->IsDead(dir));
    if (dead)
      return entry;  // a deleted directory has no names
    return core::Fail(std::move(dirfd).error());
  }
  auto fd = sys_->OpenAt((*dirfd)->Get(), name.c_str(), O_PATH | O_NOFOLLOW);
  if (!fd) {
    if (fd.error().sys_errno == ENOENT)
      return entry;
    return core::Fail(std::move(fd).error().With("look at the source"));
  }
  ASSIGN_OR_RETURN(entry.st, sys_->StatAt(fd->Get(), ""));
  if (lane_->source->IsLostFound(dir, name.c_str(), entry.st))
    return entry;
  if (S_ISLNK(entry.st.stx_mode)) {
    ASSIGN_OR_RETURN(entry.link_text, sys_->ReadLinkAt(fd->Get(), ""));
  }
  ASSIGN_OR_RETURN(entry.id, lane_->source->IdOf(fd->Get(), ""));
  return entry;
}

core::Result<Applier::TargetEntry> Applier::LookAtTarget(
    int dirfd, const std::string& name) {
  TargetEntry entry;
  auto st = sys_->StatAt(dirfd, name.c_str());
  if (!st) {
    if (st.error().sys_errno == ENOENT)
      return entry;
    return core::Fail(std::move(st).error().With("look at the target"));
  }
  entry.there = true;
  entry.st = *st;
  // After a host crash a binding may be lost and its number used again.
  ASSIGN_OR_RETURN(std::optional<FileId> id,
                   lane_->objects->Identify(dirfd, name.c_str(), *st,
                                            lane_->host_went_down));
  entry.id = id.value_or(state::kNoFile);
  return entry;
}

core::Result<bool> Applier::IsDeadWithObject(FileId dir) {
  if (!lane_->objects->Find(dir))
    return true;  // destroyed meanwhile
  ASSIGN_OR_RETURN(bool dead, lane_->source->IsDead(dir));
  if (dead)
    lane_->graveyard->Add(dir);
  return dead;
}

// --- one entry

core::Result<Applier::Seen> Applier::SyncEntry(FileId dir,
                                               const std::string& name) {
  Seen seen;
  for (;;) {
    seen = {};
    ASSIGN_OR_RETURN(bool done, TrySyncEntry(dir, name, &seen));
    if (done)
      return seen;
  }
}

// The target filesystem's lost+found, which mkfs made: not part of the tree.
bool Applier::IsTargetsOwn(FileId dir, const std::string& name,
                           const TargetEntry& target) {
  return dir == state::kRootId && name == "lost+found" &&
         target.id == state::kNoFile && S_ISDIR(target.st.stx_mode);
}

core::Result<bool> Applier::TrySyncEntry(FileId dir, const std::string& name,
                                         Seen* seen) {
  if (!lane_->objects->Find(dir))
    return true;
  PlaceLocks::Hold hold(&locks_);
  hold.Acquire({PlaceLocks::KeyOf(dir, name)});
  // Both looks are taken with the entry held, the source's first: whatever
  // changes it afterwards makes the place dirty again.
  ASSIGN_OR_RETURN(SourceEntry source, LookAtSource(dir, name));
  seen->id = source.id;
  seen->st = source.st;
  auto dirfd = lane_->objects->Path(dir);
  if (!dirfd) {
    ASSIGN_OR_RETURN(bool dead, IsDeadWithObject(dir));
    if (dead)
      return true;
    return core::Fail(std::move(dirfd).error());
  }
  ASSIGN_OR_RETURN(TargetEntry target, LookAtTarget((*dirfd)->Get(), name));
  const bool wanted = source.id != state::kNoFile;
  if (!wanted && (!target.there || IsTargetsOwn(dir, name, target)))
    return true;
  if (wanted && target.there && source.id == target.id)
    return true;
  if (wanted && !hold.TryAdd(PlaceLocks::KeyOf(source.id)))
    return false;
  if (target.id != state::kNoFile && !hold.TryAdd(PlaceLocks::KeyOf(target.id)))
    return false;
  // The act moves the directory's times; what is placed needs its attributes.
  std::vector<fusefs::Place> disturbed = {{dir, {}}};
  if (wanted)
    disturbed.push_back({source.id, {}});
  ASSIGN_OR_RETURN(fusefs::Redo::Change touch,
                   lane_->redo->Touch(std::move(disturbed)));
  if (target.there)
    TRY(Detach(dir, name, target.id, target.st));
  seen->placed = true;
  if (!wanted)
    return true;
  TRY(lane_->objects->Ensure(source.id, source.st, source.link_text));
  TRY(core::FaultPoint("applier.ensured"));
  return Place(&hold, dir, name, (*dirfd)->Get(), source);
}

}  // namespace livemv::copy
