#include "core/state/recovery.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/unit/core/state/fact_samples.h"

namespace livemv::state {
namespace {

constexpr uint64_t kC = kChunkBytes;
constexpr FileId kFile = 0x0000000c'00000001;

RecoveredState Fold(const std::vector<Fact>& facts) {
  RecoveredState state;
  for (const Fact& fact : facts) {
    auto applied = state.Apply(fact);
    EXPECT_TRUE(applied) << applied.error().ToString();
  }
  return state;
}

TEST(Recovery, TheFoldOfToFactsIsTheStateItself) {
  uint64_t applied = 0, refused = 0;
  for (uint32_t seed = 0; seed < 400; seed++) {
    std::mt19937 rng(seed);
    RecoveredState state;
    for (int step = 0; step < 150; step++) {
      state.Apply(RandomFact(rng)) ? applied++ : refused++;
      if (step % 10 != 9)
        continue;
      std::vector<Fact> facts = state.ToFacts();
      RecoveredState again;
      for (const Fact& fact : facts) {
        auto ok = again.Apply(fact);
        ASSERT_TRUE(ok) << "seed " << seed << ": " << ok.error().ToString();
      }
      ASSERT_EQ(again, state) << "seed " << seed << " step " << step;
      ASSERT_EQ(again.ToFacts(), facts);
    }
  }
  EXPECT_GT(applied, 10 * refused);
  EXPECT_GT(refused, 0u);
}

TEST(Recovery, ARefusedFactChangesNothing) {
  for (uint32_t seed = 0; seed < 100; seed++) {
    std::mt19937 rng(seed);
    RecoveredState state;
    for (int step = 0; step < 60; step++) {
      RecoveredState before = state;
      if (!state.Apply(RandomFact(rng))) {
        ASSERT_EQ(state, before);
      }
    }
  }
}

TEST(Recovery, EveryKindOfFactCanBeFolded) {
  RecoveredState state;
  for (const Fact& fact : OneOfEach())
    ASSERT_TRUE(state.Apply(fact));
  EXPECT_EQ(state.migration->source, "/srv/data");
  EXPECT_EQ(state.sessions.back().pid, 4711u);
  EXPECT_TRUE(state.target_is_truth);
  EXPECT_EQ(state.phase.state, MigrationState::kSynced);
  EXPECT_EQ(state.options.at("max_pause_ns"), "200000000");
  // The one file was forgotten; what came after that is all that is known.
  ASSERT_EQ(state.files.size(), 1u);
  FileState direct;
  direct.direct = Direct::kYes;
  direct.backing = 7;
  EXPECT_EQ(state.files.begin()->second, direct);
  ASSERT_TRUE(state.Apply(DirectFact{state.files.begin()->first, 0, 0}));
  EXPECT_TRUE(state.files.empty());
}

TEST(Recovery, AWayToBeDirectThatThereIsNotIsRefused) {
  RecoveredState state;
  EXPECT_EQ(state.Apply(DirectFact{kFile, 3, 0}).error().code,
            core::ErrorCode::kCorrupt);
}

TEST(Recovery, AClaimPastALocalEndThatFellIsClipped) {
  RecoveredState state =
      Fold({LocalEndFact{kFile, 4 * kC}, CutFact{kFile, kC + 7, kC + 7},
            CopiedFact{kFile, 0, 4, true}, RemoteFact{kFile, kC, 3 * kC}});
  const FileState& file = state.files.at(kFile);
  EXPECT_EQ(file.map->local_end(), kC + 7);
  EXPECT_EQ(file.map->CopiedRanges(), (std::vector<ByteMap::Range>{{0, 2}}));
  EXPECT_EQ(file.map->RemoteRanges(), (std::vector<ByteMap::Range>{{kC, 7}}));
  EXPECT_EQ(file.cut, kC + 7);
}

TEST(Recovery, AClaimAboutAFileWithoutALocalEndIsCorruption) {
  for (const Fact& fact :
       std::vector<Fact>{CopiedFact{kFile, 0, 1, false}, HotFact{kFile, 0, 1},
                         RemoteFact{kFile, 0, 1}}) {
    RecoveredState state;
    auto applied = state.Apply(fact);
    ASSERT_FALSE(applied);
    EXPECT_EQ(applied.error().code, core::ErrorCode::kCorrupt);
    EXPECT_EQ(state, RecoveredState());
  }
}

TEST(Recovery, AGrowthBelowAnEarlierCutKeepsTheLocalEnd) {
  // Shrinking within the growth: the local end stays, the cut is owed.
  RecoveredState state =
      Fold({LocalEndFact{kFile, 100}, ObjectSizeFact{kFile, 900},
            CutFact{kFile, 500, 100}});
  EXPECT_EQ(state.files.at(kFile).map->local_end(), 100u);
  EXPECT_EQ(state.files.at(kFile).cut, 500u);
  EXPECT_EQ(state.files.at(kFile).object_size, 500u);
  ASSERT_TRUE(state.Apply(CutDoneFact{kFile}));
  EXPECT_FALSE(state.files.at(kFile).cut);
}

TEST(Recovery, ACutOfAFileNeverSeenRecordsItsLocalEnd) {
  RecoveredState state = Fold({CutFact{kFile, 10, 0}});
  EXPECT_EQ(state.files.at(kFile).map, ByteMap(0));
}

TEST(Recovery, AnEntryStaysDirtyUntilItIsClean) {
  RecoveredState state =
      Fold({EntryDirtyFact{kRootId, "a"}, EntryDirtyFact{kRootId, "b"},
            EntryDirtyFact{kRootId, "a"}, EntryCleanFact{kRootId, "a"}});
  EXPECT_FALSE(state.IsDirtyEntry(kRootId, "a"));
  EXPECT_TRUE(state.IsDirtyEntry(kRootId, "b"));
  ASSERT_TRUE(state.Apply(EntryCleanFact{kRootId, "b"}));
  EXPECT_TRUE(state.dirty_entries.empty());
}

TEST(Recovery, NothingIsOwedToADeadInodeButItsObjectIsKnown) {
  RecoveredState state =
      Fold({LocalEndFact{kFile, kC}, BoundFact{kFile, SampleHandle(9, 9), 9, 0},
            HotFact{kFile, 0, 1}, AttrsDirtyFact{kFile}, MetaHotFact{kFile},
            OwedFact{kFile}, EntryDirtyFact{kFile, "x"}, DeadFact{kFile},
            // A straggler of another thread.
            AttrsDirtyFact{kFile}, HotFact{kFile, 0, 1}});
  EXPECT_TRUE(state.dead.contains(kFile));
  EXPECT_TRUE(state.dirty_attrs.empty() && state.meta_hot.empty() &&
              state.owed.empty() && state.dirty_entries.empty());
  ASSERT_TRUE(state.files.at(kFile).bound);
  EXPECT_FALSE(state.files.at(kFile).map);
  ASSERT_TRUE(state.Apply(ForgottenFact{kFile}));
  EXPECT_EQ(state, RecoveredState());
}

TEST(Recovery, StuckRemembersWhereItCameFrom) {
  auto phase = [](MigrationState s, std::string reason = "") {
    return PhaseFact{static_cast<uint8_t>(s), std::move(reason)};
  };
  RecoveredState state = Fold({phase(MigrationState::kCopying),
                               phase(MigrationState::kStuck, "target full"),
                               phase(MigrationState::kStuck, "target gone")});
  EXPECT_EQ(state.phase,
            (Phase{MigrationState::kStuck, MigrationState::kCopying}));
  EXPECT_EQ(state.reason, "target gone");
  EXPECT_FALSE(state.Apply(PhaseFact{12, ""}));
}

TEST(Recovery, ANewSessionWithdrawsHotChunksAndComesLast) {
  RecoveredState state =
      Fold({SessionFact{"boot-1", 1}, LocalEndFact{kFile, 4 * kC},
            CopiedFact{kFile, 0, 4, false}, HotFact{kFile, 1, 2},
            MetaHotFact{kRootId}});
  std::vector<Fact> same_boot = FactsOfNewSession(state, "boot-1", 2);
  EXPECT_EQ(same_boot, (std::vector<Fact>{WithdrawnFact{kFile, 1, 2},
                                          SessionFact{"boot-1", 2}}));
  std::vector<Fact> crashed = FactsOfNewSession(state, "boot-2", 2);
  EXPECT_EQ(crashed,
            (std::vector<Fact>{WithdrawnFact{kFile, 1, 2}, OwedFact{kRootId},
                               SessionFact{"boot-2", 2}}));

  // A kill after any of them: the next one writes the rest.
  for (size_t kept = 0; kept <= crashed.size(); kept++) {
    RecoveredState partly = state;
    for (size_t i = 0; i < kept; i++)
      ASSERT_TRUE(partly.Apply(crashed[i]));
    for (const Fact& fact : FactsOfNewSession(partly, "boot-2", 3))
      ASSERT_TRUE(partly.Apply(fact));
    EXPECT_TRUE(partly.owed.contains(kRootId)) << kept;
    EXPECT_FALSE(partly.files.at(kFile).map->IsCopied(1)) << kept;
    EXPECT_FALSE(partly.files.at(kFile).map->IsCopied(2)) << kept;
    EXPECT_TRUE(partly.files.at(kFile).map->IsCopied(3)) << kept;
  }
}

TEST(Recovery, AHostThatWentDownIsRememberedByAllLaterWorkers) {
  RecoveredState state = Fold({MigrationFact{}, SessionFact{"boot-1", 1}});
  EXPECT_FALSE(state.HostWentDown("boot-1"));
  EXPECT_TRUE(state.HostWentDown("boot-2"));
  // The second worker after the crash is killed: the third one must know.
  ASSERT_TRUE(state.Apply(SessionFact{"boot-2", 2}));
  EXPECT_TRUE(state.HostWentDown("boot-2"));
}

TEST(Recovery, TheFirstSessionOwesNothing) {
  RecoveredState state = Fold({MigrationFact{}});
  EXPECT_FALSE(state.HostWentDown("boot-1"));
  EXPECT_EQ(FactsOfNewSession(state, "boot-1", 1),
            (std::vector<Fact>{SessionFact{"boot-1", 1}}));
}

}  // namespace
}  // namespace livemv::state
