#include "core/state/node_table.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <vector>

#include "tests/unit/core/state/fact_samples.h"

namespace livemv::state {
namespace {

class RememberingJournal final : public Journal {
 public:
  core::Result<Seq> Append(const Fact& fact) override {
    if (refuse)
      return core::FailSys(ENOSPC, "journal");
    facts.push_back(fact);
    return facts.size();
  }
  core::Status Sync(Seq) override { return {}; }
  core::Status SyncAll() override { return {}; }
  std::vector<Fact> facts;
  bool refuse = false;
};

core::FileHandle XfsHandle(const std::string& bytes) {
  return core::FileHandle{0x81, bytes};
}

TEST(NodeTable, HandlesOfExt4PackIntoTheNumberAndBack) {
  RememberingJournal journal;
  NodeTable table(&journal);
  // Generations use all 32 bits: the upper two must not look like a tag.
  for (uint32_t generation : {0u, 1u, 0x40000000u, 0x80000000u, 0xffffffffu}) {
    for (uint32_t ino : {1u, 2u, 12u, 0x1fffffffu}) {
      auto id = table.IdFor(SampleHandle(ino, generation));
      ASSERT_TRUE(id);
      EXPECT_EQ(*id & (kTableBit | kTargetBit | kAliasBit), 0u);
      EXPECT_NE(*id, kRootId);
      EXPECT_EQ(*table.HandleOf(*id), SampleHandle(ino, generation));
    }
  }
  EXPECT_TRUE(journal.facts.empty());
  EXPECT_EQ(table.KeptHandles(), 0u);
}

TEST(NodeTable, TheSameInodeNumberWithAnotherGenerationIsAnotherFile) {
  RememberingJournal journal;
  NodeTable table(&journal);
  EXPECT_NE(*table.IdFor(SampleHandle(12, 1)),
            *table.IdFor(SampleHandle(12, 2)));
}

TEST(NodeTable, EveryOtherHandleIsKeptAndJournaledOnce) {
  RememberingJournal journal;
  NodeTable table(&journal);
  core::FileHandle tmpfs{1, std::string(12, 'x')};
  core::FileHandle large = SampleHandle(0x40000000u, 5);
  for (const auto& handle : {XfsHandle("abc"), tmpfs, large}) {
    auto id = table.IdFor(handle);
    ASSERT_TRUE(id);
    EXPECT_NE(*id & kTableBit, 0u);
    EXPECT_EQ(*id & kTargetBit, 0u);
    EXPECT_EQ(*table.IdFor(handle), *id);
    EXPECT_EQ(*table.HandleOf(*id), handle);
    EXPECT_EQ(journal.facts.back(), Fact(NodeFact{*id, handle}));
  }
  EXPECT_EQ(journal.facts.size(), 3u);
}

TEST(NodeTable, ALostRecordGivesTheSameNumberAgain) {
  RememberingJournal first, second;
  NodeTable before(&first), after(&second);
  FileId id = *before.IdFor(XfsHandle("abc"));
  ASSERT_TRUE(before.IdFor(XfsHandle("other")));
  EXPECT_EQ(*after.IdFor(XfsHandle("abc")), id);
}

TEST(NodeTable, ANumberThatIsTakenByAnotherHandleIsPassedOver) {
  RememberingJournal journal;
  NodeTable probe(&journal), table(&journal);
  FileId id = *probe.IdFor(XfsHandle("abc"));
  // As if "zzz" hashed to the same number and had come first.
  ASSERT_TRUE(table.Adopt(NodeFact{id, XfsHandle("zzz")}));
  FileId other = *table.IdFor(XfsHandle("abc"));
  EXPECT_EQ(other, id + 1);
  EXPECT_EQ(*table.IdFor(XfsHandle("abc")), other);
  // Forgetting the first would hide the second.
  table.Forget(id);
  EXPECT_EQ(*table.IdFor(XfsHandle("abc")), other);
  table.Forget(other);
  EXPECT_FALSE(table.HandleOf(other));
}

TEST(NodeTable, TheRootIsNumberOneBothWays) {
  RememberingJournal journal;
  NodeTable table(&journal);
  EXPECT_FALSE(table.HandleOf(kRootId));
  table.SetRoot(SampleHandle(2, 0));
  EXPECT_EQ(*table.IdFor(SampleHandle(2, 0)), kRootId);
  EXPECT_EQ(*table.HandleOf(kRootId), SampleHandle(2, 0));
  // The same inode number on another generation is not the root.
  EXPECT_NE(*table.IdFor(SampleHandle(2, 1)), kRootId);
}

TEST(NodeTable, AnUnknownNumberIsStale) {
  RememberingJournal journal;
  NodeTable table(&journal);
  for (FileId id : {kNoFile, FileId{2}, kTableBit | 9, kTargetBit | 9}) {
    auto handle = table.HandleOf(id);
    ASSERT_FALSE(handle);
    EXPECT_EQ(handle.error().code, core::ErrorCode::kGone);
    EXPECT_EQ(handle.error().Errno(), ESTALE);
  }
}

TEST(NodeTable, ANumberThatCouldNotBeJournaledIsNotGiven) {
  RememberingJournal journal;
  NodeTable table(&journal);
  journal.refuse = true;
  EXPECT_FALSE(table.IdFor(XfsHandle("abc")));
  EXPECT_EQ(table.KeptHandles(), 0u);
  journal.refuse = false;
  EXPECT_TRUE(table.IdFor(XfsHandle("abc")));
}

TEST(NodeTable, ContradictingRecordsAreRefused) {
  RememberingJournal journal;
  NodeTable table(&journal);
  ASSERT_TRUE(table.Adopt(NodeFact{kTableBit | 3, XfsHandle("a")}));
  EXPECT_TRUE(table.Adopt(NodeFact{kTableBit | 3, XfsHandle("a")}));
  EXPECT_FALSE(table.Adopt(NodeFact{kTableBit | 3, XfsHandle("b")}));
  EXPECT_FALSE(table.Adopt(NodeFact{77, XfsHandle("b")}));
  EXPECT_FALSE(table.IdFor(core::FileHandle{}));
}

}  // namespace
}  // namespace livemv::state
