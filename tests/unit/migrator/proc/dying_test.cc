#include "migrator/proc/dying.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "core/unique_fd.h"

namespace livemv::proc {
namespace {

using Kind = Ending::Kind;

constexpr uint64_t kExiting = 0x4, kUsual = 0x400040;

// A directory that looks like /proc/PID.
class Dying : public testing::Test {
 protected:
  Dying() {
    char name[] = "/tmp/livemv-dying.XXXXXX";
    root_ = ::mkdtemp(name);
  }
  ~Dying() override { std::filesystem::remove_all(root_); }

  void Task(int tid, char state, uint64_t flags, const std::string& pending,
            const std::string& call) {
    const std::string at = root_ + "/task/" + std::to_string(tid) + "/";
    std::filesystem::create_directories(at);
    std::ofstream(at + "stat")
        << tid << " (livemv-worker) " << state << " 1 1 1 0 -1 " << flags
        << " 0 0 0 0 0 0 0 0 20 0 1 0 987654 0 0 0 0 0 0\n";
    std::ofstream(at + "status")
        << "Name:\tlivemv-worker\nTgid:\t1\nPid:\t" << tid
        << "\nUid:\t0\t0\t0\t0\nSigPnd:\t" << pending
        << "\nShdPnd:\t0000000000000100\n";
    std::ofstream(at + "syscall") << call << "\n";
  }
  Ending Look() {
    core::UniqueFd dir(::open(root_.c_str(), O_RDONLY | O_DIRECTORY));
    core::Result<Ending> ending = LookAtEnding(dir.Get());
    EXPECT_TRUE(ending) << ending.error().ToString();
    return ending ? *ending : Ending{};
  }

  std::string root_;
};

constexpr char kKilled[] = "0000000000000100", kNone[] = "0000000000000000";

std::string Call(long number) {
  return std::to_string(number) + " 0x7 0x0 0x0 0x0 0x0 0x0 0x7ffe 0x7f00";
}

TEST_F(Dying, OneWhoseTasksAllExitActsNoMore) {
  Task(100, 'Z', kUsual | kExiting, kNone, "0 0x0 0x0");
  Task(101, 'D', kUsual | kExiting, kNone, "231 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0");
  EXPECT_EQ(Look().kind, Kind::kActsNoMore);
  EXPECT_EQ(Look().waiting, 0);
}

TEST_F(Dying, OneThatWasNotKilledLives) {
  Task(100, 'Z', kUsual | kExiting, kNone, "0");
  Task(101, 'D', kUsual, kNone, Call(SYS_fsync));
  EXPECT_EQ(Look().kind, Kind::kLives);
}

TEST_F(Dying, AKilledTaskThatWritesBackActsNoMore) {
  Task(100, 'Z', kUsual | kExiting, kNone, "0");
  for (long call : {SYS_fsync, SYS_fdatasync, SYS_syncfs, SYS_close, SYS_pread64,
                    SYS_statx}) {
    Task(101, 'D', kUsual, kKilled, Call(call));
    EXPECT_EQ(Look().kind, Kind::kActsNoMore) << call;
    EXPECT_EQ(Look().waiting, 1);
  }
}

TEST_F(Dying, AKilledTaskInAnyOtherCallMayAct) {
  Task(100, 'D', kUsual, kKilled, Call(SYS_fsync));
  for (long call : {SYS_pwrite64, SYS_write, SYS_ftruncate, SYS_renameat2,
                    SYS_unlinkat, SYS_linkat, SYS_openat, SYS_fchmod,
                    SYS_utimensat, SYS_fallocate, SYS_setxattr, SYS_ioctl}) {
    Task(101, 'D', kUsual, kKilled, Call(call));
    EXPECT_EQ(Look().kind, Kind::kMayAct) << call;
    EXPECT_EQ(Look().call,
              "thread 101 in system call " + std::to_string(call));
  }
}

TEST_F(Dying, ATaskWhoseCallIsNotKnownMayAct) {
  for (const char* text : {"running", "-1 0x7ffe 0x7f00", "", "74x 0x1"}) {
    Task(101, 'D', kUsual, kKilled, text);
    EXPECT_EQ(Look().kind, Kind::kMayAct) << text;
  }
}

TEST_F(Dying, OneLivingTaskIsEnough) {
  Task(100, 'D', kUsual, kKilled, Call(SYS_fsync));
  Task(101, 'R', kUsual, kNone, "running");
  Task(102, 'D', kUsual, kKilled, Call(SYS_pwrite64));
  EXPECT_EQ(Look().kind, Kind::kLives);
}

TEST_F(Dying, WhatCannotBeReadIsAnErrorOrNotSeen) {
  Task(100, 'D', kUsual, kKilled, Call(SYS_fsync));
  std::ofstream(root_ + "/task/100/stat") << "100 (cut";
  core::UniqueFd dir(::open(root_.c_str(), O_RDONLY | O_DIRECTORY));
  EXPECT_FALSE(LookAtEnding(dir.Get()));
  std::filesystem::remove_all(root_ + "/task");
  EXPECT_FALSE(LookAtEnding(dir.Get()));
}

// The kernel's own text, of a child that waits and of one that is a zombie.
TEST(DyingHere, AChildLivesUntilItIsKilled) {
  const pid_t child = ::fork();
  if (child == 0)
    for (;;)
      ::pause();
  core::UniqueFd dir(::open(("/proc/" + std::to_string(child)).c_str(),
                            O_RDONLY | O_DIRECTORY));
  core::Result<Ending> lives = LookAtEnding(dir.Get());
  ASSERT_TRUE(lives) << lives.error().ToString();
  EXPECT_EQ(lives->kind, Kind::kLives);
  ::kill(child, SIGKILL);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  core::Result<Ending> ended = LookAtEnding(dir.Get());
  ASSERT_TRUE(ended) << ended.error().ToString();
  EXPECT_EQ(ended->kind, Kind::kActsNoMore);
  ::waitpid(child, nullptr, 0);
}

}  // namespace
}  // namespace livemv::proc
