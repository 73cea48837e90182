// explain.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "migrator/daemon/explain.h"
#include "migrator/daemon/paths.h"
#include "tools/commands.h"

namespace livemv::tools {

using core::Result;
using daemon::Exit;
using daemon::Registration;
using daemon::Registry;
using Json = nlohmann::ordered_json;

Exit ExplainCommand(Registry& registry, const Command& command) {
  const std::string pid = std::to_string(command.pid);
  if (::access(("/proc/" + pid).c_str(), F_OK) != 0)
    return Complain(Exit::kUsage, "there is no process " + pid);
  std::vector<Registration> all = registry.List();
  std::vector<std::pair<std::string, bool>> trees;  // migrating
  if (command.dir.empty()) {
    for (const Registration& entry : all)
      trees.emplace_back(entry.dir, true);
    if (trees.empty())
      return Complain(Exit::kUsage,
                      "there are no migrations: name the directory, as in "
                      "'livemv explain " + pid + " DIR'");
  } else {
    Result<std::string> dir = daemon::Normalise(command.dir);
    if (!dir)
      return Complain(Exit::kBlocked, dir.error().ToString());
    bool migrating = false;
    for (const Registration& entry : all)
      migrating = migrating || entry.dir == *dir;
    trees.emplace_back(*dir, migrating);
  }
  Exit exit = Exit::kDone;
  Json list = Json::array();
  std::string nowhere;
  for (const auto& [dir, migrating] : trees) {
    Result<daemon::Explanation> e =
        daemon::Explain(command.pid, dir, migrating);
    if (!e) {
      // Others have nothing to do with one that cannot be looked at.
      exit = std::max(exit, Complain(Exit::kBlocked, e.error().ToString()));
      continue;
    }
    if (!e->holds) {
      nowhere += (nowhere.empty() ? "" : ", ") + daemon::Printable(dir);
      continue;
    }
    exit = std::max(exit, e->exit);
    if (command.json)
      list.push_back(std::move(e->json));
    else
      std::fputs(e->text.c_str(), stdout);
  }
  if (command.json)
    std::printf("%s\n",
                list.dump(2, ' ', false, Json::error_handler_t::replace)
                    .c_str());
  else if (!nowhere.empty())
    std::printf("process %s holds nothing in %s\n", pid.c_str(),
                nowhere.c_str());
  return exit;
}

}  // namespace livemv::tools
