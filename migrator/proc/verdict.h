#pragma once

// Whether a holder can be re-anchored, and if not, why. Pure.
//
// Thread contract: free functions without state.

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
};

// The verdict for now. Mappings, text, locks, roots, deleted files, sockets,
// FIFOs, watches, leases, rings, a tracer and half-read directories block.
Verdict Judge(const Holder& holder);

}  // namespace livemv::proc
