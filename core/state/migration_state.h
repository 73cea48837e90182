#pragma once

// The states of a migration and the one table of what may follow what.
// Every pair that the table does not list is refused.
//
// Thread contract: pure functions over values.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace livemv::state {

enum class MigrationState : uint8_t {
  kPlanned,
  kAttaching,
  kCopying,
  kPaused,
  kSynced,
  kCuttingOver,
  kDraining,
  kMoved,
  kFinished,
  kAborting,
  kAborted,
  kStuck,
};

enum class Event : uint8_t {
  kAttach,          // planned -> attaching
  kAttached,        // attaching -> copying: redirect is live
  kAttachFailed,    // attaching -> aborted: rolled back
  kPause,           // copying -> paused
  kResume,          // paused -> copying
  kSynced,          // copying -> synced: proved
  kUnsynced,        // synced -> copying: something is to be copied again
  kCutover,         // synced -> cutting_over
  kCutoverGivenUp,  // cutting_over -> synced: deadline or straggler
  kCommitted,       // cutting_over -> draining: the target is the truth
  kDrained,         // draining -> moved: the overlay's last user left
  kFinish,          // moved -> finished
  kAbort,           // attaching, copying, paused, synced -> aborting; stuck
                    // too, unless it came from cutting_over or draining
  kAbortDone,       // aborting -> aborted
  kStuck,           // attaching to draining, aborting -> stuck
  kUnstuck,         // stuck -> the state it came from
};

struct Phase {
  MigrationState state = MigrationState::kPlanned;
  // Where kUnstuck leads; meaningful in kStuck only.
  MigrationState before_stuck = MigrationState::kPlanned;
  bool operator==(const Phase&) const = default;
};

// The phase after event, or kConflict naming both.
core::Result<Phase> Advance(Phase phase, Event event);

std::string_view StateName(MigrationState state);  // "cutting_over"
std::string_view EventName(Event event);
std::optional<MigrationState> StateFromName(std::string_view name);
// The verbs a user may type now: {"status", "cutover", "abort"}. "abort" in
// cutting_over is legal as a verb: the cutover is given up first. "resume" in
// stuck asks for kUnstuck.
std::vector<std::string> LegalVerbs(MigrationState state);
// The same for a phase: stuck after the commit of a cutover has no abort.
std::vector<std::string> LegalVerbs(const Phase& phase);

}  // namespace livemv::state
