#pragma once

// Brackets a change of bytes: the chunks it touches are in flight, and their
// generations move, from its start to its end (rule 1).
//
// Thread contract: one thread; the record's mu is taken in Begin's caller and
// in the destructor.

#include "fusefs/byte_ledger.h"
#include "fusefs/data_path.h"

namespace livemv::fusefs {

class DataPath::Change {
 public:
  // With r.mu held. [begin, end): bytes, also past the local end.
  Change(ByteLedger* ledger, FileRecord& r, uint64_t begin, uint64_t end,
         bool moves_back = true)
      : ledger_(ledger), r_(r) {
    if (begin < end)
      chunks_ = r.facts.map.ChunksIn(begin, end - begin);
    r.gens.Begin(chunks_.first, chunks_.count);
    // A piece that is being brought back is no longer what was read.
    if (moves_back && r.back_range && r.back_range->Overlaps(begin, end))
      r.back_moved = true;
  }
  ~Change() {
    core::MutexLock lock(r_.mu);
    r_.gens.End(chunks_.first, chunks_.count,
                ledger_->switches().write_end_counted);
    r_.changed.NotifyAll();
  }
  Change(const Change&) = delete;
  Change& operator=(const Change&) = delete;

 private:
  ByteLedger* const ledger_;
  FileRecord& r_;
  state::ByteMap::Range chunks_;
};

}  // namespace livemv::fusefs
