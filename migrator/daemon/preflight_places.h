#pragma once

// DIR and TARGET themselves: that they exist, suit each other and are of
// filesystems that livemv can work with.
//
// Thread contract: one thread; the filesystems are asked and may block.

#include <optional>
#include <string>

#include "core/unique_fd.h"
#include "migrator/daemon/preflight_findings.h"
#include "migrator/mount/mount_table.h"

namespace livemv::daemon {

// DIR, opened, and where it lies.
struct SourcePlace {
  core::UniqueFd fd;  // O_RDONLY | O_DIRECTORY
  dev_t dev = 0;      // st_dev
  mount::MountEntry mount;
};

// Fills plan->dir, tree, source_volume. nullopt if there is nothing to go on
// with; the findings say why.
std::optional<SourcePlace> CheckSource(const PlanRequest& request,
                                       const mount::MountTable& mounts,
                                       Plan* plan, Findings* findings);

// TARGET, opened; fd is empty for an NFS target.
struct TargetPlace {
  core::UniqueFd fd;
  bool is_root_of_filesystem = false;
};
// Fills plan->target and target_is_nfs. source may be null if DIR did not do.
std::optional<TargetPlace> CheckTargetPlace(const PlanRequest& request,
                                            const mount::MountTable& mounts,
                                            const SourcePlace* source,
                                            Plan* plan, Findings* findings);

// "/usr", "/var/lib", ...: directories that no move may cover. Normal form.
bool IsSystemDirectory(const std::string& dir);

// Why a source of this type is refused; "" if it is not. known: livemv is
// tested with it.
std::string SourceTypeRefusal(const std::string& fs_type, bool* known);

}  // namespace livemv::daemon
