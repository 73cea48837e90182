#pragma once

// `recover`: a migration whose processes are all gone, after a crash of the
// host or of them, is brought back from its journal.
//
// Invariants. (1) Nothing is changed before everything that speaks against it
// has been looked for; what is missing or contradicts the journal is a refusal
// that names the way out. (2) The journal is durable before anything is done
// by what it says. (3) The bare source does not become visible at DIR unless
// the source is the truth. (4) Numbers of the former boot or overlay (devices,
// nodeids, backing numbers, descriptors, pids) are taken from nowhere: what is
// needed of them is made anew.
//
// Thread contract: one thread, in a process without others. May block as long
// as the source, and as the target for mount_timeout_ns.

#include <cstdint>
#include <optional>
#include <string>

#include "core/result.h"
#include "migrator/daemon/draft.h"

namespace livemv::daemon {

struct RecoverRequest {
  std::string state_dir;  // of the migration
  // What others changed on the source meanwhile is taken as it is.
  bool accept_changes = false;
  int64_t mount_timeout_ns = 60'000'000'000;
};

struct Recovered {
  Settings settings;
  std::string state;  // as the journal had it
  // Its channel carries one Reply when DIR is served again; nothing: the
  // migration was rolled back or is over, and message says so.
  std::optional<Child> supervisor;
  Exit exit = Exit::kDone;
  std::string message;
};

std::expected<Recovered, Refusal> Recover(Registry& registry,
                                          const RecoverRequest& request);

}  // namespace livemv::daemon
