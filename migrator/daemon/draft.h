#pragma once

// What a migration needs before its supervisor exists: made step by step by
// `start` and `recover`, handed over at the end, undone if something is missing.
//
// Thread contract: one thread, in a process without others.

#include <string>

#include "core/result.h"
#include "core/unique_fd.h"
#include "migrator/daemon/children.h"
#include "migrator/daemon/exit_code.h"
#include "migrator/daemon/handoff.h"
#include "migrator/daemon/registry.h"
#include "migrator/mount/mount_fd.h"
#include "migrator/mount/mount_ops.h"

namespace livemv::daemon {

struct Refusal {
  Exit exit = Exit::kBlocked;
  std::string message;
};

struct Launched {
  Settings settings;
  Child supervisor;  // its channel carries one Reply when redirect is live
};

struct Draft {
  Registry* registry;
  Settings settings;
  // Undone by the end of this object: the entry in the registry; the state
  // directory with what else start has made for it.
  bool registered = false, has_state_dir = false;
  core::UniqueFd alive, state_lock, dir, fuse, saved_init, intents, heartbeat;
  core::UniqueFd target_root;
  mount::MountFd source, target, overlay;

  explicit Draft(Registry* to) : registry(to) {}
  ~Draft();
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;

  // From dir and settings: the overlay, detached, and the memory that its
  // workers share.
  core::Status MakeOverlay(mount::MountOps* ops);
  // Hands all over to a new supervisor, whose the entry and the state
  // directory are from then on. extra: as in Handoff.
  core::Result<Child> SpawnSupervisor(const std::string& extra);
};

}  // namespace livemv::daemon
