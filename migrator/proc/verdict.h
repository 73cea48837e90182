#pragma once

// Whether a holder can be re-anchored, and if not, why. Pure.
//
// Thread contract: free functions without state.

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "migrator/proc/process_snapshot.h"

namespace livemv::proc {

enum class Movability {
  kMovable,  // its cwd and descriptors can be moved
  kStays,    // it can only read what nobody writes (rule 7): may stay
  kBlocks,   // it can do neither; must change or leave first
};
const char* MovabilityName(Movability movability);

struct Reason {
  std::string code;  // "mapping", "lock", "root", ...: stable, for programs
  std::string what;  // "maps data.db shared and writable"
  std::string way_out;
};

struct Verdict {
  Movability movability = Movability::kMovable;
  std::vector<Reason> reasons;  // empty for kMovable
  // The reasons in one line; "" for kMovable.
  std::string Line() const;
  bool Blocks() const { return movability == Movability::kBlocks; }
};

// Inodes of the tree that some holder can write: through a descriptor or a
// shared writable mapping.
std::set<uint64_t> WrittenInodes(const std::vector<Holder>& holders);

// The verdict for now: mappings and text of files that are written, locks,
// leases, roots, deleted files, sockets, FIFOs, devices, watches, rings,
// half-read directories, a tracer, and being a process that NFS or the system
// needs to go on (PID 1, rpc.gssd, ...) block. Private or read-only mappings
// and text of files not in written stay.
Verdict Judge(const Holder& holder, const std::set<uint64_t>& written);

}  // namespace livemv::proc
