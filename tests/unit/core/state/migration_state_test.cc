#include "core/state/migration_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

namespace livemv::state {
namespace {

using S = MigrationState;

constexpr int kStates = static_cast<int>(S::kStuck) + 1;
constexpr int kEvents = static_cast<int>(Event::kUnstuck) + 1;

// Written out again, by hand, as architecture.md has it.
const std::map<std::pair<S, Event>, S> kAllowed = {
    {{S::kPlanned, Event::kAttach}, S::kAttaching},
    {{S::kAttaching, Event::kAttached}, S::kCopying},
    {{S::kAttaching, Event::kAttachFailed}, S::kAborted},
    {{S::kCopying, Event::kPause}, S::kPaused},
    {{S::kPaused, Event::kResume}, S::kCopying},
    {{S::kCopying, Event::kSynced}, S::kSynced},
    {{S::kSynced, Event::kUnsynced}, S::kCopying},
    {{S::kSynced, Event::kCutover}, S::kCuttingOver},
    {{S::kCuttingOver, Event::kCutoverGivenUp}, S::kSynced},
    {{S::kCuttingOver, Event::kCommitted}, S::kDraining},
    {{S::kDraining, Event::kDrained}, S::kMoved},
    {{S::kMoved, Event::kFinish}, S::kFinished},
    {{S::kAttaching, Event::kAbort}, S::kAborting},
    {{S::kCopying, Event::kAbort}, S::kAborting},
    {{S::kPaused, Event::kAbort}, S::kAborting},
    {{S::kSynced, Event::kAbort}, S::kAborting},
    {{S::kAborting, Event::kAbortDone}, S::kAborted},
    {{S::kAttaching, Event::kStuck}, S::kStuck},
    {{S::kCopying, Event::kStuck}, S::kStuck},
    {{S::kPaused, Event::kStuck}, S::kStuck},
    {{S::kSynced, Event::kStuck}, S::kStuck},
    {{S::kCuttingOver, Event::kStuck}, S::kStuck},
    {{S::kDraining, Event::kStuck}, S::kStuck},
    {{S::kAborting, Event::kStuck}, S::kStuck},
};

TEST(MigrationState, EveryPairThatIsNotListedIsRefusedAndNamed) {
  int allowed = 0;
  for (int s = 0; s < kStates; s++) {
    auto state = static_cast<S>(s);
    if (state == S::kStuck)
      continue;
    for (int e = 0; e < kEvents; e++) {
      auto event = static_cast<Event>(e);
      auto next = Advance(Phase{state}, event);
      auto want = kAllowed.find({state, event});
      if (want == kAllowed.end()) {
        ASSERT_FALSE(next) << EventName(event) << " in " << StateName(state);
        EXPECT_EQ(next.error().code, core::ErrorCode::kConflict);
        EXPECT_NE(next.error().what.find(EventName(event)), std::string::npos);
        EXPECT_NE(next.error().what.find(StateName(state)), std::string::npos);
        continue;
      }
      allowed++;
      ASSERT_TRUE(next) << EventName(event) << " in " << StateName(state);
      EXPECT_EQ(next->state, want->second);
      EXPECT_EQ(next->before_stuck,
                want->second == S::kStuck ? state : S::kPlanned);
    }
  }
  EXPECT_EQ(allowed, static_cast<int>(kAllowed.size()));
}

TEST(MigrationState, StuckLeadsBackToWhereItCameFrom) {
  const std::set<S> live = {S::kAttaching, S::kCopying,     S::kPaused,
                            S::kSynced,    S::kCuttingOver, S::kDraining,
                            S::kAborting};
  const std::set<S> can_abort = {S::kAttaching, S::kCopying, S::kPaused,
                                 S::kSynced, S::kAborting};
  for (int s = 0; s < kStates; s++) {
    auto before = static_cast<S>(s);
    Phase stuck{S::kStuck, before};
    for (int e = 0; e < kEvents; e++) {
      auto event = static_cast<Event>(e);
      auto next = Advance(stuck, event);
      if (event == Event::kUnstuck && live.contains(before)) {
        ASSERT_TRUE(next);
        EXPECT_EQ(*next, Phase{before});
      } else if (event == Event::kAbort && can_abort.contains(before)) {
        ASSERT_TRUE(next);
        EXPECT_EQ(*next, Phase{S::kAborting});
      } else {
        EXPECT_FALSE(next) << EventName(event) << " in stuck from "
                           << StateName(before);
      }
    }
  }
}

TEST(MigrationState, OnceTheTargetIsTheTruthThereIsNoAbort) {
  for (S state : {S::kDraining, S::kMoved, S::kFinished, S::kAborted}) {
    EXPECT_FALSE(Advance(Phase{state}, Event::kAbort));
    auto verbs = LegalVerbs(state);
    EXPECT_EQ(std::count(verbs.begin(), verbs.end(), "abort"), 0);
  }
  auto verbs = LegalVerbs(Phase{S::kStuck, S::kDraining});
  EXPECT_EQ(std::count(verbs.begin(), verbs.end(), "abort"), 0);
  verbs = LegalVerbs(Phase{S::kStuck, S::kCopying});
  EXPECT_EQ(std::count(verbs.begin(), verbs.end(), "abort"), 1);
}

TEST(MigrationState, AVerbIsLegalWhereItsEventIsListed) {
  const std::map<std::string, Event> verbs = {{"pause", Event::kPause},
                                              {"resume", Event::kResume},
                                              {"cutover", Event::kCutover},
                                              {"abort", Event::kAbort},
                                              {"finish", Event::kFinish}};
  for (int s = 0; s < kStates; s++) {
    auto state = static_cast<S>(s);
    auto legal = LegalVerbs(state);
    EXPECT_EQ(std::count(legal.begin(), legal.end(), "status"), 1);
    for (const auto& [verb, event] : verbs) {
      bool listed = kAllowed.contains({state, event});
      if (verb == "abort" && state == S::kCuttingOver)
        listed = true;  // the cutover is given up first
      if (state == S::kStuck)
        listed = verb == "abort" || verb == "resume";
      EXPECT_EQ(std::count(legal.begin(), legal.end(), verb), listed ? 1 : 0)
          << verb << " in " << StateName(state);
    }
  }
}

TEST(MigrationState, NamesLeadBack) {
  std::set<std::string_view> names;
  for (int s = 0; s < kStates; s++) {
    auto state = static_cast<S>(s);
    names.insert(StateName(state));
    EXPECT_EQ(StateFromName(StateName(state)), state);
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(kStates));
  EXPECT_EQ(StateName(S::kCuttingOver), "cutting_over");
  EXPECT_FALSE(StateFromName("unknown"));
  EXPECT_EQ(EventName(Event::kUnstuck), "unstuck");
  EXPECT_EQ(EventName(Event::kCutoverGivenUp), "cutover_given_up");
}

}  // namespace
}  // namespace livemv::state
