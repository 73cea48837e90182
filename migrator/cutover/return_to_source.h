#pragma once

// Moves every holder from the overlay back to the bare source and takes the
// overlay off DIR: the last step of abort, and what undoes an attach.
//
//   1 scan; open everything on the source below the overlay
//   2 freeze all; look again; for abort: drain, gate, CommitSource; swap;
//     verify; thaw, the overlay off in the same moment
//   3 scan again, move who is left, until nobody is on the overlay
//
// From CommitSource on (or if redirect never began) overlay and source are the
// same view. Thread contract: one thread, the process's only one.

#include <cstdint>
#include <set>
#include <string>

#include "migrator/cutover/outcome.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

struct ReturnRequest {
  std::string dir;
  int source_dir_fd = -1;  // see AttachRequest
  proc::TreeRef source;
  proc::TreeRef overlay_tree;
  // The target's mount if a cutover was tried: it may lie beneath the overlay
  // and is taken off with it. May be null.
  const mount::MountFd* target = nullptr;
  std::set<pid_t> own;
  // Of the attach that is taken back; may be null.
  const std::vector<KeptOld>* kept = nullptr;
  bool commit_source = true;  // abort; false: redirect never began
  int64_t pause_ns = 200'000'000;
  int64_t total_ns = 30'000'000'000;
};

// committed: DIR shows the bare source. Before the commit a failure leaves the
// overlay on and everybody on it: so does a holder that cannot be moved (mapped
// files, POSIX locks), which is reported. Deleted files stay on the overlay; the
// status is then kConflict, and the overlay must go on being served until they
// are closed. Calling again goes on from there.
Outcome RunReturn(const Deps& deps, const ReturnRequest& request);

}  // namespace livemv::cutover
