#pragma once

// `start`: makes everything that a migration needs before its first process
// exists, and undoes it if something is missing.
//
// Thread contract: one thread, in a process without others.

#include <cstdint>
#include <string>

#include "core/result.h"
#include "core/unique_fd.h"
#include "fusefs/target_holds.h"
#include "migrator/daemon/draft.h"
#include "migrator/daemon/registry.h"
#include "migrator/mount/mount_fd.h"

namespace livemv::daemon {

struct StartRequest {
  std::string dir;     // normal form
  std::string target;  // "host:/path", or a directory in normal form
  std::string state_parent;  // absolute
  std::string mount_options;
  std::string losses;  // --allow-loss, checked
  fusefs::TargetHolds holds;
  mount::MountFd target_mount;  // as the plan tried it out
  core::UniqueFd target_root;   // its root, readable
  bool guarded = false;  // make what covers DIR after a boot (guard.h)
  bool auto_cutover = true;
  int64_t max_pause_ns = 200'000'000;
};

// What could not be made is in Refusal; nothing is left behind then.
std::expected<Launched, Refusal> Launch(Registry& registry,
                                        StartRequest request);

}  // namespace livemv::daemon
