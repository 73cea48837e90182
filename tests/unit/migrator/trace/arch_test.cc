#include <errno.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>

#include "migrator/trace/arch_x86_64.h"
#include "migrator/trace/wait_status.h"

namespace livemv::trace {
namespace {

Registers Ended(long nr, int64_t result) {
  Registers regs{};
  regs.orig_rax = static_cast<uint64_t>(nr);
  regs.rax = static_cast<uint64_t>(result);
  regs.rip = 0x5000;
  return regs;
}

TEST(Arch, OnlyCallsThatDidNothingYetAreTakenAsEndedByInterruption) {
  EXPECT_TRUE(EndedByInterruption(Ended(SYS_epoll_wait, -EINTR)));
  EXPECT_TRUE(EndedByInterruption(Ended(SYS_rt_sigtimedwait, -EINTR)));
  EXPECT_TRUE(EndedByInterruption(Ended(SYS_recvfrom, -EINTR)));
  EXPECT_FALSE(EndedByInterruption(Ended(SYS_epoll_wait, 1)));
  // The kernel restarts these itself, or they must not be made twice.
  EXPECT_FALSE(EndedByInterruption(Ended(SYS_nanosleep, -516)));
  EXPECT_FALSE(EndedByInterruption(Ended(SYS_close, -EINTR)));
  EXPECT_FALSE(EndedByInterruption(Ended(SYS_connect, -EINTR)));
}

TEST(Arch, IoUringEnterIsMadeAgainOnlyIfItSubmittedNothing) {
  Registers regs = Ended(SYS_io_uring_enter, -EINTR);
  EXPECT_TRUE(EndedByInterruption(regs));
  regs.rsi = 1;
  EXPECT_FALSE(EndedByInterruption(regs));
}

TEST(Arch, MadeAgainPointsAtTheSystemCallInstruction) {
  Registers again = MadeAgain(Ended(SYS_epoll_wait, -EINTR));
  EXPECT_EQ(again.rip, 0x5000u - 2);
  EXPECT_EQ(again.rax, uint64_t{SYS_epoll_wait});
  EXPECT_EQ(again.orig_rax, static_cast<uint64_t>(-1));
}

TEST(Arch, AParkedThreadIsInTheGadgetAndInNoSystemCall) {
  RemotePtr at(0x7000 + TrampolineOffset());
  Registers own = Ended(SYS_nanosleep, -516);
  for (const Registers& regs :
       {ParkedInPause(own, at), ParkedInSpin(own, at),
        AboutToRun(own, at, RemotePtr(1), 2, RemotePtr(3))}) {
    EXPECT_TRUE(InGadget(regs, at));
    EXPECT_EQ(regs.orig_rax, static_cast<uint64_t>(-1));
  }
  EXPECT_FALSE(InGadget(own, at));
  Registers behind = own;
  behind.rip = at.address() + 6;
  EXPECT_FALSE(InGadget(behind, at));
}

TEST(Arch, TheTrampolineIsSyscallAndASpin) {
  auto gadget = Gadget();
  ASSERT_LE(TrampolineOffset() + 6, gadget.size());
  const uint8_t wanted[] = {0x0f, 0x05, 0xf3, 0x90, 0xeb, 0xfc};
  for (size_t i = 0; i < sizeof wanted; ++i)
    EXPECT_EQ(gadget[TrampolineOffset() + i], wanted[i]) << i;
}

TEST(Arch, KnowsWhereTimeoutsAre) {
  EXPECT_EQ(RemainingTimeout(Ended(SYS_select, -514)).where, &Registers::r8);
  EXPECT_EQ(RemainingTimeout(Ended(SYS_ppoll, -514)).where, &Registers::rdx);
  // Not to be restarted: nothing remains.
  EXPECT_EQ(RemainingTimeout(Ended(SYS_select, 0)).where, nullptr);
  EXPECT_TRUE(HasFullTimeout(SYS_epoll_wait));
  EXPECT_FALSE(HasFullTimeout(SYS_poll));
}

TEST(WaitStatus, TellsTheStopsApart) {
  WaitStatus interrupted((PTRACE_EVENT_STOP << 16) | (SIGTRAP << 8) | 0x7f);
  EXPECT_TRUE(interrupted.EventStop());
  EXPECT_FALSE(interrupted.GroupStop());
  EXPECT_FALSE(interrupted.SignalStop());
  WaitStatus group((PTRACE_EVENT_STOP << 16) | (SIGSTOP << 8) | 0x7f);
  EXPECT_TRUE(group.EventStop());
  EXPECT_TRUE(group.GroupStop());
  WaitStatus call(((SIGTRAP | 0x80) << 8) | 0x7f);
  EXPECT_TRUE(call.SyscallStop());
  EXPECT_FALSE(call.SignalStop());
  WaitStatus signal((SIGUSR1 << 8) | 0x7f);
  EXPECT_TRUE(signal.SignalStop());
  EXPECT_EQ(signal.Signal(), SIGUSR1);
  EXPECT_TRUE(WaitStatus(0).Ended());
  EXPECT_TRUE(WaitStatus(SIGKILL).Ended());
}

}  // namespace
}  // namespace livemv::trace
