#include "migrator/trace/injected_calls.h"

#include <errno.h>
#include <signal.h>

#include <string>

namespace livemv::trace {
namespace {

using core::ErrorCode;
using core::Fail;
using core::FailSys;

constexpr uint64_t kMaxErrno = 4095;

std::string In(pid_t tid) {
  return " in thread " + std::to_string(tid);
}

}  // namespace

core::Status InjectedCalls::Prepare() {
  if (prepared_)
    return {};
  auto suspended = ops_.SuspendSeccomp(record_.tid);
  if (!suspended) {
    if (suspended.error().code == ErrorCode::kGone)
      return suspended;
    // Not built into this kernel, or not allowed here: then only threads
    // without a filter can make calls for us.
    ASSIGN_OR_RETURN(TaskSecurity task,
                     tasks_.Security(record_.pid, record_.tid));
    if (task.seccomp)
      return Fail(ErrorCode::kUnsupported,
                  "a seccomp filter cannot be suspended" + In(record_.tid) +
                      ": " + suspended.error().ToString());
  }
  // Given back when the thread's registers are.
  if (record_.dispatch.mode != 0)
    TRY(ops_.SetUserDispatch(record_.tid, SyscallUserDispatch{}));
  prepared_ = true;
  return {};
}

core::Status InjectedCalls::Start(const char* name, long nr,
                                  const Arguments& args) {
  if (hung())
    return Fail(ErrorCode::kTimeout, std::string(name) +
                                         ": an earlier call has not returned" +
                                         In(record_.tid));
  TRY(Prepare());
  fresh_ = false;
  TRY(ops_.SetRegisters(
      record_.tid, AboutToCall(record_.own, record_.trampoline, nr, args)));
  TRY(ops_.Resume(record_.tid, true, 0));
  stage_ = Stage::kToEntry;
  return {};
}

core::Status InjectedCalls::PassEntry(int64_t deadline_ns) {
  return WaitPast(Stage::kToEntry, deadline_ns);
}

core::Result<uint64_t> InjectedCalls::Finish(const char* name,
                                             int64_t deadline_ns) {
  auto ran = WaitPast(Stage::kToExit, deadline_ns);
  if (!ran)
    return std::unexpected(std::move(ran).error().With(name));
  ASSIGN_OR_RETURN(Registers regs, ops_.GetRegisters(record_.tid));
  if (!AfterCall(regs, record_.trampoline))
    return Fail(ErrorCode::kCorrupt,
                std::string(name) + In(record_.tid) + " left the trampoline");
  uint64_t ret = regs.rax;
  if (ret >= -kMaxErrno)
    return FailSys(static_cast<int>(-ret), name + In(record_.tid));
  return ret;
}

core::Result<uint64_t> InjectedCalls::Call(const char* name, long nr,
                                           const Arguments& args,
                                           int64_t deadline_ns) {
  TRY(Start(name, nr, args));
  return Finish(name, deadline_ns);
}

core::Status InjectedCalls::StartProgram(RemotePtr scratch, uint64_t len,
                                         RemotePtr table) {
  TRY(Prepare());
  fresh_ = false;
  interrupted_ = false;
  TRY(ops_.SetRegisters(record_.tid, AboutToRun(record_.own, record_.trampoline,
                                                scratch, len, table)));
  TRY(ops_.Resume(record_.tid, false, 0));
  stage_ = Stage::kProgram;
  return {};
}

core::Status InjectedCalls::KeepRunning() {
  ASSIGN_OR_RETURN(auto event, ops_.Wait(record_.tid, 0));
  return event ? Handle(event->status) : core::Status{};
}

core::Status InjectedCalls::InterruptProgram() {
  if (stage_ != Stage::kProgram || interrupted_)
    return {};
  interrupted_ = true;
  return ops_.Interrupt(record_.tid);
}

// What to do about a stop; on return the thread runs, unless the stage says
// that it is done.
core::Status InjectedCalls::Handle(const WaitStatus& status) {
  int signal = 0;
  if (status.Ended()) {
    stage_ = Stage::kNone;
    return Fail(ErrorCode::kGone, "ended" + In(record_.tid));
  }
  if (status.SyscallStop()) {
    if (stage_ == Stage::kToExit) {
      stage_ = Stage::kNone;
      return {};
    }
    if (stage_ == Stage::kToEntry)
      stage_ = Stage::kToExit;
  } else if (status.SignalStop()) {
    signal = status.Signal();
    // All signals are blocked; only SIGSTOP cannot be. It is delivered, so
    // that the kernel keeps the job stopped after we have gone.
    if (signal != SIGSTOP) {
      stage_ = Stage::kNone;
      return Fail(ErrorCode::kCorrupt, "signal " + std::to_string(signal) +
                                           " at the trampoline" +
                                           In(record_.tid));
    }
  } else if (status.EventStop() && interrupted_) {
    interrupted_ = false;
    fresh_ = true;
    stage_ = Stage::kNone;
    return {};
  }
  // Other event stops (job control came or went) are passed over.
  return ops_.Resume(record_.tid, stage_ != Stage::kProgram, signal);
}

core::Status InjectedCalls::WaitPast(Stage stage, int64_t deadline_ns) {
  // Stages follow one another; kNone is behind all of them.
  while (stage_ != Stage::kNone && stage_ <= stage) {
    ASSIGN_OR_RETURN(auto event, ops_.Wait(record_.tid, deadline_ns));
    if (!event)
      return Fail(ErrorCode::kTimeout,
                  "the call does not return" + In(record_.tid));
    TRY(Handle(event->status));
  }
  return {};
}

core::Status InjectedCalls::Settle(int64_t deadline_ns) {
  TRY(InterruptProgram());
  return WaitPast(Stage::kProgram, deadline_ns);
}

core::Status InjectedCalls::ToFreshStop(int64_t deadline_ns) {
  if (!prepared_ || fresh_)
    return {};
  TRY(ops_.Interrupt(record_.tid));
  int signal = 0;
  for (;;) {
    TRY(ops_.Resume(record_.tid, false, signal));
    ASSIGN_OR_RETURN(auto event, ops_.Wait(record_.tid, deadline_ns));
    if (!event)
      return Fail(ErrorCode::kTimeout, "no stop" + In(record_.tid));
    if (event->status.Ended())
      return Fail(ErrorCode::kGone, "ended" + In(record_.tid));
    if (event->status.EventStop())
      return {};
    signal = event->status.SignalStop() ? event->status.Signal() : 0;
  }
}

}  // namespace livemv::trace
