#include "migrator/cutover/doorways.h"

namespace livemv::cutover {

using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;

Result<std::vector<Doorway>> FindDoorways(
    const Deps& deps, const std::vector<proc::Namespace>& namespaces,
    uint64_t own_namespace, dev_t dev, const std::string& path_in_fs, Parts parts) {
  std::vector<Doorway> doorways;
  for (const proc::Namespace& ns : namespaces) {
    if (ns.inode == own_namespace)
      continue;
    auto table = deps.mounts->TableOf(ns.pid);
    // Its last process seen has ended; if it has others the next scan says so.
    if (!table && table.error().code == ErrorCode::kGone)
      continue;
    if (!table)
      return Fail(std::move(table).error());
    for (const mount::Door& door : table->DoorsTo(dev, path_in_fs)) {
      if (door.covered)
        continue;
      if (door.kind == mount::Door::Kind::kPart && parts == Parts::kIgnored)
        continue;
      if (door.kind == mount::Door::Kind::kPart)
        return Fail(ErrorCode::kUnsupported,
                    "the mount namespace of process " +
                        std::to_string(ns.pid) +
                        " shows a part of the tree at " + door.path +
                        "; end that process first");
      auto handle = deps.mounts->NamespaceOf(ns.pid);
      if (!handle && handle.error().code == ErrorCode::kGone)
        break;
      if (!handle)
        return Fail(std::move(handle).error());
      Doorway doorway;
      doorway.ns = std::move(*handle);
      doorway.witness = ns.pid;
      doorway.path = door.path;
      doorways.push_back(std::move(doorway));
    }
  }
  return doorways;
}

Result<dev_t> DevOfMount(mount::MountOps* mounts,
                         const mount::MountFd& mount) {
  ASSIGN_OR_RETURN(uint64_t id, mounts->IdOf(mount));
  ASSIGN_OR_RETURN(mount::MountTable table, mounts->TableOf(0));
  const mount::MountEntry* entry = table.ById(id);
  if (entry == nullptr)
    return Fail(ErrorCode::kInvalid,
                "mount " + std::to_string(id) + " is attached nowhere");
  return entry->dev;
}

Status CoverDoorway(const Deps& deps, const Doorway& doorway,
                    const mount::MountFd& mount, dev_t dev) {
  ASSIGN_OR_RETURN(mount::MountTable table, deps.mounts->TableIn(doorway.ns));
  const mount::MountEntry* top = table.TopAt(doorway.path);
  if (top != nullptr && top->dev == dev)
    return {};
  ASSIGN_OR_RETURN(mount::MountFd copy, deps.mounts->CloneTree(mount.Get(), ""));
  return deps.mounts->AttachAt(copy, doorway.Point());
}

Views FindViews(const Deps& deps,
                const std::vector<proc::Namespace>& namespaces,
                uint64_t own_namespace, dev_t dev,
                const std::string& path_in_fs, const std::string& preferred) {
  Views views;
  for (const proc::Namespace& ns : namespaces) {
    if (ns.inode == own_namespace)
      continue;
    auto table = deps.mounts->TableOf(ns.pid);
    if (!table)
      continue;  // its holders are told that it shows nothing
    for (const mount::Door& door : table->DoorsTo(dev, path_in_fs))
      if (!door.covered && door.kind == mount::Door::Kind::kWhole &&
          (!views.contains(ns.inode) || door.path == preferred))
        views[ns.inode] = {ns.pid, door.path};
  }
  return views;
}

}  // namespace livemv::cutover
