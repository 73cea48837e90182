#pragma once

// What covers DIR between a boot and `recover`: units of systemd. One a
// migration mounts an empty read-only filesystem over DIR before
// local-fs.target; one for all runs `livemv recover --all` when the network is
// there. Both are files and links only, so that systemd need not be asked, nor
// be running, to make or remove them.
//
// LIVEMV_SYSTEMD names another root directory than / (tests).
//
// Thread contract: one thread. Blocks as the disk does.

#include <string>

#include "core/result.h"
#include "migrator/daemon/handoff.h"

namespace livemv::daemon {

// As mountinfo's source shows it.
inline constexpr char kGuardSource[] = "livemv-guard";

// Whether this host was booted with systemd (sd_booted(3)).
bool HasSystemd();

// program: the executable that `recover` is to run as, absolute.
core::Status InstallGuard(const Settings& settings, const std::string& program);
// Both kinds: the recover unit goes with the last guard. What is not there is
// fine.
core::Status RemoveGuard(const std::string& id);

// The text of the two units, and of the recover unit's part for one migration.
std::string GuardUnit(const Settings& settings);
std::string RecoverUnit(const std::string& program);
std::string RecoverUnitPart(const Settings& settings);

}  // namespace livemv::daemon
