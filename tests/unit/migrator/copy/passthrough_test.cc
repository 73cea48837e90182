// Rule 8 over the fake kernel: which files are direct, and what is known of
// them meanwhile.

#include "fusefs/passthrough.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "core/fault_points.h"
#include "tests/support/bytes_bed.h"

namespace livemv::fake {
namespace {

using fusefs::Passthrough;
using state::Direct;
using state::DirectFact;
using state::FileId;

// The kernel's side: numbers, and whether each is still open.
class FakeBackingIds final : public fusefs::BackingIds {
 public:
  core::Result<uint32_t> Open(int) override {
    if (opening)
      opening();
    if (err != 0)
      return core::FailSys(err, "backing");
    open.insert(++last);
    return last;
  }
  void Close(uint32_t id) override { EXPECT_EQ(open.erase(id), 1u) << id; }

  std::function<void()> opening;  // something that happens meanwhile
  int err = 0;
  uint32_t last = 0;
  std::set<uint32_t> open;
};

class PassthroughTest : public testing::Test {
 protected:
  void Start(bool resumed = false, const std::string& boot = "boot-1") {
    passthrough.reset();
    const state::RecoveredState state = bed.journal.Recover(boot, 99);
    bed.Start(boot);
    passthrough = std::make_unique<Passthrough>(&bed.worker->ledger, &ids,
                                                resumed);
    ASSERT_TRUE(passthrough->Adopt(state));
  }
  // An application's open; the number it is answered with.
  uint32_t Open(FileId id, int flags, bool created = false) {
    bed.worker->table.Opened(id);
    auto entered = passthrough->Enter(id, flags, created, true);
    EXPECT_TRUE(entered) << entered.error().ToString();
    return entered ? entered->backing : 0;
  }
  void Close(FileId id, uint32_t number) {
    if (number != 0)
      passthrough->Leave(id);
    bed.worker->table.Closed(id);
    while (passthrough->Step()) {
    }
  }
  // What the kernel does without us.
  void KernelWrites(FileId id, uint64_t off, const std::string& bytes) {
    auto fd = bed.worker->objects.Data(id);
    ASSERT_TRUE(fd);
    bed.sys.AdvanceClock(1'000'000);
    ASSERT_TRUE(bed.sys.PWrite((*fd)->Get(), bytes.data(), bytes.size(),
                               static_cast<off_t>(off)));
  }
  core::Stat Look(FileId id) {
    auto fd = bed.worker->source.Path(id);
    auto st = bed.sys.StatAt((*fd)->Get(), "", STATX_BASIC_STATS);
    EXPECT_TRUE(bed.worker->data.Complete(id, &*st));
    return *st;
  }
  core::Stat SourceStat(FileId id) {
    return *bed.sys.StatAt((*bed.worker->source.Path(id))->Get(), "", STATX_BASIC_STATS);
  }
  core::Stat ObjectStat(FileId id) {
    return *bed.sys.StatAt((*bed.worker->objects.Path(id))->Get(), "", STATX_BASIC_STATS);
  }
  static std::pair<int64_t, uint32_t> M(const core::Stat& st) {
    return {st.stx_mtime.tv_sec, st.stx_mtime.tv_nsec};
  }
  DirectFact LastFact() {
    return std::get<DirectFact>(
        bed.journal.facts.at(bed.journal.Last<DirectFact>()));
  }

  BytesBed bed;
  FakeBackingIds ids;
  std::unique_ptr<Passthrough> passthrough;
};

TEST_F(PassthroughTest, ANewFileIsDirectFromBirthAndUntilItIsClosed) {
  Start();
  FileId f = bed.Create("new");
  const uint32_t number = Open(f, O_WRONLY, true);
  ASSERT_NE(number, 0u);
  EXPECT_EQ(LastFact(), (DirectFact{f, 1, number}));
  EXPECT_EQ(Open(f, O_RDONLY), number) << "one number an inode";
  KernelWrites(f, 0, "unseen");
  EXPECT_EQ(Look(f).stx_size, 6u);
  Close(f, number);
  EXPECT_THAT(ids.open, testing::ElementsAre(number));
  Close(f, number);
  EXPECT_THAT(ids.open, testing::IsEmpty());
  EXPECT_EQ(LastFact(), (DirectFact{f, 0, 0}));
  EXPECT_EQ(bed.ReadAll(f), "unseen") << "the worker's again";
}

TEST_F(PassthroughTest, OneModeAtATime) {
  Start();
  FileId f = bed.Create("new");
  EXPECT_EQ(Open(f, O_RDWR, true), 0u) << "an msync would not be seen";
  EXPECT_EQ(Open(f, O_WRONLY), 0u) << "others have it from the worker";
  Close(f, 0);
  EXPECT_EQ(Open(f, O_WRONLY), 0u);
  Close(f, 0);
  Close(f, 0);
  EXPECT_NE(Open(f, O_WRONLY), 0u);
}

TEST_F(PassthroughTest, WhoOpensItMeanwhileIsServedAndSoAreBoth) {
  Start();
  FileId f = bed.Create("new");
  ids.opening = [&] {
    ids.opening = nullptr;
    EXPECT_EQ(Open(f, O_WRONLY), 0u);
  };
  EXPECT_EQ(Open(f, O_WRONLY, true), 0u);
  EXPECT_THAT(ids.open, testing::IsEmpty());
  EXPECT_EQ(bed.journal.Count<DirectFact>(), 0u);
}

TEST_F(PassthroughTest, OnlyWhatIsWhollyRemote) {
  bed.MakeSource("old", "local bytes");
  Start();
  FileId f = bed.Id("old");
  EXPECT_EQ(Open(f, O_RDONLY), 0u);
  ASSERT_TRUE(bed.Write(f, 11, " and more"));
  Close(f, 0);
  EXPECT_EQ(Open(f, O_RDONLY), 0u) << "its beginning is local";
  ASSERT_TRUE(bed.worker->data.Truncate(f, 0, false));
  Close(f, 0);
  EXPECT_EQ(Open(f, O_WRONLY), 0u) << "the cut would take what is written now";
  Close(f, 0);
  bed.Settle();
  EXPECT_NE(Open(f, O_WRONLY), 0u);
}

TEST_F(PassthroughTest, WhatIsSmallAndOnlyReadIsNotWorthIt) {
  Start();
  FileId f = bed.Create("new");
  ASSERT_TRUE(bed.Write(f, 0, "x"));
  EXPECT_EQ(Open(f, O_RDONLY), 0u);
  Close(f, 0);
  ASSERT_TRUE(bed.Write(f, 1 << 20, "x"));
  EXPECT_NE(Open(f, O_RDONLY), 0u);
}

TEST_F(PassthroughTest, ABirthIsDurableBeforeWritesThatAreSyncedUnseen) {
  for (int flags : {O_RDWR, O_WRONLY | O_DSYNC, O_WRONLY | O_SYNC}) {
    BytesBed own;
    std::swap(bed.worker, own.worker);
    bed.worker.reset();
    Start();
    FileId f = bed.Create("new" + std::to_string(flags));
    const uint64_t syncs = bed.sys.CallsOf("FSync");
    ASSERT_NE(Open(f, flags), 0u);
    EXPECT_GT(bed.sys.CallsOf("FSync"), syncs) << flags;
    // All but its being direct, which is known by the number's being given.
    EXPECT_GE(bed.journal.durable, bed.journal.facts.size() - 1);
  }
}

TEST_F(PassthroughTest, TimesAreTheObjectsMeanwhileAndThenTheSources) {
  Start();
  FileId f = bed.Create("new");
  const uint32_t number = Open(f, O_WRONLY, true);
  KernelWrites(f, 0, "x");
  EXPECT_EQ(M(Look(f)), M(ObjectStat(f)));
  EXPECT_NE(M(Look(f)), M(SourceStat(f)));
  const timespec old[2] = {{7, 0}, {8, 9}};
  ASSERT_TRUE(bed.worker->data.ChangeAttrs(f, {.times = old}, [&] {
    return bed.sys.UTimens((*bed.worker->source.Path(f))->Get(), old);
  }));
  EXPECT_EQ(M(Look(f)), (std::pair<int64_t, uint32_t>{8, 9}));
  KernelWrites(f, 0, "y");
  const auto last = M(ObjectStat(f));
  const uint64_t touched = bed.worker->touched;
  Close(f, number);
  EXPECT_EQ(M(SourceStat(f)), last);
  EXPECT_GT(bed.worker->touched, touched) << "the applier looks again";
}

TEST_F(PassthroughTest, WhoOpensAndClosesItWhileItEndsIsNotMissed) {
  Start();
  FileId f = bed.Create("new");
  const uint32_t number = Open(f, O_WRONLY, true);
  KernelWrites(f, 0, "first");
  bed.worker->when_touched = [&] {
    bed.worker->table.Opened(f);
    auto again = passthrough->Enter(f, O_WRONLY, false, true);
    ASSERT_TRUE(again);
    ASSERT_EQ(again->backing, number);
    KernelWrites(f, 5, ", second");
    passthrough->Leave(f);
    bed.worker->table.Closed(f);
  };
  Close(f, number);
  EXPECT_EQ(LastFact(), (DirectFact{f, 0, 0}));
  EXPECT_EQ(Look(f).stx_size, 13u);
  EXPECT_EQ(bed.ReadAll(f), "first, second");
  EXPECT_EQ(M(SourceStat(f)), M(ObjectStat(f)));
}

TEST_F(PassthroughTest, AttributesOfBeforeAreTakenBackFromWhatMayBeMapped) {
  Start();
  FileId f = bed.Create("new");
  std::vector<FileId> dropped;
  passthrough->SetDropAttrs([&](FileId id) { dropped.push_back(id); });
  const uint32_t first = Open(f, O_WRONLY, true);
  while (passthrough->Step()) {
  }
  EXPECT_TRUE(dropped.empty());
  const uint32_t second = Open(f, O_RDWR);
  while (passthrough->Step()) {
  }
  EXPECT_EQ(dropped, std::vector<FileId>{f});
  Close(f, first);
  Close(f, second);
}

TEST_F(PassthroughTest, ReadingDoesNotMoveTheSourcesCtime) {
  Start();
  FileId f = bed.Create("new");
  ASSERT_TRUE(bed.Write(f, 1 << 20, "x"));
  const uint32_t number = Open(f, O_RDONLY);
  ASSERT_NE(number, 0u);
  const core::Stat before = SourceStat(f);
  const timespec read[2] = {{9, 9}, {0, UTIME_OMIT}};
  ASSERT_TRUE(bed.sys.UTimens((*bed.worker->objects.Path(f))->Get(), read));
  Close(f, number);
  EXPECT_EQ(SourceStat(f).stx_ctime.tv_nsec, before.stx_ctime.tv_nsec);
  EXPECT_EQ(SourceStat(f).stx_ctime.tv_sec, before.stx_ctime.tv_sec);
}

TEST_F(PassthroughTest, TimesThatTheApplierOwesAreOnTheObjectFirst) {
  Start();
  FileId f = bed.Create("new");
  ASSERT_TRUE(bed.Write(f, 1 << 20, "x"));
  const timespec old[2] = {{7, 0}, {8, 9}};
  ASSERT_TRUE(bed.sys.UTimens((*bed.worker->source.Path(f))->Get(), old));
  ASSERT_NE(Open(f, O_RDONLY), 0u);
  EXPECT_EQ(M(Look(f)), (std::pair<int64_t, uint32_t>{8, 9}));
}

TEST_F(PassthroughTest, ATruncateOwesNoCut) {
  Start();
  FileId f = bed.Create("new");
  ASSERT_NE(Open(f, O_WRONLY, true), 0u);
  KernelWrites(f, 0, "0123456789");
  ASSERT_TRUE(bed.worker->data.Truncate(f, 4, false));
  EXPECT_EQ(bed.OnTarget(f), "0123");
  EXPECT_EQ(bed.journal.Count<state::CutFact>(), 0u);
  KernelWrites(f, 6, "z");
  EXPECT_EQ(bed.OnTarget(f), std::string("0123\0\0z", 7));
  ASSERT_TRUE(bed.worker->data.Truncate(f, 20, false));
  EXPECT_EQ(Look(f).stx_size, 20u);
}

TEST_F(PassthroughTest, AnFSyncReachesWhatWasWrittenUnseen) {
  std::mt19937_64 rng(3);
  Start();
  FileId f = bed.Create("new");
  const uint32_t number = Open(f, O_WRONLY, true);
  KernelWrites(f, 0, "synced");
  ASSERT_TRUE(bed.worker->data.FSync(f, true));
  bed.PowerCut(rng);
  Start(false, "boot-2");
  EXPECT_EQ(bed.Id("new"), f);
  EXPECT_EQ(Look(f).stx_size, 6u);
  while (passthrough->Step()) {
  }
  EXPECT_EQ(bed.ReadAll(f), "synced");
  EXPECT_EQ(M(SourceStat(f)), M(ObjectStat(f)));
  (void)number;
}

TEST_F(PassthroughTest, ASuccessorGoesOnWithTheNumber) {
  Start();
  FileId f = bed.Create("new");
  FileId served = bed.Create("served");
  const uint32_t number = Open(f, O_WRONLY, true);
  ASSERT_EQ(Open(served, O_RDWR, true), 0u);
  KernelWrites(f, 0, "before");
  bed.Kill();
  Start(true);
  EXPECT_EQ(Look(f).stx_size, 6u);
  EXPECT_EQ(Open(f, O_RDONLY), number);
  EXPECT_EQ(Open(served, O_WRONLY), 0u) << "somebody may have it served still";
  Close(f, number);
  EXPECT_THAT(ids.open, testing::ElementsAre(number))
      << "opened in its predecessor's time, it may be open";
  FileId own = bed.Create("own");
  EXPECT_NE(Open(own, O_WRONLY, true), 0u);
}

TEST_F(PassthroughTest, ASuccessorWhoPinsAnOldFileDoesNotKnowItsUsers) {
  bed.MakeSource("empty", "");
  Start();
  FileId f = bed.Id("empty");
  EXPECT_EQ(Open(f, O_RDONLY), 0u);
  bed.Kill();
  Start(true);
  ASSERT_TRUE(bed.Write(f, 0, "first"));
  EXPECT_EQ(Open(f, O_WRONLY), 0u) << "it may be open since before";
}

TEST_F(PassthroughTest, ANumberOfAMountThatIsGoneIsNobodysAnyMore) {
  std::mt19937_64 rng(4);
  Start();
  FileId f = bed.Create("new");
  const uint32_t number = Open(f, O_WRONLY, true);
  ASSERT_TRUE(bed.worker->data.FSync(f, true));
  bed.PowerCut(rng);
  ids.open.clear();
  Start(false, "boot-2");
  FileId other = bed.Create("other");
  ids.last = number - 1;
  ASSERT_EQ(Open(other, O_WRONLY, true), number) << "numbers begin anew";
  bed.Kill();
  Start(true, "boot-2");
  EXPECT_NE(Open(f, O_WRONLY), number);
}

TEST_F(PassthroughTest, WhatMayBeMappedStaysDirect) {
  Start();
  FileId f = bed.Create("new");
  ASSERT_TRUE(bed.Write(f, 0, "x"));
  const uint32_t number = Open(f, O_RDWR);
  ASSERT_NE(number, 0u);
  Close(f, number);
  EXPECT_THAT(ids.open, testing::IsEmpty());
  EXPECT_EQ(LastFact(), (DirectFact{f, 1, 0}));
  KernelWrites(f, 1, "mapped");
  EXPECT_EQ(Look(f).stx_size, 7u);
  EXPECT_TRUE(passthrough->IsUnseen(f));
  EXPECT_NE(Open(f, O_RDONLY), 0u);
}

TEST_F(PassthroughTest, AnAbortSeesEverythingOnceAllAreReopened) {
  Start();
  FileId f = bed.Create("new");
  const uint32_t number = Open(f, O_WRONLY, true);
  KernelWrites(f, 0, "unseen");
  passthrough->Close();
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  EXPECT_EQ(passthrough->NumberOf(f), f | state::kAliasBit);
  FileId later = bed.Create("later");
  EXPECT_EQ(Open(later, O_WRONLY, true), 0u);
  EXPECT_EQ(passthrough->NumberOf(later), later);
  // By the second number.
  bed.worker->table.Opened(f);
  auto beside = passthrough->Enter(f, O_WRONLY, false, false);
  ASSERT_TRUE(beside);
  EXPECT_EQ(beside->backing, 0u);
  EXPECT_TRUE(beside->uncached);
  ASSERT_TRUE(bed.worker->data.Write(f, 0, std::string("+"), O_APPEND, false));
  EXPECT_EQ(bed.OnTarget(f), "unseen+");
  // Nothing of it is brought back yet.
  EXPECT_FALSE(*bed.worker->back.Step());
  auto early = passthrough->LeaveAll(INT64_MAX);
  ASSERT_FALSE(early);
  EXPECT_EQ(early.error().code, core::ErrorCode::kConflict);

  KernelWrites(f, 7, "!");
  Close(f, number);
  ASSERT_TRUE(passthrough->LeaveAll(INT64_MAX));
  EXPECT_EQ(LastFact(), (DirectFact{f, 2, 0}));
  EXPECT_THAT(ids.open, testing::IsEmpty());
  EXPECT_EQ(passthrough->NumberOf(f), f | state::kAliasBit);
  ASSERT_TRUE(bed.Write(f, 8, "?"));
  ASSERT_TRUE(bed.worker->back.Finish(-1));
  EXPECT_EQ(bed.OnSource("new"), "unseen+!?");
  // And its successor knows the number.
  bed.Kill();
  Start(true);
  passthrough->Close();
  EXPECT_EQ(passthrough->NumberOf(f), f | state::kAliasBit);
}

TEST_F(PassthroughTest, OnceTheTargetIsTheTruthTheSourceIsLeftAlone) {
  Start();
  FileId f = bed.Create("new");
  const uint32_t number = Open(f, O_WRONLY, true);
  KernelWrites(f, 0, "x");
  const auto before = M(SourceStat(f));
  passthrough->SetFinal(true);
  EXPECT_EQ(Open(f, O_RDONLY), number);
  Close(f, number);
  Close(f, number);
  EXPECT_EQ(M(SourceStat(f)), before);
  passthrough->SetFinal(false);  // it was put back
  while (passthrough->Step()) {
  }
  EXPECT_EQ(M(SourceStat(f)), M(ObjectStat(f)));
}

TEST_F(PassthroughTest, AnAbortThatDoesNotBeginLeavesItAsItWas) {
  Start();
  FileId f = bed.Create("new");
  const uint32_t number = Open(f, O_WRONLY, true);
  passthrough->Close();
  passthrough->Reopen();
  EXPECT_EQ(passthrough->NumberOf(f), f);
  EXPECT_EQ(Open(f, O_RDONLY), number);
}

TEST_F(PassthroughTest, WhereTheKernelRefusesTheWorkerServes) {
  Start();
  ids.err = ELOOP;
  FileId f = bed.Create("new");
  EXPECT_EQ(Open(f, O_WRONLY, true), 0u);
  ids.err = 0;
  FileId other = bed.Create("other");
  EXPECT_EQ(Open(other, O_WRONLY, true), 0u) << "not asked again";
  EXPECT_EQ(bed.journal.Count<DirectFact>(), 0u);
}

TEST_F(PassthroughTest, AJournalThatTakesNoRecordLeavesNoNumberBehind) {
  Start();
  FileId f = bed.Create("new");
  ASSERT_TRUE(bed.worker->ledger.EnsureObject(*bed.worker->table.Get(f)));
  bed.worker->table.Opened(f);
  bed.journal.fail_appends = 1;
  EXPECT_FALSE(passthrough->Enter(f, O_WRONLY, true, true));
  EXPECT_THAT(ids.open, testing::IsEmpty());
}

TEST_F(PassthroughTest, AnOpenThatFailsAtTheEndIsCountedNoMore) {
  Start();
  FileId f = bed.Create("new");
  ASSERT_TRUE(core::ArmFaults("passthrough.entered=error:5@1"));
  bed.worker->table.Opened(f);
  EXPECT_FALSE(passthrough->Enter(f, O_WRONLY, true, true));
  ASSERT_TRUE(core::ArmFaults(""));
  Close(f, 0);
  EXPECT_THAT(ids.open, testing::IsEmpty());
}

TEST_F(PassthroughTest, OneThatWasDeletedGoesWithItsLastUser) {
  Start();
  FileId f = bed.Create("new");
  const uint32_t number = Open(f, O_WRONLY, true);
  ASSERT_TRUE(bed.worker->ledger.Forget(f));
  passthrough->Leave(f);  // finds nothing of it any more
  bed.worker->table.Closed(f);
  while (passthrough->Step()) {
  }
  EXPECT_THAT(ids.open, testing::IsEmpty()) << number;
}

}  // namespace
}  // namespace livemv::fake
