#pragma once

// Attach (rule 10): puts the overlay over DIR, moves every holder from the
// bare source onto it, and starts the redirect when two scans in a row have
// found nobody left there but those that can only read.
//
//   1 scan; a holder that blocks ends it here, nothing touched
//   2 open everything on the overlay, still detached
//   3 freeze all; look again; open what is new; mount; swap; verify; thaw
//   4 scan again, move who appeared meanwhile, until nobody is left
//   5 OverlayControl::StartRedirect
// A failure before the thaw of step 3 takes everything back; a later one moves
// the holders back to the source (the overlay serves only the source until
// step 5, so both views are the same) and takes the overlay off.
//
// The overlay must be initialised and serve the source (kSourceOnly).
// Thread contract: one thread, the process's only one.

#include <cstdint>
#include <set>
#include <string>

#include "migrator/cutover/outcome.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

struct AttachRequest {
  std::string dir;                          // absolute, canonical
  const mount::MountFd* overlay = nullptr;  // detached
  // DIR opened (O_PATH | O_DIRECTORY) before anything covered it: stays on
  // the original mount.
  int source_dir_fd = -1;
  proc::TreeRef source;
  proc::TreeRef overlay_tree;  // of the whole overlay, see TreeOfOverlay
  std::set<pid_t> own;         // our processes; their children are left out too
  int64_t pause_ns = 200'000'000;     // longest time of one freeze
  int64_t total_ns = 30'000'000'000;  // for all of it
};

// On failure status says why, committed is false if DIR shows the bare source
// as before, and true if something could not be taken back (warnings say
// what; it is served by the overlay meanwhile).
Outcome RunAttach(const Deps& deps, const AttachRequest& request);

// The overlay's tree by its mount, attached or not. Asks the worker.
core::Result<proc::TreeRef> TreeOfOverlay(const mount::MountFd& overlay);

}  // namespace livemv::cutover
