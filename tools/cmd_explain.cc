// explain.

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/unique_fd.h"
#include "migrator/daemon/anchor_report.h"
#include "migrator/daemon/paths.h"
#include "migrator/proc/process_snapshot.h"
#include "tools/commands.h"

namespace livemv::tools {

using core::Result;
using daemon::Exit;
using daemon::Registration;
using daemon::Registry;
using Json = nlohmann::ordered_json;

namespace {

struct Explanation {
  std::string dir;
  proc::Holder holder;
  proc::Verdict verdict;
  std::vector<proc::Anchor> anchors;
};

// What pid holds in the tree that dir shows now; empty anchors if nothing.
// migrating: dir is an overlay, whose names the kernel may forget.
Result<Explanation> Explain(pid_t pid, const std::string& dir, bool migrating) {
  core::UniqueFd fd(::open(dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd)
    return core::FailSys(errno, "open " + dir);
  ASSIGN_OR_RETURN(proc::TreeRef tree, proc::MakeTreeRef(fd.Get()));
  tree.names_expire = migrating;
  proc::Options options;
  options.root_fd = fd.Get();
  ASSIGN_OR_RETURN(proc::Snapshot snapshot, proc::Capture(tree, options));
  const std::set<uint64_t> written = proc::WrittenInodes(snapshot.holders);
  Explanation explanation;
  explanation.dir = dir;
  for (proc::Holder& holder : snapshot.holders) {
    if (holder.pid != pid)
      continue;
    explanation.verdict = proc::Judge(holder, written);
    explanation.anchors = proc::AnchorsOf(holder, written);
    explanation.holder = std::move(holder);
  }
  return explanation;
}

std::string Text(const Explanation& e) {
  std::string out =
      "process " + std::to_string(e.holder.pid) + " (" +
      daemon::Printable(e.holder.comm) + ") in " + daemon::Printable(e.dir) +
      ": " + proc::MovabilityName(e.verdict.movability) + "\n" +
      daemon::AnchorsText(e.holder.pid, e.anchors);
  // What is about the process as a whole.
  for (const proc::Reason& reason : e.verdict.reasons)
    if (reason.code == "traced" || reason.code == "never-frozen")
      out += "  " + daemon::Printable(reason.what) + "\n  -> " +
             reason.way_out + "\n";
  return out;
}

Json AsJson(const Explanation& e) {
  return Json{{"dir", e.dir},
              {"pid", e.holder.pid},
              {"command", e.holder.comm},
              {"verdict", daemon::VerdictWord(e.verdict.movability)},
              {"reasons", daemon::ReasonsJson(e.verdict.reasons)},
              {"anchors", daemon::AnchorsJson(e.anchors)}};
}

Exit CodeOf(proc::Movability movability) {
  switch (movability) {
    case proc::Movability::kMovable:
      return Exit::kDone;
    case proc::Movability::kStays:
      return Exit::kWarnings;
    case proc::Movability::kBlocks:
      break;
  }
  return Exit::kBlocked;
}

}  // namespace

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
    Result<Explanation> e = Explain(command.pid, dir, migrating);
    if (!e) {
      // Others have nothing to do with one that cannot be looked at.
      exit = std::max(exit, Complain(Exit::kBlocked, e.error().ToString()));
      continue;
    }
    if (e->holder.pid == 0) {
      nowhere += (nowhere.empty() ? "" : ", ") + daemon::Printable(dir);
      continue;
    }
    exit = std::max(exit, CodeOf(e->verdict.movability));
    if (command.json)
      list.push_back(AsJson(*e));
    else
      std::fputs(Text(*e).c_str(), stdout);
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
