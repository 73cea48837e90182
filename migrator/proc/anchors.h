#pragma once

// What ties a process to the tree, one by one, each with its verdict. Pure.
//
// Thread contract: free functions without state.

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "migrator/proc/process_snapshot.h"
#include "migrator/proc/verdict.h"

namespace livemv::proc {

enum class AnchorKind {
  kCwd,
  kRoot,
  kDescriptor,
  kMapping,  // of one file in one way, however many segments it has
  kExe,
  kWatch,
  kRing,
  kSocket,
};
const char* AnchorKindName(AnchorKind kind);  // "descriptor"; stable

struct Anchor {
  AnchorKind kind = AnchorKind::kDescriptor;
  pid_t tid = 0;    // of the thread whose table it is in; the process for others
  int number = -1;  // of a descriptor
  std::string path;     // in the tree; "." is its root, "" if there is none
  std::string details;  // "read, write, append, at 4711, flock for writing"
  Movability movability = Movability::kMovable;
  std::vector<Reason> reasons;  // empty for kMovable
};

// In the order in which the holder has them. written: see WrittenInodes.
std::vector<Anchor> AnchorsOf(const Holder& holder,
                              const std::set<uint64_t>& written);

}  // namespace livemv::proc
