#pragma once

// One mount namespace's mounts as a value, read from /proc/PID/mountinfo, and
// the questions asked of it: which mount does a path end on, at which paths is
// a directory of a filesystem visible, does a mount propagate to another.
//
// Paths are absolute, decoded, and as seen from the root of the process whose
// table it is. Thread contract: a plain value.

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace livemv::mount {

struct MountEntry {
  uint64_t id = 0;  // reused by the kernel after an unmount
  uint64_t parent = 0;
  dev_t dev = 0;     // the superblock's; btrfs shows another one in st_dev
  std::string root;  // what of the filesystem is mounted: a path inside it
  std::string point;
  std::string options;  // of the mount: "rw,nosuid,relatime"
  uint32_t shared = 0;  // peer group, 0: none
  uint32_t master = 0;  // peer group that it receives from, 0: none
  uint32_t propagate_from = 0;  // nearest group of this root it hears of
  bool unbindable = false;
  std::string fs_type;
  std::string source;
  std::string super_options;

  bool HasOption(std::string_view name) const;
};

// A path at which a directory of a filesystem, or something below or above
// it, can be reached.
struct Door {
  enum class Kind {
    kWhole,  // path shows the directory itself
    kPart,   // the mount shows only something inside the directory
  };
  Kind kind = Kind::kWhole;
  std::string path;
  uint64_t mount_id = 0;
  bool covered = false;  // another mount lies over it: no path walk ends there
};

class MountTable {
 public:
  // kCorrupt for a line that is not mountinfo.
  static core::Result<MountTable> Parse(std::string_view text);
  // pid 0: this process. kGone if there is no such process.
  static core::Result<MountTable> Of(pid_t pid);

  const std::vector<MountEntry>& entries() const { return entries_; }
  const MountEntry* ById(uint64_t id) const;
  // The mount a path walk to the absolute, canonical path ends on; nullptr if
  // the table shows none (a chroot below every mount point).
  const MountEntry* Walk(std::string_view path) const;
  // The topmost mount whose mount point is exactly path; nullptr if path is
  // not a mount point that can be reached.
  const MountEntry* TopAt(std::string_view path) const;
  // How many mounts are stacked at path, reachable or covered.
  size_t DepthAt(std::string_view path) const;
  // Where path lies inside the filesystem of the mount it ends on.
  core::Result<std::string> PathInFilesystem(std::string_view path) const;
  // Every mount of dev that shows the directory, or a part of it.
  std::vector<Door> DoorsTo(dev_t dev, std::string_view path_in_fs) const;
  // Mounts whose mount point lies strictly below path and which a path walk
  // can reach.
  std::vector<MountEntry> Below(std::string_view path) const;

 private:
  std::vector<MountEntry> entries_;
};

// True if path is dir or lies below it, by whole components.
bool IsWithin(std::string_view path, std::string_view dir);

}  // namespace livemv::mount
