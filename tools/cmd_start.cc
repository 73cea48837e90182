// plan, start.

#include <signal.h>
#include <unistd.h>

#include <cstdio>

#include "migrator/daemon/control.h"
#include "migrator/daemon/guard.h"
#include "migrator/daemon/launcher.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/plan_report.h"
#include "migrator/daemon/preflight.h"
#include "migrator/daemon/state_dir.h"
#include "tools/commands.h"
#include "tools/follow.h"

namespace livemv::tools {

using core::Result;
using daemon::Exit;
using daemon::Launched;
using daemon::Message;
using daemon::Plan;
using daemon::Refusal;
using daemon::Registration;
using daemon::Registry;
using daemon::Reply;

namespace {

constexpr int64_t kTickNs = 500'000'000;

std::string StateParent(const Command& command) {
  if (command.state_dir.empty())
    return daemon::kDefaultStateParent;
  Result<std::string> path = daemon::MakeAbsolute(command.state_dir);
  return path ? *path : command.state_dir;
}

Plan PlanOf(Registry& registry, const Command& command) {
  daemon::PlanRequest request;
  request.dir = command.dir;
  request.target = command.target;
  request.mount_options = command.mount_options;
  request.state_dir = StateParent(command);
  request.accepted = command.accepted;
  request.scratch = registry.root() + "/.scratch-" + std::to_string(::getpid());
  for (const Registration& entry : registry.List())
    request.running.push_back({entry.id, entry.dir, entry.target});
  request.own.insert(::getpid());
  return daemon::MakePlan(request);
}

}  // namespace

Exit PlanCommand(Registry& registry, const Command& command) {
  Plan plan = PlanOf(registry, command);
  std::fputs(command.json ? (daemon::PlanJson(plan) + "\n").c_str()
                          : daemon::PlanText(plan).c_str(),
             stdout);
  return plan.Code();
}

Exit StartCommand(Registry& registry, const Command& command) {
  Plan plan = PlanOf(registry, command);
  if (!plan.findings.empty())
    std::fputs(daemon::FindingsText(plan.findings).c_str(), stderr);
  if (plan.Blocked())
    return Complain(plan.Code(), "not started; nothing was changed");

  const bool guarded = daemon::HasSystemd();
  if (!guarded && !command.yes)
    return Complain(
        Exit::kBlocked,
        "this host was not booted with systemd, so nothing would cover " +
            daemon::Printable(plan.dir) +
            " after a reboot until 'livemv recover --all' has run: whatever "
            "starts before it would see, and write to, a source that lacks the "
            "newest data. Run that command at boot before anything that uses "
            "the directory, and say --yes. Not started; nothing was changed");

  daemon::StartRequest request;
  request.guarded = guarded;
  request.dir = plan.dir;
  request.target = plan.target;
  request.state_parent = StateParent(command);
  request.mount_options = command.mount_options;
  request.losses = core::LossesText(command.accepted);
  request.holds = plan.holds;
  request.target_mount = std::move(plan.target_mount);
  request.target_root = std::move(plan.target_root);
  request.auto_cutover = command.auto_cutover;
  request.max_pause_ns = command.max_pause_ns;
  std::expected<Launched, Refusal> launched =
      daemon::Launch(registry, std::move(request));
  if (!launched)
    return Complain(launched.error().exit,
                    launched.error().message +
                        "\nNot started; nothing was changed.");

  const std::string& id = launched->settings.id;
  CatchInterrupts();
  for (;;) {
    Result<Message> said = launched->supervisor.channel.Receive(
        daemon::MonotonicNs() + kTickNs);
    if (int signal = Interrupted(); signal != 0) {
      std::fputs(GoesOn(id).c_str(), stderr);
      DieOf(signal);
    }
    if (!said) {
      if (said.error().code == core::ErrorCode::kTimeout)
        continue;
      return Complain(Exit::kHuman,
                      "the supervisor of migration " + id +
                          " died: " + said.error().ToString() + "; see " +
                          launched->settings.state_dir + "/supervisor.log");
    }
    Result<Reply> reply = daemon::ParseReply(said->text);
    if (!reply)
      return Complain(Exit::kHuman, reply.error().ToString());
    if (reply->exit != Exit::kDone)
      return Complain(reply->exit, reply->message);
    if (!reply->message.empty())
      std::fprintf(stderr, "livemv: %s\n", reply->message.c_str());
    break;
  }
  std::printf("migration %s: %s -> %s is live; new data goes to the target\n",
              id.c_str(), daemon::Printable(plan.dir).c_str(),
              daemon::Printable(plan.target).c_str());
  std::fflush(stdout);
  if (!command.wait) {
    std::printf("follow it with 'livemv status %s --watch'\n", id.c_str());
    return Exit::kDone;
  }
  Result<Registration> entry = registry.Find(id);
  if (!entry)
    return Complain(Exit::kHuman, entry.error().ToString());
  Exit exit = Follow(registry, *entry,
                     command.auto_cutover ? Goal::kMoved : Goal::kSynced,
                     false);
  if (exit == Exit::kDone && command.auto_cutover)
    std::printf("moved. 'livemv finish %s' dismisses the migration and says "
                "what is left to do\n",
                id.c_str());
  return exit;
}

}  // namespace livemv::tools
