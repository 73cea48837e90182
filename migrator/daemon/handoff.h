#pragma once

// What one livemv process hands to another that it starts: the settings of the
// migration and the descriptors, by name, as the first message on the channel
// that stays between the two. Versioned: a process refuses a hand-over that it
// does not know instead of guessing.
//
// Thread contract: plain values.

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/unique_fd.h"
#include "fusefs/target_holds.h"
#include "migrator/daemon/channel.h"

namespace livemv::daemon {

inline constexpr int kHandoffVersion = 1;

// The settings of one migration, fixed at start.
struct Settings {
  std::string id;
  std::string dir;        // normal form
  std::string target;     // "host:/path", or a directory in normal form
  std::string state_dir;  // this migration's own
  std::string registry;   // root of the registry
  std::string mount_options;  // -o, as given
  std::string losses;         // --allow-loss, as given
  fusefs::TargetHolds holds;  // what of it the target stores
  // statfs(2) f_type of the target: asked once, since a server may be away.
  int64_t target_fs_type = 0;
  // statfs(2) f_fsid of the two, which some filesystems keep over a boot; 0: it
  // tells nothing.
  uint64_t source_fsid = 0;
  uint64_t target_fsid = 0;
  bool auto_cutover = true;
  int64_t max_pause_ns = 200'000'000;
  int64_t reserve_bytes = 0;  // of the journal, made at start
  // LIVEMV_FAULTS of the command that started it; empty in earnest.
  std::string faults;
  // What stands in for the kernel's boot (boot.h); empty in earnest.
  std::string boot;
  dev_t overlay_dev = 0;       // st_dev of the overlay
  bool dir_is_mount = false;   // DIR was a mount point of its own
  std::string source_device;   // as in mountinfo, for the reclaim's advice
  // What `finish` prints for /etc/fstab.
  std::string fstab_line;
};

// Names of descriptors. A role takes those it knows and closes the rest.
namespace fd_name {
inline constexpr char kFuse[] = "fuse";              // /dev/fuse
inline constexpr char kOverlay[] = "overlay";        // mount, detached at first
inline constexpr char kSource[] = "source";          // private clone of DIR
inline constexpr char kDir[] = "dir";                // O_PATH, before covering
inline constexpr char kTarget[] = "target";          // mount, detached at first
inline constexpr char kTargetRoot[] = "target_root";  // its root, readable
inline constexpr char kSavedInit[] = "saved_init";   // memfd
inline constexpr char kIntents[] = "intents";        // memfd
inline constexpr char kHeartbeat[] = "heartbeat";    // memfd
inline constexpr char kEscrow[] = "escrow";          // memfd
inline constexpr char kControl[] = "control";        // worker <-> re-anchorer
inline constexpr char kAlive[] = "alive";            // the registry's lock
inline constexpr char kStateLock[] = "state_lock";   // see state_dir.h
// Followed by a number from 0 on: pidfds of dead workers that have not ended.
inline constexpr char kPredecessor[] = "predecessor";
}  // namespace fd_name

struct Handoff {
  // "supervisor", "worker", or one of the re-anchorer's (roles.h).
  std::string role;
  Settings settings;
  // Role-specific values, JSON text; "" for none.
  std::string extra;
  std::map<std::string, core::UniqueFd> fds;

  // kInvalid if the descriptor is missing.
  core::Result<core::UniqueFd> Take(const std::string& name);
  int Borrow(const std::string& name) const;  // -1 if missing
};

// The descriptors stay the caller's: borrowed for the time of the call.
struct HandoffView {
  std::string role;
  const Settings* settings = nullptr;
  std::string extra;
  std::vector<std::pair<std::string, int>> fds;
};

core::Status SendHandoff(Channel& channel, const HandoffView& view);
core::Result<Handoff> ReceiveHandoff(Channel& channel, int64_t deadline_ns);

std::string SettingsToJson(const Settings& settings);
core::Result<Settings> SettingsFromJson(const std::string& text);

}  // namespace livemv::daemon
