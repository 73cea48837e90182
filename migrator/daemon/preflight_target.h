#pragma once

// What a target can store, tried out: owners, modes, links, attributes, names
// and sizes that the tree has. All in one directory .livemv-probe-PID, which
// is removed again; the target's own times are put back.
//
// Thread contract: one thread; blocks as long as the target does.

#include <string>

#include "migrator/daemon/preflight_findings.h"

namespace livemv::daemon {

void ProbeTarget(int target_fd, const Survey& survey, Findings* findings);

}  // namespace livemv::daemon
