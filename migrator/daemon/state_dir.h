#pragma once

// The state directory of one migration, STATE_PARENT/ID:
//   journal          what is true (core/state); its options hold the settings
//   supervisor.json  the supervisor's own, for people and for `recover`'s cut-
//                    over mode; the journal is the authority
//   lock             held with flock(2), through one description, by the
//                    supervisor and every worker for as long as any of them
//                    lives
// A state directory elsewhere than below the default parent has a symbolic
// link there, so that `recover` finds it when nothing else is left.
//
// Thread contract: one thread. Blocks as the disk does.

#include <sys/statfs.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/state/recovery.h"
#include "core/unique_fd.h"
#include "migrator/daemon/handoff.h"

namespace livemv::daemon {

inline constexpr char kDefaultStateParent[] = "/var/lib/livemv";
// Options in the journal: the settings as JSON, and the time (CLOCK_REALTIME,
// ns) at which a worker was last known to live.
inline constexpr char kSettingsOption[] = "settings";
inline constexpr char kAliveOption[] = "alive_ns";

// Takes the lock; kConflict while some process of the migration lives.
core::Result<core::UniqueFd> LockState(const std::string& state_dir);

// The link in the default parent, durably; nothing if the directory is there.
core::Status LinkState(const Settings& settings);

// The state directories that there are below parent, links resolved; sorted.
core::Result<std::vector<std::string>> StateDirs(const std::string& parent);

// The settings that the journal has. kCorrupt if they are not readable or are
// another migration's than its first record's.
core::Result<Settings> SettingsOf(const state::RecoveredState& state);

// What the supervisor wrote down last: its settings are a copy, for finding a
// migration by its path without reading its journal.
core::Result<Settings> NotedSettings(const std::string& state_dir);

// OK unless a migration below one of parents that no process is at moves dir,
// a parent or a child of it: kConflict, naming it. ids: not these.
core::Status CheckInterrupted(const std::string& dir,
                              const std::vector<std::string>& parents,
                              const std::set<std::string>& ids);

// Of statfs(2), as one number.
uint64_t FsidOf(const struct statfs& fs);

// The migration is over: its directory goes, the link to it, and what start
// made for the next boot. Everything is tried; the first error.
core::Status ForgetState(const Settings& settings);

}  // namespace livemv::daemon
