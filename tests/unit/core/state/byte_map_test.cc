#include "core/state/byte_map.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <vector>

namespace livemv::state {
namespace {

constexpr uint64_t kC = kChunkBytes;
using Owner = ByteMap::Owner;
using Range = ByteMap::Range;
using Segment = ByteMap::Segment;

TEST(ChunkSet, AgreesWithAStdSetUnderRandomOperations) {
  std::mt19937 rng(7);
  for (int round = 0; round < 200; round++) {
    ChunkSet set;
    std::set<uint64_t> model;
    uint64_t size = 0;
    for (int step = 0; step < 60; step++) {
      if (rng() % 6 == 0) {
        size = rng() % 300;
        set.Resize(size);
        model.erase(model.lower_bound(size), model.end());
      }
      uint64_t first = size == 0 ? 0 : rng() % (size + 1);
      uint64_t count =
          rng() % 4 == 0 ? size - first : rng() % (size - first + 1);
      bool put = rng() % 2 == 0;
      put ? set.Put(first, count) : set.Take(first, count);
      for (uint64_t i = first; i < first + count; i++)
        put ? (void)model.insert(i) : (void)model.erase(i);

      ASSERT_EQ(set.Count(), model.size());
      ChunkSet copy = set;
      ASSERT_EQ(copy, set);
      for (uint64_t i = 0; i < size + 2; i++)
        ASSERT_EQ(set.Has(i), model.contains(i)) << i << " of " << size;
      uint64_t from = rng() % (size + 2);
      auto present = model.lower_bound(from);
      ASSERT_EQ(set.NextPresent(from),
                present == model.end() ? size : *present);
      uint64_t absent = from;
      while (absent < size && model.contains(absent))
        absent++;
      ASSERT_EQ(set.NextAbsent(from), std::min(absent, size));
    }
  }
}

TEST(ByteMap, IsSmallSinceThereIsOneAFile) {
  EXPECT_LE(sizeof(ByteMap), 64u);
}

TEST(ByteMap, EveryByteOfANewFileIsTheTargets) {
  ByteMap map;
  EXPECT_EQ(map.Chunks(), 0u);
  EXPECT_TRUE(map.AllCopied());
  EXPECT_EQ(map.Split(0, 10),
            (std::vector<Segment>{{0, 10, Owner::kTarget, false}}));
  EXPECT_TRUE(map.Split(5, 0).empty());
}

TEST(ByteMap, AWriteThatStraddlesTheLocalEndIsSplitSourceFirst) {
  ByteMap map(100);
  EXPECT_EQ(map.Split(90, 20),
            (std::vector<Segment>{{90, 10, Owner::kSource, false},
                                  {100, 10, Owner::kTarget, false}}));
  EXPECT_EQ(map.Split(100, 1),
            (std::vector<Segment>{{100, 1, Owner::kTarget, false}}));
  EXPECT_EQ(map.Split(99, 1),
            (std::vector<Segment>{{99, 1, Owner::kSource, false}}));
}

TEST(ByteMap, OnlyWritesIntoCopiedChunksGoToBothSides) {
  ByteMap map(3 * kC);
  map.MarkCopied(1, 1, false);
  EXPECT_EQ(map.SplitForWrite(kC - 4, kC + 8),
            (std::vector<Segment>{{kC - 4, 4, Owner::kSource, false},
                                  {kC, kC, Owner::kSource, true},
                                  {2 * kC, 4, Owner::kSource, false}}));
  // Reads do not care.
  EXPECT_EQ(map.Split(kC - 4, kC + 8).size(), 1u);
}

TEST(ByteMap, ShrinkingTheLocalEndDropsCopiedChunksBeyondIt) {
  ByteMap map(4 * kC);
  map.MarkCopied(0, 4, true);
  map.ShrinkTo(2 * kC + 5);
  EXPECT_EQ(map.Chunks(), 3u);
  EXPECT_EQ(map.ChunkBytesOf(2), (Range{2 * kC, 5}));
  EXPECT_EQ(map.CopiedRanges(), (std::vector<Range>{{0, 3}}));
  EXPECT_EQ(map.HotRanges(), (std::vector<Range>{{0, 3}}));
  EXPECT_EQ(map.CopiedBytes(), 2 * kC + 5);
  map.ShrinkTo(0);
  EXPECT_EQ(map, ByteMap(0));
}

TEST(ByteMap, ShrinkingCutsRemoteExtentsAtTheLocalEnd) {
  ByteMap map(1000);
  map.MakeRemote(100, 100);
  map.MakeRemote(300, 100);
  map.ShrinkTo(350);
  EXPECT_EQ(map.RemoteRanges(), (std::vector<Range>{{100, 100}, {300, 50}}));
  map.ShrinkTo(300);
  EXPECT_EQ(map.RemoteRanges(), (std::vector<Range>{{100, 100}}));
  map.ShrinkTo(100);
  EXPECT_EQ(map, ByteMap(100));
}

TEST(ByteMap, RaisingTheLocalEndWithdrawsTheChunkThatBecameLonger) {
  ByteMap map(kC + 5);
  map.MarkCopied(0, 2, true);
  map.RaiseTo(kC + 9);
  EXPECT_TRUE(map.IsCopied(0));
  EXPECT_FALSE(map.IsCopied(1));
  EXPECT_TRUE(map.IsHot(1)) << "a hot mark outlives the claim";
  ByteMap even(kC);
  even.MarkCopied(0, 1, false);
  even.RaiseTo(2 * kC);
  EXPECT_TRUE(even.IsCopied(0));
  EXPECT_FALSE(even.IsCopied(1));
}

TEST(ByteMap, WithdrawingLeavesTheHotMark) {
  ByteMap map(kC);
  map.MarkCopied(0, 1, true);
  map.Withdraw(0, 1);
  EXPECT_FALSE(map.IsCopied(0));
  EXPECT_TRUE(map.AnyHot());
  map.Unhot(0, 1);
  EXPECT_FALSE(map.AnyHot());
}

TEST(ByteMap, TouchingRemoteExtentsBecomeOne) {
  ByteMap map(1000);
  map.MakeRemote(10, 10);
  map.MakeRemote(30, 10);
  map.MakeRemote(20, 10);
  EXPECT_EQ(map.RemoteRanges(), (std::vector<Range>{{10, 30}}));
  EXPECT_TRUE(map.IsRemote(10, 30));
  EXPECT_FALSE(map.IsRemote(9, 2));
  EXPECT_EQ(map.RemoteBytes(), 30u);
}

TEST(ByteMap, AWhollyRemoteChunkIsNotCopied) {
  ByteMap map(3 * kC + 1);
  map.MakeRemote(0, 2 * kC);
  EXPECT_FALSE(map.WantsCopy(0));
  EXPECT_FALSE(map.WantsCopy(1));
  EXPECT_EQ(map.NextToCopy(0), 2u);
  map.MakeRemote(2 * kC, kC + 1);
  EXPECT_TRUE(map.AllCopied());
}

TEST(ByteMap, OffsetsNearTheEndOfTheRangeDoNotOverflow) {
  ByteMap map(10);
  EXPECT_EQ(map.Split(5, ~0ull),
            (std::vector<Segment>{{5, 5, Owner::kSource, false},
                                  {10, ~0ull - 10, Owner::kTarget, false}}));
  EXPECT_EQ(map.ChunksIn(3, ~0ull), (Range{0, 1}));
  EXPECT_EQ(map.ChunksIn(10, 5).count, 0u);
}

// The model: cells of a quarter chunk less one odd byte grid, each source,
// remote, or past the local end; a bit a chunk for copied and hot.
class Model {
 public:
  static constexpr uint64_t kCell = kC / 4;
  explicit Model(uint64_t cells) { Raise(cells); }

  uint64_t Chunks() const { return (remote_.size() + 3) / 4; }
  void Shrink(uint64_t cells) {
    remote_.resize(cells);
    copied_.resize(Chunks());
    hot_.resize(Chunks());
  }
  void Raise(uint64_t cells) {
    if (cells > remote_.size() && remote_.size() % 4 != 0)
      copied_.back() = false;
    remote_.resize(cells);
    copied_.resize(Chunks());
    hot_.resize(Chunks());
  }
  std::vector<bool> remote_, copied_, hot_;

  std::string Text() const {
    std::string s;
    for (size_t i = 0; i < remote_.size(); i++)
      s += remote_[i] ? 'r' : copied_[i / 4] ? 'c' : '.';
    return s;
  }
  Segment CellAt(uint64_t cell, bool for_write) const {
    Segment s{cell * kCell, kCell, Owner::kTarget, false};
    if (cell < remote_.size() && !remote_[cell]) {
      s.owner = Owner::kSource;
      s.copied = for_write && copied_[cell / 4];
    }
    return s;
  }
};

void Compare(const ByteMap& map, const Model& model, std::mt19937& rng) {
  map.CheckInvariants();
  ASSERT_EQ(map.Chunks(), model.Chunks());
  uint64_t copied_bytes = 0, remote_bytes = 0;
  std::optional<uint64_t> next;
  for (uint64_t c = model.Chunks(); c-- > 0;) {
    ASSERT_EQ(map.IsCopied(c), model.copied_[c]) << c;
    ASSERT_EQ(map.IsHot(c), model.hot_[c]) << c;
    bool all_remote = true;
    for (uint64_t i = c * 4;
         i < std::min<uint64_t>(c * 4 + 4, model.remote_.size()); i++) {
      all_remote = all_remote && model.remote_[i];
      (model.remote_[i] ? remote_bytes : copied_bytes) +=
          model.remote_[i] || model.copied_[c] ? Model::kCell : 0;
    }
    bool wants = !model.copied_[c] && !all_remote;
    ASSERT_EQ(map.WantsCopy(c), wants) << c << " " << model.Text();
    if (wants)
      next = c;
  }
  ASSERT_EQ(map.NextToCopy(0), next) << model.Text();
  ASSERT_EQ(map.AllCopied(), !next);
  ASSERT_EQ(map.CopiedBytes(), copied_bytes) << model.Text();
  ASSERT_EQ(map.RemoteBytes(), remote_bytes) << model.Text();

  // A byte interval that need not lie on the cells.
  uint64_t off = rng() % (50 * Model::kCell), len = rng() % (9 * Model::kCell);
  for (bool for_write : {false, true}) {
    uint64_t at = off;
    Segment last{};
    for (const Segment& s :
         for_write ? map.SplitForWrite(off, len) : map.Split(off, len)) {
      ASSERT_EQ(s.off, at);
      ASSERT_GT(s.len, 0u);
      ASSERT_TRUE(at == off || s.owner != last.owner || s.copied != last.copied)
          << "neighbours are joined";
      for (uint64_t cell = s.off / Model::kCell;
           cell <= (s.off + s.len - 1) / Model::kCell; cell++) {
        Segment want = model.CellAt(cell, for_write);
        ASSERT_EQ(s.owner, want.owner) << cell << " " << model.Text();
        ASSERT_EQ(s.copied, want.copied) << cell << " " << model.Text();
      }
      at += s.len;
      last = s;
    }
    ASSERT_EQ(at, off + len);
  }
}

TEST(ByteMap, AgreesWithAnArrayOfCellsUnderRandomOperations) {
  for (uint32_t seed = 0; seed < 300; seed++) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    uint64_t cells = rng() % 45;
    Model model(cells);
    ByteMap map(cells * Model::kCell);
    for (int step = 0; step < 50; step++) {
      uint64_t first = rng() % (model.Chunks() + 1);
      uint64_t count = rng() % (model.Chunks() - first + 1);
      auto fill = [&](std::vector<bool>* bits, bool v) {
        std::fill_n(bits->begin() + static_cast<long>(first), count, v);
      };
      switch (rng() % 8) {
        case 0:
          if (rng() % 4 == 0) {
            cells = rng() % (cells + 1);
            model.Shrink(cells);
            map.ShrinkTo(cells * Model::kCell);
          }
          break;
        case 1:
          if (rng() % 2 == 0 && cells < 45) {
            cells += rng() % (45 - cells);
            model.Raise(cells);
            map.RaiseTo(cells * Model::kCell);
          }
          break;
        case 2:
        case 3: {
          bool hot = rng() % 2 == 0;
          fill(&model.copied_, true);
          if (hot)
            fill(&model.hot_, true);
          map.MarkCopied(first, count, hot);
          break;
        }
        case 4:
          fill(&model.copied_, false);
          map.Withdraw(first, count);
          break;
        case 5:
          fill(&model.hot_, true);
          map.MarkHot(first, count);
          break;
        case 6:
          fill(&model.hot_, false);
          map.Unhot(first, count);
          break;
        default: {
          uint64_t from = rng() % (cells + 1);
          uint64_t n = rng() % std::min<uint64_t>(cells - from + 1, 7);
          std::fill_n(model.remote_.begin() + static_cast<long>(from), n, true);
          map.MakeRemote(from * Model::kCell, n * Model::kCell);
        }
      }
      Compare(map, model, rng);
      if (testing::Test::HasFatalFailure())
        return;
      ByteMap copy = map;
      ASSERT_EQ(copy, map);
    }
  }
}

TEST(ByteMap, MapsThatDifferInOneThingAreNotEqual) {
  ByteMap map(3 * kC);
  ByteMap copied = map, hot = map, remote = map, shorter = map;
  copied.MarkCopied(1, 1, false);
  hot.MarkHot(1, 1);
  remote.MakeRemote(1, 1);
  shorter.ShrinkTo(3 * kC - 1);
  EXPECT_FALSE(map == copied);
  EXPECT_FALSE(map == hot);
  EXPECT_FALSE(map == remote);
  EXPECT_FALSE(map == shorter);
}

TEST(ByteMapDeathTest, AClaimPastTheLocalEndStopsTheProgram) {
  EXPECT_DEATH(ByteMap(kC).MarkCopied(0, 2, false), "broken invariant");
  EXPECT_DEATH(ByteMap(10).MakeRemote(5, 6), "broken invariant");
  EXPECT_DEATH(ByteMap(10).ShrinkTo(11), "broken invariant");
}

}  // namespace
}  // namespace livemv::state
