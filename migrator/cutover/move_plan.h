#pragma once

// From who holds what to what must be opened and where it goes. Pure.
//
// One new description stands for each old one: descriptors that share one
// (fork, dup, SCM_RIGHTS) go on sharing. Descriptions move whole or not at
// all, so one that a process which cannot be moved shares stays with the rest.
//
// Thread contract: free functions over values.

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "migrator/cutover/seams.h"
#include "migrator/proc/verdict.h"

namespace livemv::cutover {

// One new description.
struct Want {
  Seat sample;  // one of the seats that hold the old one
  uint64_t ino = 0;
  std::string path;  // relative to the tree's root, "." is the root
  int flags = 0;     // for open(2)
  int64_t position = 0;
  Locks locks;  // that the old one holds itself
  Locks posix;  // of its process, as a description would have them
  bool directory = false;
  bool cwd = false;
  // The mount namespace whose mount it must lie on; 0: ours. Files lie on
  // ours wherever their holders are; a directory on a foreign mount would
  // let its holder climb out of its own namespace by "..".
  uint64_t view = 0;
};

struct Placement {
  Seat seat;
  bool cloexec = false;
  size_t want = 0;  // index into wants
};

struct Left {
  Seat seat;
  std::string reason;
};

struct MovePlan {
  std::vector<Want> wants;
  std::vector<Placement> placements;
  std::vector<Left> left;
};

struct PlanRules {
  uint64_t own_namespace = 0;
  // Directories of holders in other mount namespaces wait for a later round,
  // when the mount they are to lie on is visible there.
  bool defer_foreign_directories = false;
  // See ScanRules.
  bool leave_deleted = false;
};

// proc::Judge, less what the rules leave where it is.
proc::Verdict JudgeBy(const PlanRules& rules, const proc::Holder& holder,
                      const std::set<uint64_t>& written);

// holders: with description numbers. Those whose verdict is kBlocks are left.
MovePlan PlanMoves(const std::vector<proc::Holder>& holders,
                   const PlanRules& rules);

// The flags to open again with: F_GETFL's less those that act at open only
// (O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC) or mark how it was made (O_TMPFILE).
int ReopenFlags(int flags, bool directory);

// Less the descriptors, mappings and working directories that no name leads
// to.
proc::Holder WithoutDeleted(proc::Holder holder);

// Whether it has a working directory or a descriptor in the tree, so that
// re-anchoring would change something.
bool HasSeats(const proc::Holder& holder);

}  // namespace livemv::cutover
