// The verbs that the supervisor answers: cutover, pause, resume, abort,
// finish, inspect.

#include <cstdio>
#include <nlohmann/json.hpp>

#include "migrator/daemon/channel.h"
#include "migrator/daemon/control.h"
#include "migrator/daemon/migration_status.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/persist.h"
#include "migrator/daemon/state_dir.h"
#include "tools/commands.h"
#include "tools/follow.h"

namespace livemv::tools {

using core::Result;
using daemon::ControlClient;
using daemon::Exit;
using daemon::Registration;
using daemon::Registry;
using daemon::Reply;
using nlohmann::json;

namespace {

constexpr int64_t kAnswerNs = 60'000'000'000;

std::string Dump(const json& j) {
  return j.dump(-1, ' ', false, json::error_handler_t::replace);
}

// Asks and prints nothing; complains if there is nobody to ask.
std::optional<Reply> Ask(Registry& registry, const Registration& entry,
                         const json& request, int64_t deadline_ns) {
  Result<ControlClient> client =
      ControlClient::Connect(registry.SocketPath(entry.id));
  if (!client) {
    Complain(Exit::kHuman,
             "the supervisor of migration " + entry.id + " (pid " +
                 std::to_string(entry.supervisor_pid) +
                 ") is gone: " + client.error().ToString() +
                 "\nNothing was changed. If its worker lives, applications go "
                 "on. The journal is in " + daemon::Printable(entry.state_dir) +
                 "; keep it and both trees.");
    return std::nullopt;
  }
  Result<Reply> reply = client->Ask(Dump(request), deadline_ns);
  if (!reply) {
    Complain(Exit::kHuman, reply.error().ToString() + "; 'livemv status " +
                               entry.id + "' shows where it is");
    return std::nullopt;
  }
  return *reply;
}

// Before the migration is dismissed: until then what covers DIR at boot is
// there, and `recover` brings the target back.
Exit MakePermanent(Registry& registry, const Registration& entry,
                   daemon::Persist how) {
  Result<daemon::MigrationStatus> now =
      [&]() -> Result<daemon::MigrationStatus> {
    ASSIGN_OR_RETURN(ControlClient client,
                     ControlClient::Connect(registry.SocketPath(entry.id)));
    TRY(client.Send(R"({"verb":"status"})"));
    ASSIGN_OR_RETURN(std::string line,
                     client.ReadLine(daemon::MonotonicNs() + kAnswerNs));
    return daemon::StatusFromJson(line);
  }();
  if (!now)
    return Complain(Exit::kHuman, now.error().ToString());
  if (now->state != "moved")
    return Complain(Exit::kBlocked, "the migration is " + now->state +
                                        "; only a moved one can be finished. "
                                        "Nothing was changed");
  Result<daemon::Settings> settings = daemon::NotedSettings(entry.state_dir);
  if (!settings)
    return Complain(Exit::kHuman, settings.error().ToString());
  Result<std::string> done = daemon::MakePermanent(*settings, how);
  if (!done)
    return Complain(Exit::kHuman,
                    "the mount was not made permanent, and the migration is "
                    "moved as before: " + done.error().ToString());
  std::printf("%s\n", done->c_str());
  return Exit::kDone;
}

}  // namespace

Exit AskCommand(Registry& registry, const Command& command) {
  std::optional<Registration> entry = Named(registry, command.which);
  if (!entry)
    return Exit::kBlocked;
  const std::string verb(VerbName(command.verb));
  json request = {{"verb", verb}};
  if (command.verb == Verb::kCutover)
    request["accept"] = command.accept;
  if (command.verb == Verb::kFinish)
    request["reclaim"] = command.reclaim;
  // Deleting the old contents takes as long as it takes.
  const bool slow = command.verb == Verb::kFinish && command.reclaim;
  if (command.verb == Verb::kCutover && !command.accept.empty())
    std::fprintf(stderr,
                 "livemv: accepted processes stay on the overlay, which "
                 "passes their writes to the target. Not guaranteed for them: "
                 "locks against other processes, shared mappings, and seeing "
                 "others' writes without delay.\n");
  if (command.persist != daemon::Persist::kNone) {
    if (Exit exit = MakePermanent(registry, *entry, command.persist);
        exit != Exit::kDone)
      return exit;
  }
  std::optional<Reply> reply =
      Ask(registry, *entry, request,
          slow ? -1 : daemon::MonotonicNs() + kAnswerNs);
  if (!reply)
    return Exit::kHuman;
  if (!reply->message.empty()) {
    if (reply->exit == Exit::kDone)
      std::printf("%s\n", reply->message.c_str());
    else
      Complain(reply->exit, reply->message);
  }
  if (reply->exit != Exit::kDone || !command.wait)
    return reply->exit;
  return Follow(registry, *entry,
                command.verb == Verb::kAbort ? Goal::kAborted : Goal::kCutover,
                false);
}

Exit InspectCommand(Registry& registry, const Command& command) {
  std::optional<Registration> entry = Named(registry, command.which);
  if (!entry)
    return Exit::kBlocked;
  std::string path;
  if (!daemon::LooksLikeId(command.which) || command.which != entry->id) {
    // Links on the way to DIR are resolved, the last component is not: a
    // symbolic link in the tree is itself what is asked about.
    Result<std::string> full = daemon::MakeAbsolute(command.which);
    if (full) {
      size_t slash = full->rfind('/');
      Result<std::string> parent =
          daemon::Normalise(slash == 0 ? "/" : full->substr(0, slash));
      std::string whole =
          parent ? (*parent == "/" ? "" : *parent) + full->substr(slash)
                 : *full;
      if (daemon::IsInside(whole, entry->dir))
        path = daemon::Below(whole, entry->dir);
      else if (Result<std::string> real = daemon::Normalise(command.which))
        path = daemon::Below(*real, entry->dir);
    }
  }
  std::optional<Reply> reply =
      Ask(registry, *entry,
          {{"verb", "inspect"},
           {"path", path},
           {"pending", command.only_pending},
           {"remote", command.only_remote}},
          daemon::MonotonicNs() + kAnswerNs);
  if (!reply)
    return Exit::kHuman;
  if (reply->exit != Exit::kDone)
    return Complain(reply->exit, reply->message);
  if (command.json) {
    json j = json::parse(reply->text, nullptr, false);
    std::printf("%s\n", Dump(j.value("details", json::object())).c_str());
  } else {
    std::printf("%s\n", reply->message.c_str());
  }
  return Exit::kDone;
}

}  // namespace livemv::tools
