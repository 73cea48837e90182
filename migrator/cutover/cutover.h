#pragma once

// Cutover (rules 5 to 9): everybody moves from the overlay to the target's own
// mount, which takes the path.
//
//   1 scan; a straggler in the way ends it here, nothing touched
//   2 flush rounds until one is short; target's health with it
//   3 open everything on the target
//   4 freeze all; look again; drain and gate; set positions; swap; verify;
//     slide the target beneath the overlay; CommitTarget (durable); commit;
//     take the overlay off; thaw; open the gate
//   5 scan again and move who appeared meanwhile
// Any failure or the deadline before the commit puts everybody back and leaves
// the overlay on DIR. A target that was slid beneath it by then stays there,
// where nobody sees it, and the next attempt finds it.
//
// What was opened on the overlay too late to be opened on the target (nothing
// in the freeze may wait for the target) stays on the overlay, which serves the
// target alone from the commit on, and is moved in step 5.
//
// Thread contract: one thread, the process's only one.

#include <cstdint>
#include <set>
#include <string>

#include "migrator/cutover/outcome.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

struct CutoverRequest {
  std::string dir;
  // The target's mount, detached (or beneath the overlay already).
  const mount::MountFd* target = nullptr;
  proc::TreeRef overlay_tree;
  std::set<pid_t> own;       // our processes; their children are left out too
  std::set<pid_t> accepted;  // stragglers to leave on the overlay (rule 7)
  int64_t pause_ns = 200'000'000;       // --max-pause
  int64_t flush_ns = 30'000'000'000;    // for all flush rounds
  int64_t leftover_ns = 5'000'000'000;  // for step 5
};

// Journals kCutover when nothing is in the way, kCutoverGivenUp with the
// reason on failure, kCommitted after the thaw.
//   status OK                  committed; stragglers: who is on the overlay yet
//   kConflict, !froze          a straggler is in the way (named), or the state
//                              does not allow it; does not count as an attempt
//   other, !committed          put back; counts if froze
// After the commit status is OK whatever went wrong; warnings say what.
Outcome RunCutover(const Deps& deps, const CutoverRequest& request);

// While draining: one look at who is on the overlay, and moves those that can
// be. Also finishes what a re-anchorer that died after its commit had left
// (the overlay still on top). status OK with no stragglers: the overlay has no
// user left.
Outcome RunDrain(const Deps& deps, const CutoverRequest& request);

// Who would be in the way now: a scan and nothing else.
core::Result<std::vector<Straggler>> FindStragglers(
    const Deps& deps, const CutoverRequest& request);

}  // namespace livemv::cutover
