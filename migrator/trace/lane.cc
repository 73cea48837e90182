#include "migrator/trace/lane.h"

#include <signal.h>

#include <algorithm>
#include <string>

#include "core/fault_points.h"
#include "migrator/trace/remote_memory.h"

namespace livemv::trace {
namespace {

using core::ErrorCode;

bool IsGone(const core::Error& error) {
  return error.code == ErrorCode::kGone;
}

}  // namespace

Lane::Lane(Escrow& escrow)
    : escrow_(escrow),
      ops_(MakePtraceOps()),
      tasks_(MakeTaskView()),
      freezer_(*ops_, *tasks_, MonotonicNs),
      parking_(*ops_, *tasks_, escrow) {
  sigset_t all, former;
  ::sigfillset(&all);
  ::sigdelset(&all, DeadlineSignal());
  ::pthread_sigmask(SIG_SETMASK, &all, &former);
  thread_ = std::thread([this] { Run(); });
  ::pthread_sigmask(SIG_SETMASK, &former, nullptr);
}

Lane::~Lane() {
  {
    std::lock_guard lock(mu_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Lane::Run() {
  std::unique_lock lock(mu_);
  for (;;) {
    changed_.wait(lock, [this] { return job_ || ends_; });
    if (!job_)
      return;
    auto job = std::move(job_);
    job_ = nullptr;
    lock.unlock();
    core::Status status = job();
    lock.lock();
    status_ = std::move(status);
    done_ = true;
    changed_.notify_all();
  }
}

void Lane::Start(std::function<core::Status()> job) {
  {
    std::lock_guard lock(mu_);
    job_ = std::move(job);
    done_ = false;
  }
  changed_.notify_all();
}

core::Status Lane::Finish() {
  std::unique_lock lock(mu_);
  changed_.wait(lock, [this] { return done_; });
  return std::exchange(status_, core::Status{});
}

core::Status Lane::Freeze(int64_t deadline_ns) {
  return freezer_.Stop(processes, deadline_ns, &unstopped);
}

core::Status Lane::Park() {
  for (size_t i = 0; i < processes.size(); ++i) {
    auto parked = ParkProcess(processes[i], records[i]);
    if (!parked) {
      unstopped.push_back(
          {processes[i].pid, processes[i].pid, parked.error().ToString()});
      return parked;
    }
  }
  return {};
}

core::Status Lane::ParkProcess(TracedProcess& process, uint32_t record) {
  // Threads share one address space, so one of them that lives tells for all.
  RemotePtr trampoline;
  for (Tracee& thread : process.threads) {
    if (thread.state != Tracee::State::kStopped || thread.kernel_worker)
      continue;
    if (!trampoline) {
      auto put = RemoteMemory(process.pid, thread.tid).PutTrampoline();
      if (!put) {
        auto registers = ops_->GetRegisters(thread.tid);
        if (!registers && IsGone(registers.error()))
          continue;  // killed meanwhile
        return std::unexpected(std::move(put).error());
      }
      trampoline = *put;
    }
    auto parked = parking_.Park(process, record, trampoline, thread);
    if (!parked && IsGone(parked.error()))
      continue;
    TRY(parked);
  }
  return {};
}

InjectedCalls& Lane::CallsOf(uint32_t thread_record) {
  auto& calls = calls_[thread_record];
  if (!calls)
    calls = std::make_unique<InjectedCalls>(*ops_, *tasks_,
                                            escrow_.threads()[thread_record]);
  return *calls;
}

core::Status Lane::RestoreProcess(TracedProcess& process, int64_t deadline_ns) {
  core::Status result;
  for (Tracee& thread : process.threads) {
    if (thread.record < 0)
      continue;
    uint32_t index = static_cast<uint32_t>(thread.record);
    auto restore = [&]() -> core::Status {
      if (auto calls = calls_.find(index); calls != calls_.end()) {
        TRY(calls->second->Settle(deadline_ns));
        TRY(calls->second->ToFreshStop(deadline_ns));
      }
      return parking_.Restore(escrow_.threads()[index], MonotonicNs());
    };
    auto restored = restore();
    if (restored)
      continue;
    if (IsGone(restored.error()))
      escrow_.threads()[index].state = ThreadState::kRestored;
    else
      result = std::move(restored);
  }
  return result;
}

void Lane::DetachProcess(TracedProcess& process, std::vector<Pause>* pauses) {
  bool any = false;
  for (Tracee& thread : process.threads) {
    if (thread.state != Tracee::State::kStopped)
      continue;
    any = true;
    if (thread.record >= 0) {
      auto& record = escrow_.threads()[static_cast<uint32_t>(thread.record)];
      if (record.state != ThreadState::kRestored)
        continue;  // stays for the guardian
    }
    // An error means that it was killed; its end is taken notice of, so that
    // its parent learns of it.
    if (!ops_->Detach(thread.tid))
      (void)ops_->Wait(thread.tid, 0);
    thread.state = Tracee::State::kGone;
  }
  if (any)
    pauses->push_back({process.pid, MonotonicNs() - process.first_stop_ns});
}

core::Status Lane::Thaw(const std::vector<uint32_t>& stays, int64_t deadline_ns,
                        std::vector<Pause>* pauses) {
  core::Status result;
  for (size_t i = 0; i < processes.size(); ++i) {
    if (std::ranges::count(stays, records[i]) != 0)
      continue;
    auto restored = RestoreProcess(processes[i], deadline_ns);
    if (!restored)
      result = std::move(restored);
    DetachProcess(processes[i], pauses);
    // Armed to fail, it has nothing that it could stop any more.
    (void)core::FaultPoint("trace.mid_thaw");
  }
  return result;
}

}  // namespace livemv::trace
