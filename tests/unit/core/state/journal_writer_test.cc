#include "core/state/journal_writer.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/core/state/fact_samples.h"
#include "tests/unit/core/state/memory_disk.h"

namespace livemv::state {
namespace {

constexpr int kDir = MemoryDisk::kDir;
const std::string kName = "journal";

JournalOptions Small() {
  JournalOptions options;
  options.reserve_bytes = 8192;
  options.step_bytes = 4096;
  options.compact_bytes = 16384;
  return options;
}

MigrationFact First() {
  return MigrationFact{"m1", "/srv/data", "nas:/export", SampleHandle(2, 0)};
}

std::unique_ptr<JournalFile> MustCreate(MemoryDisk* disk,
                                        const JournalOptions& o = Small()) {
  auto journal = JournalFile::Create(disk, kDir, kName, First(), o);
  EXPECT_TRUE(journal) << journal.error().ToString();
  return *std::move(journal);
}

JournalFile::Opened MustOpen(MemoryDisk* disk,
                             const JournalOptions& o = Small()) {
  auto opened = JournalFile::Open(disk, kDir, kName, o);
  EXPECT_TRUE(opened) << opened.error().ToString();
  return *std::move(opened);
}

TEST(JournalFile, WhatWasAppendedIsThereAfterAKill) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  std::vector<Fact> facts = OneOfEach();
  RecoveredState want;
  ASSERT_TRUE(want.Apply(First()));
  Seq last = 1;
  for (const Fact& fact : facts) {
    auto seq = journal->Append(fact);
    ASSERT_TRUE(seq);
    EXPECT_EQ(*seq, ++last);
    ASSERT_TRUE(want.Apply(fact));
  }
  journal.reset();
  disk.Restart();
  auto opened = MustOpen(&disk);
  EXPECT_EQ(opened.state, want);
  EXPECT_EQ(opened.tail.kind, JournalTail::Kind::kClean);
  EXPECT_EQ(*opened.journal->Append(TruthFact{true}), last + 1);
}

TEST(JournalFile, CreateRefusesToReplaceAJournal) {
  MemoryDisk disk;
  MustCreate(&disk);
  auto again = JournalFile::Create(&disk, kDir, kName, First(), Small());
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().sys_errno, EEXIST);
}

TEST(JournalFile, CreateOnAFullDiskSaysSoAndLeavesNothing) {
  MemoryDisk disk;
  disk.SetCapacity(4096);
  auto journal = JournalFile::Create(&disk, kDir, kName, First(), Small());
  ASSERT_FALSE(journal);
  EXPECT_EQ(journal.error().sys_errno, ENOSPC);
  EXPECT_FALSE(disk.Has(kName));
  EXPECT_FALSE(disk.Has(kName + ".new"));
}

TEST(JournalFile, OneFdatasyncServesAllWhoWait) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  std::mutex mu;
  std::condition_variable cv;
  bool first_is_in = false, go_on = false;
  disk.on_sync = [&] {
    std::unique_lock lock(mu);
    first_is_in = true;
    cv.notify_all();
    cv.wait(lock, [&] { return go_on; });
  };
  uint64_t before = disk.syncs;
  Seq seq = *journal->Append(AttrsDirtyFact{7});
  std::thread first([&] { EXPECT_TRUE(journal->Sync(seq)); });
  {
    std::unique_lock lock(mu);
    cv.wait(lock, [&] { return first_is_in; });
  }
  // Ten more records while the first sync is in the disk: none of them may be
  // taken for covered by it, and one more sync is enough for all.
  std::vector<std::thread> others;
  std::vector<Seq> seqs;
  for (FileId id = 10; id < 20; id++)
    seqs.push_back(*journal->Append(AttrsDirtyFact{id}));
  for (Seq s : seqs)
    others.emplace_back([&, s] { EXPECT_TRUE(journal->Sync(s)); });
  {
    std::unique_lock lock(mu);
    go_on = true;
    cv.notify_all();
  }
  first.join();
  for (auto& t : others)
    t.join();
  EXPECT_EQ(disk.syncs - before, 2u);
  disk.on_sync = nullptr;
  EXPECT_TRUE(journal->Sync(seqs.back()));
  EXPECT_EQ(disk.syncs - before, 2u) << "it is durable already";
}

TEST(JournalFile, SyncOfARecordThatWasNeverAppendedIsRefused) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  EXPECT_FALSE(journal->Sync(99));
}

TEST(JournalFile, AFailedFdatasyncIsFinal) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  Seq seq = *journal->Append(AttrsDirtyFact{7});
  disk.FailNext("fdatasync", EIO);
  auto status = journal->Sync(seq);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().sys_errno, EIO);
  EXPECT_FALSE(journal->Sync(seq)) << "a second fsync proves nothing";
  EXPECT_FALSE(journal->Append(AttrsDirtyFact{8}));
  EXPECT_FALSE(journal->SyncAll());
  EXPECT_FALSE(journal->Compact());
  EXPECT_FALSE(journal->CompactIsUseful());
}

TEST(JournalFile, AFailedWriteIsFinal) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  disk.FailNext("pwrite", EIO);
  EXPECT_FALSE(journal->Append(AttrsDirtyFact{7}));
  EXPECT_FALSE(journal->Append(AttrsDirtyFact{7}));
}

TEST(JournalFile, AnOverlongRecordIsRefusedAndHarmless) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  auto big = journal->Append(OptionFact{"x", std::string(2 << 20, 'x')});
  ASSERT_FALSE(big);
  EXPECT_EQ(big.error().code, core::ErrorCode::kInvalid);
  EXPECT_TRUE(journal->Append(AttrsDirtyFact{7}));
}

TEST(JournalFile, TheReserveCarriesItOverAFullDisk) {
  MemoryDisk disk;
  JournalOptions options = Small();
  auto journal = MustCreate(&disk, options);
  EXPECT_GE(journal->RoomBytes(), options.reserve_bytes);
  disk.SetCapacity(disk.Used());  // full from now on
  uint64_t appended = 0;
  core::Result<Seq> seq = Seq{0};
  while ((seq = journal->Append(AttrsDirtyFact{appended}))) {
    appended++;
    ASSERT_LT(appended, 10000u);
  }
  EXPECT_GT(appended, 8000u / 40);
  EXPECT_EQ(seq.error().sys_errno, ENOSPC);
  EXPECT_TRUE(journal->SyncAll()) << "what was taken is safe";

  // Room comes back: it goes on, and nothing is lost between.
  disk.SetCapacity(disk.Used() + 100'000);
  disk.now_ns += 2'000'000'000;
  ASSERT_TRUE(journal->Append(AttrsDirtyFact{999'999}));
  ASSERT_TRUE(journal->SyncAll());
  journal.reset();
  disk.PowerCut(1);
  auto opened = MustOpen(&disk);
  EXPECT_EQ(opened.state.dirty_attrs.size(), appended + 1);
}

TEST(JournalFile, RoomIsKeptAheadWhileThereIsSome) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  for (FileId id = 0; id < 2000; id++) {
    ASSERT_TRUE(journal->Append(AttrsDirtyFact{id}));
    ASSERT_GE(journal->RoomBytes(), Small().reserve_bytes);
  }
}

TEST(JournalFile, AFilesystemWithoutFallocateGetsZeros) {
  MemoryDisk disk;
  disk.FailNext("fallocate", EOPNOTSUPP, 1000);
  auto journal = MustCreate(&disk);
  EXPECT_GE(journal->RoomBytes(), Small().reserve_bytes);
  for (FileId id = 0; id < 1000; id++)
    ASSERT_TRUE(journal->Append(AttrsDirtyFact{id}));
  journal.reset();
  disk.Restart();
  EXPECT_EQ(MustOpen(&disk).state.dirty_attrs.size(), 1000u);
}

TEST(JournalFile, ATornTailIsClearedInPlaceAndOverwritten) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  ASSERT_TRUE(journal->Append(AttrsDirtyFact{7}));
  uint64_t end = journal->FileBytes();
  ASSERT_TRUE(journal->Append(AttrsDirtyFact{8}));
  uint64_t used = journal->FileBytes(), size = disk.Content(kName).size();
  journal.reset();
  disk.Restart();
  disk.Content(kName)[used - 1] ^= 1;
  auto opened = MustOpen(&disk);
  EXPECT_EQ(opened.tail.kind, JournalTail::Kind::kTorn);
  EXPECT_EQ(opened.tail.offset, end);
  EXPECT_FALSE(opened.state.dirty_attrs.contains(8));
  EXPECT_GE(disk.Content(kName).size(), size) << "room is not given away";
  ASSERT_TRUE(opened.journal->Append(AttrsDirtyFact{9}));
  opened.journal.reset();
  disk.Restart();
  auto again = MustOpen(&disk);
  EXPECT_EQ(again.tail.kind, JournalTail::Kind::kClean);
  EXPECT_TRUE(again.state.dirty_attrs.contains(9));
}

TEST(JournalFile, ADamagedJournalIsRefusedAndLeftAsItIs) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  ASSERT_TRUE(journal->AppendDurable(AttrsDirtyFact{7}));
  uint64_t end = journal->FileBytes();
  ASSERT_TRUE(journal->Append(AttrsDirtyFact{8}));
  journal.reset();
  disk.Restart();
  disk.Content(kName)[end - 1] ^= 1;
  const std::string before = disk.Content(kName);
  auto opened = JournalFile::Open(&disk, kDir, kName, Small());
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, core::ErrorCode::kCorrupt);
  EXPECT_EQ(disk.Content(kName), before);
}

TEST(JournalFile, WithoutAPowerCutRecordsBehindATearAreDamage) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  ASSERT_TRUE(journal->AppendDurable(SessionFact{"boot-1", 1}));
  ASSERT_TRUE(journal->Append(AttrsDirtyFact{7}));
  uint64_t end = journal->FileBytes();
  ASSERT_TRUE(journal->Append(AttrsDirtyFact{8}));
  journal.reset();
  disk.Restart();
  disk.Content(kName)[end - 1] ^= 1;
  JournalOptions same = Small(), other = Small();
  same.boot_id = "boot-1";
  other.boot_id = "boot-2";
  EXPECT_FALSE(JournalFile::Open(&disk, kDir, kName, same));
  EXPECT_TRUE(JournalFile::Open(&disk, kDir, kName, other));
}

// A whole record behind the torn one has the very number that comes after the
// record written in its place.
TEST(JournalFile, WhatFollowedATearNeverComesBack) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  uint64_t torn = journal->FileBytes();
  ASSERT_TRUE(journal->Append(AttrsDirtyFact{7}));
  ASSERT_TRUE(journal->Append(AttrsDirtyFact{8}));
  journal.reset();
  disk.Restart();
  disk.Content(kName)[torn + 1] ^= 1;
  auto opened = MustOpen(&disk);
  EXPECT_EQ(opened.tail.whole_after, 1u);
  ASSERT_TRUE(opened.journal->Append(AttrsDirtyFact{9}));
  opened.journal.reset();
  disk.Restart();
  auto again = MustOpen(&disk);
  EXPECT_EQ(again.state.dirty_attrs, (std::unordered_set<FileId>{9}));
  EXPECT_EQ(again.tail.kind, JournalTail::Kind::kClean);
}

// Trace V7 of the byte model: a successor acts on a record that is in the page
// cache only.
TEST(JournalFile, WhatOpenReadIsDurable) {
  for (uint32_t seed = 0; seed < 8; seed++) {
    MemoryDisk disk;
    auto journal = MustCreate(&disk);
    ASSERT_TRUE(journal->Append(AttrsDirtyFact{7}));
    journal.reset();
    disk.Restart();
    ASSERT_TRUE(MustOpen(&disk).state.dirty_attrs.contains(7));
    disk.PowerCut(seed);
    EXPECT_TRUE(MustOpen(&disk).state.dirty_attrs.contains(7)) << seed;
  }
}

TEST(JournalFile, ACompactionWaitsForASyncInFlight) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  Seq seq = *journal->Append(AttrsDirtyFact{7});
  std::mutex mu;
  std::condition_variable cv;
  bool in_sync = false, go_on = false, compacted = false;
  disk.on_sync = [&] {
    std::unique_lock lock(mu);
    if (in_sync)
      return;  // the compaction's own
    in_sync = true;
    cv.notify_all();
    cv.wait(lock, [&] { return go_on; });
  };
  std::thread syncer([&] { EXPECT_TRUE(journal->Sync(seq)); });
  {
    std::unique_lock lock(mu);
    cv.wait(lock, [&] { return in_sync; });
  }
  std::thread compactor([&] {
    EXPECT_TRUE(journal->Compact());
    std::lock_guard lock(mu);
    compacted = true;
    cv.notify_all();
  });
  {
    std::unique_lock lock(mu);
    EXPECT_FALSE(cv.wait_for(lock, std::chrono::milliseconds(100),
                             [&] { return compacted; }));
    go_on = true;
    cv.notify_all();
  }
  syncer.join();
  compactor.join();
  EXPECT_TRUE(journal->AppendDurable(AttrsDirtyFact{8}));
}

TEST(JournalFile, DamageInACompactedJournalIsSeenThoughNothingFollows) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  ASSERT_TRUE(journal->Append(AttrsDirtyFact{7}));
  ASSERT_TRUE(journal->Compact());
  uint64_t end = journal->FileBytes();
  journal.reset();
  disk.Restart();
  disk.Content(kName)[end - 1] ^= 1;
  auto opened = JournalFile::Open(&disk, kDir, kName, Small());
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, core::ErrorCode::kCorrupt);
}

TEST(JournalFile, CompactionKeepsTheStateAndShrinksTheFile) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  for (int i = 0; i < 2000; i++) {
    ASSERT_TRUE(journal->Append(EntryDirtyFact{kRootId, "same"}));
    ASSERT_TRUE(journal->Append(EntryCleanFact{kRootId, "same"}));
  }
  Seq last = *journal->Append(AttrsDirtyFact{7});
  uint64_t before = journal->FileBytes();
  EXPECT_TRUE(journal->CompactIsUseful());
  auto status = journal->Compact();
  ASSERT_TRUE(status) << status.error().ToString();
  EXPECT_LT(journal->FileBytes() * 100, before);
  EXPECT_FALSE(journal->CompactIsUseful());
  EXPECT_GE(journal->RoomBytes(), Small().reserve_bytes);
  EXPECT_FALSE(disk.Has(kName + ".new"));

  uint64_t syncs = disk.syncs;
  EXPECT_TRUE(journal->Sync(last)) << "an old number stays valid";
  EXPECT_EQ(disk.syncs, syncs) << "a compacted journal is durable";
  Seq next = *journal->Append(AttrsDirtyFact{8});
  EXPECT_GT(next, last);
  journal.reset();
  disk.Restart();
  auto opened = MustOpen(&disk);
  EXPECT_EQ(opened.state.dirty_attrs, (std::unordered_set<FileId>{7, 8}));
  EXPECT_TRUE(opened.state.dirty_entries.empty());
  EXPECT_EQ(*opened.state.migration, First());
}

TEST(JournalFile, AppendsDuringACompactionAreInTheNewFile) {
  MemoryDisk disk;
  auto journal = MustCreate(&disk);
  for (int i = 0; i < 500; i++)
    ASSERT_TRUE(journal->Append(EntryDirtyFact{kRootId, "same"}));
  // Each time the compaction syncs, others append (and the last time, when it
  // holds the lock, they wait).
  std::vector<std::thread> appenders;
  FileId next_id = 1;
  disk.on_sync = [&] {
    appenders.emplace_back([&journal, base = next_id] {
      for (FileId id = base; id < base + 1500; id++)
        EXPECT_TRUE(journal->Append(AttrsDirtyFact{id}));
    });
    next_id += 1500;
  };
  ASSERT_TRUE(journal->Compact());
  disk.on_sync = nullptr;
  for (auto& t : appenders)
    t.join();
  ASSERT_GE(appenders.size(), 2u);
  journal.reset();
  disk.Restart();
  auto opened = MustOpen(&disk);
  EXPECT_EQ(opened.state.dirty_attrs.size(), next_id - 1);
  EXPECT_TRUE(opened.state.IsDirtyEntry(kRootId, "same"));
}

TEST(JournalFile, AFailedCompactionLeavesTheOldJournalInUse) {
  for (const char* call :
       {"openat", "pwrite", "fallocate", "fdatasync", "renameat2"}) {
    MemoryDisk disk;
    auto journal = MustCreate(&disk);
    ASSERT_TRUE(journal->Append(AttrsDirtyFact{7}));
    disk.FailNext(call, ENOSPC);
    EXPECT_FALSE(journal->Compact()) << call;
    EXPECT_FALSE(disk.Has(kName + ".new")) << call;
    ASSERT_TRUE(journal->AppendDurable(AttrsDirtyFact{8})) << call;
    ASSERT_TRUE(journal->Compact()) << call;
    journal.reset();
    disk.PowerCut(3);
    EXPECT_EQ(MustOpen(&disk).state.dirty_attrs.size(), 2u) << call;
  }
}

TEST(JournalFile, AnUnfinishedCompactionIsRemovedAtTheNextOpen) {
  MemoryDisk disk;
  MustCreate(&disk).reset();
  {
    auto fd = disk.OpenAt(kDir, "journal.new", O_CREAT | O_RDWR, 0600);
    ASSERT_TRUE(fd);
  }
  disk.Restart();
  MustOpen(&disk);
  EXPECT_FALSE(disk.Has("journal.new"));
}

}  // namespace
}  // namespace livemv::state
