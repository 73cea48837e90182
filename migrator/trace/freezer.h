#pragma once

// Stops every thread of a set of processes, to a fixed point: PTRACE_SEIZE and
// PTRACE_INTERRUPT for all that are there, then waits, then looks for threads
// that came meanwhile, until two looks in a row find none. Stopped threads
// cannot clone, so this ends.
//
// New threads are found by looking and not by PTRACE_O_TRACECLONE: each option
// adds a kind of stop that a dying tracer can leave behind. Children forked
// while their parent was being stopped are not part of the set.
//
// Thread contract: one thread, which becomes the tracer. Stop waits until the
// deadline at most.

#include <cstdint>
#include <functional>
#include <span>
#include <unordered_map>
#include <vector>

#include "core/result.h"
#include "migrator/trace/frozen_set.h"
#include "migrator/trace/ptrace_ops.h"
#include "migrator/trace/task_view.h"
#include "migrator/trace/tracee.h"

namespace livemv::trace {

class Freezer {
 public:
  Freezer(PtraceOps& ops, TaskView& tasks, std::function<int64_t()> now_ns)
      : ops_(ops), tasks_(tasks), now_ns_(std::move(now_ns)) {}

  // OK: every thread of every process is stopped or gone. kTimeout: some did
  // not stop until deadline_ns (CLOCK_MONOTONIC); kConflict: some may not be
  // traced; both are named in *unstopped. Whatever was stopped stays so.
  core::Status Stop(std::span<TracedProcess> processes, int64_t deadline_ns,
                    std::vector<Unstopped>* unstopped);

  // Detaches all that is stopped and was not parked. A thread that has not
  // stopped stays seized until the calling thread ends.
  void Release(std::span<TracedProcess> processes);

 private:
  struct Place {
    size_t process, thread;
  };
  core::Status SeizeNew(size_t* fresh, std::vector<Unstopped>* unstopped);
  core::Status Seize(size_t process, pid_t tid,
                     std::vector<Unstopped>* unstopped);
  core::Status WaitForAll(int64_t deadline_ns,
                          std::vector<Unstopped>* unstopped);
  core::Status Handle(const WaitEvent& event);
  core::Status OnStop(TracedProcess& process, Tracee& thread);
  void LookAtLate();
  void LetGoOfVforkChildren(const TracedProcess& parent, pid_t waiting_tid);
  void MarkGone(Tracee& thread);
  Tracee& At(Place place) {
    return processes_[place.process].threads[place.thread];
  }

  PtraceOps& ops_;
  TaskView& tasks_;
  std::function<int64_t()> now_ns_;
  std::span<TracedProcess> processes_;
  std::unordered_map<pid_t, Place> places_;
  size_t waiting_for_ = 0;  // seized and not stopped
};

}  // namespace livemv::trace
