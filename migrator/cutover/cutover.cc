#include "migrator/cutover/cutover.h"

#include <algorithm>

#include "core/fault_points.h"
#include "core/log.h"
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
constexpr int64_t kLookAgainNs = 5'000'000;
constexpr int64_t kLongestWaitNs = 200'000'000;
// A flush round that takes no longer leaves little for the freeze.
constexpr int64_t kShortRoundNs = 50'000'000;
constexpr int kMostRounds = 20;
// Rounds that do not get shorter: waiting for it longer would not help.
constexpr int kLevelRounds = 3;
constexpr int64_t kRevokeNs = 10'000'000'000;

class Cutover {
 public:
  Cutover(const Deps& deps, const CutoverRequest& request)
      : deps_(deps),
        request_(request),
        views_(deps, request.dir, request.overlay_tree, request.target) {}

  Outcome Run() {
    outcome_.status = Enter();
    if (!outcome_.status)
      return std::move(outcome_);
    outcome_.status = Move();
    if (!outcome_.committed) {
      if (outcome_.status)  // cannot be: a round is OK exactly if committed
        outcome_.status = Fail(ErrorCode::kConflict, "nothing was committed");
      Tell(deps_.overlay->Advance(state::Event::kCutoverGivenUp,
                                  outcome_.status.error().ToString()),
           "leave the cutover");
      return std::move(outcome_);
    }
    if (!outcome_.status) {
      outcome_.warnings.push_back(outcome_.status.error().ToString());
      outcome_.status = {};
    }
    Tell(deps_.overlay->Advance(state::Event::kCommitted, ""),
         "say that the target is the truth");
    Tell(MoveRest(deps_.clock->NowNs() + request_.leftover_ns),
         "move those who came in between");
    return std::move(outcome_);
  }

  Outcome Drain() {
    outcome_.status = MoveRest(0);
    outcome_.committed = true;
    return std::move(outcome_);
  }

 private:
  void Tell(const Status& status, const std::string& what) {
    if (!status)
      outcome_.warnings.push_back(what + ": " + status.error().ToString());
  }

  // Whether there is any point in it now: the state is left alone if not.
  Status Enter() {
    ASSIGN_OR_RETURN(own_ns_, deps_.scanner->OwnMountNamespace());
    ASSIGN_OR_RETURN(Scan scan, Settled());
    TRY(NobodyInTheWay(scan));
    return deps_.overlay->Advance(state::Event::kCutover, "");
  }

  Result<Scan> Settled() {
    return ScanSettled(deps_, request_.overlay_tree, request_.own,
                       {.accepted = request_.accepted}, kSettleNs);
  }

  Status NobodyInTheWay(const Scan& scan) {
    if (scan.in_the_way.empty())
      return {};
    outcome_.stragglers = scan.in_the_way;
    return Fail(ErrorCode::kConflict,
                "in the way: " + NamesOf(scan.in_the_way));
  }

  Status Move() {
    TRY(Flush());
    TRY(core::FaultPoint("cutover.flushed"));
    ASSIGN_OR_RETURN(Scan scan, Settled());
    TRY(NobodyInTheWay(scan));
    TRY(views_.Look(scan.namespaces, own_ns_, Parts::kRefused));
    TargetOpener opener(deps_.overlay, deps_.files, deps_.clock, nullptr);
    RoundRequest round = MakeRound(std::move(scan), &opener);
    round.rules.defer_foreign_directories = true;
    round.all_must_move = true;
    round.gate = true;
    round.before_commit = [this](int64_t deadline) { return Commit(deadline); };
    round.revoke = [this] { Revoke(); };
    round.after_commit = [this] {
      outcome_.committed = true;
      views_.ShowTarget(&outcome_.warnings);
    };
    round.faults = {"", "cutover.frozen", "cutover.gated", "cutover.swapped",
                    "cutover.committed"};
    return RunAndTally(deps_, round, &outcome_);
  }

  // Until one round is short, so that little is left to do in the freeze. The
  // first one meets a target that is away, full or out of its mind, while
  // that costs nobody anything.
  Status Flush() {
    int64_t deadline = deps_.clock->NowNs() + request_.flush_ns;
    int64_t shortest = INT64_MAX;
    int level = 0;
    for (int n = 0; n < kMostRounds && level < kLevelRounds; ++n) {
      auto flushed = deps_.overlay->FlushRound(deadline);
      if (!flushed) {
        outcome_.unreachable = flushed.error().code == ErrorCode::kTimeout;
        return Fail(std::move(flushed).error());
      }
      const FlushReport round = *flushed;
      if (round.bytes_left != 0)
        return Fail(ErrorCode::kConflict,
                    std::to_string(round.bytes_left) +
                        " bytes are not on the target yet");
      if (round.took_ns < kShortRoundNs)
        return {};
      level = round.took_ns < shortest ? 0 : level + 1;
      shortest = std::min(shortest, round.took_ns);
      TRY(deps_.Continue("while flushing"));
    }
    return {};
  }

  RoundRequest MakeRound(Scan scan, Opener* opener) {
    RoundRequest round;
    round.from = request_.overlay_tree;
    round.holders = std::move(scan.movers);
    round.bystanders = std::move(scan.bystanders);
    round.own = request_.own;
    round.rules.own_namespace = own_ns_;
    round.opener = opener;
    round.pause_ns = request_.pause_ns;
    return round;
  }

  // All are on the target already, frozen. The mount is slid into its place
  // where it is not seen, then the truth is made durable: the commit.
  Status Commit(int64_t deadline) {
    TRY(views_.SlideTarget());
    TRY(core::FaultPoint("cutover.mounted"));
    truth_asked_ = true;
    return deps_.overlay->CommitTarget(deadline);
  }

  // A commit that was asked for and not confirmed may have happened.
  void Revoke() {
    if (truth_asked_)
      Tell(deps_.overlay->RevokeTarget(deps_.clock->NowNs() + kRevokeNs),
           "take the commit back");
  }

  // Those who are on the overlay yet. until_ns 0: one look. No gate: the
  // overlay serves the target alone, both views are the same.
  Status MoveRest(int64_t until_ns) {
    if (own_ns_ == 0) {
      ASSIGN_OR_RETURN(own_ns_, deps_.scanner->OwnMountNamespace());
    }
    int clean = 0;
    int64_t wait = kLookAgainNs;
    for (;;) {
      TRY(core::FaultPoint("cutover.rest"));
      ASSIGN_OR_RETURN(Scan scan,
                       ScanTree(deps_, request_.overlay_tree, request_.own,
                                {.accepted = request_.accepted}));
      TRY(views_.Look(scan.namespaces, own_ns_, Parts::kIgnored));
      if (views_.OverlayIsOnTop() || !views_.doorways().empty())
        views_.ShowTarget(&outcome_.warnings);
      outcome_.stragglers = Remaining(scan);
      clean = scan.movers.empty() ? clean + 1 : 0;
      if (clean == 2 || (clean > 0 && until_ns == 0))
        return {};
      size_t before = outcome_.seats_moved;
      if (!scan.movers.empty())
        TRY(MoveThese(std::move(scan)));
      wait = outcome_.seats_moved > before
                 ? kLookAgainNs
                 : std::min(wait * 2, kLongestWaitNs);
      if (until_ns == 0 || deps_.clock->NowNs() > until_ns)
        return {};
      deps_.clock->WaitNs(wait);
    }
  }

  std::vector<Straggler> Remaining(const Scan& scan) {
    std::vector<Straggler> all = scan.accepted;
    all.insert(all.end(), scan.in_the_way.begin(), scan.in_the_way.end());
    all.insert(all.end(), scan.stays.begin(), scan.stays.end());
    for (Straggler& s : NotYetMoved(scan.movers, outcome_))
      all.push_back(std::move(s));
    return all;
  }

  // Directories of other namespaces are opened where the target shows there.
  Status MoveThese(Scan scan) {
    ASSIGN_OR_RETURN(dev_t target_dev,
                     DevOfMount(deps_.mounts, *request_.target));
    ASSIGN_OR_RETURN(std::string in_fs, TargetRoot());
    Views views = FindViews(deps_, scan.namespaces, own_ns_, target_dev, in_fs,
                            request_.dir);
    TargetOpener opener(deps_.overlay, deps_.files, deps_.clock, &views);
    RoundRequest round = MakeRound(std::move(scan), &opener);
    if (Status moved = RunAndTally(deps_, round, &outcome_); !moved)
      LOG_INFO("move those who are on the overlay yet: {}",
               moved.error().ToString());
    return {};
  }

  Result<std::string> TargetRoot() {
    ASSIGN_OR_RETURN(uint64_t id, deps_.mounts->IdOf(*request_.target));
    ASSIGN_OR_RETURN(mount::MountTable table, deps_.mounts->TableOf(0));
    const mount::MountEntry* entry = table.ById(id);
    if (entry == nullptr)
      return Fail(ErrorCode::kInvalid, "the target is not mounted here");
    return entry->root;
  }

  const Deps& deps_;
  const CutoverRequest& request_;
  ViewSwitch views_;
  uint64_t own_ns_ = 0;
  bool truth_asked_ = false;
  Outcome outcome_;
};

}  // namespace

Outcome RunCutover(const Deps& deps, const CutoverRequest& request) {
  return Cutover(deps, request).Run();
}

Outcome RunDrain(const Deps& deps, const CutoverRequest& request) {
  return Cutover(deps, request).Drain();
}

Result<std::vector<Straggler>> FindStragglers(const Deps& deps,
                                              const CutoverRequest& request) {
  ASSIGN_OR_RETURN(Scan scan, ScanTree(deps, request.overlay_tree, request.own,
                                       {.accepted = request.accepted}));
  return std::move(scan.in_the_way);
}

}  // namespace livemv::cutover
