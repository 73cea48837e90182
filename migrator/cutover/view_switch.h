#pragma once

// What DIR shows, in our mount namespace and in the others: the overlay, the
// target, or the source. Mounts only; who holds what is not asked.
//
// Thread contract: one thread.

#include <string>
#include <vector>

#include "migrator/cutover/doorways.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

class ViewSwitch {
 public:
  // target may be null (nothing was slid beneath the overlay, ever).
  ViewSwitch(const Deps& deps, std::string dir, proc::TreeRef overlay,
             const mount::MountFd* target)
      : deps_(deps),
        dir_(std::move(dir)),
        overlay_(std::move(overlay)),
        target_(target) {}

  // Finds the namespaces where the overlay is visible; before each step below
  // if processes have run meanwhile.
  core::Status Look(const std::vector<proc::Namespace>& namespaces,
                    uint64_t own_namespace, Parts parts);
  const std::vector<Doorway>& doorways() const { return doorways_; }
  bool OverlayIsOnTop() const;

  // Puts the target beneath the overlay everywhere; where it is already,
  // nothing is done. Nothing where the kernel cannot mount beneath.
  core::Status SlideTarget();
  // Takes the overlay off everywhere, so that DIR shows the target. Goes on
  // after a failure; each is described in *warnings.
  void ShowTarget(std::vector<std::string>* warnings);
  // Takes the overlay off, and the target if it is beneath.
  void ShowSource(std::vector<std::string>* warnings);

 private:
  std::vector<mount::MountPoint> Points() const;
  core::Result<mount::MountTable> TableAt(const mount::MountPoint& at) const;
  core::Result<bool> TopIs(const mount::MountPoint& at, dev_t dev) const;
  core::Result<bool> TopIsOverlay(const mount::MountPoint& at) const;
  core::Result<bool> Has(const mount::MountPoint& at, dev_t dev) const;
  core::Result<bool> TargetAttached() const;
  core::Status Slide(const mount::MountPoint& at);
  core::Status ShowTargetAt(const mount::MountPoint& at);
  core::Status ShowSourceAt(const mount::MountPoint& at);

  const Deps& deps_;
  std::string dir_;
  proc::TreeRef overlay_;
  const mount::MountFd* target_;
  dev_t target_dev_ = 0;  // 0: not attached anywhere yet
  std::vector<Doorway> doorways_;
};

}  // namespace livemv::cutover
