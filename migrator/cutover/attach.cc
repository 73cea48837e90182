#include "migrator/cutover/attach.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "core/fault_points.h"
#include "core/log.h"
#include "migrator/cutover/return_to_source.h"
#include "migrator/cutover/round.h"
#include "migrator/cutover/scan.h"
#include "migrator/cutover/tally.h"
#include "migrator/cutover/view_switch.h"

namespace livemv::cutover {

using core::ErrorCode;
using core::Fail;
using core::FailSys;
using core::Result;
using core::Status;

namespace {

constexpr int64_t kSettleNs = 2'000'000'000;
constexpr int64_t kLookAgainNs = 5'000'000;
constexpr int64_t kLongestWaitNs = 200'000'000;
constexpr int64_t kRedirectNs = 10'000'000'000;

class Attach {
 public:
  Attach(const Deps& deps, const AttachRequest& request)
      : deps_(deps), request_(request) {}

  Outcome Run() {
    until_ns_ = deps_.clock->NowNs() + request_.total_ns;
    outcome_.status =
        Retry(deps_, until_ns_, &outcome_, [this] { return First(); });
    if (outcome_.status)
      outcome_.status = Rest();
    if (outcome_.status)
      outcome_.committed = true;
    else if (mounted_ || passed_by_)
      TakeBack();
    return std::move(outcome_);
  }

 private:
  ScanRules Rules() const { return {.root_fd = request_.source_dir_fd}; }

  // The freeze in which the overlay goes on.
  Status First() {
    ASSIGN_OR_RETURN(own_ns_, deps_.scanner->OwnMountNamespace());
    TRY(OneDoorHere());
    ASSIGN_OR_RETURN(Scan scan, ScanSettled(deps_, request_.source,
                                            request_.own, Rules(), kSettleNs));
    TRY(core::FaultPoint("attach.scanned"));
    if (!scan.in_the_way.empty()) {
      outcome_.stragglers = scan.in_the_way;
      return Fail(ErrorCode::kInvalid,
                  "cannot be moved: " + NamesOf(scan.in_the_way));
    }
    ASSIGN_OR_RETURN(doorways_, Doorways(scan.namespaces));
    PathOpener opener(deps_.files, Overlay().Get(), nullptr);
    RoundRequest round = MakeRound(std::move(scan), &opener);
    // Directories of other namespaces wait until the overlay is there.
    round.rules.defer_foreign_directories = true;
    round.all_must_move = true;
    bool shut = false;
    round.shut = [this, &shut](int64_t deadline) -> Status {
      shut = true;
      TRY(deps_.overlay->GateOpens(deadline));
      return Mount();
    };
    round.before_commit = [this, &shut](int64_t) {
      return shut ? Status{} : Mount();
    };
    round.take_back = [this] { Unmount(); };
    round.faults = {"attach.opened", "attach.frozen", "attach.shut",
                    "attach.swapped",
                    "attach.committed"};
    TRY(RunAndTally(deps_, round, &outcome_));
    mounted_ = true;
    return {};
  }

  // The tree at a second path of our own namespace would stay bare.
  Status OneDoorHere() {
    ASSIGN_OR_RETURN(mount::MountTable table, deps_.mounts->TableOf(0));
    for (const mount::Door& door :
         table.DoorsTo(request_.source.sb_dev, request_.source.path_in_fs))
      if (!door.covered && door.path != request_.dir)
        return Fail(ErrorCode::kUnsupported,
                    request_.dir + " is also reached by " + door.path +
                        "; unmount that first");
    return {};
  }

  Result<std::vector<Doorway>> Doorways(
      const std::vector<proc::Namespace>& namespaces) {
    return FindDoorways(deps_, namespaces, own_ns_, request_.source.sb_dev,
                        request_.source.path_in_fs, Parts::kRefused);
  }

  RoundRequest MakeRound(Scan scan, Opener* opener) {
    RoundRequest round;
    round.from = request_.source;
    round.from_root_fd = request_.source_dir_fd;
    round.holders = std::move(scan.movers);
    round.bystanders = std::move(scan.bystanders);
    round.own = request_.own;
    round.rules.own_namespace = own_ns_;
    round.opener = opener;
    round.pause_ns = request_.pause_ns;
    return round;
  }

  // What was looked up ahead of the freeze, or in a freeze that was undone,
  // may have another name by now. A directory that is cached under its old one
  // costs whoever looks up the new one an ESTALE if another rename runs just
  // then (fs/dcache.c, __d_unalias).
  Status Mount() {
    TRY(deps_.mounts->ForgetNames(Overlay()));
    TRY(deps_.mounts->AttachAt(Overlay(), {nullptr, request_.dir}));
    TRY(core::FaultPoint("attach.mounted"));
    return Cover(doorways_);
  }

  // The overlay at every other door, where it has not come by itself.
  Status Cover(const std::vector<Doorway>& doorways) {
    ASSIGN_OR_RETURN(dev_t dev, DevOfMount(deps_.mounts, Overlay()));
    for (const Doorway& doorway : doorways)
      TRY(CoverDoorway(deps_, doorway, Overlay(), dev));
    return {};
  }

  // What of Mount() was done. Others may have walked onto the overlay in the
  // meantime; TakeBack sees to them. A mount that was taken off can never be
  // attached again (fs/namespace.c, do_move_mount: is_mounted), and only an
  // attached one be copied before Linux 6.15: hence the copy here.
  void Unmount() {
    auto dev = DevOfMount(deps_.mounts, Overlay());
    if (!dev)
      return;  // it was not attached
    auto copy = deps_.mounts->CloneTree(Overlay().Get(), "");
    if (copy)
      spare_ = std::move(*copy);
    else
      outcome_.warnings.push_back("keep a copy of the overlay: " +
                                  copy.error().ToString());
    std::vector<mount::MountPoint> points{{nullptr, request_.dir}};
    for (const Doorway& doorway : doorways_)
      points.push_back(doorway.Point());
    for (const mount::MountPoint& at : points) {
      auto table = at.ns != nullptr ? deps_.mounts->TableIn(*at.ns)
                                    : deps_.mounts->TableOf(0);
      const mount::MountEntry* top = table ? table->TopAt(at.path) : nullptr;
      if (top == nullptr || top->dev != *dev)
        continue;
      if (Status off = deps_.mounts->DetachTop(at, *dev); !off) {
        outcome_.warnings.push_back("take the overlay off again: " +
                                    off.error().ToString());
        mounted_ = true;
      }
    }
    passed_by_ = true;
  }

  // Whoever is on the bare source yet is moved until two scans in a row find
  // nobody: one that was walking onto it while it was covered shows up late.
  Status Rest() {
    int clean = 0;
    int64_t wait = kLookAgainNs;
    for (;;) {
      ASSIGN_OR_RETURN(Scan scan,
                       ScanTree(deps_, request_.source, request_.own, Rules()));
      TRY(core::FaultPoint("attach.rescanned"));
      ASSIGN_OR_RETURN(std::vector<Doorway> bare, Doorways(scan.namespaces));
      if (!bare.empty())
        TRY(Cover(bare));
      clean = scan.NobodyLeft() && bare.empty() ? clean + 1 : 0;
      if (clean == 2) {
        outcome_.stragglers = std::move(scan.stays);
        break;
      }
      if (deps_.clock->NowNs() > until_ns_) {
        outcome_.stragglers = NotYetMoved(scan.movers, outcome_);
        for (Straggler& s : scan.in_the_way)
          outcome_.stragglers.push_back(std::move(s));
        return Fail(ErrorCode::kTimeout,
                    "still on the source: " + NamesOf(outcome_.stragglers) +
                        (last_failure_.empty() ? "" : "; " + last_failure_));
      }
      TRY(deps_.Continue("while holders are moved to the overlay"));
      if (!scan.movers.empty())
        wait = MoveOn(std::move(scan)) ? kLookAgainNs
                                       : std::min(wait * 2, kLongestWaitNs);
      deps_.clock->WaitNs(wait);
    }
    TRY(core::FaultPoint("attach.redirect"));
    TRY(deps_.overlay->StartRedirect(deps_.clock->NowNs() + kRedirectNs));
    return core::FaultPoint("attach.redirected");
  }

  bool MoveOn(Scan scan) {
    Views views = FindViews(deps_, scan.namespaces, own_ns_,
                            request_.overlay_tree.sb_dev, "/", request_.dir);
    PathOpener opener(deps_.files, Overlay().Get(), &views);
    RoundRequest round = MakeRound(std::move(scan), &opener);
    size_t before = outcome_.seats_moved;
    Status status = RunAndTally(deps_, round, &outcome_);
    if (!status)
      last_failure_ = status.error().ToString();
    return status && outcome_.seats_moved > before;
  }

  // After the first thaw: back the way they came.
  void TakeBack() {
    ReturnRequest back;
    back.dir = request_.dir;
    back.source_dir_fd = request_.source_dir_fd;
    back.source = request_.source;
    back.overlay_tree = request_.overlay_tree;
    back.own = request_.own;
    back.commit_source = false;
    back.kept = &outcome_.kept;
    back.pause_ns = request_.pause_ns;
    back.total_ns = request_.total_ns;
    Deps deps = deps_;
    deps.cancelled = nullptr;  // the way back is not to be cancelled
    Outcome returned = RunReturn(deps, back);
    if (returned.status)
      std::erase_if(outcome_.kept,
                    [](const KeptOld& old) { return old.stand_in; });
    outcome_.rounds += returned.rounds;
    outcome_.pauses.insert(outcome_.pauses.end(), returned.pauses.begin(),
                           returned.pauses.end());
    outcome_.warnings.insert(outcome_.warnings.end(),
                             returned.warnings.begin(),
                             returned.warnings.end());
    if (returned.redirected) {
      outcome_.warnings.push_back("the redirect has begun although " +
                                  outcome_.status.error().ToString());
      outcome_.status = {};
      outcome_.committed = true;
    } else if (!returned.status) {
      outcome_.committed = true;
      outcome_.warnings.push_back("taken back not wholly: " +
                                  returned.status.error().ToString());
      for (Straggler& s : returned.stragglers)
        outcome_.stragglers.push_back(std::move(s));
    }
  }

  const mount::MountFd& Overlay() const {
    return spare_ ? spare_ : *request_.overlay;
  }

  const Deps& deps_;
  const AttachRequest& request_;
  mount::MountFd spare_;  // of the overlay, once it was on and off again
  uint64_t own_ns_ = 0;
  int64_t until_ns_ = 0;
  std::vector<Doorway> doorways_;
  bool mounted_ = false;    // the overlay is on, the first thaw is over
  bool passed_by_ = false;  // it was on for a moment
  std::string last_failure_;
  Outcome outcome_;
};

}  // namespace

Outcome RunAttach(const Deps& deps, const AttachRequest& request) {
  return Attach(deps, request).Run();
}

Result<proc::TreeRef> TreeOfOverlay(const mount::MountFd& overlay) {
  struct stat st;
  if (::fstatat(overlay.Get(), "", &st, AT_EMPTY_PATH) < 0)
    return FailSys(errno, "stat the overlay's root");
  proc::TreeRef tree;
  tree.dev = tree.sb_dev = st.st_dev;
  tree.root_ino = st.st_ino;
  tree.path_in_fs = "/";
  tree.names_expire = true;
  return tree;
}

}  // namespace livemv::cutover
