#pragma once

// Durations and sizes with units, in both directions.
//
// Thread contract: pure functions.

#include <cstdint>
#include <string>

#include "core/result.h"

namespace livemv::daemon {

// "200ms", "1.5s", "2m", "1h", "250us" -> nanoseconds, at least 1. A bare
// number is refused: 200 what?
core::Result<int64_t> ParseDuration(const std::string& text);

std::string FormatBytes(uint64_t bytes);     // "1.5 GiB"
std::string FormatCount(uint64_t n);         // "412,031"
std::string FormatDuration(int64_t ns);      // "38 ms", "2m31s"

}  // namespace livemv::daemon
