#pragma once

// The seam to ptrace(2) and to waiting for tracees: one method a request, no
// logic. Its implementation is the only file that calls them.
//
// A tracee belongs to the thread that seized it: every request about it comes
// from that thread, and when that thread ends the kernel detaches the tracee.
// Errors: kGone when the tracee is no more (or not stopped: ESRCH says both),
// else kSystem.
//
// Thread contract: stateless; each method acts on tracees of the caller.

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "core/result.h"
#include "migrator/trace/arch_x86_64.h"
#include "migrator/trace/wait_status.h"

namespace livemv::trace {

struct WaitEvent {
  pid_t tid = 0;
  WaitStatus status;
};

// struct ptrace_sud_config of linux/ptrace.h; mode 0 is off.
struct SyscallUserDispatch {
  uint64_t mode = 0;
  uint64_t selector = 0;
  uint64_t offset = 0;
  uint64_t len = 0;
};

inline constexpr uint64_t kAllSignals = ~uint64_t{0};

class PtraceOps {
 public:
  virtual ~PtraceOps() = default;

  // PTRACE_SEIZE with TRACESYSGOOD. Without that option a stop code left
  // behind by a tracer that dies becomes a deadly SIGTRAP. The thread is not
  // stopped by it.
  virtual core::Status Seize(pid_t tid) = 0;
  virtual core::Status Interrupt(pid_t tid) = 0;
  // Until the next event, or also stopping at the next entry to or exit from
  // a system call. signal: delivered on the way, 0 for none.
  virtual core::Status Resume(pid_t tid, bool stop_at_syscalls, int signal) = 0;
  virtual core::Status Detach(pid_t tid) = 0;

  virtual core::Result<Registers> GetRegisters(pid_t tid) = 0;
  virtual core::Status SetRegisters(pid_t tid, const Registers& regs) = 0;
  // Of the thread, as it will be once a temporary mask (ppoll) is over.
  virtual core::Result<uint64_t> GetSignalMask(pid_t tid) = 0;
  virtual core::Status SetSignalMask(pid_t tid, uint64_t mask) = 0;
  // Seccomp filters of the thread are not asked until it is detached.
  virtual core::Status SuspendSeccomp(pid_t tid) = 0;
  // The thread's rseq area, null if it has none.
  virtual core::Result<RemotePtr> GetRseqArea(pid_t tid) = 0;
  virtual core::Result<SyscallUserDispatch> GetUserDispatch(pid_t tid) = 0;
  virtual core::Status SetUserDispatch(pid_t tid,
                                       const SyscallUserDispatch& config) = 0;

  // The next event of tid, or of any tracee of this thread if tid is -1.
  // Waits until deadline_ns (CLOCK_MONOTONIC), 0: not at all; nothing if none
  // came. kGone if there is no such tracee.
  virtual core::Result<std::optional<WaitEvent>> Wait(pid_t tid,
                                                      int64_t deadline_ns) = 0;
};

std::unique_ptr<PtraceOps> MakePtraceOps();

// The signal by which Wait ends a wait at its deadline: it stays unblocked in
// threads that use PtraceOps.
int DeadlineSignal();

int64_t MonotonicNs();

}  // namespace livemv::trace
