#pragma once

// System calls made by a parked thread on our behalf, at its trampoline: when
// the tracer dies in the middle, the call is made and the thread then spins.
//
// Errors of Call: kGone: the thread was killed; kTimeout: the call did not
// return until the deadline (hung() from then on; Settle waits for it); kSystem
// with the errno that the call returned in the thread.
//
// Thread contract: the thread that traces the tracee.

#include <cstdint>
#include <memory>

#include "core/result.h"
#include "migrator/trace/escrow.h"
#include "migrator/trace/ptrace_ops.h"
#include "migrator/trace/task_view.h"

namespace livemv::trace {

class InjectedCalls {
 public:
  // record: a parked thread that is stopped.
  InjectedCalls(PtraceOps& ops, TaskView& tasks, ThreadRecord& record)
      : ops_(ops), tasks_(tasks), record_(record) {}

  // name and arguments are for messages and for the kernel. deadline_ns:
  // CLOCK_MONOTONIC.
  core::Result<uint64_t> Call(const char* name, long nr, const Arguments& args,
                              int64_t deadline_ns);
  // The same in three steps, so that several threads can be under way at
  // once: Start does not wait, PassEntry waits for the thread to begin the
  // call, Finish for its end.
  core::Status Start(const char* name, long nr, const Arguments& args);
  core::Status PassEntry(int64_t deadline_ns);
  core::Result<uint64_t> Finish(const char* name, int64_t deadline_ns);

  // Starts the program on a table of calls. The thread then runs by itself;
  // look at the table for its progress, and call KeepRunning now and then.
  core::Status StartProgram(RemotePtr scratch, uint64_t len, RemotePtr table);
  core::Status KeepRunning();
  // Begins to stop the thread; Settle waits for it.
  core::Status InterruptProgram();

  // A call did not return yet, or the program runs.
  bool hung() const { return stage_ != Stage::kNone; }
  // Waits for the end of a hung call, whose result is lost, or stops the
  // program.
  core::Status Settle(int64_t deadline_ns);
  // The registers as they are; not while hung.
  core::Result<Registers> GetRegisters() {
    return ops_.GetRegisters(record_.tid);
  }
  // Brings the thread to a stop in which the kernel will still decide how an
  // interrupted call goes on; needed before its own registers are restored.
  core::Status ToFreshStop(int64_t deadline_ns);
  // Whether the program may be used: it must not meet a filter after the
  // death of the tracer.
  bool MayRunProgram() const { return !record_.spins; }

  // Whether the thread was killed: then what fails about it is no failure.
  // /proc shows it alive until it has given back its memory, long after its
  // descriptors cannot be had any more. Of a hung call its end tells.
  bool Killed() {
    core::Result<Registers> registers;
    if (!hung())
      registers = GetRegisters();
    return !registers && registers.error().code == core::ErrorCode::kGone;
  }

  pid_t tid() const { return record_.tid; }
  pid_t pid() const { return record_.pid; }

 private:
  enum class Stage { kNone, kToEntry, kToExit, kProgram };
  core::Status Prepare();
  // Until the stage is past `stage`, or (kProgram) the thread has stopped.
  core::Status WaitPast(Stage stage, int64_t deadline_ns);
  core::Status Handle(const WaitStatus& status);

  PtraceOps& ops_;
  TaskView& tasks_;
  ThreadRecord& record_;
  Stage stage_ = Stage::kNone;
  bool prepared_ = false;
  bool interrupted_ = false;  // the program is to stop
  bool fresh_ = false;        // stopped by that, and not used since
};

}  // namespace livemv::trace
