#pragma once

// One freeze: some holders are stopped, moved from where they are to where an
// Opener opens, and thawed; all of it or nothing. The three drivers (attach,
// cutover, return) hang their own steps into it.
//
// Thread contract: one thread, the process's only one when Run is called (a
// guardian is forked before anything else).

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "migrator/cutover/move_plan.h"
#include "migrator/cutover/opener.h"
#include "migrator/cutover/outcome.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

// Names of the fault points passed; empty: none there.
struct RoundFaults {
  const char* opened = "";
  const char* frozen = "";
  const char* gated = "";  // or shut
  const char* swapped = "";
  const char* committed = "";
};

struct RoundRequest {
  proc::TreeRef from;  // the tree that is left
  int from_root_fd = -1;  // for what is looked up there, as in proc::Options
  std::vector<proc::Holder> holders;
  // Holders that go on running; what they share with holders stays.
  std::vector<proc::Holder> bystanders;
  std::set<pid_t> own;  // ours: never frozen, whose child they may be
  PlanRules rules;
  Opener* opener = nullptr;
  int64_t pause_ns = 0;
  // Drain and gate the overlay once all are frozen: always, or for the sake of
  // POSIX locks (see shut).
  bool gate = false;
  bool gate_for_locks = false;
  // A holder that became unmovable since the scan makes the round fail;
  // otherwise it is left where it is.
  bool all_must_move = false;
  // Of earlier rounds the other way: what a holder of their locks gets back, so
  // that nobody else can have them in between. May be null.
  // Stand-ins make room in the swap.
  const std::vector<KeptOld>* kept = nullptr;
  // Steps of the driver, absolute deadline given; empty: nothing. before_swap
  // must leave nothing that needs taking back. before_commit is the last thing
  // that can fail: all are swapped and verified, and if it is OK the commit
  // follows. If it fails take_back is called with everybody frozen and back
  // where they were, and revoke when they run again, the gate still closed:
  // what may take long belongs there.
  // shut is for the sake of POSIX locks, where there is no gate: until they are
  // taken again on the new side they are free, so nobody new may get at a file
  // on either. It is called only if a holder has such locks, before the swap,
  // and taken back like before_commit.
  std::function<core::Status(int64_t)> shut;
  std::function<core::Status(int64_t)> before_swap;
  std::function<core::Status(int64_t)> before_commit;
  std::function<void()> take_back;
  std::function<void()> revoke;
  // After the commit, before the thaw; reports into warnings.
  std::function<void()> after_commit;
  RoundFaults faults;
};

struct RoundReport {
  bool froze = false;
  bool committed = false;
  std::vector<pid_t> moved;  // processes
  size_t seats = 0;
  std::vector<Left> left;
  std::vector<trace::Pause> pauses;
  std::vector<std::string> warnings;
  // Old descriptions that hold locks; to be closed when nobody is left where
  // they are.
  std::vector<KeptOld> kept;
};

// Without holders nobody is frozen, but the steps run all the same. OK exactly
// if committed.
core::Status RunRound(const Deps& deps, const RoundRequest& request,
                      RoundReport* report);

}  // namespace livemv::cutover
