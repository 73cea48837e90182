#pragma once

// What lies over the bare source at DIR, by the mount table.
//
// Thread contract: a pure function.

#include <sys/types.h>

#include <vector>

#include "core/result.h"
#include "migrator/daemon/handoff.h"
#include "migrator/mount/mount_table.h"

namespace livemv::daemon {

struct Cover {
  enum class Kind { kGuard, kOverlay, kTarget };
  Kind kind = Kind::kGuard;
  dev_t dev = 0;
};

// From the bottom to the top. target_dev: of the target's superblock; 0: not
// known. kConflict, naming it, for a mount that is none of ours, and if DIR's
// own filesystem is not mounted.
core::Result<std::vector<Cover>> FindCovers(const mount::MountTable& table,
                                            const Settings& settings,
                                            dev_t target_dev);

}  // namespace livemv::daemon
