#include "migrator/trace/parking.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>

#include "fake_kernel.h"
#include "migrator/trace/descriptor_swap.h"

namespace livemv::trace {
namespace {

const RemotePtr kTrampolineAt(0x700000 + TrampolineOffset());

class ParkingTest : public ::testing::Test {
 protected:
  ParkingTest() : escrow_(std::move(*Escrow::Create())) {
    process_.pid = 10;
    kernel_.Add(10, 10).mask = 0x123;
  }

  ThreadRecord& Park() {
    Tracee thread;
    thread.tid = 10;
    thread.state = Tracee::State::kStopped;
    thread.registers = kernel_.tasks[10].regs;
    thread.made_again = EndedByInterruption(thread.registers);
    thread.stopped_ns = kernel_.now;
    auto parked = parking_.Park(process_, 0, kTrampolineAt, thread);
    EXPECT_TRUE(parked) << parked.error().ToString();
    return escrow_->threads()[static_cast<size_t>(thread.record)];
  }

  FakeKernel kernel_;
  std::unique_ptr<Escrow> escrow_;
  Parking parking_{kernel_, kernel_, *escrow_};
  TracedProcess process_;
};

TEST_F(ParkingTest, ParksWithEverySignalBlockedAndGivesAllBack) {
  FakeTask& task = kernel_.tasks[10];
  task.regs.rax = static_cast<uint64_t>(-516);
  task.regs.orig_rax = SYS_nanosleep;
  Registers own = task.regs;
  ThreadRecord& record = Park();
  EXPECT_EQ(record.state, ThreadState::kParked);
  EXPECT_EQ(task.mask, kAllSignals);
  EXPECT_EQ(task.regs.rip, kTrampolineAt.address());
  EXPECT_EQ(task.regs.rax, uint64_t{SYS_pause});
  // Signals first, so that none is handled at the trampoline; and the reverse
  // on the way back.
  EXPECT_THAT(kernel_.log, ::testing::ElementsAre("mask 10", "registers 10"));
  kernel_.log.clear();
  ASSERT_TRUE(parking_.Restore(record, kernel_.now));
  EXPECT_EQ(memcmp(&task.regs, &own, sizeof own), 0);
  EXPECT_EQ(task.mask, 0x123u);
  EXPECT_THAT(kernel_.log, ::testing::ElementsAre("registers 10", "mask 10"));
  EXPECT_EQ(record.state, ThreadState::kRestored);
}

TEST_F(ParkingTest, AFilteredThreadSpinsAndMakesNoCall) {
  kernel_.tasks[10].security.seccomp = true;
  EXPECT_TRUE(Park().spins);
  EXPECT_EQ(kernel_.tasks[10].regs.rip, kTrampolineAt.address() + 2);
}

TEST_F(ParkingTest, A32BitProgramIsRefused) {
  kernel_.tasks[10].regs.cs = 0x23;
  Tracee thread;
  thread.tid = 10;
  thread.registers = kernel_.tasks[10].regs;
  auto parked = parking_.Park(process_, 0, kTrampolineAt, thread);
  ASSERT_FALSE(parked);
  EXPECT_EQ(parked.error().code, core::ErrorCode::kUnsupported);
  EXPECT_EQ(kernel_.tasks[10].mask, 0x123u);
}

TEST_F(ParkingTest, AnEpollWaitIsShortenedByTheTimeThatPassed) {
  FakeTask& task = kernel_.tasks[10];
  task.regs.rax = static_cast<uint64_t>(-EINTR);
  task.regs.orig_rax = SYS_epoll_wait;
  task.regs.r10 = 1000;
  task.security.voluntary_switches = 8;
  process_.sleeps[10] = {kernel_.now - 300'000'000, 7};
  ThreadRecord& record = Park();
  ASSERT_TRUE(parking_.Restore(record, kernel_.now + 100'000'000));
  EXPECT_EQ(task.regs.rax, uint64_t{SYS_epoll_wait});
  EXPECT_EQ(task.regs.r10, 600u);
}

TEST_F(ParkingTest, ASleepThatWasInterruptedMeanwhileKeepsItsFullTimeout) {
  FakeTask& task = kernel_.tasks[10];
  task.regs.rax = static_cast<uint64_t>(-EINTR);
  task.regs.orig_rax = SYS_epoll_wait;
  task.regs.r10 = 1000;
  task.security.voluntary_switches = 9;
  process_.sleeps[10] = {kernel_.now - 300'000'000, 7};
  ThreadRecord& record = Park();
  ASSERT_TRUE(parking_.Restore(record, kernel_.now));
  EXPECT_EQ(task.regs.r10, 1000u);
}

TEST_F(ParkingTest, ASignalThatCameMeanwhileEndsAnEpollWaitWithEintr) {
  FakeTask& task = kernel_.tasks[10];
  task.regs.rax = static_cast<uint64_t>(-EINTR);
  task.regs.orig_rax = SYS_epoll_wait;
  ThreadRecord& record = Park();
  task.security.shared_pending = uint64_t{1} << (SIGUSR1 - 1);
  task.security.caught = task.security.shared_pending;
  ASSERT_TRUE(parking_.Restore(record, kernel_.now));
  EXPECT_EQ(task.regs.rax, static_cast<uint64_t>(-EINTR));
}

TEST_F(ParkingTest, ASignalThatNobodyHandlesDoesNot) {
  FakeTask& task = kernel_.tasks[10];
  task.regs.rax = static_cast<uint64_t>(-EINTR);
  task.regs.orig_rax = SYS_epoll_wait;
  ThreadRecord& record = Park();
  task.security.shared_pending = uint64_t{1} << (SIGCHLD - 1);
  ASSERT_TRUE(parking_.Restore(record, kernel_.now));
  EXPECT_EQ(task.regs.rax, uint64_t{SYS_epoll_wait});
}

TEST_F(ParkingTest, AfterADeathBetweenMaskAndRegistersOnlyTheMaskIsRestored) {
  FakeTask& task = kernel_.tasks[10];
  Registers own = task.regs;
  ThreadRecord& record = Park();
  task.regs = own;
  task.regs.rip = 0x2000;  // it went on by itself
  record.state = ThreadState::kEscrowed;
  ASSERT_TRUE(parking_.RestoreAfterDeath(record, kernel_.now));
  EXPECT_EQ(task.regs.rip, 0x2000u);
  EXPECT_EQ(task.mask, 0x123u);
}

TEST_F(ParkingTest, AThreadThatWasNeverMaskedIsLeftAlone) {
  FakeTask& task = kernel_.tasks[10];
  Registers own = task.regs;
  ThreadRecord& record = Park();
  task.regs = own;
  task.mask = 0x77;  // changed by itself since
  record.state = ThreadState::kEscrowed;
  ASSERT_TRUE(parking_.RestoreAfterDeath(record, kernel_.now));
  EXPECT_EQ(task.mask, 0x77u);
}

TEST(LowestFree, FillsTheGapsFirst) {
  auto ranges = LowestFree({0, 1, 2, 5, 7}, 4, 16);
  ASSERT_EQ(ranges.size(), 3u);
  EXPECT_EQ(ranges[0].first, 3u);
  EXPECT_EQ(ranges[0].last, 4u);
  EXPECT_EQ(ranges[1].first, 6u);
  EXPECT_EQ(ranges[1].last, 6u);
  EXPECT_EQ(ranges[2].first, 8u);
  EXPECT_EQ(ranges[2].last, 8u);
}

TEST(LowestFree, GivesFewerRatherThanMoreRanges) {
  auto ranges = LowestFree({1, 3, 5, 7}, 10, 2);
  ASSERT_EQ(ranges.size(), 2u);
  EXPECT_EQ(ranges[0].last, 0u);
  EXPECT_EQ(ranges[1].last, 2u);
}

TEST(Deliverable, IgnoresWhatIsBlockedIgnoredOrHarmless) {
  auto bit = [](int sig) { return uint64_t{1} << (sig - 1); };
  TaskSecurity task;
  EXPECT_EQ(Deliverable(task, bit(SIGTERM), 0), bit(SIGTERM));
  EXPECT_EQ(Deliverable(task, bit(SIGTERM), bit(SIGTERM)), 0u);
  EXPECT_EQ(Deliverable(task, bit(SIGCHLD), 0), 0u);
  task.caught = bit(SIGCHLD);
  EXPECT_EQ(Deliverable(task, bit(SIGCHLD), 0), bit(SIGCHLD));
  task.ignored = bit(SIGHUP);
  EXPECT_EQ(Deliverable(task, bit(SIGHUP), 0), 0u);
}

TEST(Escrow, RefusesMoreThanItHasRoomFor) {
  auto escrow = std::move(*Escrow::Create());
  ASSERT_TRUE(escrow->AddFds(Escrow::kMaxFds));
  auto more = escrow->AddFds(1);
  ASSERT_FALSE(more);
  EXPECT_EQ(more.error().code, core::ErrorCode::kUnsupported);
  escrow->Clear();
  EXPECT_EQ(*escrow->AddFds(2), 0u);
  EXPECT_EQ(*escrow->AddFds(2), 2u);
}

}  // namespace
}  // namespace livemv::trace
