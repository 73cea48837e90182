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
// from the escrow, and thaws all. It shares the tracer's descriptor table, so
// that descriptors of the tracer stay open as long as it needs them; a socket
// of the tracer shows its end of file when both have ended, which is when no
// process is half moved any more.
//
// Nothing here opens files or can reach the target; descriptors come ready
// from the caller. But closing the old descriptors in a process sends FLUSH to
// the filesystem they are on, and a new directory is asked for permission:
// whoever serves them must answer in a freeze.
//
// What cannot be kept exactly: a receive timeout of a socket (SO_RCVTIMEO)
// begins anew; io_uring_enter that submitted and waits returns early. A
// POSIX lock is let go of when its file's descriptor is replaced and taken again
// when all descriptors are in place: until then nobody else may be able to get
// at the file, on either side. A process under a seccomp filter makes calls
// for us only while the tracer lives: if the tracer is killed in the middle of
// one, the filter may kill the process. A tracer killed between the stop of a
// thread and its look at it (microseconds) cannot hide the EINTR with which
// epoll_wait, sigtimedwait and a recv with a timeout end when interrupted.
//
// Thread contract: one thread uses a FrozenSet; it drives its own tracer
// threads. Freeze and Swap are bounded by the deadline given to Freeze, an
// absolute CLOCK_MONOTONIC time in ns; what must be done in any case (Undo,
// Thaw) by that and 2 s more.

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"

namespace livemv::trace {

struct FdMove {
  int at = -1;           // number in the process
  int with = -1;         // the new description, in this process; borrowed
                         // until Thaw
  bool cloexec = false;  // FD_CLOEXEC at that number, now and afterwards
};

// A POSIX lock that the process has, to be taken on whichever side it ends on.
struct PosixLock {
  int at = -1;  // a number in the process through which it may be taken
  bool write = false;
  uint64_t start = 0;
  uint64_t end = UINT64_MAX;  // included; UINT64_MAX: to the end of any file
};

// What one thread group (or one thread with tables of its own) receives.
struct Move {
  pid_t pid = 0;
  pid_t tid = 0;  // the thread whose tables are meant; pid if shared
  std::vector<FdMove> fds;
  std::optional<int> cwd;  // a directory in this process; borrowed until Thaw
  // Those on the files of fds. All of a file's descriptors in the process must
  // be among fds: the close of any lets go of the locks.
  std::vector<PosixLock> locks;
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
  // Forks the guardian. Call before the process has threads or locks (kInvalid
  // else). Makes the process ready for freezes: its memory is locked, its
  // working directory is / from now on, its limit of descriptors is raised.
  static core::Result<std::unique_ptr<FrozenSet>> Create();
  virtual ~FrozenSet() = default;  // undoes if not committed, and thaws

  // Adds pids to the set: stopped and parked when it returns OK. Processes
  // that are gone are left out silently; children that are forked meanwhile
  // are not included, so scan again and add them. On kTimeout (some did not
  // stop), kConflict (some may not be traced) or another error the ones of
  // this call are thawed again and *unstopped says why. Between the first
  // Freeze and Thaw the log is held in memory.
  virtual core::Status Freeze(const std::vector<pid_t>& pids,
                              int64_t deadline_ns,
                              std::vector<Unstopped>* unstopped) = 0;
  // All moves or none; verified from outside. kTimeout: a call in a process
  // did not return (a FLUSH that nobody answers, a lock of a server that is
  // away); kSystem with EAGAIN: another holds one of the locks. When the error says that
  // putting back is not complete, Thaw lets go of all others and leaves that
  // process, parked, to the guardian, which puts it back when it can.
  virtual core::Status Swap(const std::vector<Move>& moves) = 0;
  // An error also if a POSIX lock is somebody else's by now (kConflict); all
  // else is back.
  virtual core::Status Undo() = 0;
  // From here on the guardian finishes instead of undoing. Only after a Swap
  // that succeeded.
  virtual void Commit() = 0;
  // Detaches everybody. Pauses are per process. Commits what was swapped and
  // not undone. kTimeout: somebody was left to the guardian; then this set
  // cannot freeze again. Afterwards the set can be used anew.
  virtual core::Result<std::vector<Pause>> Thaw() = 0;
};

}  // namespace livemv::trace
