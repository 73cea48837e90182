#pragma once

// One thread's events: descriptors that become readable or writable, and
// timers. Callbacks may add and remove anything, themselves included.
//
// Thread contract: one thread.

#include <cstdint>
#include <functional>
#include <map>

#include "core/result.h"

namespace livemv::daemon {

class PollLoop {
 public:
  using Callback = std::function<void()>;
  using TimerId = uint64_t;

  // events: POLLIN, POLLOUT. The descriptor is borrowed; a callback set before
  // for it is replaced.
  void Watch(int fd, short events, Callback callback);
  void Forget(int fd);
  // Once, at the time (CLOCK_MONOTONIC, ns). 0 is never a timer's number.
  TimerId At(int64_t when_ns, Callback callback);
  void Cancel(TimerId id);

  // Until Stop was called.
  core::Status Run();
  // One wait, at most timeout_ns, and what it brings.
  core::Status Step(int64_t timeout_ns);
  void Stop() { stopped_ = true; }

 private:
  struct Watched {
    short events;
    Callback callback;
    uint64_t round;  // in which it was set
  };
  void RunTimers();

  std::map<int, Watched> watched_;
  std::multimap<int64_t, std::pair<TimerId, Callback>> timers_;
  TimerId next_timer_ = 1;
  uint64_t round_ = 0;  // one for each wait
  bool stopped_ = false;
};

}  // namespace livemv::daemon
