#pragma once

// A plan for people and for programs.
//
// Thread contract: pure functions.

#include <cstddef>
#include <string>

#include "migrator/daemon/preflight.h"

namespace livemv::daemon {

// For a terminal of that many columns; names are quoted and made printable.
// Ends with a newline.
std::string PlanText(const Plan& plan, size_t columns = 80);

// One JSON object: source, target, kernel, result ("ok", "warnings", "blocked"),
// exit_code, source_volume, target_volume, survey, holders, findings,
// estimated_seconds.
// Names that are not UTF-8 have their odd bytes replaced.
std::string PlanJson(const Plan& plan);

// The findings alone, as in PlanText: what start prints when it is refused.
std::string FindingsText(const std::vector<Finding>& findings,
                         size_t columns = 80);

}  // namespace livemv::daemon
