#include "migrator/copy/barrier.h"

#include <algorithm>

#include "core/fault_points.h"
#include "core/log.h"

namespace livemv::copy {

Barrier::Barrier(const NameLane* lane, fusefs::ByteLedger* ledger,
                 Victims* victims, const Options& options)
    : lane_(lane), ledger_(ledger), victims_(victims), options_(options),
      sys_(lane->source->sys()) {}

core::Status Barrier::SyncSource() {
  const uint32_t epoch = ledger_->BeginSourceSync();
  core::Status synced = sys_->SyncFs(lane_->source->RootFd());
  ledger_->EndSourceSync(epoch, synced.has_value());
  if (!synced)
    return core::Fail(std::move(synced).error().With("sync the source"));
  return {};
}

core::Status Barrier::Now() {
  core::MutexLock one(one_);
  auto hot = lane_->redo->BeginBarrier();
  TRY(core::FaultPoint("barrier.begun"));
  TRY(SyncSource());
  TRY(ledger_->RecordSizes());
  TRY(lane_->journal->SyncAll());
  TRY(core::FaultPoint("barrier.synced"));
  // Applied is not durable on a local filesystem: then the mark stays until
  // TargetStep has synced that one too.
  if (options_.target_is_durable)
    TRY(lane_->redo->EndBarrier(hot));
  finished_++;
  return {};
}

core::Status Barrier::Step() {
  const int64_t now = sys_->MonotonicNs();
  if (now < next_ns_)
    return {};
  next_ns_ = now + options_.every_ns;
  core::Status status = Now();
  Remember(&last_error_, status);
  return status;
}

core::Status Barrier::TargetStep() {
  const int64_t now = sys_->MonotonicNs();
  if (now < next_target_ns_)
    return {};
  next_target_ns_ = now + options_.target_every_ns;
  core::Status status = [this]() -> core::Status {
    TRY(victims_->Bury());
    if (options_.target_is_durable)
      return ledger_->Barrier();
    std::vector<std::pair<FileId, uint64_t>> hot;
    {
      core::MutexLock one(one_);
      hot = lane_->redo->BeginBarrier();
      TRY(SyncSource());
    }
    TRY(ledger_->Barrier());  // syncs the target
    TRY(lane_->journal->SyncAll());
    return lane_->redo->EndBarrier(hot);
  }();
  Remember(&last_target_error_, status);
  return status;
}

void Barrier::Remember(std::string* last, const core::Status& status) {
  core::MutexLock lock(mu_);
  if (status) {
    last->clear();
    return;
  }
  std::string text = status.error().ToString();
  if (text != *last)
    LOG_WARN("barrier: {}", text);
  *last = std::move(text);
}

std::string Barrier::last_error() {
  core::MutexLock lock(mu_);
  return last_error_.empty() ? last_target_error_ : last_error_;
}

void Barrier::Run(const std::atomic<bool>& stop) {
  while (!stop.load()) {
    // Kept by Remember for the status; the next round tries again.
    if (auto status = Step(); !status)
      next_ns_ = std::min(next_ns_, sys_->MonotonicNs() + 1'000'000'000);
    core::MutexLock lock(mu_);
    if (!stop.load())
      wake_.WaitFor(lock, std::max<int64_t>(next_ns_ - sys_->MonotonicNs(), 0));
  }
}

void Barrier::RunTarget(const std::atomic<bool>& stop) {
  while (!stop.load()) {
    if (auto status = TargetStep(); !status)
      LOG_DEBUG("target barrier failed: {}", status.error().ToString());
    core::MutexLock lock(mu_);
    if (!stop.load())
      wake_.WaitFor(
          lock, std::max<int64_t>(next_target_ns_ - sys_->MonotonicNs(), 0));
  }
}

void Barrier::WakeAll() {
  core::MutexLock lock(mu_);
  wake_.NotifyAll();
}

}  // namespace livemv::copy
