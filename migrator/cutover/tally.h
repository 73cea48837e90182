#pragma once

// Rounds inside an Outcome: run one and add it up; try again what failed for
// want of a quiet moment.
//
// Thread contract: one thread.

#include <functional>

#include "migrator/cutover/outcome.h"
#include "migrator/cutover/round.h"

namespace livemv::cutover {

// RunRound, its report added to the outcome.
core::Status RunAndTally(const Deps& deps, const RoundRequest& request,
                         Outcome* outcome);

// Holders that could be moved and have not been, with the reason.
std::vector<Straggler> NotYetMoved(const std::vector<proc::Holder>& holders,
                                   const Outcome& outcome);

// Runs attempt until it succeeds, at most five times and not after until_ns;
// again only after kTimeout and kConflict, with a growing wait.
core::Status Retry(const Deps& deps, int64_t until_ns, Outcome* outcome,
                   const std::function<core::Status()>& attempt);

}  // namespace livemv::cutover
