#pragma once

// A set of processes that are stopped together, changed together, and thawed
// together (rules 5 and 6).
//
//   Freeze   seizes every thread of every process (PTRACE_SEIZE, INTERRUPT,
//            never SIGSTOP) to a fixed point, writes its registers to the
//            escrow and parks it, so that the death of the tracer cannot let
//            it run.
//   Swap     gives descriptors and working directories to the processes; all
//            of them or none: on a failure what was swapped is put back.
//   Undo     puts everything back; allowed until Thaw.
//   Thaw     the commit: registers and masks restored, everybody detached.
//
// A guardian process, forked by Create before anything is stopped, watches the
// tracer: if the tracer dies it finishes (after Commit) or undoes (before)
// from the escrow, and thaws all. Nothing here opens files or can reach the
// target; descriptors come ready from the caller.
//
// Thread contract: one thread uses a FrozenSet; it drives its own tracer
// threads. All calls are bounded by the deadline given to Freeze.

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"

namespace livemv::trace {

struct FdMove {
  int at = -1;          // number in the process
  int with = -1;        // the new description, in this process; borrowed
  bool cloexec = false; // FD_CLOEXEC at that number
};

// What one thread group (or one thread with tables of its own) receives.
struct Move {
  pid_t pid = 0;
  pid_t tid = 0;        // the thread whose tables are meant; pid if shared
  std::vector<FdMove> fds;
  std::optional<int> cwd;  // a directory in this process; borrowed
};

struct Pause {
  pid_t pid = 0;
  int64_t ns = 0;  // from the first thread's stop to the last one's detach
};

// A process that could not be stopped in time, or not at all.
struct Unstopped {
  pid_t pid = 0;
  pid_t tid = 0;
  std::string reason;  // "in an uninterruptible wait (fsync)", "traced by 42"
};

class FrozenSet {
 public:
  // Forks the guardian. Call before the process has threads or locks.
  static core::Result<std::unique_ptr<FrozenSet>> Create();
  virtual ~FrozenSet() = default;  // undoes if not committed, and thaws

  // Adds pids to the set: stopped and parked when it returns OK. Processes
  // that are gone are left out silently. On kTimeout or a task that cannot be
  // stopped the ones of this call are thawed again and *unstopped says why.
  virtual core::Status Freeze(const std::vector<pid_t>& pids,
                              int64_t deadline_ns,
                              std::vector<Unstopped>* unstopped) = 0;
  virtual core::Status Swap(const std::vector<Move>& moves) = 0;
  virtual core::Status Undo() = 0;
  // From here on the guardian finishes instead of undoing.
  virtual void Commit() = 0;
  // Detaches everybody. Pauses are per process.
  virtual core::Result<std::vector<Pause>> Thaw() = 0;
};

}  // namespace livemv::trace
