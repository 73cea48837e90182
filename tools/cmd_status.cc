// status, list.

#include <cstdio>
#include <nlohmann/json.hpp>

#include "migrator/daemon/channel.h"
#include "migrator/daemon/control.h"
#include "migrator/daemon/migration_status.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/small_files.h"
#include "tools/commands.h"
#include "tools/follow.h"

namespace livemv::tools {

using core::Result;
using daemon::ControlClient;
using daemon::Exit;
using daemon::MigrationStatus;
using daemon::Registration;
using daemon::Registry;
using nlohmann::json;

namespace {

constexpr int64_t kAnswerNs = 10'000'000'000;

// From the supervisor; if there is none, what the registry still knows.
MigrationStatus StatusOf(Registry& registry, const Registration& entry) {
  std::string why = "its supervisor is gone";
  Result<ControlClient> client =
      ControlClient::Connect(registry.SocketPath(entry.id));
  if (client) {
    const int64_t deadline = daemon::MonotonicNs() + kAnswerNs;
    core::Status sent = client->Send(R"({"verb":"status"})");
    Result<std::string> line = client->ReadLine(deadline);
    if (sent && line) {
      Result<MigrationStatus> status = daemon::StatusFromJson(*line);
      if (status)
        return *status;
      why = status.error().ToString();
    } else {
      why = (sent ? line.error() : sent.error()).ToString();
    }
  } else if (client.error().code != core::ErrorCode::kGone) {
    why = client.error().ToString();
  }
  MigrationStatus s;
  s.id = entry.id;
  s.source = entry.dir;
  s.target = entry.target;
  s.state = "unknown";
  s.reason = why + "; its journal is in " + entry.state_dir;
  s.problem = static_cast<int>(Exit::kHuman);
  s.supervisor_pid = entry.alive ? entry.supervisor_pid : 0;
  return s;
}

void PrintBroken(const std::vector<std::string>& broken) {
  for (const std::string& line : broken)
    Complain(Exit::kHuman, "left out: " + line);
}

}  // namespace

Exit StatusCommand(Registry& registry, const Command& command) {
  if (!command.which.empty()) {
    std::optional<Registration> entry = Named(registry, command.which);
    if (!entry)
      return Exit::kBlocked;
    if (command.watch)
      return Follow(registry, *entry, Goal::kNever, command.json);
    MigrationStatus status = StatusOf(registry, *entry);
    if (command.json)
      std::printf("%s\n", daemon::StatusToJson(status, 2).c_str());
    else
      std::fputs(daemon::RenderStatus(status).c_str(), stdout);
    return Exit::kDone;
  }
  std::vector<std::string> broken;
  std::vector<Registration> all = registry.List(&broken);
  if (command.watch) {
    if (all.size() != 1)
      return Complain(Exit::kUsage,
                      "status --watch needs DIR or ID: there are " +
                          std::to_string(all.size()) + " migrations");
    return Follow(registry, all[0], Goal::kNever, command.json);
  }
  json list = json::array();
  bool first = true;
  for (const Registration& entry : all) {
    MigrationStatus status = StatusOf(registry, entry);
    if (command.json) {
      list.push_back(json::parse(daemon::StatusToJson(status)));
      continue;
    }
    std::printf("%s%s", first ? "" : "\n",
                daemon::RenderStatus(status).c_str());
    first = false;
  }
  if (command.json)
    std::printf("%s\n", list.dump(2).c_str());
  else if (all.empty())
    std::printf("no migrations\n");
  PrintBroken(broken);
  return Exit::kDone;
}

Exit ListCommand(Registry& registry, const Command& command) {
  std::vector<std::string> broken;
  json list = json::array();
  std::vector<Registration> all = registry.List(&broken);
  for (const Registration& entry : all) {
    MigrationStatus status = StatusOf(registry, entry);
    if (command.json)
      list.push_back({{"id", status.id},
                      {"source", status.source},
                      {"target", status.target},
                      {"state", status.state},
                      {"reason", status.reason},
                      {"state_dir", entry.state_dir},
                      {"supervisor_pid", status.supervisor_pid}});
    else
      std::fputs(daemon::RenderListLine(status).c_str(), stdout);
  }
  if (command.json)
    std::printf("%s\n",
                list.dump(2, ' ', false, json::error_handler_t::replace)
                    .c_str());
  else if (all.empty())
    std::printf("no migrations\n");
  PrintBroken(broken);
  return Exit::kDone;
}

}  // namespace livemv::tools
