#include <fcntl.h>

#include "migrator/proc/mount_tables.h"
#include "migrator/proc/proc_files.h"
#include "migrator/proc/process_snapshot.h"

namespace livemv::proc {

core::Result<TreeRef> MakeTreeRef(int dirfd, const std::string& seen_at) {
  ASSIGN_OR_RETURN(struct statx st, PeekAt(dirfd, ""));
  if (!S_ISDIR(st.stx_mode))
    return core::Fail(core::ErrorCode::kInvalid,
                      "the root of a tree must be a directory");
  TreeRef tree;
  tree.dev = DevOf(st);
  tree.root_ino = st.stx_ino;
  const std::string link_name = "/proc/self/fd/" + std::to_string(dirfd);
  ASSIGN_OR_RETURN(std::string link, ReadLink(AT_FDCWD, link_name.c_str()));
  ASSIGN_OR_RETURN(std::string text, ReadFile("/proc/self/mountinfo"));
  MountTables tables;
  const std::vector<MountLine> mounts = ParseMountInfo(text);
  tables.Add(mounts, "/");
  if (const MountLine* mount = tables.Find(st.stx_mnt_id)) {
    auto path = tables.PathInFs(st.stx_mnt_id, link);
    if (!path)
      return core::Fail(
          core::ErrorCode::kInvalid,
          "directory " + link + " does not lie on its mount " + mount->point);
    tree.sb_dev = mount->dev;
    tree.path_in_fs = *path;
    return tree;
  }
  // On a detached mount. mountinfo is in the order of the mount tree, so of
  // two mounts on one place the later one is on top; the nearest mount of
  // another device is what covers the directory and is passed over.
  const MountLine* best = nullptr;
  for (const MountLine& mount : mounts) {
    if (!PathBelow(mount.point, seen_at))
      continue;
    // Fails on btrfs, where st_dev is not the superblock's: there any mount
    // of that type does.
    if (mount.dev != tree.dev && mount.type != "btrfs")
      continue;
    if (best == nullptr || mount.point.size() >= best->point.size())
      best = &mount;
  }
  if (best == nullptr)
    return core::Fail(core::ErrorCode::kInvalid,
                      "no mount shows the directory of device " +
                          std::to_string(tree.dev) + " at \"" + seen_at + "\"");
  tree.sb_dev = best->dev;
  tree.path_in_fs = JoinPath(best->root, *PathBelow(best->point, seen_at));
  return tree;
}

}  // namespace livemv::proc
