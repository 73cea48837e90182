#include "migrator/trace/arch_x86_64.h"

#include <errno.h>
#include <sys/syscall.h>

// rbx: the table; r12, r13: the mapping that is unmapped at the end.
// clang-format off
asm(R"(
    .pushsection .rodata
livemv_gadget:
1:  movq   0(%rbx), %rax
    testq  %rax, %rax
    js     3f
    movq   8(%rbx), %rdi
    movq  16(%rbx), %rsi
    movq  24(%rbx), %rdx
    movq  32(%rbx), %r10
    movq  40(%rbx), %r8
    movq  48(%rbx), %r9
    syscall
    movq  %rax, 56(%rbx)
    addq  $64, %rbx
    cmpq  $-4095, %rax
    jb    1b
2:  movl  $34, %eax          # pause(2): all signals are blocked
    syscall
    jmp   2b
3:  movq  %r12, %rdi
    movq  %r13, %rsi
    movl  $11, %eax          # munmap(2)
    syscall
    jmp   2b
    .balign 16, 0
livemv_trampoline:
    syscall
1:  pause
    jmp   1b
    .balign 16, 0
livemv_gadget_end:
    .popsection
)");
// clang-format on
extern "C" const uint8_t livemv_gadget[], livemv_trampoline[],
    livemv_gadget_end[];

namespace livemv::trace {
namespace {

static_assert(sizeof(TableCall) == 64);
constexpr uint64_t kTrampolineBytes = 6;

constexpr int64_t kRestartNoHand = -514;  // include/linux/errno.h
constexpr uint64_t kUserCode64 = 0x33;    // arch/x86/include/asm/segment.h

bool CanBeMadeAgain(uint64_t nr, const Registers& regs) {
  switch (nr) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_rt_sigtimedwait:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_io_getevents:
    case SYS_io_pgetevents:
    // A read or write of a socket with a timeout; EINTR means that nothing
    // was transferred.
    case SYS_read:
    case SYS_readv:
    case SYS_write:
    case SYS_writev:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_sendto:
    case SYS_sendmsg:
    case SYS_sendmmsg:
    case SYS_accept:
    case SYS_accept4:
      return true;
    case SYS_io_uring_enter:
      return regs.rsi == 0;  // nothing was submitted
    default:
      return false;
  }
}

Registers At(const Registers& own, uint64_t ip) {
  Registers regs = own;
  regs.rip = ip;
  // The kernel must not take this for an interrupted call.
  regs.orig_rax = static_cast<unsigned long long>(-1);
  return regs;
}

}  // namespace

std::span<const uint8_t> Gadget() {
  return {livemv_gadget, livemv_gadget_end};
}

uint64_t TrampolineOffset() {
  return static_cast<uint64_t>(livemv_trampoline - livemv_gadget);
}

Registers ParkedInPause(const Registers& own, RemotePtr trampoline) {
  Registers regs = At(own, trampoline.address());
  regs.rax = SYS_pause;
  return regs;
}

Registers ParkedInSpin(const Registers& own, RemotePtr trampoline) {
  Registers regs = At(own, trampoline.address() + 2);
  regs.rax = 0;
  return regs;
}

Registers AboutToCall(const Registers& own, RemotePtr trampoline, long nr,
                      const Arguments& args) {
  Registers regs = At(own, trampoline.address());
  regs.rax = static_cast<unsigned long long>(nr);
  regs.rdi = args[0];
  regs.rsi = args[1];
  regs.rdx = args[2];
  regs.r10 = args[3];
  regs.r8 = args[4];
  regs.r9 = args[5];
  return regs;
}

Registers AboutToRun(const Registers& own, RemotePtr trampoline,
                     RemotePtr scratch, uint64_t len, RemotePtr table) {
  Registers regs = At(own, trampoline.address() - TrampolineOffset());
  regs.rax = 0;
  regs.rbx = table.address();
  regs.r12 = scratch.address();
  regs.r13 = len;
  return regs;
}

bool InGadget(const Registers& regs, RemotePtr trampoline) {
  uint64_t begin = trampoline.address() - TrampolineOffset();
  return regs.rip - begin < TrampolineOffset() + kTrampolineBytes;
}

bool AfterCall(const Registers& regs, RemotePtr trampoline) {
  return regs.rip == trampoline.address() + 2;
}

bool Is64Bit(const Registers& regs) {
  return regs.cs == kUserCode64;
}

bool EndedByInterruption(const Registers& regs) {
  return static_cast<int64_t>(regs.rax) == -EINTR &&
         CanBeMadeAgain(regs.orig_rax, regs);
}

bool HasOwnSignalMask(const Registers& regs) {
  switch (regs.orig_rax) {
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
      return regs.r8 != 0;
    case SYS_io_pgetevents:
      return regs.r9 != 0;
    default:
      return false;
  }
}

Registers MadeAgain(const Registers& regs) {
  Registers again = At(regs, regs.rip - 2);
  again.rax = regs.orig_rax;
  return again;
}

Timeout RemainingTimeout(const Registers& regs) {
  if (static_cast<int64_t>(regs.rax) != kRestartNoHand)
    return {};
  switch (regs.orig_rax) {
    case SYS_select:
      return {Timeout::Kind::kTimeval, &Registers::r8};
    case SYS_pselect6:
      return {Timeout::Kind::kTimespec, &Registers::r8};
    case SYS_ppoll:
      return {Timeout::Kind::kTimespec, &Registers::rdx};
    default:
      return {};
  }
}

Timeout FullTimeout(const Registers& made_again) {
  switch (made_again.rax) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
      return {Timeout::Kind::kMilliseconds, &Registers::r10};
    case SYS_epoll_pwait2:
    case SYS_semtimedop:
      return {Timeout::Kind::kTimespec, &Registers::r10};
    case SYS_rt_sigtimedwait:
      return {Timeout::Kind::kTimespec, &Registers::rdx};
    default:
      return {};
  }
}

bool HasFullTimeout(long nr) {
  Registers regs{};
  regs.rax = static_cast<unsigned long long>(nr);
  return FullTimeout(regs).kind != Timeout::Kind::kNone;
}

RemotePtr BelowRedZone(const Registers& regs) {
  return RemotePtr((regs.rsp - 128 - 16) & ~uint64_t{15});
}

}  // namespace livemv::trace
