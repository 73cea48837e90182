#include "migrator/proc/mount_tables.h"

#include <errno.h>
#include <fcntl.h>

#include "migrator/proc/proc_files.h"

namespace livemv::proc {

std::optional<std::string> PathBelow(std::string_view prefix,
                                     std::string_view path) {
  if (prefix == "/") {
    if (!path.starts_with('/'))
      return std::nullopt;
    return std::string(path.substr(1));
  }
  if (!path.starts_with(prefix))
    return std::nullopt;
  path.remove_prefix(prefix.size());
  if (path.empty())
    return std::string();
  if (path.front() != '/')
    return std::nullopt;
  return std::string(path.substr(1));
}

std::string JoinPath(std::string_view a, std::string_view b) {
  while (b.starts_with('/'))
    b.remove_prefix(1);
  std::string joined(a);
  if (b.empty())
    return joined;
  if (!joined.ends_with('/'))
    joined += '/';
  joined += b;
  return joined;
}

core::Status MountTables::Load(int proc_dir, uint64_t mnt_ns) {
  ASSIGN_OR_RETURN(std::string root, ReadLink(proc_dir, "root"));
  if (!loaded_.insert({mnt_ns, root}).second)
    return {};
  std::string text;
  core::Status read = ReadFileAt(proc_dir, "mountinfo", &text);
  if (!read)
    loaded_.erase({mnt_ns, root});
  // It is ending and has left its namespace (fs/proc_namespace.c,
  // mounts_open_common).
  if (!read && read.error().sys_errno == EINVAL)
    return core::Fail(core::ErrorCode::kGone, "the process is ending");
  TRY(read);
  Add(ParseMountInfo(text), root);
  return {};
}

void MountTables::Add(const std::vector<MountLine>& mounts,
                      std::string_view root) {
  for (MountLine mount : mounts) {
    // mountinfo tells points relative to the reader's root, /proc's links
    // tell paths from the namespace's root.
    if (root != "/")
      mount.point = JoinPath(root, mount.point);
    const auto id = static_cast<uint64_t>(mount.id);
    by_id_.insert_or_assign(id, std::move(mount));
  }
}

const MountLine* MountTables::Find(uint64_t mnt_id) const {
  auto it = by_id_.find(mnt_id);
  return it == by_id_.end() ? nullptr : &it->second;
}

std::optional<std::string> MountTables::PathInFs(uint64_t mnt_id,
                                                 std::string_view link) const {
  const MountLine* mount = Find(mnt_id);
  if (mount == nullptr)
    return std::nullopt;
  auto below = PathBelow(mount->point, link);
  if (!below)
    return std::nullopt;
  return JoinPath(mount->root, *below);
}

std::vector<std::string> MountTables::PossiblePathsInFs(
    dev_t sb_dev, std::string_view link) const {
  std::vector<std::string> paths;
  for (const auto& [id, mount] : by_id_) {
    if (mount.dev != sb_dev)
      continue;
    if (auto below = PathBelow(mount.point, link))
      paths.push_back(JoinPath(mount.root, *below));
  }
  return paths;
}

std::optional<std::string> PathInTree(const TreeRef& tree,
                                      std::string_view path_in_fs) {
  auto below = PathBelow(tree.path_in_fs, path_in_fs);
  if (below && below->empty())
    return ".";
  return below;
}

}  // namespace livemv::proc
