#include "migrator/daemon/boot.h"

#include <time.h>

#include <cstdlib>

#include "migrator/daemon/small_files.h"

namespace livemv::daemon {

namespace {

int64_t ClockNs(clockid_t clock) {
  struct timespec ts{};
  ::clock_gettime(clock, &ts);
  return ts.tv_sec * 1'000'000'000ll + ts.tv_nsec;
}

}  // namespace

core::Result<Boot> ThisBoot(const std::string& instead) {
  Boot boot;
  if (!instead.empty()) {
    const size_t at = instead.rfind('@');
    char* end = nullptr;
    const double began = at == std::string::npos
                             ? 0
                             : std::strtod(instead.c_str() + at + 1, &end);
    if (at == std::string::npos || at == 0 || *end != '\0' || !(began > 0))
      return Fail(core::ErrorCode::kInvalid,
                  "'" + instead + "' is not a boot (ID@SECONDS)");
    boot.id = instead.substr(0, at);
    boot.began_ns = static_cast<int64_t>(began * 1e9);
    return boot;
  }
  ASSIGN_OR_RETURN(boot.id, ReadSmallFile("/proc/sys/kernel/random/boot_id"));
  boot.id = boot.id.substr(0, boot.id.find('\n'));
  boot.began_ns = ClockNs(CLOCK_REALTIME) - ClockNs(CLOCK_BOOTTIME);
  return boot;
}

std::string BootFromEnvironment() {
  const char* instead = std::getenv("LIVEMV_BOOT");
  return instead != nullptr ? instead : "";
}

}  // namespace livemv::daemon
