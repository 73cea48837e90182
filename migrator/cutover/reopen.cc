#include "migrator/cutover/reopen.h"

#include <algorithm>

#include "core/fault_points.h"
#include "migrator/cutover/round.h"
#include "migrator/cutover/scan.h"
#include "migrator/cutover/tally.h"

namespace livemv::cutover {

using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;

namespace {

constexpr int64_t kSettleNs = 500'000'000;
constexpr int64_t kAskNs = 2'000'000'000;
// It waits for the target.
constexpr int64_t kLeaveNs = 10'000'000'000;
constexpr int64_t kLookAgainNs = 10'000'000;

// What is direct, by its other number; the rest may stay as it is.
class ReopenOpener final : public Opener {
 public:
  ReopenOpener(const Deps& deps, int root_fd) : deps_(deps), root_fd_(root_fd) {}

  Status Open(std::vector<Opening>* openings) override {
    std::vector<state::FileId> ids;
    for (const Opening& o : *openings)
      ids.push_back(NodeIdOf(o.key->object));
    ASSIGN_OR_RETURN(std::vector<bool> direct,
                     deps_.overlay->AreDirect(
                         ids, deps_.clock->NowNs() + kAskNs));
    for (size_t i = 0; i < openings->size(); ++i) {
      Opening& o = (*openings)[i];
      if (!direct[i] || o.want->cwd || o.want->directory) {
        o.why_not = "it can stay";
        continue;
      }
      auto fd = OpenOne(o, ids[i]);
      if (fd)
        o.fd = std::move(*fd);
      else
        o.why_not = fd.error().ToString();
    }
    return {};
  }

  bool AllowedInFreeze() const override { return true; }

 private:
  // By name first, which gives it a name in /proc: the kernel is told that what
  // it knows of the name is stale.
  Result<core::UniqueFd> OpenOne(const Opening& o, state::FileId id) {
    auto named = deps_.files->OpenBeneath(root_fd_, o.want->path,
                                          o.want->flags, o.want->ino);
    if (named)
      return named;
    return deps_.files->OpenObject(
        root_fd_, FuseHandle(id | state::kAliasBit), o.want->flags,
        o.want->ino);
  }

  const Deps& deps_;
  const int root_fd_;
};

class Reopen {
 public:
  Reopen(const Deps& deps, const ReopenRequest& request)
      : deps_(deps), request_(request) {}

  Outcome Run() {
    until_ns_ = deps_.clock->NowNs() + request_.total_ns;
    outcome_.status =
        Retry(deps_, until_ns_, &outcome_, [&] { return Attempt(); });
    outcome_.committed = outcome_.status.has_value();
    return std::move(outcome_);
  }

 private:
  Status Attempt() {
    for (int clean = 0;;) {
      ASSIGN_OR_RETURN(Scan scan,
                       ScanSettled(deps_, request_.overlay_tree, request_.own,
                                   {.leave_deleted = true}, kSettleNs));
      std::erase_if(scan.in_the_way,
                    [](const Straggler& s) { return s.only_deleted; });
      outcome_.stragglers = scan.in_the_way;
      if (!scan.in_the_way.empty())
        return Fail(ErrorCode::kInvalid,
                    "in the way: " + NamesOf(scan.in_the_way));
      ASSIGN_OR_RETURN(bool any, AnyDirect(scan.movers));
      if (any) {
        clean = 0;
        TRY(MoveThem(std::move(scan)));
        continue;
      }
      if (++clean == 2) {
        outcome_.kept.clear();  // nobody is there, and the worker counts them
        break;
      }
      if (deps_.clock->NowNs() > until_ns_)
        return Fail(ErrorCode::kTimeout, "files are opened all the time");
      deps_.clock->WaitNs(kLookAgainNs);
    }
    TRY(core::FaultPoint("reopen.done"));
    // kConflict until the kernel has told the worker of the last close.
    return deps_.overlay->LeaveDirect(deps_.clock->NowNs() + kLeaveNs);
  }

  Result<bool> AnyDirect(const std::vector<proc::Holder>& holders) {
    MovePlan plan = PlanMoves(holders, Rules());
    std::vector<state::FileId> ids;
    for (const Want& want : plan.wants) {
      if (want.cwd || want.directory)
        continue;
      auto object = deps_.files->ObjectAt(want.sample);
      if (object)  // else it is gone
        ids.push_back(NodeIdOf(object->name));
    }
    ASSIGN_OR_RETURN(std::vector<bool> direct,
                     deps_.overlay->AreDirect(
                         ids, deps_.clock->NowNs() + kAskNs));
    return std::find(direct.begin(), direct.end(), true) != direct.end();
  }

  Status MoveThem(Scan scan) {
    TRY(deps_.Continue("before files are opened again"));
    ReopenOpener opener(deps_, request_.overlay_root_fd);
    RoundRequest round;
    round.from = request_.overlay_tree;
    round.holders = std::move(scan.movers);
    round.bystanders = std::move(scan.bystanders);
    round.own = request_.own;
    round.rules = Rules();
    round.opener = &opener;
    round.pause_ns = request_.pause_ns;
    round.faults = {"reopen.opened", "reopen.frozen", "", "reopen.swapped",
                    "reopen.committed"};
    TRY(RunAndTally(deps_, round, &outcome_));
    outcome_.left.clear();  // what may stay
    return {};
  }

  static PlanRules Rules() {
    PlanRules rules;
    rules.leave_deleted = true;
    return rules;
  }

  const Deps& deps_;
  const ReopenRequest& request_;
  int64_t until_ns_ = 0;
  Outcome outcome_;
};

}  // namespace

Outcome RunReopen(const Deps& deps, const ReopenRequest& request) {
  return Reopen(deps, request).Run();
}

}  // namespace livemv::cutover
