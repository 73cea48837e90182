#pragma once

// Who holds the tree and what follows from it.
//
// Thread contract: one thread.

#include "migrator/daemon/preflight_findings.h"

namespace livemv::daemon {

// Somebody holds a file or directory that was deleted or replaced.
bool HoldsDeleted(const proc::Snapshot& snapshot);

// Fills plan->holders from the snapshot and adds findings for those that
// block, or that may only stay (which blocks a start as yet).
void JudgeHolders(const proc::Snapshot& snapshot, Plan* plan,
                  Findings* findings);

}  // namespace livemv::daemon
