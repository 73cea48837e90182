#pragma once

// What a target can store, tried out: owners, modes, times, links, attributes,
// names, kinds, sizes and locks. All in one directory .livemv-probe-PID, which
// is removed again; the target's own times are put back.
//
// Thread contract: one thread; blocks as long as the target does.

#include <string_view>

#include "core/losses.h"
#include "fusefs/target_holds.h"
#include "migrator/daemon/preflight_findings.h"

namespace livemv::daemon {

inline constexpr std::string_view kProbePrefix = ".livemv-probe";

// What the tree has and the target does not store blocks, unless the loss is
// accepted; what programs may miss on the target is named.
fusefs::TargetHolds ProbeTarget(int target_fd, const Survey& survey,
                                const core::Losses& accepted,
                                Findings* findings);

}  // namespace livemv::daemon
