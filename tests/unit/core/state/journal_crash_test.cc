// The journal killed, or the host's power cut, at every call it makes: what a
// Sync promised is there afterwards, and what is there is a prefix of what was
// appended.

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "core/state/journal_writer.h"
#include "tests/unit/core/state/fact_samples.h"
#include "tests/unit/core/state/memory_disk.h"

namespace livemv::state {
namespace {

constexpr int kDir = MemoryDisk::kDir;
const std::string kName = "journal";

JournalOptions Tiny() {
  JournalOptions options;
  options.reserve_bytes = 2048;
  options.step_bytes = 1024;
  return options;
}

struct Trial {
  std::vector<RecoveredState> after;  // [i]: the state after i facts
  size_t promised = 0;                // facts that a Sync returned for
  bool created = false;
};

void Take(Trial* run, const Fact& fact) {
  RecoveredState next =
      run->after.empty() ? RecoveredState() : run->after.back();
  if (run->after.empty())
    run->after.push_back(next);
  ASSERT_TRUE(next.Apply(fact));
  run->after.push_back(std::move(next));
}

// The same work every time: appends, syncs, two compactions.
Trial Work(MemoryDisk* disk, uint32_t seed) {
  Trial run;
  std::mt19937 rng(seed);
  Take(&run, MigrationFact{"m", "/a", "/b", {}});
  auto journal = JournalFile::Create(
      disk, kDir, kName, MigrationFact{"m", "/a", "/b", {}}, Tiny());
  if (!journal)
    return run;
  run.created = true;
  run.promised = 1;
  for (int i = 0; i < 60; i++) {
    Fact fact = RandomFact(rng);
    RecoveredState probe = run.after.back();
    if (!probe.Apply(fact))
      continue;
    // Counted before the append: a killed one may have reached the file.
    Take(&run, fact);
    size_t count = run.after.size() - 1;
    if (!(*journal)->Append(fact))
      return run;
    if (rng() % 7 == 0) {
      if (!(*journal)->SyncAll())
        return run;
      run.promised = count;
    }
    if (i == 25 || i == 50) {
      if (!(*journal)->Compact())
        return run;
      run.promised = count;  // a finished compaction is durable
    }
  }
  return run;
}

void Check(MemoryDisk* disk, const Trial& run, bool power_cut,
           const std::string& where) {
  SCOPED_TRACE(where);
  auto opened = JournalFile::Open(disk, kDir, kName, Tiny());
  if (!opened && !run.created)
    return;  // there was no promise yet
  ASSERT_TRUE(opened) << opened.error().ToString();
  size_t least = power_cut ? run.promised : run.after.size() - 2;
  bool found = false;
  for (size_t i = run.after.size(); i-- > std::max<size_t>(least, 1) && !found;)
    found = opened->state == run.after[i];
  EXPECT_TRUE(found) << "neither what was promised (" << run.promised
                     << " facts) nor a longer prefix of "
                     << run.after.size() - 1;
  // And it can be gone on with, twice.
  ASSERT_TRUE(opened->journal->AppendDurable(SessionFact{"x", 1}));
  RecoveredState want = opened->state;
  ASSERT_TRUE(want.Apply(SessionFact{"x", 1}));
  opened->journal.reset();
  disk->PowerCut(77);
  auto again = JournalFile::Open(disk, kDir, kName, Tiny());
  ASSERT_TRUE(again) << again.error().ToString();
  EXPECT_EQ(again->state, want);
}

TEST(JournalCrash, AKillAtAnyCallLosesNothingThatWasAppended) {
  for (uint32_t seed = 0; seed < 40; seed++) {
    MemoryDisk count;
    Work(&count, seed);
    ASSERT_GT(count.calls(), 50u);
    for (uint64_t call = 1; call <= count.calls(); call++) {
      MemoryDisk disk;
      disk.KillAt(call);
      Trial run = Work(&disk, seed);
      disk.Restart();
      Check(&disk, run, false,
            "seed " + std::to_string(seed) + " call " + std::to_string(call));
    }
  }
}

TEST(JournalCrash, APowerCutAtAnyCallKeepsWhatWasPromised) {
  for (uint32_t seed = 0; seed < 4; seed++) {
    MemoryDisk count;
    Work(&count, seed);
    for (uint64_t call = 1; call <= count.calls() + 1; call++) {
      for (uint32_t luck = 0; luck < 4; luck++) {
        MemoryDisk disk;
        disk.KillAt(call);
        Trial run = Work(&disk, seed);
        disk.PowerCut(seed * 1000 + luck);
        Check(&disk, run, true,
              "seed " + std::to_string(seed) + " call " + std::to_string(call) +
                  " luck " + std::to_string(luck));
      }
    }
  }
}

// Recovery itself may be killed too.
TEST(JournalCrash, APowerCutDuringTheNextOpenChangesNothing) {
  MemoryDisk count;
  Trial run = Work(&count, 9);
  for (uint32_t luck = 0; luck < 20; luck++) {
    for (uint64_t call = 1; call <= 6; call++) {
      MemoryDisk disk;
      Trial same = Work(&disk, 9);
      disk.PowerCut(luck);
      disk.KillAt(call);
      (void)JournalFile::Open(&disk, kDir, kName, Tiny());
      disk.PowerCut(luck + 100);
      Check(&disk, same, true,
            "luck " + std::to_string(luck) + " call " + std::to_string(call));
    }
  }
}

}  // namespace
}  // namespace livemv::state
