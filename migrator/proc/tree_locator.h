#pragma once

// Whether an object that a process holds lies in the tree, and at which path.
// Knows the mounts of the namespaces met; asks no filesystem but for the two
// look-ups that process_snapshot.h names.
//
// Thread contract: one thread.

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "core/unique_fd.h"
#include "migrator/proc/mount_tables.h"
#include "migrator/proc/process_snapshot.h"

namespace livemv::proc {

// The process through whose /proc directory the locator looks.
struct Viewer {
  int proc_dir = -1;  // borrowed
  uint64_t mnt_ns = 0;
  bool tables_loaded = false;
  // What was on the filesystem and could not be placed.
  std::vector<std::string> doubts;
};

class TreeLocator {
 public:
  // root_fd as in Options; tree and root_fd must outlive this.
  TreeLocator(const TreeRef& tree, int root_fd)
      : tree_(tree), root_fd_(root_fd) {}

  core::Status Begin();
  // Where the object st is that the /proc link link_name below dir leads to;
  // nullopt if outside, or in doubt. st must be of the tree's device.
  core::Result<std::optional<Place>> Locate(Viewer* viewer, int dir,
                                            const char* link_name,
                                            const struct statx& st);
  // The same for any link; kGone if it leads nowhere any more.
  core::Result<std::optional<Place>> LocateLink(Viewer* viewer, int dir,
                                                const char* link_name);
  // By a path alone, of which the mount is not known: what it could be.
  std::optional<std::string> LocatePath(std::string_view link) const;
  // Fills watch->path and certain; false: it is not on the tree.
  bool LocateWatch(Watch* watch) const;

 private:
  void ResolveDeleted(Place* place, const std::string& with_suffix) const;

  const TreeRef& tree_;
  const int root_fd_;
  MountTables mounts_;
  std::string root_link_;  // where root_fd_ is
  dev_t root_dev_ = 0;
  core::UniqueFd root_;    // the same directory, open; or none
};

// "mnt:[4026531840]" -> 4026531840; 0 for anything else.
uint64_t NamespaceNumber(std::string_view link);

}  // namespace livemv::proc
