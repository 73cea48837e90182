#include "migrator/trace/parking.h"

#include <string>
#include <utility>

#include "migrator/trace/remote_memory.h"
#include "migrator/trace/restart.h"

namespace livemv::trace {
namespace {

using core::ErrorCode;
using core::Fail;

// The kernel never blocks SIGKILL and SIGSTOP.
constexpr uint64_t kAllBlocked =
    kAllSignals & ~(uint64_t{1} << 8) & ~(uint64_t{1} << 18);

bool IsGone(const core::Error& error) {
  return error.code == ErrorCode::kGone;
}

}  // namespace

// A thread that was interrupted in a restartable sequence must go on at the
// sequence's abort handler. The kernel would see to it on the way back to the
// sequence, but forgets when the thread first goes to the trampoline.
core::Status Parking::LeaveRestartableSection(Tracee& thread, pid_t pid) {
  ASSIGN_OR_RETURN(RemotePtr area, ops_.GetRseqArea(thread.tid));
  if (!area)
    return {};
  // struct rseq and struct rseq_cs of linux/rseq.h.
  struct Section {
    uint32_t version, flags;
    uint64_t start, length, abort;
  };
  RemoteMemory memory(pid, thread.tid);
  RemotePtr current_at = area + 8;
  auto current = memory.Read<uint64_t>(current_at);
  // An area that cannot be read kills the thread soon without our help.
  if (!current || *current == 0)
    return {};
  auto section = memory.Read<Section>(RemotePtr(*current));
  if (!section || thread.registers.rip - section->start >= section->length)
    return {};
  thread.registers.rip = section->abort;
  // In this order: at no moment does the section go on.
  TRY(ops_.SetRegisters(thread.tid, thread.registers));
  return memory.Write(current_at, uint64_t{0});
}

core::Status Parking::Park(const TracedProcess& process,
                           uint32_t process_record, RemotePtr trampoline,
                           Tracee& thread) {
  if (!Is64Bit(thread.registers))
    return Fail(ErrorCode::kUnsupported, "a 32-bit program");
  TRY(LeaveRestartableSection(thread, process.pid));
  ASSIGN_OR_RETURN(uint64_t mask, ops_.GetSignalMask(thread.tid));
  ASSIGN_OR_RETURN(SyscallUserDispatch dispatch,
                   ops_.GetUserDispatch(thread.tid));
  ASSIGN_OR_RETURN(TaskSecurity task, tasks_.Security(process.pid, thread.tid));
  ASSIGN_OR_RETURN(uint32_t index, escrow_.AddThread());

  ThreadRecord& record = escrow_.threads()[index];
  record.pid = process.pid;
  record.tid = thread.tid;
  record.process = process_record;
  record.leader = thread.tid == process.pid;
  // A filter may kill for pause(2), user dispatch would raise SIGSYS.
  record.spins = task.seccomp || dispatch.mode != 0;
  record.made_again = thread.made_again;
  record.own = thread.registers;
  record.mask = mask;
  record.stopped_ns = thread.stopped_ns;
  auto sleep = process.sleeps.find(thread.tid);
  bool slept_through = sleep != process.sleeps.end() &&
                       task.voluntary_switches == sleep->second.switches + 1;
  record.sleeps_since_ns = slept_through ? sleep->second.since_ns : 0;
  record.dispatch = dispatch;
  record.trampoline = trampoline;
  record.state = ThreadState::kEscrowed;
  thread.record = static_cast<int>(index);

  TRY(ops_.SetSignalMask(thread.tid, kAllSignals));
  TRY(ops_.SetRegisters(thread.tid,
                        record.spins ? ParkedInSpin(record.own, trampoline)
                                     : ParkedInPause(record.own, trampoline)));
  record.state = ThreadState::kParked;
  return {};
}

core::Result<Registers> Parking::RegistersToRestore(ThreadRecord& record,
                                                    int64_t now_ns) {
  RemoteMemory memory(record.pid, record.tid);
  if (!record.made_again) {
    // Noted first: a successor must not shorten it twice.
    int64_t passed_ns = now_ns - std::exchange(record.stopped_ns, now_ns);
    (void)ShortenRemaining(record.own, memory, passed_ns);
    return record.own;
  }
  // A signal came meanwhile: the call ends with EINTR, as it would have.
  auto task = tasks_.Security(record.pid, record.tid);
  if (task && !HasOwnSignalMask(record.own)) {
    // The process's own signals go to the leader if it takes them.
    bool takes_shared =
        record.leader || (task->shared_pending != 0 &&
                          !escrow_.LeaderTakes(record, task->shared_pending));
    uint64_t pending =
        task->pending | (takes_shared ? task->shared_pending : 0);
    if (Deliverable(*task, pending, record.mask) != 0)
      return record.own;
  }
  return MadeAgainAfter(
      record.own, memory,
      record.sleeps_since_ns == 0 ? 0 : now_ns - record.sleeps_since_ns);
}

core::Status Parking::Restore(ThreadRecord& record, int64_t now_ns) {
  auto restore = [&]() -> core::Status {
    ASSIGN_OR_RETURN(Registers regs, RegistersToRestore(record, now_ns));
    if (record.dispatch.mode != 0)
      TRY(ops_.SetUserDispatch(record.tid, record.dispatch));
    TRY(ops_.SetRegisters(record.tid, regs));
    // In this order: between the two signals are merely pending.
    return ops_.SetSignalMask(record.tid, record.mask);
  };
  auto restored = restore();
  if (restored || IsGone(restored.error()))
    record.state = ThreadState::kRestored;
  return restored;
}

core::Status Parking::RestoreAfterDeath(ThreadRecord& record, int64_t now_ns) {
  ASSIGN_OR_RETURN(Registers regs, ops_.GetRegisters(record.tid));
  if (InGadget(regs, record.trampoline))
    return Restore(record, now_ns);
  // It runs its own code: the tracer died before it changed the registers or
  // after it gave them back.
  ASSIGN_OR_RETURN(uint64_t mask, ops_.GetSignalMask(record.tid));
  if ((mask & kAllBlocked) == kAllBlocked)
    TRY(ops_.SetSignalMask(record.tid, record.mask));
  // Our own interruption just now.
  if (EndedByInterruption(regs)) {
    auto task = tasks_.Security(record.pid, record.tid);
    bool signalled =
        task && Deliverable(*task, task->pending | task->shared_pending,
                            task->blocked) != 0;
    if (HasOwnSignalMask(regs)) {
      // As in the freezer: without the call's temporary mask.
      ASSIGN_OR_RETURN(uint64_t own, ops_.GetSignalMask(record.tid));
      TRY(ops_.SetSignalMask(record.tid, own));
      signalled = false;
    }
    if (task && !signalled)
      TRY(ops_.SetRegisters(record.tid, MadeAgain(regs)));
  }
  record.state = ThreadState::kRestored;
  return {};
}

}  // namespace livemv::trace
