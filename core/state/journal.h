#pragma once

// The journal's one appender. Append hands the record to the kernel (it
// survives the death of this process); Sync makes it survive the host.
//
// Thread contract: all methods from any thread. Append does not block on the
// disk unless the page cache throttles; Sync blocks for one fdatasync and
// shares it with the callers that wait at the same time (group commit).
// A failed write or fdatasync is final: every later call returns that error,
// because what is durable is no longer known. A record refused before anything
// of it was written (ENOSPC with the room ahead used up, or too long) is not
// final.

#include <cstdint>
#include <memory>
#include <string>

#include "core/result.h"
#include "core/state/facts.h"
#include "core/sync.h"
#include "core/syscalls.h"

namespace livemv::state {

using Seq = uint64_t;  // number of a record in this journal, from 1

class Journal {
 public:
  virtual ~Journal() = default;
  virtual core::Result<Seq> Append(const Fact& fact) = 0;
  // Returns when record seq and all before it are durable.
  virtual core::Status Sync(Seq seq) = 0;
  // Everything appended so far.
  virtual core::Status SyncAll() = 0;
  core::Status AppendDurable(const Fact& fact) {
    ASSIGN_OR_RETURN(Seq seq, Append(fact));
    return Sync(seq);
  }
};

}  // namespace livemv::state
