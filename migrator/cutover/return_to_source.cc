#include "migrator/cutover/return_to_source.h"

#include <algorithm>

#include "core/fault_points.h"
#include "migrator/cutover/round.h"
#include "migrator/cutover/scan.h"
#include "migrator/cutover/tally.h"
#include "migrator/cutover/view_switch.h"

namespace livemv::cutover {

using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;

namespace {

constexpr int64_t kSettleNs = 500'000'000;
constexpr int64_t kLookAgainNs = 10'000'000;
constexpr int64_t kLongestWaitNs = 200'000'000;

class Return {
 public:
  Return(const Deps& deps, const ReturnRequest& request)
      : deps_(deps),
        request_(request),
        views_(deps, request.dir, request.overlay_tree, request.target) {}

  Outcome Run() {
    until_ns_ = deps_.clock->NowNs() + request_.total_ns;
    outcome_.status = Start();
    if (outcome_.status) {
      outcome_.committed = true;
      outcome_.stragglers.clear();  // of attempts before
      outcome_.status = Empty();
    }
    return std::move(outcome_);
  }

 private:
  // To where DIR shows the source.
  Status Start() {
    ASSIGN_OR_RETURN(own_ns_, deps_.scanner->OwnMountNamespace());
    if (request_.commit_source)
      return Retry(deps_, until_ns_, &outcome_, [&] { return Commit(); });
    if (Status given_up = deps_.overlay->GiveUpAttach(); !given_up) {
      outcome_.redirected = given_up.error().code == ErrorCode::kConflict;
      return given_up;
    }
    // The overlay has never served anything but the source: it can go first.
    ASSIGN_OR_RETURN(Scan scan, Look());
    TRY(views_.Look(scan.namespaces, own_ns_, Parts::kIgnored));
    // But not before whoever holds a lock, for others could get it there.
    if (AnyLocked(scan.movers)) {
      Status moved = Retry(deps_, until_ns_, &outcome_, [&] { return Leave(); });
      if (moved)
        return deps_.overlay->RefuseOpens();
      outcome_.warnings.push_back("move holders of locks first: " +
                                  moved.error().ToString());
    }
    size_t before = outcome_.warnings.size();
    views_.ShowSource(&outcome_.warnings);
    // One that ended in the middle may have left the overlay closed to them.
    TRY(deps_.overlay->RefuseOpens());
    if (views_.OverlayIsOnTop())
      return Fail(ErrorCode::kConflict,
                  "the overlay is still on " + request_.dir + ": " +
                      (before < outcome_.warnings.size()
                           ? outcome_.warnings.back()
                           : "for an unknown reason"));
    return {};
  }

  static bool AnyLocked(const std::vector<proc::Holder>& holders) {
    for (const proc::Holder& holder : holders)
      for (const proc::Task& task : holder.tasks)
        for (const proc::Descriptor& fd : task.fds)
          if (!HeldLocks(fd).empty())
            return true;
    return AnyLockOfProcess(holders);
  }

  // All who can go, and the overlay off in the same moment.
  Status Leave() {
    ASSIGN_OR_RETURN(Scan scan, Look());
    RoundRequest round = MakeRound(std::move(scan), nullptr);
    round.rules.defer_foreign_directories = true;
    round.gate_for_locks = true;
    round.after_commit = [this] { views_.ShowSource(&outcome_.warnings); };
    return RunAndTally(deps_, round, &outcome_);
  }

  Result<Scan> Look() {
    return ScanTree(deps_, request_.overlay_tree, request_.own,
                    {.leave_deleted = true});
  }

  // Whoever is in the way is waited for: it would stay on the overlay, with
  // its lock or what it has cached, beside a source that others write. Once DIR
  // shows the source, whoever can be moved is, whatever another holds.
  Status Commit() {
    const bool covered = views_.OverlayIsOnTop();
    ASSIGN_OR_RETURN(Scan scan, ScanSettled(deps_, request_.overlay_tree,
                                            request_.own,
                                            {.leave_deleted = true},
                                            kSettleNs));
    std::erase_if(scan.in_the_way,
                  [](const Straggler& s) { return s.only_deleted; });
    if (covered && !scan.in_the_way.empty()) {
      outcome_.stragglers = scan.in_the_way;
      // Not kConflict: it was waited for, and is looked for again later.
      return Fail(ErrorCode::kInvalid,
                  "in the way: " + NamesOf(scan.in_the_way));
    }
    TRY(views_.Look(scan.namespaces, own_ns_, Parts::kIgnored));
    RoundRequest round = MakeRound(std::move(scan), nullptr);
    round.rules.defer_foreign_directories = true;
    round.all_must_move = covered;
    round.gate = true;
    round.before_swap = [this](int64_t deadline) -> Status {
      TRY(deps_.overlay->CommitSource(deadline));
      return core::FaultPoint("abort.committed_source");
    };
    round.after_commit = [this] { views_.ShowSource(&outcome_.warnings); };
    round.faults = {"abort.opened", "abort.frozen", "abort.gated",
                    "abort.swapped", "abort.committed"};
    return RunAndTally(deps_, round, &outcome_);
  }

  RoundRequest MakeRound(Scan scan, const Views* views) {
    opener_ = std::make_unique<PathOpener>(deps_.files, request_.source_dir_fd,
                                           views, deps_.overlay, deps_.clock);
    RoundRequest round;
    round.from = request_.overlay_tree;
    round.holders = std::move(scan.movers);
    round.bystanders = std::move(scan.bystanders);
    round.own = request_.own;
    round.rules.own_namespace = own_ns_;
    round.rules.leave_deleted = true;
    round.kept = request_.kept;
    round.opener = opener_.get();
    round.pause_ns = request_.pause_ns;
    return round;
  }

  // Until nobody is on the overlay, by two scans in a row: a process forked
  // behind the back of one is seen by the next.
  Status Empty() {
    int clean = 0;
    int64_t wait = kLookAgainNs;
    for (;;) {
      ASSIGN_OR_RETURN(Scan scan, Look());
      if (views_.OverlayIsOnTop()) {
        TRY(views_.Look(scan.namespaces, own_ns_, Parts::kIgnored));
        views_.ShowSource(&outcome_.warnings);
      }
      clean = scan.NobodyLeft() && scan.stays.empty() ? clean + 1 : 0;
      if (clean == 2)
        return {};
      if (deps_.clock->NowNs() > until_ns_)
        return StillThere(std::move(scan));
      TRY(deps_.Continue("while holders return to the source"));
      if (!scan.movers.empty()) {
        Views views = FindViews(deps_, scan.namespaces, own_ns_,
                                request_.source.sb_dev,
                                request_.source.path_in_fs, request_.dir);
        RoundRequest round = MakeRound(std::move(scan), &views);
        if (Status moved = RunAndTally(deps_, round, &outcome_); moved) {
          wait = kLookAgainNs;
        } else {
          last_failure_ = moved.error().ToString();
          wait = std::min(wait * 2, kLongestWaitNs);
        }
      } else if (clean == 0 && scan.in_the_way.empty()) {
        // Only programs that run from the overlay: they end in their time.
        return StillThere(std::move(scan));
      } else if (clean == 0) {
        wait = std::min(wait * 2, kLongestWaitNs);
      }
      deps_.clock->WaitNs(wait);
    }
  }

  Status StillThere(Scan scan) {
    std::vector<Straggler> all = NotYetMoved(scan.movers, outcome_);
    all.insert(all.end(), scan.in_the_way.begin(), scan.in_the_way.end());
    all.insert(all.end(), scan.stays.begin(), scan.stays.end());
    std::string names = NamesOf(all);
    if (!last_failure_.empty())
      names += "; " + last_failure_;
    outcome_.stragglers = std::move(all);
    return Fail(ErrorCode::kConflict, "still on the overlay: " + names);
  }

  const Deps& deps_;
  const ReturnRequest& request_;
  ViewSwitch views_;
  std::unique_ptr<PathOpener> opener_;
  uint64_t own_ns_ = 0;
  int64_t until_ns_ = 0;
  std::string last_failure_;
  Outcome outcome_;
};

}  // namespace

Outcome RunReturn(const Deps& deps, const ReturnRequest& request) {
  return Return(deps, request).Run();
}

}  // namespace livemv::cutover
