#include "migrator/daemon/preflight.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/unique_fd.h"
#include "migrator/daemon/plan_report.h"
#include "migrator/daemon/preflight_doors.h"
#include "migrator/daemon/preflight_holders.h"
#include "migrator/daemon/preflight_kernel.h"
#include "migrator/daemon/preflight_nfs.h"
#include "migrator/daemon/preflight_places.h"
#include "migrator/daemon/tree_survey.h"

namespace livemv::daemon {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

std::vector<std::string> Codes(const std::vector<Finding>& findings) {
  std::vector<std::string> codes;
  for (const Finding& finding : findings)
    codes.push_back(finding.code);
  return codes;
}

TEST(Preflight, SystemDirectoriesAndWhatLiesBelowThem) {
  for (const char* dir : {"/", "/usr", "/bin", "/lib", "/lib64", "/sbin",
                          "/var", "/etc", "/etc/ssl", "/boot", "/dev/shm",
                          "/proc/1", "/run/user", "/var/lib", "/usr/lib"})
    EXPECT_TRUE(IsSystemDirectory(dir)) << dir;
  for (const char* dir : {"/home", "/home/a", "/root", "/srv", "/data", "/tmp",
                          "/var/log", "/var/lib/mysql", "/usr/local/data",
                          "/libretto/x", "/etcetera", "/runs"})
    EXPECT_FALSE(IsSystemDirectory(dir)) << dir;
}

TEST(Preflight, SourcesMustBeLocalAndHaveHandles) {
  bool known = false;
  for (const char* type : {"ext4", "xfs", "btrfs"})
    EXPECT_EQ(SourceTypeRefusal(type, &known), "") << type;
  EXPECT_TRUE(known);
  for (const char* type : {"tmpfs", "overlay", "vfat", "fuse.sshfs",
                           "fuse.livemv", "nfs", "nfs4", "cifs", "proc"})
    EXPECT_NE(SourceTypeRefusal(type, &known), "") << type;
  EXPECT_EQ(SourceTypeRefusal("bcachefs", &known), "");
  EXPECT_FALSE(known);
}

TEST(Preflight, KernelReleases) {
  int major = 0;
  int minor = 0;
  EXPECT_TRUE(ParseKernelRelease("6.1.0-18-amd64", &major, &minor));
  EXPECT_EQ(major, 6);
  EXPECT_EQ(minor, 1);
  EXPECT_FALSE(ParseKernelRelease("none", &major, &minor));
}

// --- doors ---------------------------------------------------------------

proc::TreeRef DataTree() {
  proc::TreeRef tree;
  tree.dev = tree.sb_dev = makedev(8, 1);
  tree.root_ino = 12;
  tree.path_in_fs = "/data/tree";
  return tree;
}

std::vector<Finding> Doors(const std::string& mountinfo,
                           const std::string& where, const std::string& dir) {
  auto table = mount::MountTable::Parse(mountinfo);
  EXPECT_TRUE(table) << table.error().ToString();
  std::vector<Finding> list;
  Findings findings(&list);
  if (table)
    JudgeDoors(DataTree(), *table, where, dir, &findings);
  return list;
}

TEST(PreflightDoors, TheMountOfDirItselfIsNoOtherDoor) {
  EXPECT_THAT(Doors("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
                    "21 20 0:5 / /proc rw - proc proc rw\n",
                    "", "/data/tree"),
              IsEmpty());
}

TEST(PreflightDoors, ASecondMountOfTheFilesystemIsOne) {
  const auto found = Doors(
      "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
      "21 20 8:1 / /mnt/again rw - ext4 /dev/sda1 rw\n",
      "", "/data/tree");
  ASSERT_THAT(Codes(found), ElementsAre("other-door"));
  EXPECT_EQ(found[0].severity, Severity::kBlocker);
  EXPECT_THAT(found[0].what, HasSubstr("/mnt/again/data/tree"));
}

TEST(PreflightDoors, BindMountsOfPartsAreOnesAndOfNeighboursAreNot) {
  const auto found = Doors(
      "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
      "21 20 8:1 /data/tree/sub\\040dir /srv/part rw - ext4 /dev/sda1 rw\n"
      "22 20 8:1 /data/tree2 /srv/other rw - ext4 /dev/sda1 rw\n"
      "23 20 8:2 /data/tree /srv/elsewhere rw - ext4 /dev/sdb1 rw\n",
      "", "/data/tree");
  ASSERT_THAT(Codes(found), ElementsAre("other-door"));
  EXPECT_THAT(found[0].what, HasSubstr("/srv/part"));
}

TEST(PreflightDoors, AnotherNamespaceMayHaveOneDoor) {
  const std::string one = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
  EXPECT_THAT(Doors(one, "the mount namespace of process 7", ""), IsEmpty());
  const auto found =
      Doors(one + "21 20 8:1 /data /mnt/d rw - ext4 /dev/sda1 rw\n",
            "the mount namespace of process 7", "");
  ASSERT_THAT(Codes(found), ElementsAre("other-door"));
  EXPECT_THAT(found[0].what, HasSubstr("process 7"));
}

TEST(PreflightDoors, ACoveredMountIsNoDoor) {
  EXPECT_THAT(Doors("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
                    "21 20 8:1 / /mnt rw - ext4 /dev/sda1 rw\n"
                    "22 21 0:9 / /mnt rw - tmpfs none rw\n",
                    "", "/data/tree"),
              IsEmpty());
}

// --- NFS -----------------------------------------------------------------

const char kEffective[] =
    "rw,vers=4.2,rsize=262144,wsize=262144,namlen=255,hard,proto=tcp,timeo=600,"
    "retrans=2,sec=sys,clientaddr=10.0.0.9,local_lock=none,addr=10.0.0.1";

std::vector<Finding> Effective(const std::string& asked) {
  std::vector<Finding> list;
  Findings findings(&list);
  CheckEffective(asked, kEffective, &findings);
  return list;
}

TEST(PreflightNfs, OptionsThatAreInEffectOrNotShownAreFine) {
  for (const char* asked : {"", "vers=4.2", "hard,timeo=600,retry=0",
                            "rsize=262144,,nodev,rw"})
    EXPECT_THAT(Effective(asked), IsEmpty()) << asked;
}

TEST(PreflightNfs, OptionsThatAnEarlierMountDecidedAreNamed) {
  const auto found = Effective("nconnect=4,timeo=50,rsize=1048576");
  ASSERT_THAT(Codes(found), ElementsAre("target-options"));
  EXPECT_EQ(found[0].severity, Severity::kWarning);
  EXPECT_THAT(found[0].what,
              HasSubstr("nconnect=4, timeo=50 (it is 600), "
                        "rsize=1048576 (it is 262144)"));
}

TEST(PreflightNfs, SizesThatTheServerBoundsAreANote) {
  const auto found = Effective("rsize=1048576,wsize=262144");
  ASSERT_THAT(Codes(found), ElementsAre("target-options"));
  EXPECT_EQ(found[0].severity, Severity::kNote);
  EXPECT_THAT(found[0].what, Not(HasSubstr("wsize")));
}

TEST(PreflightNfs, ASoftMountBlocksUnlessAccepted) {
  for (bool accepted : {false, true}) {
    for (const char* options : {"rw,soft,timeo=1", "softerr"}) {
      std::vector<Finding> list;
      Findings findings(&list);
      core::Losses losses;
      losses.soft = accepted;
      CheckSoft(options, losses, &findings);
      ASSERT_THAT(Codes(list), ElementsAre("target-soft"));
      EXPECT_EQ(list[0].severity,
                accepted ? Severity::kWarning : Severity::kBlocker);
    }
  }
  std::vector<Finding> list;
  Findings findings(&list);
  CheckSoft("rw,hard,softreval", {}, &findings);
  EXPECT_THAT(list, IsEmpty());
}

std::vector<Finding> Flocks(int access, bool write, const char* options,
                            mode_t mode = S_IFREG) {
  proc::Descriptor fd;
  fd.flags = access;
  fd.at.path = "pid file";
  fd.at.mode = mode;
  proc::LockLine lock;
  lock.kind = proc::LockKind::kFlock;
  lock.write = write;
  fd.locks = {lock};
  PlannedHolder planned;
  planned.holder.pid = 42;
  planned.holder.comm = "cron";
  planned.holder.tasks.emplace_back();
  planned.holder.tasks[0].fds = {fd};
  std::vector<PlannedHolder> holders;
  holders.push_back(std::move(planned));
  std::vector<Finding> list;
  Findings findings(&list);
  CheckLocks(holders, options, &findings);
  return list;
}

TEST(PreflightNfs, AFlockThatVersionFourWouldRefuseBlocks) {
  const char* v4 = "rw,vers=4.2,local_lock=none";
  const auto found = Flocks(O_RDONLY, true, v4);
  ASSERT_THAT(Codes(found), ElementsAre("holder-flock"));
  EXPECT_EQ(found[0].severity, Severity::kBlocker);
  EXPECT_THAT(found[0].what, HasSubstr("process 42 (cron) has \"pid file\""));
  EXPECT_THAT(Codes(Flocks(O_WRONLY, false, v4)), ElementsAre("holder-flock"));
  EXPECT_THAT(Flocks(O_RDWR, true, v4), IsEmpty());
  EXPECT_THAT(Flocks(O_RDONLY, false, v4), IsEmpty());
  EXPECT_THAT(Flocks(O_RDONLY, true, v4, S_IFDIR), IsEmpty());
  EXPECT_THAT(Flocks(O_RDONLY, true, "rw,vers=3,local_lock=none"), IsEmpty());
  EXPECT_THAT(Flocks(O_RDONLY, true, "rw,vers=4.2,local_lock=flock"),
              IsEmpty());
}

PlannedHolder LockHolder(pid_t pid, proc::LockKind kind, bool write) {
  proc::Descriptor fd;
  fd.number = 3;
  fd.flags = O_RDWR;
  fd.at.path = "db";
  fd.at.ino = 12;
  fd.at.mode = S_IFREG;
  proc::LockLine lock;
  lock.kind = kind;
  lock.write = write;
  fd.locks = {lock};
  PlannedHolder planned;
  planned.holder.pid = pid;
  planned.holder.comm = "db";
  planned.holder.tasks.emplace_back();
  planned.holder.tasks[0].fds = {fd};
  return planned;
}

TEST(PreflightNfs, LocksThatConflictOnlyThereBlock) {
  const auto found = [](bool write, proc::LockKind kind,
                        const std::string& local) {
    std::vector<PlannedHolder> holders;
    holders.push_back(LockHolder(7, proc::LockKind::kFlock, write));
    holders.push_back(LockHolder(8, kind, false));
    std::vector<Finding> list;
    Findings findings(&list);
    CheckLocks(holders, "rw,vers=4.2,local_lock=" + local, &findings);
    return list;
  };
  const auto both = found(true, proc::LockKind::kOfd, "none");
  ASSERT_THAT(Codes(both), ElementsAre("holder-locks-differ"));
  EXPECT_EQ(both[0].severity, Severity::kBlocker);
  EXPECT_THAT(both[0].what, HasSubstr("process 7 with flock and by process 8"));
  EXPECT_THAT(found(false, proc::LockKind::kOfd, "none"), IsEmpty());
  EXPECT_THAT(found(true, proc::LockKind::kFlock, "none"), IsEmpty());
  EXPECT_THAT(found(true, proc::LockKind::kOfd, "flock"), IsEmpty());
  // These are asked for in the pause, which is told.
  EXPECT_THAT(Codes(found(false, proc::LockKind::kPosix, "none")),
              ElementsAre("posix-locks"));
  EXPECT_THAT(found(true, proc::LockKind::kPosix, "all"), IsEmpty());
}

std::vector<Finding> OtherMounts(const std::string& mountinfo,
                                 const std::string& name) {
  auto table = mount::MountTable::Parse(
      "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mountinfo);
  EXPECT_TRUE(table) << table.error().ToString();
  std::vector<Finding> list;
  Findings findings(&list);
  if (table)
    CheckOtherMounts(*table, name, kEffective, makedev(0, 50), &findings);
  return list;
}

TEST(PreflightNfs, AMountOfTheExportWithACacheOfItsOwnIsNamed) {
  const auto found = OtherMounts(
      "21 20 0:51 / /mnt/a rw - nfs4 nas:/export/data rw,noac\n", "nas:/export");
  ASSERT_THAT(Codes(found), ElementsAre("export-mounted"));
  EXPECT_THAT(found[0].what, HasSubstr("/mnt/a"));
}

TEST(PreflightNfs, AServerIsKnownByItsAddressToo) {
  EXPECT_THAT(
      Codes(OtherMounts("21 20 0:51 / /mnt/a rw - nfs nas:/ rw,addr=10.0.0.1\n",
                        "server:/export")),
      ElementsAre("export-mounted"));
  EXPECT_THAT(OtherMounts("21 20 0:51 / /mnt/a rw - nfs nas:/ rw,addr=10.0.0.2\n",
                          "server:/export"),
              IsEmpty());
}

TEST(PreflightNfs, MountsThatShareTheCacheOrShowSomethingElseAreFine) {
  EXPECT_THAT(
      OtherMounts("21 20 0:50 / /mnt/a rw - nfs4 nas:/export rw\n"
                  "22 20 0:52 / /mnt/b rw - nfs4 nas:/exports rw\n"
                  "23 20 0:53 / /mnt/c rw - ext4 nas:/export rw\n",
                  "nas:/export"),
      IsEmpty());
}

// --- holders -------------------------------------------------------------

proc::Holder Writer(pid_t pid) {
  proc::Holder holder;
  holder.pid = pid;
  holder.comm = "writer\n";
  proc::Task task;
  task.tid = pid;
  task.cwd = proc::Place{.path = "."};
  proc::Descriptor fd;
  fd.number = 3;
  fd.at.path = "log";
  fd.at.ino = 5;
  fd.at.mode = S_IFREG | 0600;
  fd.at.nlink = 1;
  fd.flags = O_WRONLY | O_APPEND;
  task.fds.push_back(fd);
  holder.tasks.push_back(task);
  return holder;
}

TEST(PreflightHolders, AWriterWithACwdIsMovable) {
  proc::Snapshot snapshot;
  snapshot.holders.push_back(Writer(100));
  Plan plan;
  Findings findings(&plan.findings);
  JudgeHolders(snapshot, &plan, &findings);
  EXPECT_THAT(plan.findings, IsEmpty());
  ASSERT_THAT(plan.holders, SizeIs(1));
  EXPECT_EQ(plan.holders[0].cwds, 1u);
  EXPECT_EQ(plan.holders[0].fds, 1u);
  EXPECT_EQ(plan.Code(), Exit::kDone);
}

TEST(PreflightHolders, EachThingThatCannotBeMovedBlocksWithItsReason) {
  struct Case {
    const char* code;
    void (*make)(proc::Holder*);
  };
  const Case cases[] = {
      {"holder-traced", [](proc::Holder* h) { h->tracer = 9; }},
      {"holder-never-frozen", [](proc::Holder* h) { h->pid = 1; }},
      {"holder-never-frozen", [](proc::Holder* h) { h->comm = "rpc.gssd"; }},
      {"holder-root",
       [](proc::Holder* h) { h->tasks[0].root = proc::Place{.path = "."}; }},
      {"holder-deleted",
       [](proc::Holder* h) { h->tasks[0].fds[0].at.deleted = true; }},
      {"holder-deleted",
       [](proc::Holder* h) { h->tasks[0].cwd->deleted = true; }},
      {"holder-fifo",
       [](proc::Holder* h) { h->tasks[0].fds[0].at.mode = S_IFIFO | 0600; }},
      {"holder-kind",
       [](proc::Holder* h) { h->tasks[0].fds[0].at.mode = S_IFCHR | 0600; }},
      {"holder-lock",
       [](proc::Holder* h) {  // of a thread with a table of its own
         h->tasks[0].tid = 101;
         h->tasks[0].fds[0].locks.push_back({.kind = proc::LockKind::kFlock});
       }},
      {"holder-lease",
       [](proc::Holder* h) {
         h->tasks[0].fds[0].locks.push_back({.kind = proc::LockKind::kLease});
       }},
      {"holder-half-read-directory",
       [](proc::Holder* h) {
         h->tasks[0].fds[0].at.mode = S_IFDIR | 0700;
         h->tasks[0].fds[0].flags = O_RDONLY | O_DIRECTORY;
         h->tasks[0].fds[0].pos = 77;
       }},
      {"holder-mapping",
       [](proc::Holder* h) {
         h->mappings.emplace_back();
         h->mappings[0].line.write = h->mappings[0].line.shared = true;
       }},
      {"holder-mapping",
       [](proc::Holder* h) {
         h->mappings.emplace_back();
         h->mappings[0].at.nlink = 1;
       }},
      {"holder-exe",
       [](proc::Holder* h) { h->exe = proc::Place{.path = "p"}; }},
      {"holder-io_uring",
       [](proc::Holder* h) { h->tasks[0].rings.emplace_back(); }},
      {"holder-aio",
       [](proc::Holder* h) {
         h->tasks[0].rings.push_back({proc::RingKind::kAio, -1, {}});
       }},
      {"holder-watch",
       [](proc::Holder* h) { h->tasks[0].watches.push_back({}); }},
      {"holder-socket",
       [](proc::Holder* h) { h->tasks[0].sockets.push_back({}); }},
      {"holder-epoll",
       [](proc::Holder* h) { h->tasks[0].fds[0].in_epoll = true; }},
      {"holder-long-path",
       [](proc::Holder* h) { h->tasks[0].fds[0].at.path_known = false; }},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.code);
    proc::Snapshot snapshot;
    snapshot.holders.push_back(Writer(100));
    c.make(&snapshot.holders[0]);
    Plan plan;
    Findings findings(&plan.findings);
    JudgeHolders(snapshot, &plan, &findings);
    EXPECT_THAT(Codes(plan.findings), ElementsAre(c.code));
    EXPECT_EQ(plan.Code(), Exit::kBlocked);
    EXPECT_FALSE(plan.findings.empty() || plan.findings[0].way_out.empty());
  }
}

TEST(PreflightHolders, LocksOfDescriptionsAreNoObstacle) {
  for (proc::LockKind kind : {proc::LockKind::kFlock, proc::LockKind::kOfd}) {
    proc::Snapshot snapshot;
    snapshot.holders.push_back(Writer(100));
    snapshot.holders[0].tasks[0].fds[0].locks.push_back({.kind = kind});
    Plan plan;
    Findings findings(&plan.findings);
    JudgeHolders(snapshot, &plan, &findings);
    EXPECT_THAT(plan.findings, IsEmpty());
  }
}

TEST(PreflightHolders, AWaitingLockAndAnODirectoryAtItsStartAreNoObstacle) {
  proc::Snapshot snapshot;
  snapshot.holders.push_back(Writer(100));
  proc::Task& task = snapshot.holders[0].tasks[0];
  task.fds[0].locks.push_back({.waiting = true});
  proc::Descriptor dir = task.fds[0];
  dir.at.mode = S_IFDIR | 0700;
  dir.flags = O_RDONLY | O_DIRECTORY;
  dir.locks.clear();
  task.fds.push_back(dir);
  dir.flags = O_PATH | O_DIRECTORY;
  dir.pos = 5;
  task.fds.push_back(dir);
  Plan plan;
  Findings findings(&plan.findings);
  JudgeHolders(snapshot, &plan, &findings);
  EXPECT_THAT(plan.findings, IsEmpty());
}

// --- the survey ----------------------------------------------------------

class SurveyTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/livemv-survey-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    base_ = name;
    std::filesystem::create_directories(base_ + "/tree/a/b");
  }
  void TearDown() override { std::filesystem::remove_all(base_); }
  void Write(const std::string& path, size_t size) {
    std::ofstream(base_ + "/" + path) << std::string(size, 'x');
  }
  Survey Take(SurveyOptions options = {}) {
    const core::UniqueFd fd(
        open((base_ + "/tree").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    auto survey = SurveyTree(fd.Get(), options);
    EXPECT_TRUE(survey) << survey.error().ToString();
    return survey.value_or(Survey());
  }
  std::string base_;
};

TEST_F(SurveyTest, CountsWhatATreeHas) {
  Write("tree/one", 10);
  Write("tree/a/two", 5000);
  Write("tree/a/b/\xff\n", 0);
  symlink("nowhere", (base_ + "/tree/a/link").c_str());
  mkfifo((base_ + "/tree/a/fifo").c_str(), 0600);
  std::filesystem::create_hard_link(base_ + "/tree/one", base_ + "/tree/a/1");
  const Survey survey = Take();
  EXPECT_EQ(survey.files, 3u);
  EXPECT_EQ(survey.directories, 3u);
  EXPECT_EQ(survey.symlinks, 1u);
  EXPECT_EQ(survey.specials, 1u);
  EXPECT_EQ(survey.bytes, 5010u);
  EXPECT_EQ(survey.largest, 5000u);
  EXPECT_EQ(survey.largest_path, "a/two");
  EXPECT_EQ(survey.hard_linked, 1u);
  EXPECT_EQ(survey.outside_link_count, 0u);
  EXPECT_EQ(survey.longest_name, 4u);
  EXPECT_THAT(survey.other_devices, IsEmpty());
}

TEST_F(SurveyTest, TheMarkOfAnEarlierMoveIsNoAttributeOfTheUsers) {
  if (geteuid() != 0)
    GTEST_SKIP() << "trusted attributes are root's";
  Write("tree/file", 1);
  const std::string file = base_ + "/tree/file";
  ASSERT_EQ(setxattr(file.c_str(), "trusted.livemv", "1", 1, 0), 0);
  EXPECT_EQ(Take().with_system_xattrs, 0u);
  ASSERT_EQ(setxattr(file.c_str(), "trusted.other", "1", 1, 0), 0);
  EXPECT_EQ(Take().with_system_xattrs, 1u);
}

TEST_F(SurveyTest, LinksThatLeaveTheTreeAreFound) {
  Write("tree/a/inside", 1);
  std::filesystem::create_hard_link(base_ + "/tree/a/inside",
                                    base_ + "/outside");
  Write("tree/both", 1);
  std::filesystem::create_hard_link(base_ + "/tree/both",
                                    base_ + "/tree/a/b/both");
  const Survey survey = Take();
  EXPECT_EQ(survey.outside_link_count, 1u);
  EXPECT_THAT(survey.outside_links, ElementsAre("a/inside"));
}

TEST_F(SurveyTest, LostAndFoundOfAFilesystemsRootIsLeftOut) {
  std::filesystem::create_directory(base_ + "/tree/lost+found");
  std::filesystem::create_directory(base_ + "/tree/a/lost+found");
  EXPECT_EQ(Take().directories, 5u);
  EXPECT_EQ(Take({.skip_lost_found = true, .progress = {}}).directories, 4u);
}

TEST_F(SurveyTest, StopsWhenToldTo) {
  for (int i = 0; i < 5000; ++i)
    Write("tree/" + std::to_string(i), 0);
  const core::UniqueFd fd(
      open((base_ + "/tree").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  SurveyOptions options;
  options.progress = [](const Survey&) { return false; };
  auto survey = SurveyTree(fd.Get(), options);
  ASSERT_FALSE(survey);
  EXPECT_EQ(survey.error().code, core::ErrorCode::kAborted);
}

// --- the report ----------------------------------------------------------

Plan Sample() {
  Plan plan;
  plan.dir = "/data/my tree\n";
  plan.target = "nas:/export";
  plan.target_is_nfs = true;
  plan.kernel = "6.1.0";
  plan.tree = DataTree();
  plan.survey = Survey();
  plan.survey->files = 1234;
  plan.survey->bytes = 5'000'000;
  plan.survey->largest_path = "\xff.bin";
  plan.source_volume = Volume{.type = "ext4", .device = "/dev/sda1", .options = ""};
  proc::Snapshot snapshot;
  snapshot.holders.push_back(Writer(4711));
  snapshot.holders.push_back(Writer(4712));
  snapshot.holders[1].tracer = 12;
  Findings findings(&plan.findings);
  JudgeHolders(snapshot, &plan, &findings);
  findings.Warn("w", "something to think about", "think");
  return plan;
}

TEST(PlanReport, TextFitsTheTerminalAndQuotesNames) {
  const std::string text = PlanText(Sample(), 80);
  EXPECT_THAT(text, HasSubstr("\"/data/my tree\\n\""));
  EXPECT_THAT(text, HasSubstr("1,234 files"));
  EXPECT_THAT(text, HasSubstr("4711  writer\\n"));
  EXPECT_THAT(text, HasSubstr("movable"));
  EXPECT_THAT(text, HasSubstr("traced by process 12"));
  EXPECT_THAT(text, HasSubstr("-> detach the tracer"));
  EXPECT_THAT(text, HasSubstr("BLOCKED: 1 blocker, 1 warning"));
  EXPECT_THAT(text, Not(HasSubstr("\t")));
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = text.find('\n', begin);
    ASSERT_NE(end, std::string::npos);
    EXPECT_LE(end - begin, 80u) << text.substr(begin, end - begin);
    begin = end + 1;
  }
}

TEST(PlanReport, JsonHasHoldersFindingsAndTheCode) {
  const auto json = nlohmann::json::parse(PlanJson(Sample()));
  EXPECT_EQ(json["exit_code"], 3);
  EXPECT_EQ(json["result"], "blocked");
  ASSERT_EQ(json["holders"].size(), 2u);
  EXPECT_EQ(json["holders"][0]["pid"], 4711);
  EXPECT_EQ(json["holders"][0]["verdict"], "movable");
  EXPECT_EQ(json["holders"][1]["verdict"], "blocks");
  EXPECT_EQ(json["holders"][1]["reasons"][0]["code"], "traced");
  EXPECT_EQ(json["findings"].size(), 2u);
  EXPECT_EQ(json["survey"]["files"], 1234);
  EXPECT_TRUE(json["target_volume"].is_null());
}

TEST(PlanReport, WarningsAloneAreCodeTwo) {
  Plan plan;
  Findings findings(&plan.findings);
  findings.Note("n", "a note");
  EXPECT_EQ(plan.Code(), Exit::kDone);
  findings.Warn("w", "a warning", "a way");
  EXPECT_EQ(plan.Code(), Exit::kWarnings);
  EXPECT_THAT(PlanText(plan), HasSubstr("READY, with 1 warning"));
}

}  // namespace
}  // namespace livemv::daemon
