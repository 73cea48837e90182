#include "migrator/cutover/tally.h"

#include <algorithm>
#include <iterator>

namespace livemv::cutover {

using core::ErrorCode;
using core::Status;

namespace {

constexpr int kAttempts = 5;
constexpr int64_t kFirstWaitNs = 50'000'000;

}  // namespace

std::vector<Straggler> NotYetMoved(const std::vector<proc::Holder>& holders,
                                   const Outcome& outcome) {
  std::vector<Straggler> stragglers;
  for (const proc::Holder& h : holders) {
    auto why = outcome.left.find(h.pid);
    stragglers.push_back({h.pid, h.comm,
                          why != outcome.left.end() ? why->second
                                                    : "has not been moved yet",
                          false, false});
  }
  return stragglers;
}

Status RunAndTally(const Deps& deps, const RoundRequest& request,
                   Outcome* outcome) {
  RoundReport report;
  Status status = RunRound(deps, request, &report);
  outcome->froze |= report.froze;
  outcome->rounds += report.froze ? 1 : 0;
  outcome->processes_moved += report.moved.size();
  outcome->seats_moved += report.seats;
  outcome->pauses.insert(outcome->pauses.end(), report.pauses.begin(),
                         report.pauses.end());
  outcome->warnings.insert(outcome->warnings.end(), report.warnings.begin(),
                           report.warnings.end());
  if (report.committed)
    std::move(report.kept.begin(), report.kept.end(),
              std::back_inserter(outcome->kept));
  for (pid_t pid : report.moved)
    outcome->left.erase(pid);
  for (const Left& left : report.left)
    outcome->left[left.seat.pid] =
        (left.seat.number < 0
             ? std::string("working directory")
             : "descriptor " + std::to_string(left.seat.number)) +
        ": " + left.reason;
  return status;
}

Status Retry(const Deps& deps, int64_t until_ns, Outcome* outcome,
             const std::function<Status()>& attempt) {
  int64_t wait = kFirstWaitNs;
  for (int n = 1;; ++n, wait *= 2) {
    Status status = attempt();
    if (status)
      return status;
    bool quieter_moment = status.error().code == ErrorCode::kTimeout ||
                          status.error().code == ErrorCode::kConflict;
    if (!quieter_moment || n == kAttempts ||
        deps.clock->NowNs() + wait > until_ns)
      return status;
    outcome->warnings.push_back("attempt " + std::to_string(n) + ": " +
                                status.error().ToString());
    TRY(deps.Continue("between attempts"));
    deps.clock->WaitNs(wait);
  }
}

}  // namespace livemv::cutover
