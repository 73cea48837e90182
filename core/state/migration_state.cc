#include "core/state/migration_state.h"

#include <array>
#include <utility>

namespace livemv::state {
namespace {

using S = MigrationState;

struct Arc {
  S from;
  Event event;
  S to;
};

// Everything that may happen, but for kStuck and kUnstuck, whose ends are
// computed (see Advance).
constexpr std::array kArcs = {
    Arc{S::kPlanned, Event::kAttach, S::kAttaching},
    Arc{S::kAttaching, Event::kAttached, S::kCopying},
    Arc{S::kAttaching, Event::kAttachFailed, S::kAborted},
    Arc{S::kCopying, Event::kPause, S::kPaused},
    Arc{S::kPaused, Event::kResume, S::kCopying},
    Arc{S::kCopying, Event::kSynced, S::kSynced},
    Arc{S::kSynced, Event::kUnsynced, S::kCopying},
    Arc{S::kSynced, Event::kCutover, S::kCuttingOver},
    Arc{S::kCuttingOver, Event::kCutoverGivenUp, S::kSynced},
    Arc{S::kCuttingOver, Event::kCommitted, S::kDraining},
    Arc{S::kDraining, Event::kDrained, S::kMoved},
    Arc{S::kMoved, Event::kFinish, S::kFinished},
    Arc{S::kAttaching, Event::kAbort, S::kAborting},
    Arc{S::kCopying, Event::kAbort, S::kAborting},
    Arc{S::kPaused, Event::kAbort, S::kAborting},
    Arc{S::kSynced, Event::kAbort, S::kAborting},
    Arc{S::kAborting, Event::kAbortDone, S::kAborted},
};

constexpr std::array<std::string_view, 12> kStateNames = {
    "planned",  "attaching", "copying",  "paused",   "synced",  "cutting_over",
    "draining", "moved",     "finished", "aborting", "aborted", "stuck"};

constexpr std::array<std::string_view, 16> kEventNames = {
    "attach",    "attached",   "attach_failed",
    "pause",     "resume",     "synced",
    "unsynced",  "cutover",    "cutover_given_up",
    "committed", "drained",    "finish",
    "abort",     "abort_done", "stuck",
    "unstuck"};

// Live: work is going on that can get stuck.
bool IsLive(S state) {
  switch (state) {
    case S::kAttaching:
    case S::kCopying:
    case S::kPaused:
    case S::kSynced:
    case S::kCuttingOver:
    case S::kDraining:
    case S::kAborting:
      return true;
    default:
      return false;
  }
}

// From draining on the target is the truth, and a cutover that got stuck is
// first put back to synced; going back is no abort then.
bool CanAbortFrom(S before_stuck) {
  return IsLive(before_stuck) && before_stuck != S::kCuttingOver &&
         before_stuck != S::kDraining;
}

}  // namespace

core::Result<Phase> Advance(Phase phase, Event event) {
  if (event == Event::kStuck && IsLive(phase.state))
    return Phase{S::kStuck, phase.state};
  if (phase.state == S::kStuck) {
    if (event == Event::kUnstuck && IsLive(phase.before_stuck))
      return Phase{phase.before_stuck};
    if (event == Event::kAbort && CanAbortFrom(phase.before_stuck))
      return Phase{S::kAborting};
  }
  for (const Arc& arc : kArcs) {
    if (arc.from == phase.state && arc.event == event)
      return Phase{arc.to};
  }
  std::string where(StateName(phase.state));
  if (phase.state == S::kStuck)
    where += " (from " + std::string(StateName(phase.before_stuck)) + ")";
  return core::Fail(
      core::ErrorCode::kConflict,
      std::string(EventName(event)) + " is not possible while " + where);
}

std::string_view StateName(MigrationState state) {
  auto i = static_cast<size_t>(state);
  return i < kStateNames.size() ? kStateNames[i] : "unknown";
}

std::string_view EventName(Event event) {
  auto i = static_cast<size_t>(event);
  return i < kEventNames.size() ? kEventNames[i] : "unknown";
}

std::optional<MigrationState> StateFromName(std::string_view name) {
  for (size_t i = 0; i < kStateNames.size(); i++) {
    if (kStateNames[i] == name)
      return static_cast<MigrationState>(i);
  }
  return std::nullopt;
}

std::vector<std::string> LegalVerbs(MigrationState state) {
  switch (state) {
    case S::kAttaching:
    case S::kCuttingOver:  // abort first puts a cutover back to synced
      return {"status", "abort"};
    case S::kCopying:
      return {"status", "pause", "abort"};
    case S::kPaused:
      return {"status", "resume", "abort"};
    case S::kSynced:
      return {"status", "cutover", "abort"};
    case S::kMoved:
      return {"status", "finish"};
    case S::kStuck:
      return {"status", "resume", "abort"};
    case S::kPlanned:
    case S::kDraining:
    case S::kFinished:
    case S::kAborting:
    case S::kAborted:
      return {"status"};
  }
  return {"status"};
}

std::vector<std::string> LegalVerbs(const Phase& phase) {
  std::vector<std::string> verbs = LegalVerbs(phase.state);
  if (phase.state == S::kStuck && !CanAbortFrom(phase.before_stuck))
    std::erase(verbs, "abort");
  return verbs;
}

}  // namespace livemv::state
