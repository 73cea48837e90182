#pragma once

// What is done after the death of a tracer, or with what a tracer had to
// leave behind: from the escrow alone it seizes every thread that is still
// parked, brings every process to one side (the old one unless the change was
// committed), gives the threads their registers back and lets them go.
//
// A thread that hangs in a call made for us (a FLUSH that nobody answers) is
// waited for as long as it takes; the others are let go meanwhile, since they
// are wholly on one side and it can do nothing.
//
// Thread contract: one thread, of a process that shares the descriptor table
// of the dead tracer. Run waits without bound.

#include <cstdint>
#include <map>
#include <memory>
#include <set>

#include "core/result.h"
#include "migrator/trace/escrow.h"
#include "migrator/trace/injected_calls.h"
#include "migrator/trace/parking.h"
#include "migrator/trace/ptrace_ops.h"
#include "migrator/trace/task_view.h"

namespace livemv::trace {

class Recovery {
 public:
  Recovery(PtraceOps& ops, TaskView& tasks, Escrow& escrow)
      : ops_(ops),
        tasks_(tasks),
        escrow_(escrow),
        parking_(ops, tasks, escrow) {}

  // Returns when nothing is left to do.
  void Run();
  // One round, which waits some 20 ms at most for stops and 1 s for each call
  // that hangs. True if nothing is left.
  bool Round();

 private:
  struct Held {
    uint32_t record;
    bool stopped = false;
    std::unique_ptr<InjectedCalls> calls;
  };
  bool Owed(const ThreadRecord& record) const {
    return record.state == ThreadState::kEscrowed ||
           record.state == ThreadState::kParked;
  }
  bool MoveOwed(const MoveRecord& move) const;
  void SeizeOwed();
  void WaitForStops();
  void UndoMoves();
  void LetGo();
  void Forget(Held& held);

  PtraceOps& ops_;
  TaskView& tasks_;
  Escrow& escrow_;
  Parking parking_;
  std::map<pid_t, Held> held_;
  std::set<pid_t> complained_;  // about these an error has been logged
  bool stuck_ = false;          // a try in this round failed
  int64_t began_ns_ = 0;
};

}  // namespace livemv::trace
