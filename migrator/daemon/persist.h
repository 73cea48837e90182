#pragma once

// Makes the target's mount on DIR permanent, after the move: a line in
// /etc/fstab, or a mount unit of systemd.
//
// LIVEMV_SYSTEMD names another root directory than / (tests).
//
// Thread contract: one thread. Blocks as the disk does.

#include <string>

#include "core/result.h"
#include "migrator/daemon/handoff.h"

namespace livemv::daemon {

enum class Persist { kNone, kFstab, kUnit };

// What was done, for a person. On an error nothing has changed. A line of
// fstab that mounts something else on DIR becomes a comment. Doing it twice is
// doing it once.
core::Result<std::string> MakePermanent(const Settings& settings, Persist how);

// The pieces: fstab's new text; the unit's name and text.
std::string FstabWith(const std::string& fstab, const Settings& settings);
std::string MountUnitName(const std::string& dir);
std::string MountUnit(const Settings& settings);

}  // namespace livemv::daemon
