// recover.

#include <cstdio>

#include "migrator/daemon/control.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/recover.h"
#include "migrator/daemon/state_dir.h"
#include "tools/commands.h"
#include "tools/follow.h"

namespace livemv::tools {

using core::Result;
using daemon::Exit;
using daemon::Message;
using daemon::Recovered;
using daemon::Refusal;
using daemon::Registry;
using daemon::Reply;

namespace {

constexpr int64_t kTickNs = 500'000'000;

std::string IdOf(const std::string& state_dir) {
  return state_dir.substr(state_dir.rfind('/') + 1);
}

std::string DirOf(const std::string& state_dir) {
  Result<daemon::Settings> noted = daemon::NotedSettings(state_dir);
  return noted ? noted->dir : "";
}

// Until DIR is served, or is not to be.
Exit Await(Recovered& recovered) {
  const std::string& id = recovered.settings.id;
  daemon::Channel& channel = recovered.supervisor->channel;
  for (;;) {
    Result<Message> said = channel.Receive(daemon::MonotonicNs() + kTickNs);
    if (int signal = Interrupted(); signal != 0) {
      std::fputs(GoesOn(id).c_str(), stderr);
      DieOf(signal);
    }
    if (!said && said.error().code == core::ErrorCode::kTimeout)
      continue;
    if (!said)
      return Complain(Exit::kHuman, "the supervisor of migration " + id +
                                        " died: " + said.error().ToString() +
                                        "; see " +
                                        recovered.settings.state_dir +
                                        "/supervisor.log");
    Result<Reply> reply = daemon::ParseReply(said->text);
    if (!reply)
      return Complain(Exit::kHuman, reply.error().ToString());
    if (reply->exit != Exit::kDone)
      return Complain(reply->exit,
                      "migration " + id + ": " + reply->message);
    if (!reply->message.empty())
      std::fprintf(stderr, "livemv: %s\n", reply->message.c_str());
    return Exit::kDone;
  }
}

Exit RecoverOne(Registry& registry, const Command& command,
                const std::string& state_dir) {
  daemon::RecoverRequest request;
  request.state_dir = state_dir;
  request.accept_changes = command.accept_changes;
  std::expected<Recovered, Refusal> recovered =
      daemon::Recover(registry, request);
  if (!recovered)
    return Complain(recovered.error().exit, "migration " + IdOf(state_dir) +
                                                ": " +
                                                recovered.error().message);
  const daemon::Settings& s = recovered->settings;
  if (!recovered->supervisor) {
    std::printf("migration %s (%s): %s\n", s.id.c_str(),
                recovered->state.c_str(), recovered->message.c_str());
    return recovered->exit;
  }
  if (!recovered->message.empty())
    std::fprintf(stderr, "livemv: %s\n", recovered->message.c_str());
  if (Exit exit = Await(*recovered); exit != Exit::kDone)
    return exit;
  std::printf("migration %s: %s -> %s is back; it was %s\n", s.id.c_str(),
              daemon::Printable(s.dir).c_str(),
              daemon::Printable(s.target).c_str(), recovered->state.c_str());
  return Exit::kDone;
}

// Of several the one that the unit acts on, then the one that needs most: what
// each lacks is told anyway, and one that needs somebody must not keep another
// from being tried again.
Exit Worse(Exit a, Exit b) {
  for (Exit exit : {Exit::kUnreachable, Exit::kHuman, Exit::kBlocked})
    if (a == exit || b == exit)
      return exit;
  return Exit::kDone;
}

}  // namespace

Exit RecoverCommand(Registry& registry, const Command& command) {
  std::string parent = daemon::kDefaultStateParent;
  if (!command.state_dir.empty()) {
    Result<std::string> path = daemon::MakeAbsolute(command.state_dir);
    if (!path)
      return Complain(Exit::kBlocked, path.error().ToString());
    parent = *path;
  }
  Result<std::vector<std::string>> dirs = daemon::StateDirs(parent);
  if (!dirs)
    return Complain(Exit::kHuman, dirs.error().ToString());
  CatchInterrupts();
  if (command.all) {
    Exit exit = Exit::kDone;
    bool any = false;
    for (const std::string& dir : *dirs) {
      // What lives needs nothing.
      Result<core::UniqueFd> lock = daemon::LockState(dir);
      if (!lock && lock.error().code == core::ErrorCode::kConflict)
        continue;
      lock = core::UniqueFd();
      any = true;
      exit = Worse(exit, RecoverOne(registry, command, dir));
    }
    if (!any)
      std::printf("there is no migration to bring back\n");
    return exit;
  }
  std::string path;
  if (Result<std::string> text = daemon::MakeAbsolute(command.which))
    path = *text;
  for (const std::string& dir : *dirs)
    if (IdOf(dir) == command.which || DirOf(dir) == path)
      return RecoverOne(registry, command, dir);
  return Complain(Exit::kBlocked, "no migration is known by " +
                                      daemon::Printable(command.which) +
                                      " in " + daemon::Printable(parent));
}

}  // namespace livemv::tools
