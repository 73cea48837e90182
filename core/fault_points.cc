#include "core/fault_points.h"

#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <string_view>

namespace livemv::core {
namespace {

struct Armed {
  enum class Kind { kError, kKill, kDelay } kind;
  int value = 0;
  std::string role;  // to kill; "": this process
  int only_at = 0;  // 0: each passage
  int passed = 0;
};

std::atomic<bool> any_armed{false};
std::mutex mu;
std::string once;  // guarded by mu
std::map<std::string, Armed>& Points() {
  static auto* points = new std::map<std::string, Armed>;
  return *points;
}

std::once_flag env_once;
void ReadEnvironment() {
  const char* spec = std::getenv("LIVEMV_FAULTS");
  if (spec != nullptr && std::string_view(spec).find("once=") !=
                             std::string_view::npos)
    return;
  if (spec != nullptr && !ArmFaults(spec)) {
    // A test that misspells a fault must not pass for want of it.
    constexpr char kText[] = "livemv: LIVEMV_FAULTS cannot be read\n";
    (void)!::write(2, kText, sizeof kText - 1);
    ::_exit(64);
  }
}

}  // namespace

namespace {

// The start of a process's command line, "" if there is none.
std::string CommandOf(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/cmdline");
  std::string word;
  std::getline(file, word, '\0');
  return word;
}

pid_t ParentOf(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("PPid:"))
      return std::atoi(line.c_str() + 5);
  return 0;
}

void KillRole(const std::string& role) {
  pid_t supervisor = ::getpid();
  while (supervisor > 1 && CommandOf(supervisor) != "livemv-supervisor")
    supervisor = ParentOf(supervisor);
  if (supervisor <= 1)
    return;
  if (role == "supervisor") {
    ::kill(supervisor, SIGKILL);
    return;
  }
  const std::string at = std::to_string(supervisor);
  std::ifstream children("/proc/" + at + "/task/" + at + "/children");
  for (pid_t child; children >> child;) {
    const std::string is = CommandOf(child);
    if (is.starts_with("livemv-") &&
        (is == "livemv-worker") == (role == "worker"))
      ::kill(child, SIGKILL);
  }
}

// True if this process is the first that comes to the point.
bool Claim(const std::string& dir, const char* name) {
  const int fd = ::open((dir + "/" + name).c_str(),
                        O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0)
    return false;
  ::close(fd);
  return true;
}

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
  if (action == "kill:supervisor" || action == "kill:worker" ||
      action == "kill:reanchorer") {
    armed->kind = Armed::Kind::kKill;
    armed->role = action.substr(5);
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
  std::string once_dir;
  size_t pos = 0;
  while (pos < spec.size()) {
    size_t end = std::min(spec.find(';', pos), spec.size());
    std::string_view item(spec.data() + pos, end - pos);
    pos = end + 1;
    if (item.empty())
      continue;
    size_t eq = item.find('=');
    if (item.starts_with("once=/")) {
      once_dir = item.substr(5);
      continue;
    }
    Armed armed{};
    if (eq == std::string_view::npos || eq == 0 ||
        !ParseAction(item.substr(eq + 1), &armed))
      return Fail(ErrorCode::kInvalid,
                  "fault that cannot be read: " + std::string(item));
    points[std::string(item.substr(0, eq))] = armed;
  }
  std::lock_guard lock(mu);
  Points() = std::move(points);
  once = std::move(once_dir);
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
    if (!once.empty() && ::access(once.c_str(), F_OK) != 0)
      return {};
    it->second.passed++;
    if (it->second.only_at != 0 && it->second.passed != it->second.only_at)
      return {};
    if (!once.empty() && !Claim(once, name))
      return {};
    hit = it->second;
  }
  switch (hit.kind) {
    case Armed::Kind::kKill:
      if (!hit.role.empty()) {
        KillRole(hit.role);
        return {};
      }
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
