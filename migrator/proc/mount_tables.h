#pragma once

// The mounts of every namespace met, by mount id, and from them the path of an
// object inside its filesystem. Mount ids are unique over all namespaces of a
// running system, so one table serves.
//
// Thread contract: one thread.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "migrator/proc/proc_parse.h"
#include "migrator/proc/process_snapshot.h"

namespace livemv::proc {

// rest such that prefix/rest is path; "" if they are equal; nullopt if path
// does not lie below prefix. Both absolute, without a slash at the end.
std::optional<std::string> PathBelow(std::string_view prefix,
                                     std::string_view path);
// a/b with one slash between; b may be empty.
std::string JoinPath(std::string_view a, std::string_view b);

class MountTables {
 public:
  // Adds what proc_dir (a descriptor of a /proc/PID) shows, once for each
  // namespace and root.
  core::Status Load(int proc_dir, uint64_t mnt_ns);
  // Adds parsed lines; root is where the reading process's root is, as a path
  // of ours.
  void Add(const std::vector<MountLine>& mounts, std::string_view root);

  // The path inside its filesystem of an object that /proc calls link and
  // that lies on mount mnt_id; nullopt if no table has that mount, or link
  // does not lie below it.
  std::optional<std::string> PathInFs(uint64_t mnt_id,
                                      std::string_view link) const;
  // Likewise for a path without a mount id: one result for each mount of
  // sb_dev that could be meant.
  std::vector<std::string> PossiblePathsInFs(dev_t sb_dev,
                                             std::string_view link) const;
  const MountLine* Find(uint64_t mnt_id) const;

 private:
  std::map<uint64_t, MountLine> by_id_;
  std::set<std::pair<uint64_t, std::string>> loaded_;
};

// The path relative to the tree's root ("." for itself) of what lies at
// path_in_fs in the tree's filesystem; nullopt if outside.
std::optional<std::string> PathInTree(const TreeRef& tree,
                                      std::string_view path_in_fs);

}  // namespace livemv::proc
