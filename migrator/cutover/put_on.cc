#include "migrator/cutover/put_on.h"

#include "core/fault_points.h"
#include "migrator/cutover/doorways.h"
#include "migrator/cutover/scan.h"

namespace livemv::cutover {

using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;

namespace {

class PutOn {
 public:
  PutOn(const Deps& deps, const PutOnRequest& request)
      : deps_(deps), request_(request) {}

  Outcome Run() {
    outcome_.status = Here();
    if (!outcome_.status)
      return std::move(outcome_);
    outcome_.committed = true;
    outcome_.status = NobodyOnSource();
    Elsewhere();
    return std::move(outcome_);
  }

 private:
  Status Here() {
    TRY(NobodyOnSource());
    TRY(core::FaultPoint("put_on.scanned"));
    const mount::MountPoint at{nullptr, request_.dir};
    const bool beneath =
        request_.covers.size() == 1 && deps_.mounts->HasBeneath();
    if (!beneath) {
      for (auto top = request_.covers.rbegin(); top != request_.covers.rend();
           ++top)
        TRY(deps_.mounts->DetachTop(at, *top));
    }
    for (const mount::MountFd* mount : {request_.base, request_.overlay}) {
      if (mount == nullptr)
        continue;
      TRY(beneath ? deps_.mounts->SlideBeneath(*mount, at)
                  : deps_.mounts->AttachAt(*mount, at));
    }
    TRY(core::FaultPoint("put_on.mounted"));
    if (beneath)
      TRY(deps_.mounts->DetachTop(at, request_.covers[0]));
    return {};
  }

  Status NobodyOnSource() {
    ASSIGN_OR_RETURN(outcome_.stragglers,
                     WhoUses(deps_, request_.source, request_.own,
                             request_.source_dir_fd));
    if (outcome_.stragglers.empty())
      return {};
    return Fail(ErrorCode::kInvalid,
                "the bare source is in use: " + NamesOf(outcome_.stragglers) +
                    ". End these processes");
  }

  // Namespaces of their own that still show a dead overlay.
  void Elsewhere() {
    Status covered = [&]() -> Status {
      ASSIGN_OR_RETURN(uint64_t own_ns, deps_.scanner->OwnMountNamespace());
      ASSIGN_OR_RETURN(dev_t dev,
                       DevOfMount(deps_.mounts, *request_.overlay));
      ASSIGN_OR_RETURN(Scan scan, ScanTree(deps_, request_.source,
                                           request_.own, {}));
      for (dev_t dead : request_.dead) {
        TRY(NameHoldersOf(dead));
        ASSIGN_OR_RETURN(std::vector<Doorway> doors,
                         FindDoorways(deps_, scan.namespaces, own_ns, dead, "/",
                                      Parts::kIgnored));
        for (const Doorway& door : doors)
          TRY(CoverDoorway(deps_, door, *request_.overlay, dev));
      }
      return {};
    }();
    if (!covered)
      outcome_.warnings.push_back("other mount namespaces: " +
                                  covered.error().ToString());
  }

  // What they have there gives ENOTCONN for good.
  Status NameHoldersOf(dev_t dead) {
    proc::TreeRef tree;
    tree.dev = tree.sb_dev = dead;
    tree.root_ino = request_.source.root_ino;
    tree.path_in_fs = "/";
    tree.names_expire = true;
    ASSIGN_OR_RETURN(std::vector<Straggler> holders,
                     WhoUses(deps_, tree, request_.own, -1));
    if (!holders.empty())
      outcome_.warnings.push_back(
          "these processes hold the overlay that died, and are to be "
          "restarted: " + NamesOf(holders));
    return {};
  }

  const Deps& deps_;
  const PutOnRequest& request_;
  Outcome outcome_;
};

}  // namespace

Outcome RunPutOn(const Deps& deps, const PutOnRequest& request) {
  return PutOn(deps, request).Run();
}

Result<std::vector<Straggler>> WhoUses(const Deps& deps,
                                       const proc::TreeRef& tree,
                                       const std::set<pid_t>& own,
                                       int root_fd) {
  ASSIGN_OR_RETURN(Scan scan, ScanTree(deps, tree, own, {.root_fd = root_fd}));
  std::vector<Straggler> out = std::move(scan.in_the_way);
  for (const proc::Holder& holder : scan.movers) {
    Straggler s;
    s.pid = holder.pid;
    s.comm = holder.comm;
    s.reason = "has a working directory or a descriptor in it";
    out.push_back(std::move(s));
  }
  return out;
}

}  // namespace livemv::cutover
