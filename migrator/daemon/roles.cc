#include "migrator/daemon/roles.h"

#include <string_view>

#include "core/fault_points.h"
#include "core/log.h"
#include "migrator/daemon/children.h"
#include "migrator/daemon/exit_code.h"

namespace livemv::daemon {

namespace {
constexpr int kChannelFd = 3;
constexpr int64_t kHandoffNs = 10'000'000'000;
}  // namespace

bool IsChild(int argc, char** argv) {
  return argc > 1 && std::string_view(argv[1]) == kChildMark;
}

int ChildMain() {
  BecomeDaemon(kChannelFd);
  Channel channel{core::UniqueFd(kChannelFd)};
  core::Result<Handoff> handoff =
      ReceiveHandoff(channel, MonotonicNs() + kHandoffNs);
  if (!handoff)
    return static_cast<int>(Exit::kUsage);  // typed by hand, or cut off
  const std::string role = handoff->role;
  core::StartLog(handoff->settings.state_dir + "/" +
                     (role == "supervisor" || role == "worker" ? role
                                                               : "reanchor") +
                     ".log",
                 role);
  if (!handoff->settings.faults.empty()) {
    if (core::Status armed = core::ArmFaults(handoff->settings.faults);
        !armed) {
      LOG_ERROR("{}", armed.error().ToString());
      return static_cast<int>(Exit::kUsage);
    }
  }
  if (role == "supervisor")
    return SupervisorMain(std::move(*handoff), std::move(channel));
  if (role == "worker")
    return WorkerMain(std::move(*handoff), std::move(channel));
  if (role == "attach" || role == "cutover" || role == "drain" ||
      role == "reopen" || role == "abort" || role == "undo_attach" ||
      role == "put_on")
    return ReanchorMain(std::move(*handoff), std::move(channel));
  if (role == "reclaim")
    return ReclaimMain(std::move(*handoff), std::move(channel));
  LOG_ERROR("unknown role '{}'", role);
  return static_cast<int>(Exit::kUsage);
}

}  // namespace livemv::daemon
