#pragma once

// What /proc says about the threads of a process, for those who stop them.
// A seam, so that the freezer can be tested without processes.
//
// Errors: kGone when the process or thread is no more; kCorrupt when a file
// cannot be understood; else kSystem.
//
// Thread contract: stateless; any thread. Reads of /proc, which do not block
// on the thread that is looked at.

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/result.h"
#include "migrator/trace/remote_ptr.h"

namespace livemv::trace {

// /proc/PID/task/TID/stat
struct TaskStat {
  char state = '?';    // R S D T t Z X
  pid_t parent = 0;    // of the process
  unsigned flags = 0;  // PF_* of include/linux/sched.h
  int cpu = 0;         // where it ran last
  // A thread of the kernel (io_uring) inside the process: no user registers.
  bool KernelWorker() const { return (flags & (0x10u | 0x4000u)) != 0; }
  bool Dead() const { return state == 'Z' || state == 'X'; }
};

// /proc/PID/task/TID/status. Masks: bit n-1 is signal n.
struct TaskSecurity {
  pid_t tracer = 0;
  bool seccomp = false;         // strict mode or a filter
  uint64_t pending = 0;         // for the thread
  uint64_t shared_pending = 0;  // for the process
  uint64_t blocked = 0;         // now, a temporary mask included
  uint64_t ignored = 0;
  uint64_t caught = 0;
  uint64_t voluntary_switches = 0;  // of context
};

// Signals of `pending` that would do something if `blocked` were the mask.
uint64_t Deliverable(const TaskSecurity& task, uint64_t pending,
                     uint64_t blocked);

class TaskView {
 public:
  virtual ~TaskView() = default;
  virtual core::Result<std::vector<pid_t>> Threads(pid_t pid) = 0;
  virtual core::Result<TaskStat> Stat(pid_t pid, pid_t tid) = 0;
  virtual core::Result<TaskSecurity> Security(pid_t pid, pid_t tid) = 0;
  // The call and the kernel function in which the thread waits, for a message.
  virtual std::string WaitsIn(pid_t pid, pid_t tid) = 0;
  // The number of the system call in which the thread sleeps; kGone also if it
  // sleeps in none.
  virtual core::Result<long> CurrentCall(pid_t pid, pid_t tid) = 0;
  // When a sleeping thread left the CPU, or one that runs was last accounted
  // for, on the scheduler's clock of its CPU; kUnsupported if the kernel does
  // not say.
  virtual core::Result<int64_t> LeftCpuNs(pid_t pid, pid_t tid) = 0;
  // Whether the thread waits for a vfork child to exec or exit.
  virtual bool WaitsForVfork(pid_t pid, pid_t tid) = 0;
  // Whether two tasks share one address space.
  virtual bool SharesMemory(pid_t a, pid_t b) = 0;
};

std::unique_ptr<TaskView> MakeTaskView();

}  // namespace livemv::trace
