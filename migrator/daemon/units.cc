#include "migrator/daemon/units.h"

#include <charconv>
#include <cstdio>

namespace livemv::daemon {

core::Result<int64_t> ParseDuration(const std::string& text) {
  double number = 0;
  const char* end = text.data() + text.size();
  auto [rest, error] =
      std::from_chars(text.data(), end, number, std::chars_format::fixed);
  std::string unit(rest, end);
  double scale = 0;
  if (unit == "us")
    scale = 1e3;
  else if (unit == "ms")
    scale = 1e6;
  else if (unit == "s")
    scale = 1e9;
  else if (unit == "m" || unit == "min")
    scale = 60e9;
  else if (unit == "h")
    scale = 3600e9;
  double ns = number * scale;
  if (error != std::errc() || scale == 0 || !(ns >= 1) || ns > 9e18)
    return Fail(core::ErrorCode::kInvalid,
                "'" + text + "' is not a duration; write it like 200ms, 1.5s "
                             "or 2m");
  return static_cast<int64_t>(ns);
}

std::string FormatBytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B",   "KiB", "MiB", "GiB",
                                           "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1023.95 && unit < 6) {
    value /= 1024;
    unit++;
  }
  char buf[40];
  std::snprintf(buf, sizeof buf, unit == 0 ? "%.0f %s" : "%.1f %s", value,
                kUnits[unit]);
  return buf;
}

std::string FormatCount(uint64_t n) {
  std::string digits = std::to_string(n), out;
  for (size_t i = 0; i < digits.size(); i++) {
    if (i != 0 && (digits.size() - i) % 3 == 0)
      out += ',';
    out += digits[i];
  }
  return out;
}

std::string FormatDuration(int64_t ns) {
  char buf[48];
  if (ns < 1'000'000) {
    std::snprintf(buf, sizeof buf, "%.2f ms", static_cast<double>(ns) / 1e6);
  } else if (ns < 10'000'000) {
    std::snprintf(buf, sizeof buf, "%.1f ms", static_cast<double>(ns) / 1e6);
  } else if (ns < 1'000'000'000) {
    std::snprintf(buf, sizeof buf, "%.0f ms", static_cast<double>(ns) / 1e6);
  } else if (ns < 60'000'000'000) {
    std::snprintf(buf, sizeof buf, "%.1f s", static_cast<double>(ns) / 1e9);
  } else {
    auto s = static_cast<long long>(ns / 1'000'000'000);
    if (s < 3600)
      std::snprintf(buf, sizeof buf, "%lldm%02llds", s / 60, s % 60);
    else
      std::snprintf(buf, sizeof buf, "%lldh%02lldm", s / 3600, s / 60 % 60);
  }
  return buf;
}

}  // namespace livemv::daemon
