#pragma once

// Performs owed cuts (rule 1): after a shrink was journaled and answered, the
// object is truncated, durably, and the debt is cleared. Writes past the cut
// wait for it.
//
// Thread contract: Step and Run from one thread; the rest from any.

#include <atomic>
#include <cstdint>

#include "core/result.h"
#include "fusefs/byte_ledger.h"

namespace livemv::fusefs {

class Cutter {
 public:
  explicit Cutter(ByteLedger* ledger) : ledger_(ledger) {}

  // Tries each owed cut once; blocks on the target. True if it cut anything.
  bool Step();
  // Cuts as they come until stop is true. Call Wake after setting stop.
  void Run(const std::atomic<bool>& stop);
  void Wake() { ledger_->table()->WakeCutter(); }
  // No cut is owed.
  bool Idle() { return ledger_->table()->CutsOwed().empty(); }

 private:
  // OK also if the cut has to wait for a write in flight (*done false).
  core::Status CutOne(FileId id, bool* done);

  ByteLedger* const ledger_;
  bool trouble_ = false;  // the last Step met an error
};

}  // namespace livemv::fusefs
