#pragma once

// What is particular to x86-64: registers, the trampoline, how an interrupted
// call looks, and where a call keeps its timeout.
//
// The trampoline is `syscall; 1: pause; jmp 1b` in the unused tail of the
// vdso. A thread whose instruction pointer is there can only execute the
// system call that its registers hold and then wait: so the death of the
// tracer at any moment lets it do nothing else. Before it lies the program, a
// loop that makes the calls of a table and then waits likewise.
//
// Thread contract: pure functions.

#include <sys/user.h>

#include <array>
#include <cstdint>
#include <span>

#include "migrator/trace/remote_ptr.h"

#if !defined(__x86_64__)
#error "livemv's tracer knows x86-64 only"
#endif

namespace livemv::trace {

using Registers = user_regs_struct;
using Arguments = std::array<uint64_t, 6>;

// Program and trampoline as they lie at the end of the vdso's mapping.
std::span<const uint8_t> Gadget();
// Of the trampoline in it.
uint64_t TrampolineOffset();

// One call of the program's table. The table ends with nr < 0, or with the
// first call that fails; when all succeeded the program unmaps the table.
struct TableCall {
  int64_t nr;
  Arguments args;
  int64_t ret;
};
inline constexpr int64_t kTableEnd = -1;

// Sleeps in pause(2) at the trampoline: with every signal blocked it never
// returns. Not for threads with a seccomp filter or syscall user dispatch.
Registers ParkedInPause(const Registers& own, RemotePtr trampoline);
// Spins at the trampoline; makes no call.
Registers ParkedInSpin(const Registers& own, RemotePtr trampoline);
// About to execute one system call at the trampoline.
Registers AboutToCall(const Registers& own, RemotePtr trampoline, long nr,
                      const Arguments& args);
// About to make the calls of a table, which begins the mapping [scratch,
// scratch + len). Not for threads with a seccomp filter.
Registers AboutToRun(const Registers& own, RemotePtr trampoline,
                     RemotePtr scratch, uint64_t len, RemotePtr table);
// In the trampoline or in the program.
bool InGadget(const Registers& regs, RemotePtr trampoline);
// Just behind the trampoline's system call.
bool AfterCall(const Registers& regs, RemotePtr trampoline);
// False for a 32-bit program.
bool Is64Bit(const Registers& regs);

// The call was ended with EINTR by the interruption itself, although it can be
// made again: epoll_wait, sigtimedwait, semop, recv with a timeout and others
// do not use the kernel's restart codes.
bool EndedByInterruption(const Registers& regs);
// Such a call with a signal mask of its own: made again, it finds a pending
// signal under that mask by itself.
bool HasOwnSignalMask(const Registers& regs);
// The same registers about to make the call again.
Registers MadeAgain(const Registers& regs);

// Where a call keeps a relative timeout that must be shortened.
struct Timeout {
  enum class Kind {
    kNone,
    kMilliseconds,  // in a register
    kTimespec,      // in memory
    kTimeval,       // in memory
  } kind = Kind::kNone;
  unsigned long long Registers::*where = nullptr;
};
// For select, pselect6 and ppoll that will be restarted (-ERESTARTNOHAND): the
// kernel wrote the time that remained at the stop to memory.
Timeout RemainingTimeout(const Registers& regs);
// For a call that is MadeAgain: its full timeout.
Timeout FullTimeout(const Registers& made_again);
bool HasFullTimeout(long nr);

// The address below the stack and its red zone, for 16 bytes.
RemotePtr BelowRedZone(const Registers& regs);

}  // namespace livemv::trace
