#pragma once

// What a tree consists of: counts, sizes, what its copy needs of the target,
// and what stands in the way. Reads names and attributes only, one directory
// after another; some microseconds of processor time an object.
//
// Thread contract: free functions; SurveyTree blocks as long as the
// filesystem does.

#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/result.h"

namespace livemv::daemon {

struct Owner {
  uid_t uid = 0;
  gid_t gid = 0;
  auto operator<=>(const Owner&) const = default;
};

// Paths are relative to the tree's root.
struct Survey {
  uint64_t files = 0;        // regular; a hard-linked one once
  uint64_t directories = 0;  // the root included
  uint64_t symlinks = 0;
  uint64_t specials = 0;   // FIFOs, sockets, device nodes
  uint64_t devices = 0;    // device nodes among them
  uint64_t bytes = 0;      // sizes of regular files
  uint64_t allocated = 0;  // bytes of disk blocks of all of them
  uint64_t largest = 0;    // size of the largest file
  std::string largest_path;
  uint64_t hard_linked = 0;  // regular files with more than one name
  uint64_t with_user_xattrs = 0;    // objects with user.*
  uint64_t with_system_xattrs = 0;  // with trusted.* or security.*
  uint64_t with_acls = 0;
  struct Owned {
    uint64_t objects = 0;
    std::string example;
  };
  // Who owns the objects; at most kMostOwners, in the order met.
  std::map<Owner, Owned> owners;
  Owner root_owner;
  int64_t oldest = INT64_MAX, newest = INT64_MIN;  // mtimes, seconds
  size_t longest_name = 0;      // bytes
  std::string longest_name_path;
  bool case_folding = false;  // the root looks names up without case
  // Files with more links than names in the tree: somebody can reach them
  // from outside. At most 16 of them, by one of their names.
  std::vector<std::string> outside_links;
  uint64_t outside_link_count = 0;
  // Directories of another device or mount below the root, at most 16.
  std::vector<std::string> other_devices;
  // What could not be read, with the reason, at most 16.
  std::vector<std::string> unreadable;
  uint64_t unreadable_count = 0;
  int64_t took_ns = 0;

  static constexpr size_t kMostOwners = 1000;
  uint64_t Objects() const { return files + directories + symlinks + specials; }
};

struct SurveyOptions {
  // The tree is a whole filesystem: lost+found below its root is not part.
  bool skip_lost_found = false;
  // Called every few thousand objects; false ends the survey with kAborted.
  std::function<bool(const Survey&)> progress;
};

// The tree below dirfd (readable, not O_PATH). What vanishes meanwhile is left
// out. A file that seems to have links outside is looked for twice more, since
// a tree in use changes under the walk.
core::Result<Survey> SurveyTree(int dirfd, const SurveyOptions& options);

}  // namespace livemv::daemon
