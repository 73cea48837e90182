#include "core/fault_points.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>

namespace livemv::core {
namespace {

struct Armed {
  enum class Kind { kError, kKill, kDelay } kind;
  int value = 0;
  int only_at = 0;  // 0: each passage
  int passed = 0;
};

std::atomic<bool> any_armed{false};
std::mutex mu;
std::map<std::string, Armed>& Points() {
  static auto* points = new std::map<std::string, Armed>;
  return *points;
}

std::once_flag env_once;
void ReadEnvironment() {
  const char* spec = std::getenv("LIVEMV_FAULTS");
  if (spec != nullptr && !ArmFaults(spec)) {
    // A test that misspells a fault must not pass for want of it.
    constexpr char kText[] = "livemv: LIVEMV_FAULTS cannot be read\n";
    (void)!::write(2, kText, sizeof kText - 1);
    ::_exit(64);
  }
}

}  // namespace

namespace {

// The whole of text as a number from least on.
bool ParseNumber(std::string_view text, int least, int* out) {
  auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size() &&
         *out >= least;
}

// "kill", "error:5", "delay:20", each with or without "@N".
bool ParseAction(std::string_view action, Armed* armed) {
  if (size_t at = action.find('@'); at != std::string_view::npos) {
    if (!ParseNumber(action.substr(at + 1), 1, &armed->only_at))
      return false;
    action = action.substr(0, at);
  }
  if (action == "kill") {
    armed->kind = Armed::Kind::kKill;
    return true;
  }
  if (action.starts_with("error:")) {
    armed->kind = Armed::Kind::kError;
    return ParseNumber(action.substr(6), 1, &armed->value);
  }
  if (action.starts_with("delay:")) {
    armed->kind = Armed::Kind::kDelay;
    return ParseNumber(action.substr(6), 0, &armed->value);
  }
  return false;
}

}  // namespace

Status ArmFaults(const std::string& spec) {
  std::map<std::string, Armed> points;
  size_t pos = 0;
  while (pos < spec.size()) {
    size_t end = std::min(spec.find(';', pos), spec.size());
    std::string_view item(spec.data() + pos, end - pos);
    pos = end + 1;
    if (item.empty())
      continue;
    size_t eq = item.find('=');
    Armed armed{};
    if (eq == std::string_view::npos || eq == 0 ||
        !ParseAction(item.substr(eq + 1), &armed))
      return Fail(ErrorCode::kInvalid,
                  "fault that cannot be read: " + std::string(item));
    points[std::string(item.substr(0, eq))] = armed;
  }
  std::lock_guard lock(mu);
  Points() = std::move(points);
  any_armed = !Points().empty();
  return {};
}

Status FaultPoint(const char* name) {
  std::call_once(env_once, ReadEnvironment);
  if (!any_armed.load(std::memory_order_relaxed)) [[likely]]
    return {};
  Armed hit{};
  {
    std::lock_guard lock(mu);
    auto it = Points().find(name);
    if (it == Points().end())
      return {};
    it->second.passed++;
    if (it->second.only_at != 0 && it->second.passed != it->second.only_at)
      return {};
    hit = it->second;
  }
  switch (hit.kind) {
    case Armed::Kind::kKill:
      ::kill(::getpid(), SIGKILL);
      ::pause();
      return {};
    case Armed::Kind::kDelay: {
      struct timespec ts = {hit.value / 1000, (hit.value % 1000) * 1'000'000L};
      ::nanosleep(&ts, nullptr);
      return {};
    }
    case Armed::Kind::kError:
      return FailSys(hit.value, std::string("fault point ") + name);
  }
  return {};
}

}  // namespace livemv::core
