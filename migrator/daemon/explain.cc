#include "migrator/daemon/explain.h"

#include <fcntl.h>

#include <cerrno>
#include <set>

#include "core/unique_fd.h"
#include "migrator/daemon/anchor_report.h"
#include "migrator/daemon/paths.h"
#include "migrator/proc/process_snapshot.h"

namespace livemv::daemon {

using core::Result;
using Json = nlohmann::ordered_json;

namespace {

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

Explanation Of(const proc::Holder& holder, const std::set<uint64_t>& written,
               const std::string& dir) {
  const proc::Verdict verdict = proc::Judge(holder, written);
  const std::vector<proc::Anchor> anchors = proc::AnchorsOf(holder, written);
  Explanation out;
  out.holds = true;
  out.exit = CodeOf(verdict.movability);
  out.text = "process " + std::to_string(holder.pid) + " (" +
             Printable(holder.comm) + ") in " + Printable(dir) + ": " +
             proc::MovabilityName(verdict.movability) + "\n" +
             AnchorsText(holder.pid, anchors);
  // What is about the process as a whole.
  for (const proc::Reason& reason : verdict.reasons)
    if (reason.code == "traced" || reason.code == "never-frozen")
      out.text += "  " + Printable(reason.what) + "\n  -> " + reason.way_out +
                  "\n";
  out.json = Json{{"dir", dir},
                  {"pid", holder.pid},
                  {"command", holder.comm},
                  {"verdict", VerdictWord(verdict.movability)},
                  {"reasons", ReasonsJson(verdict.reasons)},
                  {"anchors", AnchorsJson(anchors)}};
  return out;
}

}  // namespace

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
  for (const proc::Holder& holder : snapshot.holders)
    if (holder.pid == pid)
      return Of(holder, written, dir);
  return Explanation();
}

}  // namespace livemv::daemon
