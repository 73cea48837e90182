// The traces of model-bytes.md and the sentences of rules 1 and 2, one by one.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>

#include <memory>
#include <string>

#include "fusefs/capability.h"
#include "tests/support/bytes_bed.h"

namespace livemv::fake {
namespace {

using state::CopiedFact;
using state::CutDoneFact;
using state::CutFact;
using state::FileId;
using state::HotFact;
using state::LocalEndFact;
using state::RemoteFact;
using state::WithdrawnFact;

class BytesRules : public testing::Test {
 protected:
  void Begin(const std::string& content) {
    bed.MakeSource("f", content);
    bed.Start();
    id = bed.Id("f");
  }
  void CopyAll() {
    bed.worker->engine.Enqueue(id);
    bed.Settle();
  }
  bool Copied(uint64_t chunk) {
    return bed.worker->table.Get(id)->facts.map.IsCopied(chunk);
  }
  // The next call of name on fs runs act first.
  void Before(const char* name, FakeSyscalls::FsId fs,
              std::function<void()> act) {
    bed.sys.on_call = [this, name, fs, act](const FakeSyscalls::Call& call) {
      if (std::string(call.name) == name && call.fs == fs) {
        bed.sys.on_call = nullptr;
        act();
      }
      return 0;
    };
  }
  std::string Bytes(size_t n, char c) { return std::string(n, c); }

  BytesBed bed;
  FileId id = 0;
};

TEST_F(BytesRules, GrowthGoesToTheTargetAlone) {
  Begin("local");
  ASSERT_EQ(*bed.Write(id, 5, " and more"), 9u);
  EXPECT_EQ(bed.OnSource("f"), "local");
  EXPECT_EQ(bed.OnTarget(id), std::string(5, '\0') + " and more");
  EXPECT_EQ(bed.ReadAll(id), "local and more");
}

TEST_F(BytesRules, TheLocalEndIsDurableBeforeTheFirstTargetAloneByte) {
  Begin("local");
  size_t at = MemoryJournal::npos;
  Before("PWrite", bed.target_fs, [&] {
    at = bed.journal.Last<LocalEndFact>();
    EXPECT_LT(at, bed.journal.durable);
  });
  ASSERT_TRUE(bed.Write(id, 5, "x").has_value());
  EXPECT_NE(at, MemoryJournal::npos);
}

TEST_F(BytesRules, GrowthTouchesTheSourcesTimesFirst) {
  Begin("local");
  bool touched = false, before = false;
  bed.sys.on_call = [&](const FakeSyscalls::Call& call) {
    if (call.fs == bed.source_fs && std::string(call.name) == "UTimens")
      touched = true;
    if (call.fs == bed.target_fs && std::string(call.name) == "PWrite")
      before = touched;
    return 0;
  };
  ASSERT_TRUE(bed.Write(id, 5, "x").has_value());
  EXPECT_TRUE(before);
}

TEST_F(BytesRules, AnOverwriteOfWhatIsNotCopiedGoesToTheSourceAlone) {
  Begin(Bytes(100, 'a'));
  ASSERT_TRUE(bed.Write(id, 10, "xyz").has_value());
  EXPECT_EQ(bed.OnTarget(id), "no object");
  EXPECT_EQ(bed.OnSource("f").substr(9, 5), "axyza");
  EXPECT_FALSE(bed.worker->engine.Idle());  // the chunk was asked for
  bed.Settle();
  EXPECT_EQ(bed.OnTarget(id), bed.OnSource("f"));
}

TEST_F(BytesRules, AnOverwriteOfWhatIsCopiedGoesToBothAndIsHotDurablyBefore) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  ASSERT_TRUE(Copied(0));
  ASSERT_EQ(bed.journal.Count<HotFact>(), 0u);
  bool durable = false;
  Before("PWrite", bed.source_fs, [&] {
    durable = bed.journal.Last<HotFact>() < bed.journal.durable;
  });
  ASSERT_TRUE(bed.Write(id, 10, "xyz").has_value());
  EXPECT_TRUE(durable);
  EXPECT_EQ(bed.OnTarget(id), bed.OnSource("f"));
}

TEST_F(BytesRules, ADoubleWriteThatFailsWithdrawsTheChunk) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  bed.sys.FailNext("PWrite", bed.target_fs, EIO);
  ASSERT_EQ(*bed.Write(id, 10, "xyz"), 3u);
  EXPECT_FALSE(Copied(0));
  EXPECT_EQ(bed.journal.Count<WithdrawnFact>(), 1u);
  bed.Settle();
  EXPECT_EQ(bed.OnTarget(id), bed.OnSource("f"));
}

TEST_F(BytesRules, AStraddlingWriteIsSplitAndShortIfTheTargetFails) {
  Begin("local");
  bed.sys.FailNext("PWrite", bed.target_fs, ENOSPC);
  EXPECT_EQ(*bed.Write(id, 3, "12345"), 2u);
  EXPECT_EQ(bed.ReadAll(id), "loc12");
  EXPECT_EQ(*bed.Write(id, 5, "345"), 3u);
  EXPECT_EQ(bed.ReadAll(id), "loc12345");
}

TEST_F(BytesRules, GrowthThatTheTargetRefusesFailsAsThere) {
  Begin("local");
  bed.sys.FailNext("PWrite", bed.target_fs, ENOSPC);
  auto n = bed.Write(id, 5, "x");
  ASSERT_FALSE(n.has_value());
  EXPECT_EQ(n.error().Errno(), ENOSPC);
  EXPECT_EQ(bed.ReadAll(id), "local");
}

TEST_F(BytesRules, AFullSourceMakesAHolesBytesRemote) {
  bed.MakeSource("f", "");
  {
    core::UniqueFd root = bed.sys.OpenRoot(bed.source_fs);
    auto fd = bed.sys.OpenAt(root.Get(), "f", O_RDWR, 0);
    ASSERT_TRUE(bed.sys.FTruncate(fd->Get(), 3 * 4096).has_value());
    bed.sys.MakeAllDurable(bed.source_fs);
  }
  bed.Start();
  id = bed.Id("f");
  bed.sys.SetSpace(bed.source_fs, bed.sys.UsedBytes(bed.source_fs));
  ASSERT_EQ(*bed.Write(id, 4096, Bytes(4096, 'r')), 4096u);
  EXPECT_EQ(bed.journal.Count<RemoteFact>(), 1u);
  std::string want = Bytes(4096, 0) + Bytes(4096, 'r') + Bytes(4096, 0);
  EXPECT_EQ(bed.ReadAll(id), want);
  CopyAll();
  EXPECT_EQ(bed.OnTarget(id), want);
}

TEST_F(BytesRules, V1TheCutIsDurableBeforeTheSourceIsTruncated) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  bool durable = false;
  Before("FTruncate", bed.source_fs, [&] {
    durable = bed.journal.Last<CutFact>() < bed.journal.durable;
  });
  ASSERT_TRUE(bed.worker->data.Truncate(id, 10, false).has_value());
  EXPECT_TRUE(durable);
  EXPECT_EQ(bed.OnSource("f"), Bytes(10, 'a'));
}

TEST_F(BytesRules, V2TheObjectIsCutAfterTheRecordIsDurable) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  bed.worker->ledger.switches().cut_durable_first = false;
  ASSERT_TRUE(bed.worker->data.Truncate(id, 0, false).has_value());
  ASSERT_LT(bed.journal.durable, bed.journal.facts.size());
  bool durable = false;
  Before("FTruncate", bed.target_fs, [&] {
    durable = bed.journal.Last<CutFact>() < bed.journal.durable;
  });
  EXPECT_TRUE(bed.worker->cutter.Step());
  EXPECT_TRUE(durable);
}

TEST_F(BytesRules, V3AChunkWhoseSourceIsNotDurableIsClaimedHot) {
  Begin(Bytes(100, 'a'));
  bed.MakeSource("clean", Bytes(100, 'c'));
  FileId clean = bed.Id("clean");
  ASSERT_TRUE(bed.Write(id, 10, "xyz").has_value());
  bed.Settle();
  auto hot = std::get<CopiedFact>(
      bed.journal.facts[bed.journal.Last<CopiedFact>()]);
  EXPECT_TRUE(hot.hot);
  bed.worker->engine.Enqueue(clean);
  bed.Settle();
  auto cold = std::get<CopiedFact>(
      bed.journal.facts[bed.journal.Last<CopiedFact>()]);
  EXPECT_EQ(cold.id, clean);
  EXPECT_FALSE(cold.hot);
}

TEST_F(BytesRules, TheBarrierUnmarksWhatIsDurableOnBothSides) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  ASSERT_TRUE(bed.Write(id, 10, "xyz").has_value());
  ASSERT_TRUE(bed.worker->table.Get(id)->facts.map.IsHot(0));
  // A write between its two ends keeps the mark.
  Before("SyncFs", bed.target_fs,
         [&] { ASSERT_TRUE(bed.Write(id, 20, "q").has_value()); });
  ASSERT_TRUE(bed.worker->ledger.Barrier().has_value());
  EXPECT_TRUE(bed.worker->table.Get(id)->facts.map.IsHot(0));
  ASSERT_TRUE(bed.worker->ledger.Barrier().has_value());
  EXPECT_FALSE(bed.worker->table.Get(id)->facts.map.IsHot(0));
}

TEST_F(BytesRules, V4TheCutWaitsForADoubleWriteThatWasGivenUp) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  bed.worker->writer.hang = [] { return true; };
  ASSERT_TRUE(bed.Write(id, 50, "late").has_value());
  bed.worker->writer.hang = nullptr;
  ASSERT_TRUE(bed.worker->data.Truncate(id, 10, false).has_value());
  EXPECT_FALSE(bed.worker->cutter.Step());
  EXPECT_FALSE(bed.worker->cutter.Idle());
  ASSERT_TRUE(bed.worker->writer.Land());
  EXPECT_TRUE(bed.worker->cutter.Step());
  EXPECT_EQ(bed.OnTarget(id), Bytes(10, 'a'));
  bed.Settle();
  EXPECT_EQ(bed.ReadAll(id), Bytes(10, 'a'));
}

TEST_F(BytesRules, V4AChunkUnderAGivenUpWriteIsNotClaimed) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  bed.worker->writer.hang = [] { return true; };
  ASSERT_TRUE(bed.Write(id, 50, "late").has_value());
  bed.worker->writer.hang = nullptr;
  for (int i = 0; i < 3; i++) {
    bed.worker->engine.Step();
    bed.sys.AdvanceClock(1'000'000'000);
  }
  EXPECT_FALSE(Copied(0));
  ASSERT_TRUE(bed.worker->writer.Land());
  bed.Settle();
  EXPECT_TRUE(Copied(0));
  EXPECT_EQ(bed.OnTarget(id), bed.OnSource("f"));
}

TEST_F(BytesRules, V5NothingIsClaimedOrCutWhileTheOldWorkerMayAct) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  ASSERT_TRUE(bed.Write(id, 10, "xyz").has_value());
  ASSERT_TRUE(bed.worker->data.Truncate(id, 50, false).has_value());
  bed.Kill();
  bed.Start();
  bed.worker->ledger.SetPredecessorAlive(true);
  EXPECT_FALSE(Copied(0));  // V6: hot after a kill
  for (int i = 0; i < 3; i++) {
    bed.worker->engine.Step();
    EXPECT_FALSE(bed.worker->cutter.Step());
    bed.sys.AdvanceClock(1'000'000'000);
  }
  EXPECT_FALSE(Copied(0));
  EXPECT_FALSE(bed.worker->cutter.Idle());
  EXPECT_EQ(bed.ReadAll(id).size(), 50u);
  bed.worker->ledger.SetPredecessorAlive(false);
  bed.Settle();
  EXPECT_TRUE(Copied(0));
  EXPECT_EQ(bed.OnTarget(id), bed.OnSource("f"));
}

TEST_F(BytesRules, AnOldWriteThatMakesAnObjectLongerIsSeen) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  bed.Kill();
  bed.Start();
  bed.worker->ledger.SetPredecessorAlive(true);
  EXPECT_EQ(bed.ReadAll(id), "localgrown");
  // The dead worker's last write lands.
  auto object = bed.worker->objects.Data(id);
  ASSERT_TRUE(bed.sys.PWrite((*object)->Get(), "late", 4, 10).has_value());
  EXPECT_EQ(bed.ReadAll(id), "localgrownlate");
  bed.worker->ledger.SetPredecessorAlive(false);
  ASSERT_TRUE(bed.Write(id, 14, "!").has_value());
  EXPECT_EQ(bed.ReadAll(id), "localgrownlate!");
  bed.Settle();
  EXPECT_EQ(bed.OnTarget(id), "localgrownlate!");
}

TEST_F(BytesRules, AShorterSizeHoldsAgainstAnOldWrite) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  bed.Kill();
  bed.Start();
  bed.worker->ledger.SetPredecessorAlive(true);
  ASSERT_TRUE(bed.worker->data.Truncate(id, 7, false).has_value());
  auto object = bed.worker->objects.Data(id);
  ASSERT_TRUE(bed.sys.PWrite((*object)->Get(), "late", 4, 10).has_value());
  EXPECT_EQ(bed.ReadAll(id), "localgr");
  bed.worker->ledger.SetPredecessorAlive(false);
  bed.Settle();
  EXPECT_EQ(bed.OnTarget(id), "localgr");
}

TEST_F(BytesRules, TimesAreDirtyBeforeAChunkIsClaimed) {
  // A kill between the two would leave the copier's time for ever.
  struct Listener final : fusefs::BytesListener {
    void AttrsTouched(FileId) override {
      touched = true;
      EXPECT_FALSE(copied());
    }
    void CopyWanted(FileId, bool) override {}
    std::function<bool()> copied;
    bool touched = false;
  } listener;
  listener.copied = [this] { return Copied(0); };
  Begin("local");
  bed.worker->ledger.SetListener(&listener);
  CopyAll();
  EXPECT_TRUE(Copied(0));
  EXPECT_TRUE(listener.touched);
}

TEST_F(BytesRules, NothingIsCopiedWhileAnFSyncThatWasGivenUpIsOut) {
  Begin("local");
  bed.worker->table.Get(id)->late_syncs = 1;
  bed.worker->engine.Enqueue(id);
  const uint64_t before = bed.sys.CallsOf("PWrite");
  for (int i = 0; i < 5; i++) {
    bed.worker->engine.Step();
    bed.sys.AdvanceClock(100'000'000);
  }
  EXPECT_EQ(bed.sys.CallsOf("PWrite"), before);
  bed.worker->table.Get(id)->late_syncs = 0;
  bed.Settle();
  EXPECT_TRUE(Copied(0));
}

TEST_F(BytesRules, V8AFailedTargetFsyncWithdrawsEveryHotChunk) {
  Begin(Bytes(3 * kMiB, 'a'));
  CopyAll();
  ASSERT_TRUE(bed.Write(id, 10, "x").has_value());
  ASSERT_TRUE(bed.Write(id, 2 * kMiB + 10, "y").has_value());
  bed.sys.FailNext("FSync", bed.target_fs, EIO);
  // The source has the bytes: the application is not told.
  EXPECT_TRUE(bed.worker->data.FSync(id, false).has_value());
  EXPECT_FALSE(Copied(0));
  EXPECT_TRUE(Copied(1));
  EXPECT_FALSE(Copied(2));
}

TEST_F(BytesRules, V8AFailedSyncFsWithdrawsProvisionalChunksToo) {
  Begin(Bytes(100, 'a'));
  std::string other = Bytes(100, 'b');
  bed.MakeSource("g", other);
  FileId g = bed.Id("g");
  CopyAll();
  ASSERT_TRUE(bed.Write(id, 10, "x").has_value());
  bed.worker->engine.Enqueue(g);
  bed.worker->engine.Enqueue(id);
  bed.sys.FailNext("FSync", bed.target_fs, EIO);
  bed.worker->engine.Step();  // copies g; its fsync fails
  EXPECT_FALSE(bed.worker->table.Get(g)->facts.map.IsCopied(0));
  EXPECT_TRUE(bed.worker->table.Get(g)->provisional.empty());
  ASSERT_TRUE(Copied(0));
  bed.sys.FailNext("SyncFs", bed.target_fs, EIO);
  EXPECT_FALSE(bed.worker->ledger.SyncTarget().has_value());
  EXPECT_FALSE(Copied(0));
  EXPECT_FALSE(bed.worker->engine.GetProgress().reason.empty());
  bed.Settle();
  EXPECT_TRUE(bed.worker->engine.GetProgress().reason.empty());
  EXPECT_EQ(bed.OnTarget(g), other);
}

TEST_F(BytesRules, WhereTheTargetDoesNotTellAtCloseLostGrowthIsToldToFsync) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  bed.sys.FailNext("FSync", bed.target_fs, EIO);
  {
    fusefs::FileRef r = bed.worker->table.Get(id);
    EXPECT_FALSE(bed.worker->ledger.SyncObject(*r, false).has_value());
  }
  EXPECT_TRUE(bed.worker->data.Flush(id).has_value());
  EXPECT_FALSE(bed.worker->data.FSync(id, true).has_value());
  EXPECT_TRUE(bed.worker->data.FSync(id, true).has_value());
  EXPECT_TRUE(bed.worker->table.LiveFiles().empty());
}

TEST_F(BytesRules, LostGrowthIsToldToTheNextFsyncAndTheNextClose) {
  Begin("local");
  bed.worker->ledger.SetTellsAtClose(true);
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  bed.sys.FailNext("FSync", bed.target_fs, EIO);
  {
    fusefs::FileRef r = bed.worker->table.Get(id);
    EXPECT_FALSE(bed.worker->ledger.SyncObject(*r, false).has_value());
  }
  auto flushed = bed.worker->data.Flush(id);
  ASSERT_FALSE(flushed.has_value());
  EXPECT_EQ(flushed.error().Errno(), EIO);
  EXPECT_TRUE(bed.worker->data.Flush(id).has_value());
  EXPECT_FALSE(bed.worker->data.FSync(id, true).has_value());
  EXPECT_TRUE(bed.worker->data.FSync(id, true).has_value());
}

// NFS tells of a full server at fsync or close (nfs-and-peers.md, section 3).
TEST_F(BytesRules, WhereTheTargetTellsAtCloseAFullOneIsToldToTheClose) {
  Begin("local");
  fusefs::DataPath& data = bed.worker->data;
  bed.worker->ledger.SetTellsAtClose(true);
  const uint64_t before = bed.sys.CallsOf("FSync");
  EXPECT_TRUE(data.Flush(id).has_value());
  EXPECT_EQ(bed.sys.CallsOf("FSync"), before);  // nothing there to be told of
  ASSERT_TRUE(data.Write(id, 5, std::span<const char>("grown", 5), 0, false)
                  .has_value());
  bed.sys.FailNext("FSync", bed.target_fs, ENOSPC);
  auto closed = data.Flush(id);
  ASSERT_FALSE(closed.has_value());
  EXPECT_EQ(closed.error().Errno(), ENOSPC);
  EXPECT_TRUE(data.Flush(id).has_value());
  const uint64_t synced = bed.sys.CallsOf("FSync");
  EXPECT_TRUE(data.Flush(id).has_value());
  EXPECT_EQ(bed.sys.CallsOf("FSync"), synced);  // clean by now
}

TEST_F(BytesRules, V9TheRemoteRecordComesAfterATargetFsync) {
  Begin(Bytes(100, 'a'));
  bed.sys.FailNext("PWrite", bed.source_fs, EIO);
  size_t at_fsync = MemoryJournal::npos;
  Before("FSync", bed.target_fs,
         [&] { at_fsync = bed.journal.Count<RemoteFact>(); });
  ASSERT_EQ(*bed.Write(id, 10, "xyz"), 3u);
  EXPECT_EQ(at_fsync, 0u);
  EXPECT_EQ(bed.journal.Count<RemoteFact>(), 1u);
  EXPECT_EQ(bed.Read(id, 9, 5), "axyza");
}

TEST_F(BytesRules, R1AReadRepeatsIfTheMapMovedUnderIt) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  Before("PRead", bed.source_fs, [&] {
    ASSERT_TRUE(bed.worker->data.Truncate(id, 50, false).has_value());
    bed.Settle();
    ASSERT_TRUE(bed.Write(id, 50, Bytes(50, 'b')).has_value());
  });
  EXPECT_EQ(bed.ReadAll(id), Bytes(50, 'a') + Bytes(50, 'b'));
}

TEST_F(BytesRules, R2AndR3TheCutMakesTheObjectExactlyAsLongAndDurable) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  ASSERT_TRUE(bed.worker->data.Truncate(id, 8, false).has_value());
  // A power cut may have taken the growth: the object is shorter than the cut.
  {
    auto fd = bed.worker->objects.Data(id);
    ASSERT_TRUE(bed.sys.FTruncate((*fd)->Get(), 6).has_value());
  }
  EXPECT_EQ(*bed.worker->data.SizeOf(id), 8u);
  size_t done_at_fsync = MemoryJournal::npos;
  Before("FSync", bed.target_fs,
         [&] { done_at_fsync = bed.journal.Count<CutDoneFact>(); });
  EXPECT_TRUE(bed.worker->cutter.Step());
  EXPECT_EQ(done_at_fsync, 0u);
  EXPECT_EQ(bed.OnTarget(id).size(), 8u);
  EXPECT_EQ(*bed.worker->data.SizeOf(id), 8u);
}

TEST_F(BytesRules, R5GrowthThatIsWrittenWhileBroughtBackIsBroughtBackAgain) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "GROWN").has_value());
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  Before("PWrite", bed.source_fs,
         [&] { ASSERT_TRUE(bed.Write(id, 6, "xyz").has_value()); });
  ASSERT_TRUE(bed.worker->back.Step().has_value());
  EXPECT_EQ(bed.worker->table.Get(id)->facts.map.local_end(), 5u);
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_EQ(bed.worker->table.Get(id)->facts.map.local_end(), 10u);
  EXPECT_EQ(bed.OnSource("f"), "localGxyzN");
}

TEST_F(BytesRules, AFileThatGrowsAfterTheListWasMadeIsBroughtBack) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  ASSERT_TRUE(*bed.worker->back.Step());
  state::FileId late = bed.Create("late");
  ASSERT_TRUE(bed.Write(late, 0, "not in the list").has_value());
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_EQ(bed.OnSource("late"), "not in the list");
}

// The pause of an abort: what it costs does not depend on the size of the tree.
TEST_F(BytesRules, TheEndOfAnAbortAsksNothingOfFilesThatAreAlike) {
  for (const bool resumed : {false, true}) {
    std::vector<size_t> asked;
    for (const int files : {10, 200}) {
      BytesBed own;
      for (int i = 0; i < files; i++)
        own.MakeSource("f" + std::to_string(i), "some bytes");
      own.Start();
      for (int i = 0; i < files; i++)
        own.worker->engine.Enqueue(own.Id("f" + std::to_string(i)));
      own.Settle();
      for (int i = 0; i < files; i++) {
        state::FileId made = own.Create("n" + std::to_string(i));
        ASSERT_TRUE(own.Write(made, 0, "new bytes").has_value());
      }
      if (resumed) {
        own.Kill();
        own.Start();
      }
      own.worker->data.SetServing(fusefs::Serving::kAborting);
      while (*own.worker->back.Step()) {
      }
      EXPECT_TRUE(own.worker->back.Looked());
      ASSERT_TRUE(own.Write(own.Id("n7"), 9, " and more").has_value());
      // A large tree has more files than are kept open.
      for (state::FileId known : own.worker->table.KnownFiles())
        own.worker->source.Drop(known);
      size_t calls = 0;
      own.sys.on_call = [&](const FakeSyscalls::Call&) {
        calls++;
        return 0;
      };
      ASSERT_TRUE(own.worker->back.Finish(-1).has_value());
      own.sys.on_call = nullptr;
      asked.push_back(calls);
      EXPECT_EQ(own.OnSource("n7"), "new bytes and more");
      EXPECT_EQ(own.OnSource("f7"), "some bytes");
    }
    EXPECT_EQ(asked[0], asked[1]) << resumed;
  }
}

TEST_F(BytesRules, ManySmallFilesAreBroughtBackWithFewSyncs) {
  Begin("local");
  constexpr uint64_t kFiles = 200;
  for (uint64_t i = 0; i < kFiles; i++) {
    state::FileId made = bed.Create("n" + std::to_string(i));
    ASSERT_TRUE(bed.Write(made, 0, "new bytes").has_value());
  }
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  EXPECT_EQ(bed.worker->back.WhatTheSourceLacks()->files, kFiles);
  size_t syncs = 0;
  bed.sys.on_call = [&](const FakeSyscalls::Call& call) {
    syncs += call.fs == bed.source_fs &&
             std::string_view(call.name).contains("Sync");
    return 0;
  };
  while (*bed.worker->back.Step()) {
  }
  bed.sys.on_call = nullptr;
  EXPECT_LE(syncs, 4u);
  EXPECT_EQ(bed.worker->back.WhatTheSourceLacks()->files, 0u);
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  for (uint64_t i = 0; i < kFiles; i++)
    EXPECT_EQ(bed.OnSource("n" + std::to_string(i)), "new bytes");
}

// Nobody is kept frozen for what is left.
TEST_F(BytesRules, TheEndOfAnAbortGivesUpAtItsDeadline) {
  Begin("local");
  for (int i = 0; i < 2000; i++) {
    state::FileId made = bed.Create("n" + std::to_string(i));
    ASSERT_TRUE(bed.Write(made, 0, "new bytes").has_value());
  }
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  auto finished = bed.worker->back.Finish(bed.sys.MonotonicNs());
  ASSERT_FALSE(finished.has_value());
  EXPECT_EQ(finished.error().code, core::ErrorCode::kTimeout);
  EXPECT_GT(bed.worker->back.WhatTheSourceLacks()->files, 0u);
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_EQ(bed.OnSource("n1999"), "new bytes");
}

// A truncate that the source refuses is done by the journal's word.
TEST_F(BytesRules, WhatTheSourceKeepsOfATruncatedFileIsNotShownByAnAbort) {
  Begin("bytes of the source");
  ASSERT_TRUE(bed.Write(id, 19, " and more").has_value());
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  while (*bed.worker->back.Step()) {
  }
  bed.sys.on_call = [&](const FakeSyscalls::Call& call) {
    return call.fs == bed.source_fs &&
                   std::string_view(call.name) == "FTruncate"
               ? EIO
               : 0;
  };
  ASSERT_TRUE(bed.worker->data.Truncate(id, 5, false).has_value());
  bed.sys.on_call = nullptr;
  ASSERT_TRUE(bed.worker->cutter.Step());
  EXPECT_EQ(bed.OnSource("f"), "bytes of the source and more");
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_EQ(bed.OnSource("f"), "bytes");
}

// The piece is written on behind the truncate.
TEST_F(BytesRules, AFileThatIsTruncatedWhileItIsBroughtBackEndsThere) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "GROWN").has_value());
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  Before("PWrite", bed.source_fs, [&] {
    ASSERT_TRUE(bed.worker->data.Truncate(id, 3, false).has_value());
  });
  ASSERT_TRUE(*bed.worker->back.Step());
  ASSERT_TRUE(bed.worker->cutter.Step());
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_EQ(bed.OnSource("f"), "loc");
}

TEST_F(BytesRules, ATimeThatIsSetWhileAFileIsBroughtBackStays) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  const struct timespec set[2] = {{0, UTIME_OMIT}, {1234, 5678}};
  auto on_source = [&] {
    auto fd = bed.worker->source.Path(id);
    return bed.sys.UTimens((*fd)->Get(), set);
  };
  Before("PWrite", bed.source_fs, [&] {
    ASSERT_TRUE(bed.worker->data.ChangeAttrs(id, {.times = set}, on_source).has_value());
  });
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  auto fd = bed.worker->source.Path(id);
  auto st = bed.sys.StatAt((*fd)->Get(), "", STATX_BASIC_STATS);
  EXPECT_EQ(st->stx_mtime.tv_sec, 1234);
  EXPECT_EQ(st->stx_mtime.tv_nsec, 5678u);
}

// --- what writing to the source moves beside its bytes

class BytesPutBack : public BytesRules {
 protected:
  void SetUp() override {
    Begin("local");
    ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
    written = Mtime();
    bed.sys.AdvanceClock(5'000'000'000);
    bed.worker->data.SetServing(fusefs::Serving::kAborting);
  }
  timespec Mtime() {
    auto fd = bed.worker->source.Path(id);
    auto st = bed.sys.StatAt((*fd)->Get(), "", STATX_BASIC_STATS);
    return {st->stx_mtime.tv_sec, st->stx_mtime.tv_nsec};
  }
  bool IsAsWritten() {
    const timespec now = Mtime();
    return now.tv_sec == written.tv_sec && now.tv_nsec == written.tv_nsec;
  }
  // The worker dies when the bytes have been written and nothing was put back.
  // meanwhile comes before the first of them.
  void KillInAPiece(std::function<void()> meanwhile = {}) {
    bool dying = false;
    bed.sys.on_call = [this, &dying, &meanwhile](const FakeSyscalls::Call& call) {
      const std::string_view name = call.name;
      if (call.fs != bed.source_fs)
        return 0;
      if (name == "PWrite" && meanwhile) {
        auto act = std::exchange(meanwhile, nullptr);
        act();
      }
      dying = dying || name == "FSync";
      return dying && (name == "FSync" || name == "UTimens") ? EIO : 0;
    };
    EXPECT_FALSE(bed.worker->back.Step().has_value());
    bed.sys.on_call = nullptr;
    EXPECT_FALSE(IsAsWritten());
    bed.Kill();
  }
  void Succeed() {
    bed.Start("boot-1");
    bed.worker->data.SetServing(fusefs::Serving::kAborting);
    ASSERT_TRUE(bed.worker->back.PutBackAll().has_value());
  }
  timespec written{};
};

TEST_F(BytesPutBack, ASuccessorPutsTheTimeBack) {
  KillInAPiece();
  Succeed();
  EXPECT_TRUE(IsAsWritten());
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_TRUE(IsAsWritten());
  EXPECT_EQ(bed.OnSource("f"), "localgrown");
}

TEST_F(BytesPutBack, ASuccessorLeavesTheTimeOfALaterWrite) {
  KillInAPiece([this] {
    bed.sys.AdvanceClock(5'000'000'000);
    ASSERT_TRUE(bed.Write(id, 0, "L").has_value());
  });
  Succeed();
  EXPECT_FALSE(IsAsWritten());
}

TEST_F(BytesPutBack, ASuccessorPutsBackATimeThatWasSetMeanwhile) {
  const struct timespec set[2] = {{0, UTIME_OMIT}, {1234, 5678}};
  KillInAPiece([&] {
    auto on_source = [&] {
      auto fd = bed.worker->source.Path(id);
      return bed.sys.UTimens((*fd)->Get(), set);
    };
    ASSERT_TRUE(
        bed.worker->data.ChangeAttrs(id, {.times = set}, on_source).has_value());
  });
  Succeed();
  EXPECT_EQ(Mtime().tv_sec, 1234);
  EXPECT_EQ(Mtime().tv_nsec, 5678);
}

// As tar and cp -p do.
TEST_F(BytesPutBack, ATimeThatIsSetAfterAWriteInTheSamePieceStays) {
  const struct timespec set[2] = {{0, UTIME_OMIT}, {1234, 5678}};
  auto on_source = [&] {
    auto fd = bed.worker->source.Path(id);
    return bed.sys.UTimens((*fd)->Get(), set);
  };
  Before("PWrite", bed.source_fs, [&] {
    ASSERT_TRUE(bed.Write(id, 7, "OWN").has_value());
    ASSERT_TRUE(
        bed.worker->data.ChangeAttrs(id, {.times = set}, on_source).has_value());
  });
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_EQ(bed.OnSource("f"), "localgrOWN");
  EXPECT_EQ(Mtime().tv_sec, 1234);
  EXPECT_EQ(Mtime().tv_nsec, 5678);
  EXPECT_TRUE(bed.worker->table.ToPutBack().empty());
}

// The time of the first stood in for the source's until the next sync.
TEST_F(BytesPutBack, AWriteInAPieceDoesNotHideTheTimeOfOneAfterIt) {
  Before("PWrite", bed.source_fs, [&] {
    ASSERT_TRUE(bed.Write(id, 0, "L").has_value());
  });
  ASSERT_TRUE(*bed.worker->back.Step());
  const timespec first = Mtime();
  bed.sys.AdvanceClock(5'000'000'000);
  ASSERT_TRUE(bed.Write(id, 1, "O").has_value());
  const timespec second = Mtime();
  ASSERT_GT(second.tv_sec, first.tv_sec);
  auto fd = bed.worker->source.Path(id);
  auto st = bed.sys.StatAt((*fd)->Get(), "", STATX_BASIC_STATS);
  ASSERT_TRUE(bed.worker->data.Complete(id, &*st).has_value());
  EXPECT_EQ(st->stx_mtime.tv_sec, second.tv_sec);
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_GE(Mtime().tv_sec, second.tv_sec);
}

TEST_F(BytesPutBack, AWriteIsDurablyTheLastWordBeforeItIsMade) {
  ASSERT_TRUE(*bed.worker->back.Step());
  bool seen = false;
  Before("PWrite", bed.source_fs, [&] {
    seen = true;
    EXPECT_LT(bed.journal.Last<state::PutBackDoneFact>(), bed.journal.durable);
  });
  ASSERT_TRUE(bed.Write(id, 0, "L").has_value());
  EXPECT_TRUE(seen);
}

// What one piece has put back is not said to be for the next one.
TEST_F(BytesPutBack, ATrimThatFailedIsNotSaidToBeDone) {
  ASSERT_TRUE(*bed.worker->back.Step());
  ASSERT_TRUE(bed.Write(id, 10, "more").has_value());
  ASSERT_TRUE(*bed.worker->back.Step());
  bed.worker->table.SetUntrimmed(id, true);
  {
    auto fd = bed.worker->source.Data(id);
    ASSERT_TRUE(bed.sys.FTruncate((*fd)->Get(), 100).has_value());
  }
  bed.sys.FailNext("UTimens", bed.source_fs, EIO);
  EXPECT_FALSE(bed.worker->back.Finish(-1).has_value());
  EXPECT_EQ(bed.worker->table.ToPutBack().size(), 1u);
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_TRUE(bed.worker->table.ToPutBack().empty());
}

TEST_F(BytesPutBack, WhatIsToBePutBackIsDurableBeforeTheFirstByte) {
  Before("PWrite", bed.source_fs, [&] {
    EXPECT_LT(bed.journal.Last<state::PutBackFact>(), bed.journal.durable);
  });
  ASSERT_TRUE(*bed.worker->back.Step());
  EXPECT_EQ(bed.journal.Count<state::PutBackFact>(), 1u);
}

// The time that was put back could go with a power cut, and the new one not.
TEST_F(BytesPutBack, ItIsDoneWithTheNextSyncOfTheSource) {
  ASSERT_TRUE(*bed.worker->back.Step());
  EXPECT_TRUE(IsAsWritten());
  EXPECT_EQ(bed.journal.Count<state::PutBackDoneFact>(), 0u);
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_EQ(bed.journal.Count<state::PutBackDoneFact>(), 1u);
  EXPECT_EQ(bed.worker->table.ToPutBack().size(), 0u);
}

TEST_F(BytesPutBack, AStatMeanwhileShowsTheTimeThatItHad) {
  Before("FSync", bed.source_fs, [&] {
    EXPECT_FALSE(IsAsWritten());
    auto fd = bed.worker->source.Path(id);
    auto st = bed.sys.StatAt((*fd)->Get(), "", STATX_BASIC_STATS);
    ASSERT_TRUE(bed.worker->data.Complete(id, &*st).has_value());
    EXPECT_EQ(st->stx_mtime.tv_sec, written.tv_sec);
    EXPECT_EQ(st->stx_mtime.tv_nsec, written.tv_nsec);
  });
  ASSERT_TRUE(*bed.worker->back.Step());
}

TEST_F(BytesPutBack, ACapabilityThatWasTakenAwayMeanwhileStaysAway) {
  auto fd = bed.worker->source.Path(id);
  ASSERT_TRUE(
      bed.sys.SetXattr((*fd)->Get(), fusefs::kCapability, "cap", 0).has_value());
  Before("PWrite", bed.source_fs, [&] {
    ASSERT_TRUE(bed.worker->data
                    .ChangeAttrs(id, {.capability = ""},
                                 [&] {
                                   return bed.sys.RemoveXattr(
                                       (*fd)->Get(), fusefs::kCapability);
                                 })
                    .has_value());
  });
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_FALSE(
      bed.sys.GetXattr((*fd)->Get(), fusefs::kCapability).has_value());
}

TEST_F(BytesRules, WhatWasDeletedIsNotLackedByTheSource) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  EXPECT_EQ(bed.worker->back.WhatTheSourceLacks()->files, 1u);
  core::UniqueFd root = bed.sys.OpenRoot(bed.source_fs);
  ASSERT_TRUE(bed.sys.UnlinkAt(root.Get(), "f", 0).has_value());
  bed.worker->source.Drop(id);
  EXPECT_EQ(bed.worker->back.WhatTheSourceLacks()->files, 0u);
}

// The kernel tells each descriptor once of an error in writing back.
TEST_F(BytesRules, AnAbortSyncsTheSourceByADescriptorOfItsOwn) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  size_t syncs = 0;
  bed.sys.on_call = [&](const FakeSyscalls::Call& call) {
    if (std::string_view(call.name) == "SyncFs" && call.fs == bed.source_fs) {
      syncs++;
      EXPECT_NE(call.fd, bed.worker->source.RootFd());
    }
    return 0;
  };
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  bed.sys.on_call = nullptr;
  EXPECT_EQ(syncs, 1u);
}

// Each file's piece stands for itself: one whose writer comes in between is
// brought back again, the others are done.
TEST_F(BytesRules, APieceThatIsWrittenIsNotClaimedWithTheOthersOfItsSync) {
  Begin("local");
  std::vector<state::FileId> made;
  for (int i = 0; i < 10; i++) {
    made.push_back(bed.Create("n" + std::to_string(i)));
    ASSERT_TRUE(bed.Write(made.back(), 0, "new bytes").has_value());
  }
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  Before("SyncFs", bed.source_fs, [&] {
    ASSERT_TRUE(bed.Write(made[4], 0, "NEW").has_value());
  });
  ASSERT_TRUE(*bed.worker->back.Step());
  for (size_t i = 0; i < made.size(); i++)
    EXPECT_EQ(bed.worker->table.Get(made[i])->facts.map.local_end(),
              i == 4 ? 0u : 9u);
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_EQ(bed.OnSource("n4"), "NEW bytes");
  EXPECT_EQ(bed.OnSource("n5"), "new bytes");
}

TEST_F(BytesRules, AFileThatTheSourceLostIsNotBroughtBack) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  bed.Kill();
  {
    core::UniqueFd root = bed.sys.OpenRoot(bed.source_fs);
    ASSERT_TRUE(bed.sys.UnlinkAt(root.Get(), "f", 0).has_value());
  }
  bed.Start();
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  EXPECT_EQ(bed.worker->back.WhatTheSourceLacks()->bytes, 0u);
  EXPECT_TRUE(bed.worker->back.Finish(-1).has_value());
}

TEST_F(BytesRules, WhatTheSourceLacksCountsGrowth) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, Bytes(1000, 'g')).has_value());
  EXPECT_EQ(bed.worker->back.WhatTheSourceLacks()->bytes, 1000u);
}

TEST_F(BytesRules, BringingBackKeepsTheTimesOfTheLastWrite) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  auto fd = bed.worker->source.Path(id);
  auto before = bed.sys.StatAt((*fd)->Get(), "", STATX_BASIC_STATS);
  bed.sys.AdvanceClock(5'000'000'000);
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  auto after = bed.sys.StatAt((*fd)->Get(), "", STATX_BASIC_STATS);
  EXPECT_EQ(before->stx_mtime.tv_sec, after->stx_mtime.tv_sec);
  EXPECT_EQ(before->stx_mtime.tv_nsec, after->stx_mtime.tv_nsec);
  EXPECT_EQ(bed.OnSource("f"), "localgrown");
}

TEST_F(BytesRules, HolesStayHoles) {
  bed.MakeSource("f", "");
  {
    core::UniqueFd root = bed.sys.OpenRoot(bed.source_fs);
    auto fd = bed.sys.OpenAt(root.Get(), "f", O_RDWR, 0);
    ASSERT_TRUE(bed.sys.FTruncate(fd->Get(), 5 * kMiB).has_value());
    ASSERT_TRUE(bed.sys.PWrite(fd->Get(), "x", 1, 3 * kMiB).has_value());
    bed.sys.MakeAllDurable(bed.source_fs);
  }
  bed.Start();
  id = bed.Id("f");
  CopyAll();
  EXPECT_EQ(bed.OnTarget(id), bed.OnSource("f"));
  EXPECT_LE(bed.sys.UsedBytes(bed.target_fs), 2 * FakeSyscalls::kPage);
}

TEST_F(BytesRules, AHolePunchedIntoACopiedChunkReachesTheTarget) {
  for (bool takes_punch : {true, false}) {
    bed.sys.SetTakesPunch(bed.target_fs, takes_punch);
    std::string name = takes_punch ? "p" : "q";
    bed.MakeSource(name, Bytes(3 * 4096, 'a'));
    if (!bed.worker)
      bed.Start();
    id = bed.Id(name);
    CopyAll();
    ASSERT_TRUE(bed.worker->data
                    .FAllocate(id, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               4096, 4096)
                    .has_value());
    bed.Settle();
    std::string want = Bytes(4096, 'a') + Bytes(4096, 0) + Bytes(4096, 'a');
    EXPECT_EQ(bed.ReadAll(id), want);
    EXPECT_EQ(bed.OnTarget(id), want);
  }
}

TEST_F(BytesRules, ShiftingFallocateIsRefused) {
  Begin(Bytes(100, 'a'));
  auto done = bed.worker->data.FAllocate(id, FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
  ASSERT_FALSE(done.has_value());
  EXPECT_EQ(done.error().Errno(), EOPNOTSUPP);
}

TEST_F(BytesRules, SeekMergesBothSides) {
  Begin(Bytes(4096, 'a'));
  ASSERT_TRUE(bed.worker->data.Truncate(id, 10 * 4096, false).has_value());
  ASSERT_TRUE(bed.Write(id, 8 * 4096, "x").has_value());
  fusefs::DataPath& data = bed.worker->data;
  EXPECT_EQ(*data.LSeek(id, 0, SEEK_DATA), 0);
  EXPECT_EQ(*data.LSeek(id, 0, SEEK_HOLE), 4096);
  EXPECT_EQ(*data.LSeek(id, 4096, SEEK_DATA), 8 * 4096);
  EXPECT_EQ(*data.LSeek(id, 8 * 4096, SEEK_HOLE), 9 * 4096);
  auto past = data.LSeek(id, 9 * 4096, SEEK_DATA);
  ASSERT_FALSE(past.has_value());
  EXPECT_EQ(past.error().Errno(), ENXIO);
}

TEST_F(BytesRules, ANewFileIsTheTargetsFromBirth) {
  bed.Start();
  FileId f = bed.Create("new");
  ASSERT_TRUE(bed.Write(f, 0, "hello").has_value());
  EXPECT_EQ(bed.OnSource("new"), "");
  EXPECT_EQ(bed.OnTarget(f), "hello");
  core::Stat st{};
  ASSERT_TRUE(bed.worker->data.Complete(f, &st).has_value());
  EXPECT_EQ(st.stx_size, 5u);
  EXPECT_EQ(st.stx_blocks, 1u);
  size_t synced = bed.journal.durable;
  ASSERT_TRUE(bed.worker->data.FSync(f, false).has_value());
  EXPECT_GT(bed.journal.durable, synced);
  EXPECT_EQ(bed.journal.durable, bed.journal.facts.size());
}

TEST_F(BytesRules, ANewFilesBytesSurviveAPowerCutAfterFsync) {
  std::mt19937_64 rng(7);
  for (int i = 0; i < 20; i++) {
    BytesBed own;
    own.Start();
    FileId f = own.Create("new");
    ASSERT_TRUE(own.Write(f, 0, "hello").has_value());
    ASSERT_TRUE(own.worker->data.FSync(f, true).has_value());
    own.PowerCut(rng);
    own.Start("boot-2");
    EXPECT_EQ(own.Id("new"), f);
    EXPECT_EQ(own.ReadAll(f), "hello");
  }
}

TEST_F(BytesRules, BytesOfALostLifeAreCutFromTheObject) {
  Begin("local");
  // The object has growth, but the journal lost its local end.
  ASSERT_TRUE(bed.Write(id, 5, "grown").has_value());
  bed.worker.reset();
  bed.sys.CloseAll();
  std::erase_if(bed.journal.facts, [](const state::Fact& fact) {
    return std::holds_alternative<LocalEndFact>(fact);
  });
  bed.Start("boot-2");
  EXPECT_EQ(bed.ReadAll(id), "local");
  CopyAll();
  EXPECT_EQ(bed.OnTarget(id), "local");
}

TEST_F(BytesRules, SetuidAndCapabilitiesGoWhenTheKernelSaysSo) {
  Begin("program");
  auto fd = bed.worker->source.Path(id);
  ASSERT_TRUE(bed.sys.ChMod((*fd)->Get(), 06755).has_value());
  ASSERT_TRUE(bed.sys.SetXattr((*fd)->Get(), "security.capability", "caps", 0)
                  .has_value());
  ASSERT_TRUE(
      bed.worker->data.Write(id, 0, std::string("P"), O_RDWR, true).has_value());
  auto st = bed.sys.StatAt((*fd)->Get(), "", STATX_MODE);
  EXPECT_EQ(st->stx_mode & 07777, 0755);
  EXPECT_FALSE(
      bed.sys.GetXattr((*fd)->Get(), "security.capability").has_value());
}

TEST_F(BytesRules, WhileAttachingOthersAppendToo) {
  bed.MakeSource("f", "one,");
  bed.Start();
  id = bed.Id("f");
  bed.worker->data.SetServing(fusefs::Serving::kSourceOnly);
  {
    auto fd = bed.worker->source.Data(id);
    ASSERT_TRUE(bed.sys.WriteAppend((*fd)->Get(), "two,", 4).has_value());
  }
  // The kernel's idea of the end is old.
  std::string three = "three";
  ASSERT_TRUE(bed.worker->data.Write(id, 4, three, O_WRONLY | O_APPEND, false)
                  .has_value());
  EXPECT_EQ(bed.OnSource("f"), "one,two,three");
}

// What the kernel takes for the end may be as old as the attach.
TEST_F(BytesRules, AnAppendNeverGoesBeforeTheEnd) {
  Begin("one,two,");
  std::string three = "three,", four = "four";
  ASSERT_TRUE(bed.worker->data.Write(id, 4, three, O_WRONLY | O_APPEND, false)
                  .has_value());
  ASSERT_TRUE(bed.worker->data.Write(id, 8, four, O_WRONLY | O_APPEND, false)
                  .has_value());
  EXPECT_EQ(bed.Read(id, 0, 100), "one,two,three,four");
}

TEST_F(BytesRules, AfterCutoverTheTargetAloneIsServed) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  bed.worker->data.SetServing(fusefs::Serving::kTargetOnly);
  ASSERT_TRUE(bed.Write(id, 0, "target").has_value());
  EXPECT_EQ(bed.OnSource("f"), Bytes(100, 'a'));
  EXPECT_EQ(bed.Read(id, 0, 7), "targeta");
  EXPECT_EQ(*bed.worker->data.SizeOf(id), 100u);
}

// ------------------------------------------------------ copier and verifier

TEST_F(BytesRules, AWrongByteOnTheTargetsStorageIsFoundAndCopiedAgain) {
  for (bool direct : {true, false}) {
    BytesBed own;
    own.sys.SetTakesDirect(own.target_fs, direct);
    own.MakeSource("f", Bytes(2 * kMiB + 5, 'a'));
    own.Start();
    FileId f = own.Id("f");
    own.worker->engine.Enqueue(f);
    bool rotten = false;
    own.sys.on_call = [&](const FakeSyscalls::Call& call) {
      if (!rotten && call.fs == own.target_fs &&
          std::string(call.name) == "FSync") {
        rotten = true;
        own.sys.CorruptStorage(own.target_fs, call.ino, kMiB + 17);
      }
      return 0;
    };
    own.Settle();
    copy::CopyEngine::Progress p = own.worker->engine.GetProgress();
    EXPECT_EQ(p.mismatches, 1u);
    EXPECT_TRUE(own.worker->engine.VerifyFailures().empty());
    EXPECT_EQ(p.bytes_copied, 2 * kMiB + 5);
    EXPECT_EQ(p.files_copied, 1u);
  }
}

TEST_F(BytesRules, AChunkThatDiffersTwiceIsReportedAndNeverClaimed) {
  Begin(Bytes(3 * kMiB, 'a'));
  bed.worker->engine.Enqueue(id);
  bool rotten = false;
  bed.sys.on_call = [&](const FakeSyscalls::Call& call) {
    if (!rotten && call.fs == bed.target_fs &&
        std::string(call.name) == "FSync") {
      rotten = true;
      bed.sys.CorruptStorage(bed.target_fs, call.ino, kMiB + 17, 1000);
    }
    return 0;
  };
  for (int i = 0; i < 20; i++) {
    bed.worker->engine.Step();
    bed.sys.AdvanceClock(1'000'000'000);
  }
  auto failures = bed.worker->engine.VerifyFailures();
  ASSERT_EQ(failures.size(), 1u);
  EXPECT_EQ(failures[0].chunk, 1u);
  EXPECT_FALSE(bed.worker->engine.Idle());
  EXPECT_TRUE(Copied(0));
  EXPECT_FALSE(Copied(1));
  EXPECT_TRUE(Copied(2));
}

TEST_F(BytesRules, AFullTargetIsSaidAndTriedAgain) {
  Begin(Bytes(2 * kMiB, 'a'));
  bed.sys.SetSpace(bed.target_fs, kMiB / 2);
  bed.worker->engine.Enqueue(id);
  bed.worker->engine.Step();
  EXPECT_THAT(bed.worker->engine.GetProgress().reason,
              testing::HasSubstr("ENOSPC"));
  EXPECT_FALSE(bed.worker->engine.Step());  // backs off
  EXPECT_FALSE(Copied(0));
  bed.sys.SetSpace(bed.target_fs, 100 * kMiB);
  bed.Settle();
  EXPECT_EQ(bed.OnTarget(id), bed.OnSource("f"));
}

TEST_F(BytesRules, ManySmallFilesShareOneSync) {
  for (int i = 0; i < 50; i++)
    bed.MakeSource("f" + std::to_string(i), "content " + std::to_string(i));
  bed.Start();
  for (int i = 0; i < 50; i++)
    bed.worker->engine.Enqueue(bed.Id("f" + std::to_string(i)));
  uint64_t syncs = bed.sys.CallsOf("SyncFs"), fsyncs = bed.sys.CallsOf("FSync");
  ASSERT_TRUE(bed.worker->engine.Step());
  EXPECT_EQ(bed.sys.CallsOf("SyncFs"), syncs + 1);
  EXPECT_EQ(bed.sys.CallsOf("FSync"), fsyncs);
  EXPECT_TRUE(bed.worker->engine.Idle());
  for (int i = 0; i < 50; i++)
    EXPECT_EQ(bed.OnTarget(bed.Id("f" + std::to_string(i))),
              "content " + std::to_string(i));
}

TEST_F(BytesRules, AChunkThatIsWrittenAllTheTimeIsClaimedInTheEnd) {
  Begin(Bytes(kMiB, 'a'));
  bed.worker->engine.Enqueue(id);
  // A write during each sync of the target: never a quiet moment there.
  int writes = 0;
  bool busy = false;
  bed.sys.on_call = [&](const FakeSyscalls::Call& call) {
    if (!busy && call.fs == bed.target_fs &&
        std::string(call.name) == "FSync") {
      busy = true;
      writes++;
      EXPECT_TRUE(bed.Write(id, 100, "w" + std::to_string(writes)).has_value());
      busy = false;
    }
    return 0;
  };
  bed.Settle();
  EXPECT_GE(writes, 1);
  ASSERT_TRUE(Copied(0));
  EXPECT_TRUE(bed.worker->table.Get(id)->facts.map.IsHot(0));
  EXPECT_EQ(bed.OnTarget(id), bed.OnSource("f"));
}

TEST_F(BytesRules, AWriteDuringTheCopyIsNotLost) {
  Begin(Bytes(kMiB, 'a'));
  bed.worker->engine.Enqueue(id);
  Before("PWrite", bed.target_fs,
         [&] { ASSERT_TRUE(bed.Write(id, 100, "new").has_value()); });
  bed.Settle();
  EXPECT_EQ(bed.OnTarget(id), bed.OnSource("f"));
  EXPECT_EQ(bed.OnTarget(id).substr(100, 3), "new");
}

TEST_F(BytesRules, BringingBytesBackTakesNoCapabilityAway) {
  Begin("local");
  ASSERT_TRUE(bed.Write(id, 5, " and more").has_value());
  auto fd = bed.worker->source.Path(id);
  ASSERT_TRUE(fd.has_value());
  ASSERT_TRUE(
      bed.sys.SetXattr((*fd)->Get(), "security.capability", "cap", 0));
  bed.worker->data.SetServing(fusefs::Serving::kAborting);
  for (core::Result<bool> did = true; *did; did = bed.worker->back.Step())
    ASSERT_TRUE(did.has_value());
  ASSERT_TRUE(bed.worker->back.Finish(-1).has_value());
  EXPECT_EQ(bed.OnSource("f"), "local and more");
  auto kept = bed.sys.GetXattr((*fd)->Get(), "security.capability");
  ASSERT_TRUE(kept.has_value()) << kept.error().ToString();
  EXPECT_EQ(*kept, "cap");
}

TEST_F(BytesRules, TheCopierNeverWritesPastALocalEndThatFell) {
  Begin(Bytes(kMiB, 'a'));
  bed.worker->engine.Enqueue(id);
  Before("PWrite", bed.target_fs, [&] {
    ASSERT_TRUE(bed.worker->data.Truncate(id, 10, false).has_value());
    // Its write is in flight over bytes that are the target's alone now.
    EXPECT_FALSE(bed.worker->cutter.Step());
  });
  bed.worker->engine.Step();
  EXPECT_TRUE(bed.worker->cutter.Step());
  ASSERT_TRUE(bed.Write(id, 20, "x").has_value());
  bed.Settle();
  EXPECT_EQ(bed.OnTarget(id), Bytes(10, 'a') + Bytes(10, 0) + "x");
}

TEST_F(BytesRules, PausedCopiersDoNothing) {
  Begin(Bytes(100, 'a'));
  bed.worker->engine.Pause();
  bed.worker->engine.Enqueue(id);
  EXPECT_FALSE(bed.worker->engine.Step());
  EXPECT_TRUE(bed.worker->engine.GetProgress().paused);
  bed.worker->engine.Resume();
  bed.Settle();
  EXPECT_TRUE(Copied(0));
}

TEST_F(BytesRules, AWhollyCopiedIdleFileIsPacked) {
  Begin(Bytes(100, 'a'));
  CopyAll();
  EXPECT_LE(sizeof(fusefs::FileFacts), 144u);
  // Nothing that needs a record in full is left.
  fusefs::FileRef r = bed.worker->table.Get(id);
  EXPECT_TRUE(r->provisional.empty());
  EXPECT_TRUE(r->urgent.empty());
  EXPECT_TRUE(r->stale.empty());
}

}  // namespace
}  // namespace livemv::fake
