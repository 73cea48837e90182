#pragma once

// The memory that tracer and guardian share: the registers of every parked
// thread and what is to become of every process. Whoever survives reads here
// what has to be done; descriptors are named by number, since both share one
// descriptor table.
//
// Records are only ever appended. A record counts once its state is not zero;
// its other fields are written before that. Memory is locked.
//
// Thread contract: Add* from any thread of the tracer; a record is written by
// the one thread that traces its process, and by the guardian once the tracer
// is dead.

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/result.h"
#include "migrator/trace/arch_x86_64.h"
#include "migrator/trace/ptrace_ops.h"
#include "migrator/trace/remote_ptr.h"

namespace livemv::trace {

enum class ThreadState : uint32_t {
  kUnused = 0,
  kEscrowed = 1,  // registers are saved; the mask may be changed
  kParked = 2,    // registers are changed
  kRestored = 3,  // its own again
};

struct ThreadRecord {
  std::atomic<ThreadState> state;
  pid_t pid;
  pid_t tid;
  uint32_t process;  // index
  bool leader;
  bool spins;       // parked without a system call
  bool made_again;  // to be resumed as MadeAgain(own)
  Registers own;    // as they were at the stop
  uint64_t mask;
  int64_t stopped_ns;       // CLOCK_MONOTONIC
  int64_t sleeps_since_ns;  // of a call that is made again; 0: unknown
  SyscallUserDispatch dispatch;
  RemotePtr trampoline;
};

enum class MoveState : uint32_t {
  kUnused = 0,
  kRecorded = 1,   // nothing changed yet
  kMoving = 2,     // some is on the new side
  kMoved = 3,      // all is
  kReturning = 4,  // some is back on the old side
  kReturned = 5,   // all is
};

struct FdRecord {
  int at;
  int old_fd;  // in our table
  int new_fd;
  bool cloexec;
};

struct LockRecord {
  int at;
  bool write;
  uint64_t start, end;  // included
};

struct NumberRange {
  uint32_t first, last;  // both included
};
inline constexpr size_t kMaxTempRanges = 16;

struct MoveRecord {
  std::atomic<MoveState> state;
  uint32_t process;
  uint32_t thread;  // index of the one that makes the calls
  int task_fd;      // pidfd through which its descriptor table is reached
  uint32_t first_fd, fd_count;
  uint32_t first_lock, lock_count;  // the same on both sides
  int old_cwd, new_cwd;           // in our table; -1: stays
  std::atomic<bool> cwd_touched;  // a call that changes it was begun
  RemotePtr scratch;              // a mapping of ours in the process
  std::atomic<bool> mapping;      // a call that makes it was begun
  // RLIMIT_NOFILE as it was, while it is raised for the temporaries.
  uint64_t limit_soft, limit_hard;
  std::atomic<bool> limit_raised;
  // Numbers that were free in the process and may hold descriptors of ours.
  std::array<NumberRange, kMaxTempRanges> temps;
  std::atomic<uint32_t> temp_count;
};

struct ProcessRecord {
  std::atomic<uint32_t> used;
  pid_t pid;
  int pidfd;  // in our table
};

struct EscrowHeader {
  std::atomic<bool> committed;  // a successor finishes instead of undoing
  std::atomic<uint32_t> processes, threads, moves, fds, locks;
};

class Escrow {
 public:
  // Shared with children forked later.
  static core::Result<std::unique_ptr<Escrow>> Create();
  ~Escrow();
  Escrow(const Escrow&) = delete;
  Escrow& operator=(const Escrow&) = delete;

  EscrowHeader& header() { return *header_; }
  std::span<ProcessRecord> processes();
  std::span<ThreadRecord> threads();
  std::span<MoveRecord> moves();
  std::span<FdRecord> FdsOf(const MoveRecord& move);
  std::span<LockRecord> LocksOf(const MoveRecord& move);

  // Appends room for one (or count) more; kUnsupported when there is none.
  core::Result<uint32_t> AddProcess();
  core::Result<uint32_t> AddThread();
  core::Result<uint32_t> AddMove();
  core::Result<uint32_t> AddFds(uint32_t count);
  core::Result<uint32_t> AddLocks(uint32_t count);

  // Whether the leader of this thread's process is parked, and a signal of
  // the set is not blocked by it.
  bool LeaderTakes(const ThreadRecord& thread, uint64_t signals);

  // Forgets everything; nobody may be stopped or moved.
  void Clear();

  static constexpr uint32_t kMaxProcesses = 8192;
  static constexpr uint32_t kMaxThreads = 16384;
  static constexpr uint32_t kMaxMoves = 8192;
  static constexpr uint32_t kMaxFds = 131072;
  static constexpr uint32_t kMaxLocks = 65536;

 private:
  Escrow() = default;
  EscrowHeader* header_ = nullptr;
  ProcessRecord* processes_ = nullptr;
  ThreadRecord* threads_ = nullptr;
  MoveRecord* moves_ = nullptr;
  FdRecord* fds_ = nullptr;
  LockRecord* locks_ = nullptr;
  void* base_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace livemv::trace
