#include "fusefs/redo.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <functional>
#include <thread>

#include "core/syscalls.h"

namespace livemv::fusefs {
namespace {

class NumberingJournal final : public state::Journal {
 public:
  core::Result<state::Seq> Append(const state::Fact&) override {
    return ++seq_;
  }
  core::Status Sync(state::Seq) override {
    syncs++;
    return {};
  }
  core::Status SyncAll() override { return {}; }
  std::atomic<int> syncs = 0;

 private:
  std::atomic<state::Seq> seq_ = 0;
};

class RedoTest : public testing::Test {
 protected:
  void Change(FileId dir, const std::string& name) {
    auto change = redo_.Begin({Place{dir, name}});
    ASSERT_TRUE(change);
  }
  void Fill(int places) {
    for (int i = 0; i < places; i++)
      Change(state::kRootId, std::to_string(i));
  }
  bool Apply() {
    auto job = redo_.Take();
    if (job) {
      EXPECT_TRUE(redo_.Done(*job));
    }
    return job.has_value();
  }

  std::unique_ptr<core::Syscalls> sys_ = core::MakeRealSyscalls();
  NumberingJournal journal_;
  Redo redo_{sys_.get(), &journal_, Redo::Options{.settle_ns = 0}};
};

TEST_F(RedoTest, ChangesWaitForAppliersThatAreBehind) {
  constexpr int kBacklog = 200, kWriters = 8;
  Fill(kBacklog);
  redo_.BeginBarrier();
  redo_.BeginBarrier();
  std::atomic<bool> stop = false;
  std::atomic<int> made = 0;
  // What shows that the appliers get on.
  ASSERT_TRUE(Apply());
  std::vector<std::thread> writers;
  for (int w = 0; w < kWriters; w++) {
    writers.emplace_back([&, w] {
      for (int i = 0; !stop; i++) {
        Change(w + 2, std::to_string(i));
        made++;
      }
    });
  }
  // All that was there, one by one; it is older, so it comes first.
  int applied = 0, made_by_then = 0;
  for (; redo_.Count().behind; applied++) {
    made_by_then = made;
    ASSERT_TRUE(Apply());
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  stop = true;
  for (std::thread& t : writers)
    t.join();
  EXPECT_EQ(applied, kBacklog - 1);
  // Half as many as were applied, and each writer's last one.
  EXPECT_LE(made_by_then, applied / 2 + 2 * kWriters);
  EXPECT_GT(made_by_then, 0);
  EXPECT_GT(redo_.Count().held_back, 0u);
}

TEST_F(RedoTest, ARushEndsTheWaitForAppliers) {
  Redo redo(sys_.get(), &journal_,
            Redo::Options{.longest_hold_ns = 3'600'000'000'000,
                          .settle_ns = 0});
  for (int i = 0; i < 100; i++)
    ASSERT_TRUE(redo.Begin({Place{2, std::to_string(i)}}));
  redo.BeginBarrier();
  redo.BeginBarrier();
  std::atomic<bool> done = false;
  // The appliers get on, slowly.
  std::jthread applier([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      if (auto job = redo.Take(); job) {
        EXPECT_TRUE(redo.Done(*job));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
  while (!redo.Count().behind)
    std::this_thread::yield();
  std::jthread writer([&] {
    // It would wait for twice as many places as there are.
    std::vector<Place> many;
    for (int i = 0; i < 100; i++)
      many.push_back({3, std::to_string(i)});
    EXPECT_TRUE(redo.Begin(std::move(many)));
    done = true;
  });
  while (redo.Count().held_back == 0)
    std::this_thread::yield();
  EXPECT_FALSE(done);
  Redo::Rush rush(&redo);
  writer.join();
  EXPECT_TRUE(done);
}

TEST_F(RedoTest, NobodyWaitsForATargetThatDoesNotAnswer) {
  Fill(100);
  redo_.BeginBarrier();
  redo_.BeginBarrier();
  redo_.BeginBarrier();
  for (int i = 0; i < 1000; i++)
    Change(2, std::to_string(i));
  EXPECT_EQ(redo_.Count().held_back, 0u);
  EXPECT_FALSE(redo_.Count().behind);
  EXPECT_EQ(redo_.Count().older_than_barrier, 100u);
}

TEST_F(RedoTest, NobodyWaitsWhileAppliersKeepUp) {
  for (int i = 0; i < 100; i++) {
    Change(2, std::to_string(i));
    redo_.BeginBarrier();
    ASSERT_TRUE(Apply());
  }
  EXPECT_EQ(redo_.Count().held_back, 0u);
}

TEST_F(RedoTest, EntriesComeFirstButNotBeforeWhatIsABarrierOlder) {
  ASSERT_TRUE(redo_.Mark(Place{7, {}}));
  Change(2, "a");
  auto first = redo_.Take();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->place.name, "a");
  ASSERT_TRUE(redo_.Done(*first));
  redo_.BeginBarrier();
  Change(2, "b");
  auto second = redo_.Take();
  ASSERT_TRUE(second);
  EXPECT_EQ(second->place.id, 7u);
  ASSERT_TRUE(redo_.Done(*second));
  auto third = redo_.Take();
  ASSERT_TRUE(third);
  EXPECT_EQ(third->place.name, "b");
}

class BornTest : public RedoTest {
 protected:
  static constexpr FileId kDir = 5, kFile = 77;
  void SetUp() override {
    auto change = redo_.BeginAdding({kDir, "f"});
    ASSERT_TRUE(change);
    redo_.Born(kFile, kDir);
  }
  // Of a change of the file's attributes.
  int Syncs() {
    const int before = journal_.syncs;
    auto change = redo_.Begin({Place{kFile, {}}});
    EXPECT_TRUE(change);
    return journal_.syncs - before;
  }
};

TEST_F(BornTest, AFileThatWasJustMadeIsCoveredByItsDirectory) {
  EXPECT_EQ(journal_.syncs, 1);
  EXPECT_EQ(Syncs(), 0);
  EXPECT_TRUE(redo_.IsHot(kFile));
  EXPECT_EQ(Syncs(), 0);
}

TEST_F(BornTest, MoreNamesChangeNothing) {
  ASSERT_TRUE(redo_.BeginAdding({kDir, "g"}));
  EXPECT_EQ(Syncs(), 0);
}

// It may be the name of this file, and another directory may be unmarked first.
TEST_F(BornTest, NotAfterANameWasTakenFromTheDirectory) {
  ASSERT_TRUE(redo_.Begin({{kDir, "other"}, {6, "other"}}));
  EXPECT_EQ(Syncs(), 1);
}

TEST_F(BornTest, NotAfterTheDirectoryWasUnmarked) {
  while (Apply()) {
  }
  ASSERT_TRUE(redo_.EndBarrier(redo_.BeginBarrier()));
  EXPECT_FALSE(redo_.IsHot(kDir));
  EXPECT_EQ(Syncs(), 1);
}

TEST_F(RedoTest, APlaceSettlesUnlessThereIsARush) {
  Redo redo(sys_.get(), &journal_,
            Redo::Options{.settle_ns = 3'600'000'000'000});
  ASSERT_TRUE(redo.Begin({Place{2, "a"}}));
  EXPECT_FALSE(redo.Take());
  Redo::Rush rush(&redo);
  auto job = redo.Take();
  ASSERT_TRUE(job);
  EXPECT_EQ(job->place.name, "a");
  ASSERT_TRUE(redo.Done(*job));
  ASSERT_TRUE(redo.Begin({Place{2, "b"}}));
  EXPECT_TRUE(redo.Take());
}

}  // namespace
}  // namespace livemv::fusefs
