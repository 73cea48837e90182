#pragma once

// Other mount namespaces that see the tree, and what is to be mounted there:
// those that follow ours by propagation need nothing, private ones get a copy
// of our mount by a child that enters them.
//
// Thread contract: one thread.

#include <cstdint>
#include <string>
#include <vector>

#include "migrator/cutover/opener.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

struct Doorway {
  mount::MountNamespace ns;
  pid_t witness = 0;
  std::string path;  // of the tree's root, as the witness sees it

  mount::MountPoint Point() const { return {&ns, path}; }
};

enum class Parts { kRefused, kIgnored };

// Every namespace but our own in which a directory of a filesystem
// (superblock dev, path inside it) is visible. One that shows only a part of
// it cannot be covered: kUnsupported if that is to be refused.
core::Result<std::vector<Doorway>> FindDoorways(
    const Deps& deps, const std::vector<proc::Namespace>& namespaces,
    uint64_t own_namespace, dev_t dev, const std::string& path_in_fs, Parts parts);

// Where a directory is seen in each namespace but our own; at preferred, if it
// is seen there too.
Views FindViews(const Deps& deps,
                const std::vector<proc::Namespace>& namespaces,
                uint64_t own_namespace, dev_t dev,
                const std::string& path_in_fs, const std::string& preferred);

// The superblock of a mount that is attached in our namespace.
core::Result<dev_t> DevOfMount(mount::MountOps* mounts,
                               const mount::MountFd& mount);

// Mounts our attached mount (of superblock dev) at the doorway, unless it has
// arrived there already.
core::Status CoverDoorway(const Deps& deps, const Doorway& doorway,
                          const mount::MountFd& mount, dev_t dev);

}  // namespace livemv::cutover
