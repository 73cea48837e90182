// Random schedules of one file's life under the byte rules: an application,
// copier, cutter, barrier, given-up double writes, errors, kills and power
// cuts, interleaved at every system call; against a model of the file.
//
// The model keeps, for probe offsets around chunk borders and sizes, which
// values a reader may see after a crash: what the last fsync made durable, and
// whatever was written since. Without a crash the whole content is compared.

#include <chrono>
#include <gtest/gtest.h>
#include <linux/falloc.h>

#include <memory>
#include <random>
#include <set>
#include <string>

#include "tests/sim/fibers.h"
#include "tests/support/bytes_bed.h"

namespace livemv::fake {
namespace {

constexpr int kAbsent = -1;

struct Trouble {
  bool source_full = false, target_errors = false, writeback = false;
  bool hangs = false, kills = false, cuts = false, abort = false;
  bool aligned_punch = true;
};

class Life {
 public:
  Life(uint64_t seed, Trouble trouble)
      : seed_(seed), trouble_(trouble), rng_(seed * 2654435761u + 1) {
    for (uint64_t base : {uint64_t{0}, kMiB / 2, kMiB, kMiB + kMiB / 2,
                          2 * kMiB, 2 * kMiB + kMiB / 2})
      for (int64_t d : {-4097, -1, 0, 1, 100, 4096})
        if (static_cast<int64_t>(base) + d >= 0)
          probes_.push_back(base + static_cast<uint64_t>(d));
  }

  void Run() {
    bed_.options.batch_bytes = Draw(2) ? kMiB : 64 * kMiB;
    bed_.options.verify = Draw(4) != 0;
    content_.assign(AnySize(), 'a');
    for (uint64_t at = 0; at < content_.size(); at += 4096)
      if (Draw(3) == 0)  // holes
        std::fill_n(content_.begin() + static_cast<ptrdiff_t>(at),
                    std::min<uint64_t>(4096, content_.size() - at), 0);
    MakeSparse();
    boot_ = "boot-0";
    Begin(false);
    durable_.assign(probes_.size(), {});
    for (size_t i = 0; i < probes_.size(); i++)
      durable_[i] = {At(probes_[i])};
    int lives = 1 + (trouble_.kills || trouble_.cuts ? static_cast<int>(
                                                            Draw(4))
                                                      : 0);
    for (int life = 0; life < lives && !Failed(); life++) {
      bool last = life + 1 == lives;
      Live(last);
      if (!last && !Failed())
        Crash();
    }
    if (!Failed())
      End();
    bed_.worker.reset();
  }

 private:
  static bool Failed() { return testing::Test::HasFailure(); }
  uint64_t Draw(uint64_t below) { return rng_() % below; }
  uint64_t AnySize() {
    return std::min<uint64_t>(Draw(5) * kMiB / 2 + Draw(3) * 2049,
                              5 * kMiB / 2);
  }
  uint64_t AnyOffset() {
    switch (Draw(3)) {
      case 0:
        return content_.size() - std::min<uint64_t>(content_.size(),
                                                    Draw(3) * 3000);
      case 1:
        return probes_[Draw(probes_.size())];
      default:
        return Draw(5 * kMiB / 2);
    }
  }
  int At(uint64_t off) const {
    return off < content_.size() ? static_cast<uint8_t>(content_[off])
                                 : kAbsent;
  }

  void MakeSparse() {
    bed_.MakeSource("f", "");
    core::UniqueFd root = bed_.sys.OpenRoot(bed_.source_fs);
    auto fd = bed_.sys.OpenAt(root.Get(), "f", O_RDWR, 0);
    ASSERT_TRUE(bed_.sys.FTruncate(fd->Get(), content_.size()).has_value());
    for (uint64_t at = 0; at < content_.size(); at += 4096) {
      if (content_[at] == 0)
        continue;
      ASSERT_TRUE(bed_.sys
                      .PWrite(fd->Get(), content_.data() + at,
                              std::min<uint64_t>(4096, content_.size() - at),
                              static_cast<off_t>(at))
                      .has_value());
    }
    bed_.sys.MakeAllDurable(bed_.source_fs);
  }

  void Begin(bool predecessor) {
    bed_.sys.SetYield(false);
    bed_.Start(boot_);
    bed_.sys.SetYield(true);
    id_ = bed_.Id("f");
    ASSERT_NE(id_, state::kNoFile);
    bed_.worker->engine.Enqueue(id_);
    bed_.worker->ledger.SetPredecessorAlive(predecessor);
    if (aborting_)
      bed_.worker->data.SetServing(fusefs::Serving::kAborting);
  }

  // ------------------------------------------------------------ the model

  // What probe p may read after a change that is not durable yet.
  void MayBecome(size_t p, int value) { durable_[p].insert(value); }
  void NoteWrite(uint64_t off, uint64_t len, int value) {
    for (size_t p = 0; p < probes_.size(); p++) {
      if (probes_[p] >= off && probes_[p] < off + len)
        MayBecome(p, value);
      if (probes_[p] < off + len && durable_[p].contains(kAbsent))
        MayBecome(p, 0);
    }
  }
  void NoteTruncate(uint64_t size) {
    for (size_t p = 0; p < probes_.size(); p++) {
      if (probes_[p] >= size)
        MayBecome(p, kAbsent);
      else if (durable_[p].contains(kAbsent))
        MayBecome(p, 0);
    }
  }

  // -------------------------------------------------------- the application

  // One operation; what a resent request does again.
  struct Op {
    int kind = 0;
    uint64_t off = 0, len = 0;
    int value = 0;
  };

  void DoWrite(const Op& op) {
    NoteWrite(op.off, op.len, op.value);
    auto n = bed_.Write(id_, op.off,
                        std::string(op.len, static_cast<char>(op.value)));
    uint64_t done = n ? *n : 0;
    if (!n) {
      ASSERT_TRUE(MayFail()) << n.error().ToString();
    }
    if (done > 0) {
      if (content_.size() < op.off + done)
        content_.resize(op.off + done, 0);
      std::fill_n(content_.begin() + static_cast<ptrdiff_t>(op.off), done,
                  static_cast<char>(op.value));
    }
    if (done < op.len)
      Settle(op);
  }
  void DoTruncate(const Op& op) {
    NoteTruncate(op.off);
    auto done = bed_.worker->data.Truncate(id_, op.off, false);
    if (done) {
      content_.resize(op.off, 0);
    } else {
      ASSERT_TRUE(MayFail()) << done.error().ToString();
      Settle(op);
    }
  }
  void DoPunch(const Op& op) {
    uint64_t end = std::min<uint64_t>(op.off + op.len, content_.size());
    if (op.off < end)
      NoteWrite(op.off, end - op.off, 0);
    auto done = bed_.worker->data.FAllocate(
        id_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, op.off, op.len);
    if (!done) {
      ASSERT_TRUE(MayFail()) << done.error().ToString();
      Settle(op);
    } else if (op.off < end) {
      std::fill(content_.begin() + static_cast<ptrdiff_t>(op.off),
                content_.begin() + static_cast<ptrdiff_t>(end), '\0');
    }
  }
  bool MayFail() const { return trouble_.target_errors; }

  // A failed or short operation has done some of its work, or none: the file
  // says which, and it must be one of the two.
  void Settle(const Op& op) {
    bed_.sys.ClearFailures();
    bed_.sys.SetYield(false);
    std::string now = bed_.ReadAll(id_);
    bed_.sys.SetYield(true);
    uint64_t end = std::max<uint64_t>(now.size(), content_.size());
    ASSERT_LE(end, std::max<uint64_t>(content_.size(), op.off + op.len));
    for (uint64_t at = 0; at < end; at++) {
      int is = at < now.size() ? static_cast<uint8_t>(now[at]) : kAbsent;
      if (is == At(at))
        continue;
      bool in_op = at >= op.off && at < op.off + op.len;
      bool ok = op.kind == 2 ? (at >= op.off && is == kAbsent) || is == 0
                             : (in_op && is == op.value) || is == 0;
      ASSERT_TRUE(ok) << "after a failed operation byte " << at << " reads "
                      << is << " instead of " << At(at);
    }
    content_ = now;
  }

  void DoRead() {
    uint64_t off = AnyOffset(), len = 1 + Draw(5000);
    std::string got(len, '?');
    auto n = bed_.worker->data.Read(id_, off, got);
    if (!n) {
      ASSERT_TRUE(MayFail()) << n.error().ToString();
      return;
    }
    got.resize(*n);
    std::string want =
        off < content_.size() ? content_.substr(off, len) : std::string();
    ASSERT_EQ(got.size(), want.size()) << "read of " << off << "+" << len;
    for (size_t i = 0; i < got.size(); i++)
      ASSERT_EQ(static_cast<uint8_t>(got[i]), static_cast<uint8_t>(want[i]))
          << "byte " << off + i << " of " << content_.size();
  }
  void DoStat() {
    auto size = bed_.worker->data.SizeOf(id_);
    ASSERT_TRUE(size.has_value());
    ASSERT_EQ(*size, content_.size());
  }
  void DoSeek() {
    uint64_t off = AnyOffset();
    auto data = bed_.worker->data.LSeek(id_, static_cast<off_t>(off),
                                        SEEK_DATA);
    Trace("seek", off, data ? static_cast<uint64_t>(*data) : 0);
    // Everything between is zeros.
    uint64_t to = data ? static_cast<uint64_t>(*data) : content_.size();
    for (uint64_t at = off; at < to; at++)
      ASSERT_EQ(At(at), 0) << "SEEK_DATA from " << off << " skipped " << at;
  }
  void DoFSync() {
    std::vector<std::set<int>> then;
    for (uint64_t probe : probes_)
      then.push_back({At(probe)});
    auto done = bed_.worker->data.FSync(id_, Draw(2) == 0);
    if (!done) {
      ASSERT_TRUE(MayFail() || trouble_.writeback) << done.error().ToString();
      return;
    }
    Trace("fsync acknowledged");
    durable_ = then;
  }

  void Application(uint64_t ops) {
    if (resend_) {
      Op op = *std::exchange(resend_, std::nullopt);
      Act(op);
    }
    for (uint64_t i = 0; i < ops && !Failed(); i++) {
      uint64_t k = Draw(20);
      if (k < 8)
        Act({1, AnyOffset(), 1 + Draw(3) * Draw(9000), NextValue()});
      else if (k < 11)
        Act({2, AnyOffset(), 0, 0});
      else if (k < 12)
        Act({3, AnyOffset() & ~uint64_t{4095}, (1 + Draw(4)) * 4096, 0});
      else if (k < 16)
        DoRead();
      else if (k < 17)
        DoStat();
      else if (k < 18)
        DoSeek();
      else
        DoFSync();
    }
  }
  int NextValue() { return value_ = value_ % 250 + 1; }
  void Act(const Op& op) {
    static const char* const kNames[] = {"", "write", "truncate", "punch"};
    current_ = op;
    Trace(kNames[op.kind], op.off, op.len, op.value);
    if (op.kind == 1)
      DoWrite(op);
    else if (op.kind == 2)
      DoTruncate(op);
    else
      DoPunch(op);
    current_.reset();
    Trace("done, size", content_.size());
  }
  // With LIVEMV_BYTES_TRACE set, what happens is told on standard error.
  static void Trace(const char* what, uint64_t a = 0, uint64_t b = 0,
                    int value = 0) {
    static const bool on = getenv("LIVEMV_BYTES_TRACE") != nullptr;
    if (on)
      fprintf(stderr, "%s %llu %llu %d\n", what,
              static_cast<unsigned long long>(a),
              static_cast<unsigned long long>(b), value);
  }

  // ------------------------------------------------------------- the worker

  void Live(bool last) {
    sim::Fibers fibers(rng_());
    bool app_done = false, stop = false;
    int background = 0;
    auto loop = [&](const char* name, auto step) {
      background++;
      fibers.Spawn(name, 1, [&, step] {
        while (!stop && !Failed()) {
          step();
          fibers.Sleep(1'000'000 + static_cast<int64_t>(Draw(3)) * 1'000'000);
        }
        background--;
      });
    };
    BytesBed::Worker& w = *bed_.worker;
    w.writer.hang = [&] { return trouble_.hangs && Draw(6) == 0; };
    fibers.Spawn("application", 1, [&] {
      Application(10 + Draw(40));
      app_done = true;
    });
    if (aborting_) {
      loop("copy-back", [&] {
        auto did = w.back.Step();
        if (!did && !trouble_.target_errors && !trouble_.source_full)
          ADD_FAILURE() << did.error().ToString();
      });
    } else {
      loop("copier 1", [&] { w.engine.Step(); });
      loop("copier 2", [&] { w.engine.Step(); });
    }
    loop("cutter", [&] { w.cutter.Step(); });
    loop("barrier", [&] {
      if (Draw(3) == 0)
        (void)w.ledger.Barrier();  // a failed one marks nothing
    });
    loop("late", [&] {
      if (Draw(3) == 0)
        Land();
    });
    loop("trouble", [&] { MakeTrouble(); });
    uint64_t steps = last ? 3'000'000 : 200 + Draw(4000);
    bool ran = fibers.Run([&] { return app_done || Failed(); }, steps);
    if (last || ran) {
      EXPECT_TRUE(ran || Failed()) << fibers.Stuck();
      bed_.sys.ClearFailures();
      stop = true;
      if (!Failed()) {
        EXPECT_TRUE(fibers.Run([&] { return background == 0; }, 3'000'000))
            << fibers.Stuck();
      }
    }
    if (!last)
      fibers.Kill(1);  // the stacks go as they are
    w.writer.hang = nullptr;
  }

  // Late calls of this worker or of the one before it.
  void Land() {
    if (!ghosts_.empty()) {
      StubbornWriter::Call call = std::move(ghosts_.front());
      ghosts_.pop_front();
      if (!call.is_fsync) {
        fusefs::InlineTargetWriter writer(&bed_.worker->objects);
        (void)writer.Write(call.id, call.data, call.off, -1, {}).status;
      }
      return;
    }
    bed_.worker->ledger.SetPredecessorAlive(false);
    bed_.worker->writer.Land();
  }

  void MakeTrouble() {
    FakeSyscalls& sys = bed_.sys;
    static const char* const kTargetCalls[] = {"PWrite", "FSync", "FTruncate",
                                               "PRead", "SyncFs"};
    if (trouble_.target_errors && Draw(4) == 0)
      sys.FailNext(kTargetCalls[Draw(5)], bed_.target_fs,
                   Draw(2) ? EIO : ENOSPC);
    if (trouble_.source_full) {
      if (Draw(3) == 0)
        sys.FailNext("PWrite", bed_.source_fs, Draw(2) ? ENOSPC : EIO);
    }
    if (trouble_.writeback && Draw(4) == 0) {
      fusefs::FileRef r = bed_.worker->table.Find(id_);
      auto object = bed_.worker->objects.Find(id_);
      if (!r || !object)
        return;
      // Only bytes that the source has too: others are lost by right.
      if (r->facts.size_known && r->facts.pinned && !r->cut &&
          r->becoming_remote.empty() && r->facts.map.RemoteBytes() == 0 &&
          r->facts.size == r->facts.map.local_end() && !current_)
        sys.LoseWriteback(bed_.target_fs, object->ino, rng_);
    }
  }

  // ------------------------------------------------------------ crashes, end

  void Crash() {
    bool cut = trouble_.cuts && (!trouble_.kills || Draw(2) == 0);
    std::optional<Op> op = std::exchange(current_, std::nullopt);
    bed_.sys.ClearFailures();
    Trace(cut ? "power cut" : "kill");
    bool predecessor = false;
    // Its stacks are gone, so nothing of the worker may be destroyed.
    if (!cut) {
      for (auto& call : bed_.worker->writer.TakeHanging())
        ghosts_.push_back(std::move(call));
      predecessor = true;
      for (auto& call : ghosts_)
        call.late = nullptr;
    } else {
      ghosts_.clear();
    }
    graveyard_.push_back(std::move(bed_.worker));
    if (cut) {
      bed_.sys.PowerCut(rng_);
      bed_.journal.PowerCut(rng_);
      boot_ += "+";
    } else {
      bed_.sys.CloseAll();
      if (op && Draw(2) == 0)
        resend_ = op;
    }
    Begin(predecessor);
    if (Failed())
      return;
    bed_.sys.SetYield(false);
    std::string now = bed_.ReadAll(id_);
    bed_.sys.SetYield(true);
    if (cut) {
      for (size_t p = 0; p < probes_.size(); p++) {
        int is = probes_[p] < now.size() ? static_cast<uint8_t>(now[probes_[p]])
                                         : kAbsent;
        ASSERT_TRUE(durable_[p].contains(is))
            << "after a power cut byte " << probes_[p] << " reads " << is
            << ", last " << At(probes_[p]);
        durable_[p] = {is};
      }
      content_ = now;
      return;
    }
    // A kill loses nothing; the operation in progress may have happened.
    uint64_t end = std::max<uint64_t>(now.size(), content_.size());
    for (uint64_t at = 0; at < end; at++) {
      int is = at < now.size() ? static_cast<uint8_t>(now[at]) : kAbsent;
      if (is == At(at))
        continue;
      bool ok = op.has_value();
      if (ok && op->kind == 2)
        ok = at >= op->off ? is == kAbsent : is == 0;
      else if (ok)
        ok = (at >= op->off && at < op->off + op->len && is == op->value) ||
             (at < op->off + op->len && At(at) == kAbsent && is == 0);
      ASSERT_TRUE(ok) << "after a kill byte " << at << " reads " << is
                      << ", last " << At(at);
    }
    content_ = now;
  }

  void End() {
    bed_.sys.SetYield(false);
    bed_.sys.ClearFailures();
    while (!ghosts_.empty() || bed_.worker->writer.Hanging() != 0)
      Land();
    bed_.worker->ledger.SetPredecessorAlive(false);
    if (trouble_.abort) {
      while (!bed_.worker->cutter.Idle())
        bed_.worker->cutter.Step();
      bed_.worker->data.SetServing(fusefs::Serving::kAborting);
      aborting_ = true;
      bed_.sys.SetYield(true);
      Live(true);
      bed_.sys.SetYield(false);
      if (Failed())
        return;
      while (!ghosts_.empty() || bed_.worker->writer.Hanging() != 0)
        Land();
      auto finished = bed_.worker->back.Finish(-1);
      ASSERT_TRUE(finished.has_value()) << finished.error().ToString();
      Same(bed_.OnSource("f"), "source");
      return;
    }
    bed_.sys.AdvanceClock(60'000'000'000);
    bed_.Settle();
    // A writeback error that nobody was told yet withdraws claims here.
    if (!bed_.worker->ledger.SyncTarget())
      bed_.Settle();
    ASSERT_TRUE(bed_.worker->engine.VerifyFailures().empty());
    Same(bed_.ReadAll(id_), "overlay");
    if (content_.empty() && !bed_.worker->objects.Find(id_))
      return;
    fusefs::FileRef r = bed_.worker->table.Find(id_);
    if (!r && content_.empty())
      return;
    Same(bed_.OnTarget(id_), "target");
  }

  void Same(const std::string& got, const std::string& where) {
    ASSERT_EQ(got.size(), content_.size()) << where;
    for (size_t i = 0; i < got.size(); i++)
      ASSERT_EQ(static_cast<uint8_t>(got[i]), static_cast<uint8_t>(content_[i]))
          << where << ": byte " << i;
  }

  const uint64_t seed_;
  const Trouble trouble_;
  std::mt19937_64 rng_;
  BytesBed bed_;
  std::string boot_;
  state::FileId id_ = state::kNoFile;
  std::string content_;
  std::vector<uint64_t> probes_;
  std::vector<std::set<int>> durable_;
  std::optional<Op> current_, resend_;
  std::deque<StubbornWriter::Call> ghosts_;
  std::vector<std::unique_ptr<BytesBed::Worker>> graveyard_;
  int value_ = 0;
  bool aborting_ = false;
};

uint64_t FromEnv(const char* name, uint64_t otherwise) {
  const char* n = getenv(name);
  return n != nullptr ? strtoull(n, nullptr, 10) : otherwise;
}

// The seeds from 1 on, a fixed number of them at least; and, with the tests
// below taken together, for 20 s, or as long as `ctest --preset long` wants.
void Lives(const Trouble& trouble) {
  constexpr uint64_t kTests = 11, kLeast = 150;
  const uint64_t one = FromEnv("LIVEMV_BYTES_SEED", 0);
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::milliseconds(
                       1000 * FromEnv("LIVEMV_BYTES_SECONDS", 20) / kTests);
  for (uint64_t seed = one != 0 ? one : 1;
       one != 0 ? seed == one
                : seed <= kLeast || std::chrono::steady_clock::now() < end;
       seed++) {
    SCOPED_TRACE("LIVEMV_BYTES_SEED=" + std::to_string(seed));
    auto life = std::make_unique<Life>(seed, trouble);
    life->Run();
    if (testing::Test::HasFailure())
      return;
  }
}

TEST(BytesProperty, MoveWithoutTrouble) { Lives({}); }
TEST(BytesProperty, AbortWithoutTrouble) { Lives({.abort = true}); }
TEST(BytesProperty, SourceRefuses) { Lives({.source_full = true}); }
TEST(BytesProperty, SourceRefusesThenAbort) {
  Lives({.source_full = true, .abort = true});
}
TEST(BytesProperty, TargetFails) { Lives({.target_errors = true}); }
TEST(BytesProperty, WritebackIsLost) { Lives({.writeback = true}); }
TEST(BytesProperty, DoubleWritesHang) { Lives({.hangs = true}); }
TEST(BytesProperty, WorkerIsKilled) { Lives({.hangs = true, .kills = true}); }
TEST(BytesProperty, PowerIsCut) { Lives({.cuts = true}); }
TEST(BytesProperty, Everything) {
  Lives({.source_full = true,
         .target_errors = true,
         .writeback = true,
         .hangs = true,
         .kills = true,
         .cuts = true});
}
TEST(BytesProperty, EverythingThenAbort) {
  Lives({.source_full = true,
         .hangs = true,
         .kills = true,
         .cuts = true,
         .abort = true});
}

}  // namespace
}  // namespace livemv::fake
