#include "migrator/cutover/move_plan.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "migrator/cutover/cutover_schedule.h"
#include "migrator/cutover/opener.h"

namespace livemv::cutover {
namespace {

using ::testing::HasSubstr;

proc::Place File(uint64_t ino, mode_t mode = S_IFREG) {
  proc::Place place;
  place.dev = 1;
  place.ino = ino;
  place.mode = mode;
  place.nlink = 1;
  place.path = "p" + std::to_string(ino);
  return place;
}

proc::Descriptor Fd(int number, int description, uint64_t ino,
                    int flags = O_RDWR) {
  proc::Descriptor fd;
  fd.number = number;
  fd.description = description;
  fd.at = File(ino);
  fd.flags = flags;
  fd.pos = 100 + number;
  return fd;
}

proc::Holder Process(pid_t pid, std::vector<proc::Descriptor> fds) {
  proc::Holder holder;
  holder.pid = pid;
  holder.comm = "p";
  holder.mnt_ns = 100;
  proc::Task task;
  task.tid = pid;
  task.fds = std::move(fds);
  holder.tasks.push_back(std::move(task));
  return holder;
}

const PlanRules kRules{100, false};

TEST(ReopenFlags, DropsWhatActsAtOpenOnlyAndKeepsTheRest) {
  EXPECT_EQ(ReopenFlags(O_RDWR | O_CREAT | O_EXCL | O_TRUNC | O_NOCTTY |
                            O_CLOEXEC | O_APPEND | O_DIRECT | O_SYNC |
                            O_NOATIME | O_NONBLOCK,
                        false),
            O_RDWR | O_APPEND | O_DIRECT | O_SYNC | O_NOATIME | O_NONBLOCK);
}

TEST(ReopenFlags, AFileMadeByTmpfileIsReopenedAsAFile) {
  EXPECT_EQ(ReopenFlags(O_TMPFILE | O_RDWR, false), O_RDWR);
}

TEST(ReopenFlags, ADirectoryIsReopenedAsOne) {
  EXPECT_EQ(ReopenFlags(O_RDONLY | O_DIRECTORY | O_NONBLOCK, true),
            O_RDONLY | O_DIRECTORY | O_NONBLOCK);
}

TEST(ReopenFlags, APathDescriptorKeepsOnlyWhatItMayHave) {
  EXPECT_EQ(ReopenFlags(O_PATH | O_NOFOLLOW | O_WRONLY | O_APPEND, false),
            O_PATH | O_NOFOLLOW);
}

TEST(PlanMoves, OneNewDescriptionForEachOldOne) {
  MovePlan plan = PlanMoves({Process(11, {Fd(3, 7, 20), Fd(4, 7, 20)}),
                             Process(12, {Fd(3, 7, 20), Fd(5, 8, 20)})},
                            kRules);
  ASSERT_EQ(plan.wants.size(), 2u);
  ASSERT_EQ(plan.placements.size(), 4u);
  EXPECT_EQ(plan.placements[0].want, plan.placements[1].want);
  EXPECT_EQ(plan.placements[0].want, plan.placements[2].want);
  EXPECT_NE(plan.placements[0].want, plan.placements[3].want);
}

TEST(PlanMoves, DescriptionsThatWereNotToldApartAreNotShared) {
  MovePlan plan =
      PlanMoves({Process(11, {Fd(3, -1, 20), Fd(4, -1, 20)})}, kRules);
  EXPECT_EQ(plan.wants.size(), 2u);
}

TEST(PlanMoves, CloseOnExecBelongsToTheNumber) {
  proc::Descriptor a = Fd(3, 7, 20);
  proc::Descriptor b = Fd(4, 7, 20);
  b.cloexec = true;
  MovePlan plan = PlanMoves({Process(11, {a, b})}, kRules);
  EXPECT_FALSE(plan.placements[0].cloexec);
  EXPECT_TRUE(plan.placements[1].cloexec);
}

TEST(PlanMoves, AThreadWithTablesOfItsOwnIsGivenItsOwnSeats) {
  proc::Holder holder = Process(11, {Fd(3, 7, 20)});
  proc::Task thread;
  thread.tid = 5;
  thread.cwd = File(2, S_IFDIR);
  thread.fds = {Fd(3, 8, 21)};
  holder.tasks.push_back(thread);
  MovePlan plan = PlanMoves({holder}, kRules);
  ASSERT_EQ(plan.placements.size(), 3u);
  EXPECT_EQ(plan.placements[0].seat.tid, 11);
  EXPECT_EQ(plan.placements[1].seat.tid, 5);
  EXPECT_EQ(plan.placements[1].seat.number, -1);
  EXPECT_EQ(plan.placements[2].seat.tid, 5);
}

TEST(PlanMoves, WhatAnUnmovableHolderSharesStaysWithIt) {
  proc::Holder traced = Process(11, {Fd(3, 7, 20)});
  traced.tracer = 9;
  MovePlan plan =
      PlanMoves({traced, Process(12, {Fd(3, 7, 20), Fd(4, 8, 21)})}, kRules);
  ASSERT_EQ(plan.placements.size(), 1u);
  EXPECT_EQ(plan.placements[0].seat.number, 4);
  ASSERT_EQ(plan.left.size(), 2u);
  EXPECT_THAT(plan.left[0].reason, HasSubstr("traced by process 9"));
  EXPECT_THAT(plan.left[1].reason, HasSubstr("shared with process 11"));
}

TEST(PlanMoves, ADirectoryLiesOnTheMountOfItsHoldersNamespace) {
  proc::Holder foreign = Process(11, {Fd(3, 7, 20)});
  foreign.mnt_ns = 200;
  foreign.tasks[0].cwd = File(2, S_IFDIR);
  proc::Holder ours = Process(12, {});
  ours.tasks[0].cwd = File(2, S_IFDIR);
  MovePlan plan = PlanMoves({foreign, ours}, kRules);
  ASSERT_EQ(plan.wants.size(), 3u);
  EXPECT_EQ(plan.wants[0].view, 200u);
  EXPECT_EQ(plan.wants[1].view, 0u) << "a file leads nowhere";
  EXPECT_EQ(plan.wants[2].view, 0u);

  MovePlan later = PlanMoves({foreign, ours}, PlanRules{100, true});
  EXPECT_EQ(later.placements.size(), 2u);
  ASSERT_EQ(later.left.size(), 1u);
  EXPECT_EQ(later.left[0].seat.number, -1);
}

TEST(FileIdOf, ReadsTheNodeidOfAFuseHandle) {
  uint32_t words[3] = {0x12, 0x34, 7};
  EXPECT_EQ(FileIdOf(ObjectName(0x81, words, sizeof words)),
            0x1200000034u);
  EXPECT_EQ(FileIdOf(ObjectName(1, words, sizeof words)), state::kNoFile);
  EXPECT_EQ(FileIdOf(ObjectName(0x81, words, 4)), state::kNoFile);
  EXPECT_EQ(FileIdOf(""), state::kNoFile);
}

TEST(CutoverSchedule, WaitsLongerAfterEachFreezeThatFailed) {
  CutoverSchedule s({5, 100, 400, 10});
  EXPECT_EQ(s.NextAt(), 0);
  s.Failed(1000, true);
  EXPECT_EQ(s.NextAt(), 1100);
  s.Failed(2000, true);
  EXPECT_EQ(s.NextAt(), 2200);
  s.Failed(3000, true);
  EXPECT_EQ(s.NextAt(), 3400);
  s.Failed(4000, true);
  EXPECT_EQ(s.NextAt(), 4400) << "no longer than the longest";
  EXPECT_FALSE(s.GivenUp());
  s.Failed(5000, true);
  EXPECT_TRUE(s.GivenUp());
  EXPECT_EQ(s.NextAt(), std::nullopt);
  s.Reset();
  EXPECT_EQ(s.NextAt(), 0);
}

TEST(CutoverSchedule, OnlyFreezesCount) {
  CutoverSchedule s({2, 100, 400, 10});
  for (int i = 0; i < 100; ++i)
    s.Failed(1000, false);
  s.Blocked(2000);
  EXPECT_EQ(s.failed(), 0);
  EXPECT_EQ(s.NextAt(), 2010);
}

}  // namespace
}  // namespace livemv::cutover
