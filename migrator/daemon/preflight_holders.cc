#include "migrator/daemon/preflight_holders.h"

#include <utility>

#include "migrator/daemon/paths.h"

namespace livemv::daemon {

bool HoldsDeleted(const proc::Snapshot& snapshot) {
  const std::set<uint64_t> written = proc::WrittenInodes(snapshot.holders);
  for (const proc::Holder& holder : snapshot.holders) {
    for (const proc::Reason& reason : proc::Judge(holder, written).reasons)
      if (reason.code == "deleted")
        return true;
  }
  return false;
}

void JudgeHolders(const proc::Snapshot& snapshot, Plan* plan,
                  Findings* findings) {
  const std::set<uint64_t> written = proc::WrittenInodes(snapshot.holders);
  for (const proc::Holder& holder : snapshot.holders) {
    PlannedHolder planned;
    planned.verdict = proc::Judge(holder, written);
    planned.anchors = proc::AnchorsOf(holder, written);
    planned.fds = holder.FdCount();
    planned.maps = holder.mappings.size();
    for (const proc::Task& task : holder.tasks)
      planned.cwds += task.cwd || task.root;
    planned.holder = holder;
    const std::string who = "process " + std::to_string(holder.pid) + " (" +
                            Printable(holder.comm) + ")";
    for (const proc::Reason& reason : planned.verdict.reasons) {
      // What may stay at cutover is not yet served while attaching, so it
      // must go first.
      findings->Block("holder-" + reason.code,
                      who + " cannot be moved: " + Printable(reason.what),
                      reason.way_out);
    }
    plan->holders.push_back(std::move(planned));
  }
  for (const proc::Uncertain& doubt : snapshot.uncertain) {
    const std::string who = doubt.pid == 0
                                ? ""
                                : "process " + std::to_string(doubt.pid) +
                                      " (" + Printable(doubt.comm) + ") ";
    if (doubt.harmless)
      findings->Note("uncertain", who + Printable(doubt.what));
    else
      findings->Warn("uncertain", who + Printable(doubt.what),
                     "see whether it is in the tree: ls -l /proc/" +
                         std::to_string(doubt.pid) + "/fd");
  }
  for (const proc::Uncertain& unread : snapshot.unreadable) {
    // Sandboxes hide it; a PID 1 that works in a data directory is rare, and
    // one that can be seen and does so blocks.
    if (unread.pid == 1) {
      findings->Note("unreadable-process",
                     "PID 1 does not let itself be looked at (" +
                         Printable(unread.what) +
                         ") and is taken to be no holder");
      continue;
    }
    findings->Warn(
        "unreadable-process",
        "process " + std::to_string(unread.pid) + " (" +
            Printable(unread.comm) +
            ") does not let itself be looked at: " + Printable(unread.what),
        "run livemv on the host, without a security module that "
        "forbids it");
  }
}

}  // namespace livemv::daemon
