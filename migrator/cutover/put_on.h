#pragma once

// Recovery: a new overlay in the place of what covers DIR, when nobody uses the
// bare source. There is no freeze: whoever was on the overlay before has died
// with it, or holds a dead one, which cannot be moved.
//
// Thread contract: one thread.

#include <set>
#include <string>
#include <vector>

#include "migrator/cutover/outcome.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

struct PutOnRequest {
  std::string dir;  // normal form
  const mount::MountFd* overlay = nullptr;  // detached; served already
  // The source as a mount of its own, to lie beneath the overlay; may be null.
  const mount::MountFd* base = nullptr;
  // The superblocks of what covers DIR now, from the bottom to the top.
  std::vector<dev_t> covers;
  std::vector<dev_t> dead;  // those of them that were overlays
  proc::TreeRef source;
  int source_dir_fd = -1;
  std::set<pid_t> own;
};

// status fails with nothing changed if somebody uses the bare source, who is
// named in stragglers then. Where the kernel cannot mount beneath, or more than
// one mount covers DIR, the source is bare between two calls: whoever got onto
// it then makes it fail after the overlay is on.
Outcome RunPutOn(const Deps& deps, const PutOnRequest& request);

// Who uses the bare source and can write to it; empty: nobody.
core::Result<std::vector<Straggler>> WhoUses(const Deps& deps,
                                             const proc::TreeRef& tree,
                                             const std::set<pid_t>& own,
                                             int root_fd);

}  // namespace livemv::cutover
