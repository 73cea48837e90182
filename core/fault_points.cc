#include "core/fault_points.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>

namespace livemv::core {
namespace {

struct Armed {
  enum class Kind { kError, kKill, kDelay } kind;
  int value = 0;
  long only_at = 0;  // 0: each passage
  long passed = 0;
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

Status ArmFaults(const std::string& spec) {
  std::map<std::string, Armed> points;
  size_t pos = 0;
  while (pos < spec.size()) {
    size_t end = spec.find(';', pos);
    if (end == std::string::npos)
      end = spec.size();
    std::string item = spec.substr(pos, end - pos);
    pos = end + 1;
    if (item.empty())
      continue;
    size_t eq = item.find('=');
    if (eq == std::string::npos)
      return Fail(ErrorCode::kInvalid, "fault without '=': " + item);
    std::string name = item.substr(0, eq), action = item.substr(eq + 1);
    Armed armed{};
    if (size_t at = action.find('@'); at != std::string::npos) {
      armed.only_at = std::strtol(action.c_str() + at + 1, nullptr, 10);
      action.resize(at);
    }
    if (action == "kill") {
      armed.kind = Armed::Kind::kKill;
    } else if (action.starts_with("error:")) {
      armed.kind = Armed::Kind::kError;
      armed.value =
          static_cast<int>(std::strtol(action.c_str() + 6, nullptr, 10));
    } else if (action.starts_with("delay:")) {
      armed.kind = Armed::Kind::kDelay;
      armed.value =
          static_cast<int>(std::strtol(action.c_str() + 6, nullptr, 10));
    } else {
      return Fail(ErrorCode::kInvalid, "unknown fault action: " + action);
    }
    points[name] = armed;
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
