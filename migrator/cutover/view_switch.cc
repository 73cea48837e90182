#include "migrator/cutover/view_switch.h"

#include <algorithm>

namespace livemv::cutover {

using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;
using mount::MountPoint;
using mount::MountTable;

namespace {

void Tell(const Status& status, const std::string& what,
          std::vector<std::string>* warnings) {
  if (!status)
    warnings->push_back(what + ": " + status.error().ToString());
}

}  // namespace

// Ours first: where it propagates, the others find the work done.
std::vector<MountPoint> ViewSwitch::Points() const {
  std::vector<MountPoint> points{{nullptr, dir_}};
  for (const Doorway& d : doorways_)
    points.push_back(d.Point());
  return points;
}

Result<MountTable> ViewSwitch::TableAt(const MountPoint& at) const {
  return at.ns != nullptr ? deps_.mounts->TableIn(*at.ns)
                          : deps_.mounts->TableOf(0);
}

Result<bool> ViewSwitch::TopIs(const MountPoint& at, dev_t dev) const {
  ASSIGN_OR_RETURN(MountTable table, TableAt(at));
  const mount::MountEntry* top = table.TopAt(at.path);
  return top != nullptr && top->dev == dev;
}

Result<bool> ViewSwitch::TopIsOverlay(const MountPoint& at) const {
  ASSIGN_OR_RETURN(bool is, TopIs(at, overlay_.sb_dev));
  return is && overlay_.Lives();
}

Result<bool> ViewSwitch::Has(const MountPoint& at, dev_t dev) const {
  ASSIGN_OR_RETURN(MountTable table, TableAt(at));
  return std::any_of(table.entries().begin(), table.entries().end(),
                     [&](const mount::MountEntry& e) {
                       return e.point == at.path && e.dev == dev;
                     });
}

Result<bool> ViewSwitch::TargetAttached() const {
  if (target_ == nullptr)
    return false;
  ASSIGN_OR_RETURN(uint64_t id, deps_.mounts->IdOf(*target_));
  ASSIGN_OR_RETURN(MountTable table, deps_.mounts->TableOf(0));
  const mount::MountEntry* entry = table.ById(id);
  return entry != nullptr && entry->point == dir_;
}

Status ViewSwitch::Look(const std::vector<proc::Namespace>& namespaces,
                        uint64_t own_namespace, Parts parts) {
  ASSIGN_OR_RETURN(doorways_, FindDoorways(deps_, namespaces, own_namespace,
                                           overlay_.sb_dev, "/", parts));
  if (!overlay_.Lives())
    doorways_.clear();  // to another filesystem
  ASSIGN_OR_RETURN(bool attached, TargetAttached());
  if (attached) {
    ASSIGN_OR_RETURN(target_dev_, DevOfMount(deps_.mounts, *target_));
  }
  return {};
}

bool ViewSwitch::OverlayIsOnTop() const {
  auto on_top = TopIsOverlay({nullptr, dir_});
  return on_top && *on_top;
}

Status ViewSwitch::Slide(const MountPoint& at) {
  if (at.ns == nullptr) {
    ASSIGN_OR_RETURN(bool there, TargetAttached());
    if (!there)
      TRY(deps_.mounts->SlideBeneath(*target_, at));
    ASSIGN_OR_RETURN(target_dev_, DevOfMount(deps_.mounts, *target_));
    return {};
  }
  ASSIGN_OR_RETURN(bool there, Has(at, target_dev_));
  if (there)
    return {};
  ASSIGN_OR_RETURN(mount::MountFd copy,
                   deps_.mounts->CloneTree(target_->Get(), ""));
  return deps_.mounts->SlideBeneath(copy, at);
}

Status ViewSwitch::SlideTarget() {
  if (!deps_.mounts->HasBeneath())
    return {};
  for (const MountPoint& at : Points())
    TRY(Slide(at));
  return {};
}

// Without MOVE_MOUNT_BENEATH there is a moment between the two calls in which
// a path walk from outside sees the source; the holders stand still.
Status ViewSwitch::ShowTargetAt(const MountPoint& at) {
  ASSIGN_OR_RETURN(bool covered, TopIsOverlay(at));
  if (covered) {
    // A namespace that was split off after the slide began may lack it.
    if (deps_.mounts->HasBeneath())
      TRY(Slide(at));
    TRY(deps_.mounts->DetachTop(at, overlay_.sb_dev));
  }
  if (at.ns == nullptr) {
    ASSIGN_OR_RETURN(bool there, TargetAttached());
    if (!there)
      TRY(deps_.mounts->AttachAt(*target_, at));
    ASSIGN_OR_RETURN(target_dev_, DevOfMount(deps_.mounts, *target_));
    return {};
  }
  ASSIGN_OR_RETURN(bool there, Has(at, target_dev_));
  if (there)
    return {};
  ASSIGN_OR_RETURN(mount::MountFd copy,
                   deps_.mounts->CloneTree(target_->Get(), ""));
  return deps_.mounts->AttachAt(copy, at);
}

void ViewSwitch::ShowTarget(std::vector<std::string>* warnings) {
  for (const MountPoint& at : Points())
    Tell(ShowTargetAt(at), "show the target at " + at.ToString(), warnings);
}

Status ViewSwitch::ShowSourceAt(const MountPoint& at) {
  ASSIGN_OR_RETURN(bool covered, TopIsOverlay(at));
  if (covered)
    TRY(deps_.mounts->DetachTop(at, overlay_.sb_dev));
  if (target_dev_ == 0)
    return {};
  ASSIGN_OR_RETURN(bool target, TopIs(at, target_dev_));
  if (target)
    TRY(deps_.mounts->DetachTop(at, target_dev_));
  return {};
}

void ViewSwitch::ShowSource(std::vector<std::string>* warnings) {
  for (const MountPoint& at : Points())
    Tell(ShowSourceAt(at), "show the source at " + at.ToString(), warnings);
}

}  // namespace livemv::cutover
