#pragma once

// A scan for holders, sorted by what can be done with them.
//
// Thread contract: free functions.

#include <set>
#include <string>
#include <vector>

#include "migrator/cutover/outcome.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

struct Scan {
  std::vector<proc::Holder> movers;   // have something that can be moved
  std::vector<Straggler> stays;       // only read what nobody writes
  std::vector<Straggler> in_the_way;  // can do neither
  std::vector<Straggler> accepted;    // in the way, but left on request
  std::vector<proc::Holder> bystanders;  // those of the two above
  std::vector<proc::Namespace> namespaces;

  bool NobodyLeft() const { return movers.empty() && in_the_way.empty(); }
};

struct ScanRules {
  // For what is looked up in the tree, as in proc::Options.
  int root_fd = -1;
  // Deleted files stay where they are, and a holder that has others too is a
  // mover: nobody else can reach what has no name.
  bool leave_deleted = false;
  std::set<pid_t> accepted = {};
};

// own: our processes; their children (a guardian, a helper) count as ours.
core::Result<Scan> ScanTree(const Deps& deps, const proc::TreeRef& tree,
                            const std::set<pid_t>& own, const ScanRules& rules);

// Scans until nobody is in the way, at most for settle_ns: a directory read
// half-way or a lock held for an instant is gone at the next look.
core::Result<Scan> ScanSettled(const Deps& deps, const proc::TreeRef& tree,
                               const std::set<pid_t>& own,
                               const ScanRules& rules, int64_t settle_ns);

// "process 12 (vi): holds a lock; process ..."
std::string NamesOf(const std::vector<Straggler>& stragglers);

}  // namespace livemv::cutover
