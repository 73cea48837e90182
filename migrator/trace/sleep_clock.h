#pragma once

// Since when threads sleep in calls that are made again with their full
// timeout (epoll_wait and others, see FullTimeout): without it the timeout
// would begin anew. The kernel does not say so directly; the scheduler says
// when a thread last left the CPU, on a clock of its own, which is compared
// with CLOCK_MONOTONIC by being on that CPU for a moment.
//
// What cannot be found out is left out, and the timeout then is longer than it
// should be; it is never shorter.
//
// Thread contract: one thread, whose CPU affinity is changed for the moment.
// Looks at threads that run, before they are stopped.

#include <sys/types.h>

#include <cstdint>
#include <unordered_map>

#include "core/result.h"
#include "migrator/trace/task_view.h"

namespace livemv::trace {

struct Sleep {
  int64_t since_ns = 0;  // CLOCK_MONOTONIC
  // The thread's voluntary context switches when this was looked up. If it
  // has made just one more when it is stopped, it slept until then.
  uint64_t switches = 0;
};

class SleepClock {
 public:
  explicit SleepClock(TaskView& tasks) : tasks_(tasks) {}
  std::unordered_map<pid_t, Sleep> Look(pid_t pid);

 private:
  // CLOCK_MONOTONIC less the scheduler's clock of a CPU; nothing if it is not
  // known.
  core::Result<int64_t> Offset(int cpu);

  TaskView& tasks_;
  std::unordered_map<int, core::Result<int64_t>> offsets_;
};

}  // namespace livemv::trace
