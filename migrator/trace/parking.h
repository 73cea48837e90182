#pragma once

// Parks a stopped thread: its registers and signal mask go to the escrow, all
// signals are blocked, and its instruction pointer is where it can only wait.
// And the reverse, exactly: restored registers are those of the stop, so that
// the kernel decides by itself how an interrupted call goes on.
//
// Errors: kGone: the thread was killed, which is no reason to fail for the
// others; kUnsupported: it cannot be parked; else kSystem.
//
// Thread contract: the thread that traces the tracee. Nothing here waits.

#include <cstdint>

#include "core/result.h"
#include "migrator/trace/escrow.h"
#include "migrator/trace/ptrace_ops.h"
#include "migrator/trace/task_view.h"
#include "migrator/trace/tracee.h"

namespace livemv::trace {

class Parking {
 public:
  Parking(PtraceOps& ops, TaskView& tasks, Escrow& escrow)
      : ops_(ops), tasks_(tasks), escrow_(escrow) {}

  // thread is stopped and no kernel worker. Sets thread.record.
  core::Status Park(const TracedProcess& process, uint32_t process_record,
                    RemotePtr trampoline, Tracee& thread);

  // record: parked and in a fresh event stop. After a kGone too the record
  // needs nothing more.
  core::Status Restore(ThreadRecord& record, int64_t now_ns);

  // The same after the death of a tracer, which may have come at any point of
  // Park or Restore.
  core::Status RestoreAfterDeath(ThreadRecord& record, int64_t now_ns);

 private:
  core::Status LeaveRestartableSection(Tracee& thread, pid_t pid);
  core::Result<Registers> RegistersToRestore(ThreadRecord& record,
                                             int64_t now_ns);

  PtraceOps& ops_;
  TaskView& tasks_;
  Escrow& escrow_;
};

}  // namespace livemv::trace
