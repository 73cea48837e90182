#include "fusefs/double_writer.h"

#include <algorithm>
#include <cerrno>
#include <utility>

namespace livemv::fusefs {

using core::Status;

Status PWriteAll(core::Syscalls* sys, int fd, std::span<const char> data,
                 uint64_t off) {
  while (!data.empty()) {
    ASSIGN_OR_RETURN(size_t n, sys->PWrite(fd, data.data(), data.size(),
                                           static_cast<off_t>(off)));
    if (n == 0)
      return core::FailSys(EIO, "pwrite wrote nothing");
    data = data.subspan(n);
    off += n;
  }
  return {};
}

TargetWriter::Outcome InlineTargetWriter::Write(FileId id,
                                                std::span<const char> data,
                                                uint64_t off, int64_t, Late) {
  auto fd = objects_->Data(id);
  if (!fd)
    return {core::Fail(std::move(fd).error()), false};
  return {PWriteAll(objects_->sys(), (*fd)->Get(), data, off), false};
}

TargetWriter::Outcome InlineTargetWriter::FSync(FileId id, int64_t, Late) {
  auto fd = objects_->Data(id);
  if (!fd)
    return {core::Fail(std::move(fd).error()), false};
  return {objects_->sys()->FSync((*fd)->Get()), false};
}

TargetWriter::Outcome DoubleWriter::Write(FileId id, std::span<const char> data,
                                          uint64_t off, int64_t limit_ns,
                                          Late late) {
  auto job = std::make_shared<Job>();
  job->id = id;
  job->data.assign(data.data(), data.size());
  job->off = off;
  job->late = std::move(late);
  return Submit(std::move(job), limit_ns);
}

TargetWriter::Outcome DoubleWriter::FSync(FileId id, int64_t limit_ns,
                                          Late late) {
  auto job = std::make_shared<Job>();
  job->id = id;
  job->is_fsync = true;
  job->late = std::move(late);
  return Submit(std::move(job), limit_ns);
}

Status DoubleWriter::Act(const Job& job) {
  ASSIGN_OR_RETURN(SharedFd fd, objects_->Data(job.id));
  if (job.is_fsync)
    return sys_->FSync(fd->Get());
  return PWriteAll(sys_, fd->Get(), job.data, job.off);
}

TargetWriter::Outcome DoubleWriter::Submit(std::shared_ptr<Job> job,
                                           int64_t limit_ns) {
  int64_t deadline = sys_->MonotonicNs() + limit_ns;
  core::MutexLock lock(mu_);
  queue_.push_back(job);
  work_.NotifyOne();
  while (!job->done) {
    int64_t left = deadline - sys_->MonotonicNs();
    if (left <= 0)
      break;
    job->over.WaitFor(lock, left);
  }
  if (job->done)
    return {std::move(job->status), false};
  if (!job->begun) {
    queue_.erase(std::find(queue_.begin(), queue_.end(), job));
    return {core::Fail(core::ErrorCode::kTimeout,
                       "target: no writer free within the limit"),
            false};
  }
  job->given_up = true;
  return {core::Fail(core::ErrorCode::kTimeout,
                     "target: call not answered within the limit"),
          true};
}

void DoubleWriter::Perform(const std::shared_ptr<Job>& job) {
  Status status = Act(*job);
  Late late;
  {
    core::MutexLock lock(mu_);
    job->done = true;
    if (job->given_up)
      late = std::move(job->late);
    else
      job->status = std::move(status);
    job->over.NotifyAll();
  }
  if (late)
    late(std::move(status));
}

bool DoubleWriter::Step() {
  std::shared_ptr<Job> job;
  {
    core::MutexLock lock(mu_);
    if (queue_.empty())
      return false;
    job = std::move(queue_.front());
    queue_.pop_front();
    job->begun = true;
  }
  Perform(job);
  return true;
}

void DoubleWriter::Run(const std::atomic<bool>& stop) {
  while (!stop.load()) {
    if (Step())
      continue;
    core::MutexLock lock(mu_);
    if (queue_.empty() && !stop.load())
      work_.Wait(lock);
  }
}

void DoubleWriter::Wake() {
  core::MutexLock lock(mu_);
  work_.NotifyAll();
}

}  // namespace livemv::fusefs
