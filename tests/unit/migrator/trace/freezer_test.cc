#include "migrator/trace/freezer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>

#include "fake_kernel.h"

namespace livemv::trace {
namespace {

constexpr int64_t kMs = 1'000'000;

class FreezerTest : public ::testing::Test {
 protected:
  core::Status Stop(std::vector<pid_t> pids, int64_t within_ns = 50 * kMs) {
    processes_.clear();
    processes_.resize(pids.size());
    for (size_t i = 0; i < pids.size(); ++i)
      processes_[i].pid = pids[i];
    unstopped_.clear();
    return freezer_.Stop(processes_, kernel_.now + within_ns, &unstopped_);
  }

  FakeKernel kernel_;
  Freezer freezer_{kernel_, kernel_, [this] { return kernel_.now; }};
  std::vector<TracedProcess> processes_;
  std::vector<Unstopped> unstopped_;
};

TEST_F(FreezerTest, StopsAllThreadsOfAllProcesses) {
  kernel_.Add(10, 10);
  kernel_.Add(10, 11);
  kernel_.Add(20, 20);
  ASSERT_TRUE(Stop({10, 20}));
  for (auto& [tid, task] : kernel_.tasks)
    EXPECT_TRUE(task.stopped) << tid;
  EXPECT_EQ(processes_[0].threads.size(), 2u);
  EXPECT_GT(processes_[0].first_stop_ns, 0);
}

TEST_F(FreezerTest, FindsThreadsThatAreClonedWhileOthersStop) {
  // Each thread clones another just before it stops, five times.
  std::function<void(pid_t)> clone = [&](pid_t tid) {
    if (tid < 16)
      kernel_.Add(10, tid).on_interrupt = [&clone, tid] { clone(tid + 1); };
    else
      kernel_.Add(10, tid);
  };
  clone(10);
  ASSERT_TRUE(Stop({10}));
  EXPECT_EQ(processes_[0].threads.size(), 7u);
  for (auto& [tid, task] : kernel_.tasks)
    EXPECT_TRUE(task.stopped) << tid;
}

TEST_F(FreezerTest, ThreadsAndProcessesThatVanishAreLeftOut) {
  kernel_.Add(10, 10);
  kernel_.Add(10, 11).on_interrupt = [&] { kernel_.tasks.erase(11); };
  kernel_.Add(20, 20).on_interrupt = [&] { kernel_.tasks.erase(20); };
  ASSERT_TRUE(Stop({10, 20, 30}));
  EXPECT_TRUE(kernel_.tasks[10].stopped);
  EXPECT_TRUE(processes_[1].gone);
  EXPECT_TRUE(processes_[2].gone);
}

TEST_F(FreezerTest, ADeadLeaderDoesNotHideItsLivingThreads) {
  kernel_.Add(10, 10).dead = true;
  kernel_.Add(10, 11);
  ASSERT_TRUE(Stop({10}));
  EXPECT_TRUE(kernel_.tasks[11].stopped);
  EXPECT_THAT(unstopped_, ::testing::IsEmpty());
}

TEST_F(FreezerTest, ATaskInAnUninterruptibleWaitIsNamedAtTheDeadline) {
  kernel_.Add(10, 10);
  kernel_.Add(20, 20).stops_after_ns = -1;
  auto stopped = Stop({10, 20}, 30 * kMs);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, core::ErrorCode::kTimeout);
  ASSERT_EQ(unstopped_.size(), 1u);
  EXPECT_EQ(unstopped_[0].pid, 20);
  EXPECT_EQ(unstopped_[0].reason, "in an uninterruptible wait (fsync)");
  EXPECT_EQ(kernel_.now, 1 * kMs + 30 * kMs);
  freezer_.Release(processes_);
  EXPECT_EQ(kernel_.tasks[10].detached, 1);
  EXPECT_EQ(kernel_.tasks[20].detached, 0);
}

TEST_F(FreezerTest, AProcessTracedByAnotherIsNamedAndTheRestReleased) {
  kernel_.Add(10, 10);
  kernel_.Add(20, 20).traced_by = 42;
  auto stopped = Stop({10, 20});
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, core::ErrorCode::kConflict);
  ASSERT_EQ(unstopped_.size(), 1u);
  EXPECT_EQ(unstopped_[0].reason, "traced by 42");
}

TEST_F(FreezerTest, SignalsThatComeBeforeTheStopAreDelivered) {
  kernel_.Add(10, 10).signals = {SIGUSR1, SIGTERM};
  ASSERT_TRUE(Stop({10}));
  EXPECT_THAT(kernel_.log,
              ::testing::ElementsAre("resume 10 with 10", "resume 10 with 15"));
}

TEST_F(FreezerTest, AStoppedJobIsTakenAsItIs) {
  kernel_.Add(10, 10).group_stop_signal = SIGSTOP;
  ASSERT_TRUE(Stop({10}));
  EXPECT_THAT(kernel_.log, ::testing::IsEmpty());
}

TEST_F(FreezerTest, AVforkParentStopsBecauseItsChildIsLetGoOf) {
  FakeTask& parent = kernel_.Add(10, 10);
  parent.vfork_parent = true;
  parent.vfork_child = 20;
  kernel_.Add(20, 20).parent = 10;
  ASSERT_TRUE(Stop({10, 20}));
  EXPECT_TRUE(kernel_.tasks[10].stopped);
  EXPECT_TRUE(processes_[1].gone);
}

TEST_F(FreezerTest, AnInterruptedEpollWaitIsMadeAgainAtOnce) {
  FakeTask& task = kernel_.Add(10, 10);
  task.regs.rax = static_cast<uint64_t>(-EINTR);
  task.regs.orig_rax = SYS_epoll_wait;
  ASSERT_TRUE(Stop({10}));
  EXPECT_EQ(kernel_.tasks[10].regs.rax, uint64_t{SYS_epoll_wait});
  EXPECT_EQ(kernel_.tasks[10].regs.rip, 0x1000u - 2);
  EXPECT_TRUE(processes_[0].threads[0].made_again);
  // What is escrowed is how it was.
  EXPECT_EQ(processes_[0].threads[0].registers.rip, 0x1000u);
}

TEST_F(FreezerTest, AnEpollWaitThatASignalEndedStaysEnded) {
  FakeTask& task = kernel_.Add(10, 10);
  task.regs.rax = static_cast<uint64_t>(-EINTR);
  task.regs.orig_rax = SYS_epoll_wait;
  task.security.pending = uint64_t{1} << (SIGUSR1 - 1);
  task.security.caught = task.security.pending;
  ASSERT_TRUE(Stop({10}));
  EXPECT_EQ(kernel_.tasks[10].regs.rip, 0x1000u);
  EXPECT_FALSE(processes_[0].threads[0].made_again);
}

}  // namespace
}  // namespace livemv::trace
