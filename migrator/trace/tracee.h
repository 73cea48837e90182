#pragma once

// A process being stopped, and its threads, as its tracer thread knows them.
//
// Thread contract: belongs to the thread that traces the process.

#include <sys/types.h>

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "migrator/trace/arch_x86_64.h"
#include "migrator/trace/sleep_clock.h"

namespace livemv::trace {

struct Tracee {
  enum class State {
    kSeized,   // not stopped yet
    kStopped,  // by us, or by job control
    kGone,     // ended, or was never there
  };
  pid_t tid = 0;
  State state = State::kSeized;
  // A thread of the kernel in the process (io_uring): held, never parked.
  bool kernel_worker = false;
  // Its call was ended by our interruption and has been set up to be made
  // again; registers are those before that.
  bool made_again = false;
  Registers registers{};   // at the stop
  int64_t stopped_ns = 0;  // CLOCK_MONOTONIC
  int record = -1;         // in the escrow, -1: none
};

struct TracedProcess {
  pid_t pid = 0;
  bool gone = false;
  int pidfd = -1;  // borrowed
  std::vector<Tracee> threads;
  // Threads that slept in a call with a full timeout before the freeze.
  std::unordered_map<pid_t, Sleep> sleeps;
  int64_t first_stop_ns = 0;
  // Let go again until this thread, which waits for it in vfork, has stopped.
  pid_t let_go_for = 0;
};

}  // namespace livemv::trace
