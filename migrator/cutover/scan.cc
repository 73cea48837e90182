#include "migrator/cutover/scan.h"

#include "migrator/cutover/move_plan.h"
#include "migrator/proc/verdict.h"

namespace livemv::cutover {

using core::Result;

namespace {

constexpr int64_t kLookAgainNs = 20'000'000;

}  // namespace

std::string NamesOf(const std::vector<Straggler>& stragglers) {
  std::string names;
  for (const Straggler& s : stragglers)
    names += (names.empty() ? "process " : "; process ") +
             std::to_string(s.pid) + " (" + s.comm + "): " + s.reason;
  return names;
}

Result<Scan> ScanTree(const Deps& deps, const proc::TreeRef& tree,
                      const std::set<pid_t>& own, const ScanRules& rules) {
  proc::Options options;
  options.root_fd = rules.root_fd;
  options.exclude = own;
  ASSIGN_OR_RETURN(proc::Snapshot snapshot,
                   deps.scanner->Capture(tree, options));
  Scan scan;
  scan.namespaces = std::move(snapshot.namespaces);
  std::set<uint64_t> written = proc::WrittenInodes(snapshot.holders);
  for (proc::Holder& holder : snapshot.holders) {
    if (own.contains(holder.pid) || own.contains(holder.ppid))
      continue;
    proc::Verdict verdict = proc::Judge(holder, written);
    bool only_deleted = false;
    if (rules.leave_deleted && verdict.Blocks()) {
      proc::Holder living = WithoutDeleted(holder);
      proc::Verdict of_living = proc::Judge(living, written);
      only_deleted = !HasSeats(living) && !of_living.Blocks();
      if (HasSeats(living))
        verdict = std::move(of_living);
    }
    Straggler straggler{holder.pid, holder.comm, verdict.Line()};
    straggler.only_deleted = only_deleted;
    if (verdict.Blocks()) {
      straggler.accepted = rules.accepted.contains(holder.pid);
      (straggler.accepted ? scan.accepted : scan.in_the_way)
          .push_back(std::move(straggler));
      scan.bystanders.push_back(std::move(holder));
    } else if (HasSeats(holder)) {
      scan.movers.push_back(std::move(holder));
    } else {
      straggler.may_stay = true;
      scan.stays.push_back(std::move(straggler));
    }
  }
  return scan;
}

Result<Scan> ScanSettled(const Deps& deps, const proc::TreeRef& tree,
                         const std::set<pid_t>& own, const ScanRules& rules,
                         int64_t settle_ns) {
  int64_t until = deps.clock->NowNs() + settle_ns;
  for (;;) {
    ASSIGN_OR_RETURN(Scan scan, ScanTree(deps, tree, own, rules));
    if (scan.in_the_way.empty() || deps.clock->NowNs() >= until)
      return scan;
    TRY(deps.Continue("while waiting for a holder"));
    deps.clock->WaitNs(kLookAgainNs);
  }
}

}  // namespace livemv::cutover
