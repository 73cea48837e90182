#pragma once

// Which boot of the host this is, and since when.
//
// Thread contract: free functions; nothing blocks.

#include <cstdint>
#include <string>

#include "core/result.h"

namespace livemv::daemon {

struct Boot {
  std::string id;        // /proc/sys/kernel/random/boot_id
  int64_t began_ns = 0;  // CLOCK_REALTIME, by the clock as it is set now
};

// instead: "ID@SECONDS" of another boot that began then (seconds since 1970,
// with fractions), for tests without a reboot; empty: the kernel's.
core::Result<Boot> ThisBoot(const std::string& instead);

// LIVEMV_BOOT, which is instead for a command and all that it starts.
std::string BootFromEnvironment();

}  // namespace livemv::daemon
