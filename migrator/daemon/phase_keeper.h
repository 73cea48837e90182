#pragma once

// The migration's state in the worker: one table (core/state), every step in
// the journal before it counts.
//
// Thread contract: all methods from any thread; Advance blocks for one journal
// sync.

#include <mutex>
#include <string>
#include <utility>

#include "core/result.h"
#include "core/state/journal.h"
#include "core/state/migration_state.h"

namespace livemv::daemon {

class PhaseKeeper {
 public:
  PhaseKeeper(state::Journal* journal, state::Phase phase, std::string reason,
              bool target_is_truth, bool source_is_truth)
      : journal_(journal), phase_(phase), reason_(std::move(reason)),
        target_is_truth_(target_is_truth), source_is_truth_(source_is_truth) {}

  // kConflict, naming both, if the table does not have it.
  core::Status Advance(state::Event event, const std::string& reason);
  bool Allows(state::Event event);

  state::MigrationState state();
  std::string reason();
  bool target_is_truth();
  bool source_is_truth();
  // Journals durably who is the truth, the commit of a cutover or an abort.
  core::Status SetTargetTruth(bool target);
  core::Status SetSourceTruth();

 private:
  state::Journal* const journal_;
  std::mutex mu_;
  state::Phase phase_;      // all below guarded by mu_
  std::string reason_;
  bool target_is_truth_;
  bool source_is_truth_;    // of a committed abort
};

// The option that says so in the journal.
inline constexpr char kSourceTruthOption[] = "source_is_truth";

}  // namespace livemv::daemon
