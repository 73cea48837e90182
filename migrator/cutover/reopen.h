#pragma once

// Before an abort brings anything back: descriptors through which the kernel
// writes to the target by itself (fusefs/passthrough.h) are opened again, so
// that the worker sees what is written. Nobody leaves the overlay, and it is
// served all the while; old and new descriptions are of the same file, so an
// attempt that fails half-way has done no harm.
//
//   1 scan; nothing to do if nobody holds such a descriptor
//   2 open each anew on the overlay; freeze all; look again; swap; thaw
//   3 until two scans in a row find none: OverlayControl::LeaveDirect
//
// Thread contract: one thread, the process's only one.

#include <cstdint>
#include <set>
#include <string>

#include "migrator/cutover/outcome.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

struct ReopenRequest {
  int overlay_root_fd = -1;  // O_PATH, the overlay's root as mounted on DIR
  proc::TreeRef overlay_tree;
  std::set<pid_t> own;
  int64_t pause_ns = 200'000'000;
  int64_t total_ns = 30'000'000'000;
};

// committed: the worker sees everything from now on. A holder that cannot be
// moved (mapped files, locks) is waited for, and reported.
Outcome RunReopen(const Deps& deps, const ReopenRequest& request);

}  // namespace livemv::cutover
