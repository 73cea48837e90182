#pragma once

// The names' half of "synced is proved, not assumed".
//
// Thread contract: from any thread; blocks on nothing.

#include <optional>
#include <string>

#include "migrator/copy/name_lane.h"
#include "migrator/copy/tree_scanner.h"

namespace livemv::copy {

// Why the target's names and attributes are not proved to be complete; nothing
// if they are: every directory was read to its end, no comparison is owed, no
// redo record is older than the last barrier, nothing is set aside.
std::optional<std::string> WhyNamesAreNotSynced(const NameLane& lane,
                                                TreeScanner* scanner);

}  // namespace livemv::copy
