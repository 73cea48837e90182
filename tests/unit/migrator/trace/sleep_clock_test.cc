#include "migrator/trace/sleep_clock.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "migrator/trace/ptrace_ops.h"

namespace livemv::trace {
namespace {

// One thread sleeps in epoll_wait; the scheduler's clock is CLOCK_MONOTONIC.
// Whoever looks for the note of itself is switched away before it is read.
class SwitchedAway final : public TaskView {
 public:
  static constexpr pid_t kSleeper = 1 << 30;
  int64_t fell_asleep = MonotonicNs();

  core::Result<std::vector<pid_t>> Threads(pid_t) override {
    return std::vector<pid_t>{kSleeper};
  }
  core::Result<TaskStat> Stat(pid_t, pid_t) override {
    TaskStat stat;
    stat.state = 'S';
    stat.cpu = ::sched_getcpu();
    return stat;
  }
  core::Result<TaskSecurity> Security(pid_t, pid_t) override {
    return TaskSecurity{};
  }
  std::string WaitsIn(pid_t, pid_t) override { return ""; }
  core::Result<long> CurrentCall(pid_t, pid_t) override {
    return SYS_epoll_wait;
  }
  core::Result<int64_t> LeftCpuNs(pid_t, pid_t tid) override {
    if (tid == kSleeper)
      return fell_asleep;
    struct timespec nap = {0, 5'000'000};
    ::nanosleep(&nap, nullptr);
    return MonotonicNs();
  }
  bool WaitsForVfork(pid_t, pid_t) override { return false; }
  bool SharesMemory(pid_t, pid_t) override { return false; }
};

TEST(SleepClock, ASwitchWhileCalibratingMakesNoSleepLonger) {
  SwitchedAway tasks;
  auto sleeps = SleepClock(tasks).Look(SwitchedAway::kSleeper);
  ASSERT_TRUE(sleeps.contains(SwitchedAway::kSleeper));
  // It began when it did or is thought to have begun later, so that what is
  // left of its timeout is never less than it should be.
  EXPECT_GE(sleeps[SwitchedAway::kSleeper].since_ns, tasks.fell_asleep);
}

}  // namespace
}  // namespace livemv::trace
