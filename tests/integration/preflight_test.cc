// The whole plan on real filesystems. Needs root and loop devices.

#include "migrator/daemon/preflight.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "migrator/daemon/plan_report.h"
#include "tests/support/loop_volumes.h"

namespace livemv::daemon {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;

class Preflight : public LoopVolumes {
 protected:
  void SetUp() override {
    LoopVolumes::SetUp();
    if (IsSkipped() || HasFatalFailure())
      return;
    ASSERT_NO_FATAL_FAILURE(Volume("disk", 32));
    ASSERT_NO_FATAL_FAILURE(Volume("nas", 64));
    tree_ = base_ + "/disk/my tree";
    std::filesystem::create_directories(tree_ + "/sub");
    std::ofstream(tree_ + "/file") << "contents";
    request_.dir = tree_;
    request_.target = base_ + "/nas";
    request_.state_dir = base_ + "/state";
    request_.own = {getpid()};
  }
  std::vector<std::string> Blockers() {
    std::vector<std::string> codes;
    plan_ = MakePlan(request_);
    for (const Finding& finding : plan_.findings) {
      if (finding.severity == Severity::kBlocker)
        codes.push_back(finding.code);
    }
    return codes;
  }

  std::string tree_;
  PlanRequest request_;
  Plan plan_;
};

TEST_F(Preflight, AGoodMoveIsNotBlockedAndNothingChanges) {
  struct stat before = {};
  struct stat after = {};
  ASSERT_EQ(stat(request_.target.c_str(), &before), 0);
  EXPECT_THAT(Blockers(), IsEmpty()) << PlanText(plan_);
  ASSERT_EQ(stat(request_.target.c_str(), &after), 0);
  EXPECT_EQ(before.st_mtim.tv_sec, after.st_mtim.tv_sec);
  EXPECT_EQ(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
  size_t entries = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(request_.target)) {
    EXPECT_EQ(entry.path().filename(), "lost+found");
    ++entries;
  }
  EXPECT_EQ(entries, 1u);
  EXPECT_EQ(plan_.dir, tree_);
  ASSERT_TRUE(plan_.survey);
  EXPECT_EQ(plan_.survey->files, 1u);
  EXPECT_EQ(plan_.survey->directories, 2u);
  EXPECT_EQ(plan_.source_volume->type, "ext4");
  EXPECT_GT(plan_.target_volume->free_bytes, 1u << 20);
}

TEST_F(Preflight, PathsMayBeLinksAndHaveSlashes) {
  std::filesystem::create_symlink(tree_, base_ + "/link");
  request_.dir = base_ + "/link/";
  request_.target = base_ + "/nas///";
  EXPECT_THAT(Blockers(), IsEmpty()) << PlanText(plan_);
  EXPECT_EQ(plan_.dir, tree_);
  EXPECT_EQ(plan_.target, base_ + "/nas");
}

TEST_F(Preflight, PlacesThatDoNotSuit) {
  auto blocked = [&](const std::string& dir, const std::string& target) {
    request_.dir = dir;
    request_.target = target;
    return Blockers();
  };
  const std::string nas = base_ + "/nas";
  EXPECT_THAT(blocked(base_ + "/none", nas), Contains("dir-missing"));
  EXPECT_THAT(blocked(tree_ + "/file", nas), Contains("dir-not-directory"));
  EXPECT_THAT(blocked("/", nas), Contains("system-directory"));
  EXPECT_THAT(blocked("/usr/../usr/", nas), Contains("system-directory"));
  EXPECT_THAT(blocked("/proc", nas), Contains("system-directory"));
  EXPECT_THAT(blocked(tree_, base_ + "/none"), Contains("target-missing"));
  EXPECT_THAT(blocked(tree_, tree_ + "/file"),
              Contains("target-not-directory"));
  EXPECT_THAT(blocked(tree_, tree_), Contains("target-inside"));
  EXPECT_THAT(blocked(tree_, tree_ + "/sub"), Contains("target-inside"));
  EXPECT_THAT(blocked(tree_, base_ + "/disk"), Contains("target-inside"));
  std::filesystem::create_directory(base_ + "/disk/beside");
  EXPECT_THAT(blocked(tree_, base_ + "/disk/beside"),
              Contains("same-filesystem"));
  EXPECT_EQ(plan_.Code(), Exit::kBlocked);
  // A source in memory.
  const std::string tmp = base_ + "/tmp";
  std::filesystem::create_directory(tmp);
  ASSERT_EQ(::mount("none", tmp.c_str(), "tmpfs", 0, ""), 0);
  Mounted(tmp);
  EXPECT_THAT(blocked(tmp, nas), Contains("source-type"));
}

TEST_F(Preflight, TargetsThatHoldSomething) {
  std::ofstream(base_ + "/nas/old") << "x";
  EXPECT_THAT(Blockers(), Contains("target-not-empty"));
  std::filesystem::remove(base_ + "/nas/old");
  std::filesystem::create_directory(base_ + "/nas/.livemv-abcdef");
  EXPECT_THAT(Blockers(), Contains("target-interrupted"));
  request_.resumable = {"abcdef"};
  std::ofstream(base_ + "/nas/old") << "x";
  EXPECT_THAT(Blockers(), IsEmpty()) << PlanText(plan_);
}

TEST_F(Preflight, ATargetThatIsTooSmallOrReadOnly) {
  ASSERT_EQ(RunTool({"fallocate", "-l", "20M", tree_ + "/big"}), 0);
  ASSERT_NO_FATAL_FAILURE(Volume("small", 8));
  request_.target = base_ + "/small";
  EXPECT_THAT(Blockers(), Contains("target-too-small"));
  request_.target = base_ + "/nas";
  ASSERT_EQ(::mount(nullptr, request_.target.c_str(), nullptr,
                  MS_REMOUNT | MS_RDONLY, nullptr),
            0);
  EXPECT_THAT(Blockers(), Contains("target-read-only"));
}

// A ramfs stores no extended attributes at all.
TEST_F(Preflight, WhatTheTargetDoesNotStoreBlocksUnlessTheLossIsAccepted) {
  const std::string ram = base_ + "/ram";
  std::filesystem::create_directory(ram);
  ASSERT_EQ(::mount("none", ram.c_str(), "ramfs", 0, ""), 0);
  Mounted(ram);
  core::UniqueFd root(open(ram.c_str(), O_RDONLY | O_DIRECTORY));
  Survey survey;
  survey.with_user_xattrs = 1;
  survey.with_system_xattrs = 2;
  survey.with_acls = 3;
  TargetRequest request;
  request.target_fd = root.Get();
  request.survey = &survey;
  auto check = [&](fusefs::TargetHolds* holds) {
    daemon::Volume volume;
    std::map<std::string, Severity> found;
    for (const Finding& f : CheckTarget(request, &volume, holds))
      found[f.code] = f.severity;
    return found;
  };
  fusefs::TargetHolds holds;
  EXPECT_THAT(check(&holds),
              testing::UnorderedElementsAre(
                  Pair("target-xattrs", Severity::kBlocker),
                  Pair("target-system-xattrs", Severity::kBlocker),
                  Pair("target-acls", Severity::kBlocker),
                  Pair("target-lacks", Severity::kNote)));
  EXPECT_FALSE(holds.user_xattrs || holds.system_xattrs || holds.acls);
  request.accepted = *core::ParseLosses("xattr");
  auto accepted = check(&holds);
  EXPECT_EQ(accepted["target-xattrs"], Severity::kWarning);
  EXPECT_EQ(accepted["target-system-xattrs"], Severity::kWarning);
  EXPECT_EQ(accepted["target-acls"], Severity::kBlocker);
  // A tree without attributes is nobody's loss.
  survey = {};
  EXPECT_THAT(check(&holds), testing::ElementsAre(
                                 Pair("target-lacks", Severity::kNote)));
  EXPECT_TRUE(std::filesystem::is_empty(ram));
}

TEST_F(Preflight, DoorsMountsAndKernelUsers) {
  const std::string door = base_ + "/door";
  std::filesystem::create_directory(door);
  ASSERT_EQ(
      ::mount((tree_ + "/sub").c_str(), door.c_str(), nullptr, MS_BIND, nullptr),
      0);
  EXPECT_THAT(Blockers(), Contains("other-door"));
  EXPECT_THAT(PlanText(plan_, 1000), HasSubstr(door));
  ASSERT_EQ(umount2(door.c_str(), 0), 0);
  ASSERT_EQ(::mount(loops_[0].c_str(), door.c_str(), "ext4", 0, ""), 0);
  EXPECT_THAT(Blockers(), Contains("other-door"));
  ASSERT_EQ(umount2(door.c_str(), 0), 0);

  const std::string nested = tree_ + "/sub";
  ASSERT_EQ(::mount("none", nested.c_str(), "tmpfs", 0, ""), 0);
  EXPECT_THAT(Blockers(), Contains("nested-mount"));
  EXPECT_THAT(PlanText(plan_, 1000), HasSubstr(nested));
  ASSERT_EQ(umount2(nested.c_str(), 0), 0);

  std::filesystem::create_hard_link(tree_ + "/file", base_ + "/disk/outside");
  EXPECT_THAT(Blockers(), Contains("outside-link"));
  std::filesystem::remove(base_ + "/disk/outside");

  ASSERT_EQ(RunTool({"truncate", "-s", "1M", tree_ + "/image"}), 0);
  const std::string loop = Output("losetup --show -f '" + tree_ + "/image'");
  EXPECT_THAT(Blockers(), Contains("loop-device"));
  EXPECT_EQ(RunTool({"losetup", "-d", loop}), 0);

  request_.state_dir = tree_ + "/not/yet/there";
  EXPECT_THAT(Blockers(), Contains("state-inside"));
  request_.state_dir = base_ + "/state";
  EXPECT_THAT(Blockers(), IsEmpty()) << PlanText(plan_);
}

TEST_F(Preflight, ANamespaceThatOnlyADescriptorKeeps) {
  int made[2];
  ASSERT_EQ(pipe2(made, O_CLOEXEC), 0);
  // A private namespace that sees the tree, and no process in it in the end.
  const pid_t pid = fork();
  if (pid == 0) {
    const bool ok =
        unshare(CLONE_NEWNS) == 0 &&
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
    if (write(made[1], ok ? "y" : "n", 1) != 1)
      _exit(1);
    pause();
  }
  char ok = 'n';
  ASSERT_EQ(read(made[0], &ok, 1), 1);
  close(made[0]);
  close(made[1]);
  // Kept by a descriptor of a process that is not ours.
  const std::string ns = "/proc/" + std::to_string(pid) + "/ns/mnt";
  const int pin = open(ns.c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(ok, 'y');
  EXPECT_GE(pin, 0);
  EXPECT_THAT(Blockers(), IsEmpty()) << PlanText(plan_);
  EXPECT_THAT(PlanText(plan_, 1000), HasSubstr("does not follow our mounts"));
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  request_.own.clear();
  EXPECT_THAT(Blockers(), Contains("pinned-namespace"));
  close(pin);
}

TEST_F(Preflight, RunningMigrationsExcludeOverlaps) {
  request_.running = {{"abc234", tree_ + "/sub", "nas:/x"}};
  EXPECT_THAT(Blockers(), Contains("managed"));
  EXPECT_THAT(PlanText(plan_), HasSubstr("abc234"));
  request_.running = {{"abc234", base_ + "/other", base_ + "/nas"}};
  EXPECT_THAT(Blockers(), Contains("managed"));
  request_.running = {{"abc234", base_ + "/other", "nas:/x"}};
  EXPECT_THAT(Blockers(), IsEmpty());
  request_.target = "nas:/x/y";
  EXPECT_THAT(Blockers(), Contains("managed"));
}

TEST_F(Preflight, WhatATargetCannotStoreBlocksOnlyIfTheTreeHasIt) {
  // ext4 with blocks of 4 KiB has files of 16 TiB, with 1 KiB of 4 TiB.
  const std::string image = base_ + "/wide.img";
  const std::string point = base_ + "/wide";
  ASSERT_EQ(RunTool({"truncate", "-s", "32M", image}), 0);
  ASSERT_EQ(RunTool({"mkfs.ext4", "-q", "-F", "-b", "4096", image}), 0);
  std::filesystem::create_directory(point);
  loops_.push_back(Output("losetup --show -f " + image));
  ASSERT_EQ(::mount(loops_.back().c_str(), point.c_str(), "ext4", 0, ""), 0);
  Mounted(point);
  request_.dir = point;
  EXPECT_THAT(Blockers(), IsEmpty()) << PlanText(plan_);
  ASSERT_EQ(RunTool({"truncate", "-s", "5T", point + "/huge"}), 0);
  EXPECT_THAT(Blockers(), ElementsAre("target-file-size"));
  EXPECT_EQ(plan_.survey->largest_path, "huge");
  EXPECT_FALSE(std::filesystem::exists(base_ + "/nas/.livemv-probe-" +
                                       std::to_string(getpid())));
}

TEST_F(Preflight, AHolderIsNamedWithItsVerdict) {
  int ready[2];
  ASSERT_EQ(pipe2(ready, O_CLOEXEC), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    const bool ok = chdir(tree_.c_str()) == 0;
    if (write(ready[1], ok ? "y" : "n", 1) != 1)
      _exit(1);
    pause();
  }
  char ok = 'n';
  EXPECT_EQ(read(ready[0], &ok, 1), 1);
  EXPECT_EQ(ok, 'y');
  close(ready[0]);
  close(ready[1]);
  EXPECT_THAT(Blockers(), IsEmpty()) << PlanText(plan_);
  ASSERT_EQ(plan_.holders.size(), 1u);
  EXPECT_EQ(plan_.holders[0].holder.pid, pid);
  EXPECT_EQ(plan_.holders[0].verdict.movability, proc::Movability::kMovable);
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
}

}  // namespace
}  // namespace livemv::daemon
