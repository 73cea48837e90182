#include "migrator/copy/tree_scanner.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "core/log.h"

namespace livemv::copy {
namespace {

constexpr size_t kPieceBytes = 32 << 10;
constexpr int64_t kIdleNs = 200'000'000;
constexpr int64_t kFirstPauseNs = 100'000'000;
constexpr int64_t kLongestPauseNs = 10'000'000'000;

bool IsDots(const std::string& name) {
  return name == "." || name == "..";
}

}  // namespace

TreeScanner::TreeScanner(const NameLane* lane, Applier* applier, bool thorough)
    : lane_(lane), applier_(applier), thorough_(thorough),
      sys_(lane->source->sys()) {}

void TreeScanner::Start(bool whole) {
  {
    core::MutexLock lock(mu_);
    started_ = true;
    totals_.directories++;
  }
  if (whole)
    Want(state::kRootId);
  WantOwed();
}

void TreeScanner::Want(FileId dir) {
  core::MutexLock lock(mu_);
  if (!wanted_.insert(dir).second)
    return;
  queue_.push_back({dir, 0});
  work_.NotifyAll();
}

void TreeScanner::WantOwed() {
  auto owed = lane_->redo->Owed();
  core::MutexLock lock(mu_);
  for (const auto& item : owed) {
    if (owed_queued_.insert(item.second).second)
      queue_.push_back(item);
  }
  work_.NotifyAll();
}

// --- stepping

bool TreeScanner::Step() {
  const int64_t now = sys_->MonotonicNs();
  core::MutexLock lock(mu_);
  if (!names_.empty()) {
    Name name = std::move(names_.front());
    names_.pop_front();
    comparing_++;
    lock.unlock();
    Compare(name);
    return true;
  }
  auto job = std::find_if(jobs_.begin(), jobs_.end(), [now](const DirJob& j) {
    return !j.reading && j.part != DirJob::Part::kListed &&
           j.not_before_ns <= now;
  });
  if (job == jobs_.end()) {
    if (queue_.empty())
      return false;
    jobs_.push_back(DirJob{.id = queue_.back().first,
                           .owed = queue_.back().second});
    queue_.pop_back();
    job = std::prev(jobs_.end());
  }
  job->reading = true;
  lock.unlock();
  ReadPiece(job);
  return true;
}

void TreeScanner::Run(const std::atomic<bool>& stop) {
  while (!stop.load()) {
    if (Step())
      continue;
    core::MutexLock lock(mu_);
    if (names_.empty() && queue_.empty())
      work_.WaitFor(lock, kIdleNs);
  }
}

void TreeScanner::WakeAll() {
  core::MutexLock lock(mu_);
  work_.NotifyAll();
}

void TreeScanner::Compare(const Name& name) {
  const FileId dir = name.job->id;  // jobs_ keeps it while we are outstanding
  auto seen = applier_->SyncEntry(dir, name.name);
  core::Status status;
  if (!seen) {
    // The applier goes on with it, and tells if the target refuses it.
    LOG_DEBUG("scan of \"{}\": {}", name.name, seen.error().ToString());
    status = lane_->redo->Mark({dir, name.name});
  } else if (seen->id != state::kNoFile) {
    if (S_ISDIR(seen->st.stx_mode))
      Want(seen->id);
    else if (S_ISREG(seen->st.stx_mode) && lane_->copy_wanted)
      lane_->copy_wanted(seen->id);
    if (thorough_)
      status = lane_->redo->Mark({seen->id, {}});
  }
  core::MutexLock lock(mu_);
  if (seen && name.job->owed == 0)
    Count(*seen);
  if (!status) {
    // Not even the journal takes it: the directory is read again.
    LOG_WARN("scan: {}", status.error().ToString());
    name.job->failed = true;
  }
  comparing_--;
  name.job->outstanding--;
  FinishIfDone(name.job, lock);
}

void TreeScanner::Count(const Applier::Seen& seen) {
  if (seen.id == state::kNoFile)
    return;
  if (S_ISDIR(seen.st.stx_mode)) {
    totals_.directories++;
  } else if (S_ISREG(seen.st.stx_mode)) {
    totals_.files++;
    totals_.bytes += seen.st.stx_size;
  } else {
    totals_.others++;
  }
}

// --- reading

core::Result<std::vector<std::string>> TreeScanner::ReadSource(DirJob* job,
                                                               bool* end) {
  std::vector<std::string> names;
  auto fd = lane_->source->Dir(job->id);
  if (!fd) {
    // An owed comparison may be of a file, and either may be deleted.
    ASSIGN_OR_RETURN(bool dead, lane_->source->IsDead(job->id));
    *end = dead || fd.error().sys_errno == ENOTDIR;
    if (*end)
      return names;
    return core::Fail(std::move(fd).error());
  }
  auto entries = [&] {
    core::MutexLock lock(lane_->source->DirLock(job->id));
    return sys_->ReadDir((*fd)->Get(), job->next, kPieceBytes);
  }();
  if (!entries) {
    // Removed while the descriptor was open, or something worse.
    ASSIGN_OR_RETURN(*end, lane_->source->IsDead(job->id));
    if (*end)
      return names;
    return core::Fail(std::move(entries).error());
  }
  *end = entries->empty();
  for (core::DirEntry& entry : *entries) {
    job->next = entry.next_offset;
    if (IsDots(entry.name) ||
        lane_->source->Hidden(job->id, entry.name.c_str()))
      continue;
    names.push_back(std::move(entry.name));
  }
  return names;
}

core::Result<std::vector<std::string>> TreeScanner::ReadTarget(DirJob* job,
                                                               bool* end) {
  std::vector<std::string> names;
  auto object = lane_->objects->Find(job->id);
  *end = !object || object->type != S_IFDIR;
  if (*end)
    return names;
  // A descriptor of its own: the cached one's position is shared.
  auto read = [&]() -> core::Result<std::vector<core::DirEntry>> {
    ASSIGN_OR_RETURN(fusefs::SharedFd at, lane_->objects->Path(job->id));
    ASSIGN_OR_RETURN(core::UniqueFd fd,
                     sys_->OpenAt(at->Get(), ".", O_RDONLY | O_DIRECTORY));
    return sys_->ReadDir(fd.Get(), job->next, kPieceBytes);
  };
  auto listed = read();
  if (!listed) {
    ASSIGN_OR_RETURN(*end, applier_->IsDeadWithObject(job->id));
    if (*end)
      return names;
    return core::Fail(std::move(listed).error());
  }
  std::vector<core::DirEntry>& entries = *listed;
  *end = entries.empty();
  auto source = lane_->source->Path(job->id);
  for (core::DirEntry& entry : entries) {
    job->next = entry.next_offset;
    if (IsDots(entry.name) || Applier::IsSillyName(entry.name))
      continue;
    if (job->id == state::kRootId) {
      if (entry.name == lane_->objects->private_name())
        continue;
      // The target filesystem's own; ours would be bound.
      if (entry.name == "lost+found" &&
          !lane_->objects->FindByIno(entry.ino))
        continue;
    }
    // Only what the source lacks: the rest was compared from its side.
    if (source) {
      auto there = sys_->StatAt((*source)->Get(), entry.name.c_str(),
                                STATX_TYPE);
      if (there)
        continue;
    }
    names.push_back(std::move(entry.name));
  }
  return names;
}

void TreeScanner::ReadPiece(Jobs::iterator job) {
  bool end = false;
  // Nobody else touches the job's cookie while `reading` is set.
  auto names = job->part == DirJob::Part::kSource ? ReadSource(&*job, &end)
                                                  : ReadTarget(&*job, &end);
  core::Status marked;
  if (names && end && job->part == DirJob::Part::kTarget)
    marked = lane_->redo->Mark({job->id, {}});  // its times, at the end
  core::MutexLock lock(mu_);
  job->reading = false;
  if (!names || !marked) {
    const core::Error& error = names ? marked.error() : names.error();
    const int64_t pause = std::min(
        kLongestPauseNs, kFirstPauseNs << std::min(job->failures, 7u));
    if (job->failures++ == 0)
      LOG_WARN("reading directory {:x}: {}", job->id, error.ToString());
    job->not_before_ns = sys_->MonotonicNs() + pause;
    return;
  }
  job->failures = 0;
  for (std::string& name : *names) {
    names_.push_back(Name{job, std::move(name)});
    job->outstanding++;
  }
  if (end) {
    job->next = 0;
    job->part = job->part == DirJob::Part::kSource ? DirJob::Part::kTarget
                                                   : DirJob::Part::kListed;
  }
  work_.NotifyAll();
  FinishIfDone(job, lock);
}

void TreeScanner::FinishIfDone(Jobs::iterator job, core::MutexLock& lock) {
  if (job->part != DirJob::Part::kListed || job->outstanding != 0 ||
      job->reading)
    return;
  if (job->failed) {
    job->failed = false;
    job->part = DirJob::Part::kSource;
    job->not_before_ns = sys_->MonotonicNs() + kFirstPauseNs;
    return;
  }
  if (job->owed == 0) {
    jobs_.erase(job);
    return;
  }
  // Only this thread sees the job as finished: it leaves the list below.
  job->reading = true;
  const std::pair<FileId, uint64_t> owed(job->id, job->owed);
  lock.unlock();
  auto paid = lane_->redo->PaidOwed(owed.first, owed.second);
  lock.lock();
  if (!paid) {
    LOG_WARN("owed comparison: {}", paid.error().ToString());
    job->reading = false;
    job->part = DirJob::Part::kSource;
    job->not_before_ns = sys_->MonotonicNs() + kFirstPauseNs;
    return;
  }
  jobs_.erase(job);
}

// --- what is told

bool TreeScanner::Done() {
  core::MutexLock lock(mu_);
  return started_ && queue_.empty() && jobs_.empty() && names_.empty() &&
         comparing_ == 0;
}

TreeScanner::Totals TreeScanner::totals() {
  core::MutexLock lock(mu_);
  return totals_;
}

size_t TreeScanner::QueuedDirs() {
  core::MutexLock lock(mu_);
  return queue_.size() + jobs_.size();
}

}  // namespace livemv::copy
