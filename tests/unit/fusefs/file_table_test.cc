// What the table makes of facts while nobody uses a file: they come back as
// they were, or more careful.

#include "fusefs/file_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace livemv::fusefs {
namespace {

using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr FileId kId = 0x1100000007;
constexpr uint64_t kSize = 3 * state::kChunkBytes + 17;

FileFacts Copied() {
  FileFacts facts;
  facts.map = state::ByteMap(kSize);
  facts.map.MarkCopied(0, facts.map.Chunks(), false);
  facts.size = kSize;
  facts.size_known = facts.pinned = facts.pin_durable = true;
  facts.last_seq = facts.pin_seq = 40;
  facts.clock = 9;
  return facts;
}

void Keep(FileTable* table, FileId id, FileFacts facts) {
  FileRef r = table->Get(id);
  core::MutexLock lock(r->mu);
  r->gens = Generations(facts.clock);
  r->facts = std::move(facts);
  table->Account(&*r);
}

FileFacts Again(FileTable* table, FileId id) {
  FileRef r = table->Find(id);
  EXPECT_TRUE(r);
  core::MutexLock lock(r->mu);
  FileFacts facts = r->facts;
  facts.clock = r->gens.Now();
  return facts;
}

TEST(FileTable, AWhollyCopiedFileIsSettledAndComesBack) {
  FileTable table;
  Keep(&table, kId, Copied());
  EXPECT_THAT(table.UnsettledFiles(), IsEmpty());
  EXPECT_THAT(table.KnownFiles(), UnorderedElementsAre(kId));
  EXPECT_THAT(table.LiveFiles(), IsEmpty());
  EXPECT_EQ(table.GetTotals().bytes_copied, kSize);
  FileFacts facts = Again(&table, kId);
  EXPECT_EQ(facts.map, Copied().map);
  EXPECT_EQ(facts.size, kSize);
  EXPECT_TRUE(facts.size_known && facts.pinned && facts.pin_durable);
  EXPECT_FALSE(facts.source_dirty.IsDirty() || facts.alone_dirty.IsDirty() ||
               facts.double_dirty.IsDirty() || facts.sync_all);
  EXPECT_THAT(table.UnsettledFiles(), IsEmpty());  // and again
}

TEST(FileTable, AnOpenSettledFileKeepsItsCountOfOpens) {
  FileTable table;
  Keep(&table, kId, Copied());
  table.Opened(kId);
  EXPECT_EQ(Again(&table, kId).map, Copied().map);
  EXPECT_TRUE(table.IsOpen(kId));
  EXPECT_THAT(table.KnownFiles(), UnorderedElementsAre(kId));
  table.Closed(kId);
  EXPECT_FALSE(table.IsOpen(kId));
  EXPECT_EQ(Again(&table, kId).map, Copied().map);
}

TEST(FileTable, ASettledFileThatIsForgottenIsUnknown) {
  FileTable table;
  Keep(&table, kId, Copied());
  {
    FileRef r = table.Get(kId);
    core::MutexLock lock(r->mu);
    table.Forget(&*r);
  }
  EXPECT_FALSE(table.Find(kId));
  EXPECT_THAT(table.KnownFiles(), IsEmpty());
  EXPECT_EQ(table.GetTotals().bytes_below_end, 0u);
}

TEST(FileTable, WhatASuccessorAdoptsIsCarefulThoughItIsSettled) {
  state::RecoveredState state;
  state.files[kId].map = Copied().map;
  state.files[kId + 1].map = Copied().map;
  state.files[kId + 1].cut = kSize;
  FileTable table;
  table.Adopt(state);
  EXPECT_THAT(table.UnsettledFiles(), UnorderedElementsAre(kId + 1));
  EXPECT_THAT(table.KnownFiles(), UnorderedElementsAre(kId, kId + 1));
  FileFacts facts = Again(&table, kId);
  EXPECT_EQ(facts.map, Copied().map);
  EXPECT_FALSE(facts.size_known);
  EXPECT_TRUE(facts.source_dirty.IsDirty() && facts.alone_dirty.IsDirty() &&
              facts.double_dirty.IsDirty() && facts.sync_all &&
              facts.pin_durable);
}

// Over facts of all kinds: nothing that somebody relies upon is weaker.
TEST(FileTable, FactsComeBackAsTheyWereOrMoreCareful) {
  std::mt19937 random(3);
  auto maybe = [&](unsigned one_in) { return random() % one_in == 0; };
  FileTable table;
  int settled = 0;
  for (FileId id = 1; id <= 20'000; id++) {
    FileFacts facts = Copied();
    if (maybe(8))
      facts.map = state::ByteMap(maybe(2) ? 0 : kSize);
    if (maybe(8) && facts.map.local_end() != 0)
      facts.map.MakeRemote(0, 5);
    if (maybe(8) && facts.map.Chunks() != 0)
      facts.map.MarkHot(random() % facts.map.Chunks(), 1);
    facts.size = facts.map.local_end() + (maybe(8) ? 1 : 0);
    facts.size_known = !maybe(4);
    if (maybe(2))
      facts.source_dirty = facts.alone_dirty = facts.double_dirty =
          DirtyMark(true);
    for (DirtyMark* mark :
         {&facts.source_dirty, &facts.alone_dirty, &facts.double_dirty})
      if (maybe(8))
        mark->Dirty();
    facts.source_epoch = maybe(8) ? 3 : 0;
    facts.pin_durable = !maybe(4);
    facts.sync_all = maybe(4);
    facts.fresh = maybe(4);
    facts.born = maybe(8);
    facts.grown = maybe(8);
    facts.last_seq = random() % 1000;
    facts.pin_seq = facts.last_seq;
    facts.clock = 1 + random() % 1000;
    Keep(&table, id, facts);
    settled += table.UnsettledFiles().empty();
    const FileFacts got = Again(&table, id);
    ASSERT_EQ(got.map, facts.map);
    ASSERT_TRUE(!got.size_known || (facts.size_known && got.size == facts.size));
    ASSERT_EQ(got.source_dirty.IsDirty(), facts.source_dirty.IsDirty());
    ASSERT_EQ(got.alone_dirty.IsDirty(), facts.alone_dirty.IsDirty());
    ASSERT_EQ(got.double_dirty.IsDirty(), facts.double_dirty.IsDirty());
    ASSERT_EQ(got.source_epoch, facts.source_epoch);
    ASSERT_EQ(got.pinned, facts.pinned);
    ASSERT_EQ(got.born, facts.born);
    ASSERT_EQ(got.grown, facts.grown);
    ASSERT_TRUE(!got.pin_durable || facts.pin_durable);
    ASSERT_TRUE(got.sync_all || !facts.sync_all);
    ASSERT_TRUE(!got.fresh || facts.fresh);
    ASSERT_GE(got.last_seq, facts.last_seq);
    ASSERT_GE(got.pin_seq, facts.pin_seq);
    ASSERT_GE(got.clock, facts.clock);
    FileRef r = table.Get(id);  // so that the next look is at one file
    core::MutexLock lock(r->mu);
    table.Forget(&*r);
  }
  EXPECT_GT(settled, 1000);
}

}  // namespace
}  // namespace livemv::fusefs
