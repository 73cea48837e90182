#pragma once

// The sentences that tell a person what to type next.
//
// Thread contract: pure functions.

#include <string>

#include "migrator/daemon/handoff.h"

namespace livemv::daemon {

// A line for /etc/fstab that makes the target's mount on dir permanent.
std::string FstabLine(const std::string& target, const std::string& dir,
                      const std::string& mount_options);
// What `finish` prints. reclaimed: the covered contents are gone already.
std::string FinishText(const Settings& settings, bool reclaimed);

}  // namespace livemv::daemon
