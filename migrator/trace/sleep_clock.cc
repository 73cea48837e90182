#include "migrator/trace/sleep_clock.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "migrator/trace/arch_x86_64.h"
#include "migrator/trace/ptrace_ops.h"

namespace livemv::trace {

core::Result<int64_t> SleepClock::Offset(int cpu) {
  if (auto known = offsets_.find(cpu); known != offsets_.end())
    return known->second;
  auto measure = [&]() -> core::Result<int64_t> {
    cpu_set_t former, there;
    CPU_ZERO(&there);
    CPU_SET(cpu, &there);
    if (::sched_getaffinity(0, sizeof former, &former) != 0 ||
        ::sched_setaffinity(0, sizeof there, &there) != 0)
      return core::Fail(core::ErrorCode::kUnsupported, "no way to that CPU");
    core::Result<int64_t> best =
        core::Fail(core::ErrorCode::kUnsupported, "no scheduler clock");
    for (int i = 0; i < 3; ++i) {
      // The scheduler's note of us is as old as this call or younger: a tick
      // or a switch renews it. So the clock is read last, and whatever comes
      // between makes the offset larger, which makes a sleep longer. The other
      // way around a switch in between would end sleeps too early.
      ::sched_yield();
      auto noted = tasks_.LeftCpuNs(::getpid(), ::gettid());
      int64_t now = MonotonicNs();
      if (noted && (!best || now - *noted < *best))
        best = now - *noted;
    }
    ::sched_setaffinity(0, sizeof former, &former);
    return best;
  };
  return offsets_.emplace(cpu, measure()).first->second;
}

std::unordered_map<pid_t, Sleep> SleepClock::Look(pid_t pid) {
  std::unordered_map<pid_t, Sleep> found;
  auto tids = tasks_.Threads(pid);
  if (!tids)
    return found;
  for (pid_t tid : *tids) {
    auto call = tasks_.CurrentCall(pid, tid);
    if (!call || !HasFullTimeout(*call))
      continue;
    auto task = tasks_.Security(pid, tid);
    auto stat = tasks_.Stat(pid, tid);
    auto left = tasks_.LeftCpuNs(pid, tid);
    if (!task || !stat || !left || stat->state != 'S')
      continue;
    if (auto offset = Offset(stat->cpu))
      found[tid] = {*left + *offset, task->voluntary_switches};
  }
  return found;
}

}  // namespace livemv::trace
