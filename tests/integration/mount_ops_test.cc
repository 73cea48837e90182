// MountOps on the real kernel. Each test runs in a mount namespace of its own,
// so nothing it mounts outlives it. Needs root.

#include "migrator/mount/mount_ops.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

namespace livemv::mount {
namespace {

using core::ErrorCode;
using core::UniqueFd;

// Pass this test on to a child that has a private mount namespace: gtest's
// own process must keep the machine's.
class MountOpsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0)
      GTEST_SKIP() << "SKIPPED for want of: root";
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0) << strerror(errno);
    ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    char name[] = "/tmp/livemv-mount-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    base_ = name;
    ASSERT_EQ(::mount("base", name, "tmpfs", 0, "size=4m"), 0);
    for (const char* d : {"work", "target", "scratch", "old"})
      ASSERT_EQ(::mkdir(Path(d).c_str(), 0755), 0);
    Tmpfs("work", "source");
    Tmpfs("target", "target");
  }

  void TearDown() override {
    for (pid_t pid : children_) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    if (!base_.empty()) {
      ::umount2(base_.c_str(), MNT_DETACH);
      ::rmdir(base_.c_str());
    }
  }

  std::string Path(const std::string& name) { return base_ + "/" + name; }

  void Tmpfs(const std::string& name, const std::string& content) {
    ASSERT_EQ(::mount(name.c_str(), Path(name).c_str(), "tmpfs", 0, nullptr),
              0);
    std::ofstream(Path(name) + "/who") << content;
  }

  // What a reader of DIR/who sees.
  std::string Who(const std::string& dir) {
    std::ifstream in(dir + "/who");
    std::string content;
    in >> content;
    return content;
  }

  dev_t DevOf(int fd) {
    struct stat st {};
    EXPECT_EQ(::fstat(fd, &st), 0);
    return st.st_dev;
  }

  // A process in a mount namespace of its own that waits to be killed.
  pid_t Stranger(unsigned long propagation, const char* root = nullptr) {
    int ready[2];
    EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    pid_t pid = ::fork();
    if (pid == 0) {
      if (::unshare(CLONE_NEWNS) != 0 ||
          ::mount(nullptr, "/", nullptr, MS_REC | propagation, nullptr) != 0 ||
          (root != nullptr && (::chroot(root) != 0 || ::chdir("/") != 0)))
        ::_exit(1);
      [[maybe_unused]] ssize_t n = ::write(ready[1], "x", 1);
      for (;;)
        ::pause();
    }
    ::close(ready[1]);
    char c = 0;
    EXPECT_EQ(::read(ready[0], &c, 1), 1);
    ::close(ready[0]);
    children_.push_back(pid);
    return pid;
  }

  std::string WhoIn(pid_t pid, const std::string& dir) {
    return Who("/proc/" + std::to_string(pid) + "/root" + dir);
  }

  MountFd Clone(const std::string& name) {
    auto mount = ops_->CloneTree(AT_FDCWD, Path(name));
    EXPECT_TRUE(mount) << mount.error().ToString();
    return mount ? std::move(*mount) : MountFd();
  }

  std::unique_ptr<MountOps> ops_ = MakeRealMountOps();
  std::string base_;
  std::vector<pid_t> children_;
};

TEST_F(MountOpsTest, ACloneGoesOnShowingWhatIsCoveredLater) {
  MountFd source = Clone("work");
  MountFd target = Clone("target");
  ASSERT_TRUE(ops_->AttachAt(target, {nullptr, Path("work")}));
  EXPECT_EQ(Who(Path("work")), "target");
  UniqueFd fd(::openat(source.Get(), "who", O_RDONLY));
  char buf[16] = "";
  EXPECT_EQ(::read(fd.Get(), buf, sizeof buf), 6);
  EXPECT_STREQ(buf, "source");
}

TEST_F(MountOpsTest, DroppingTheDescriptorOfAnAttachedMountKeepsTheMount) {
  uint64_t id = 0;
  {
    MountFd target = Clone("target");
    auto got = ops_->IdOf(target);
    ASSERT_TRUE(got);
    id = *got;
    ASSERT_TRUE(ops_->AttachAt(target, {nullptr, Path("work")}));
  }
  auto table = ops_->TableOf(0);
  ASSERT_TRUE(table);
  ASSERT_NE(table->TopAt(Path("work")), nullptr);
  EXPECT_EQ(table->TopAt(Path("work"))->id, id);
}

TEST_F(MountOpsTest, SlidingBeneathAndDetachingTheTopShowsNothingElseMeanwhile) {
  if (!ops_->HasBeneath()) {  // before Linux 6.5: refused, and said why
    core::Status slid =
        ops_->SlideBeneath(Clone("target"), {nullptr, Path("work")});
    ASSERT_FALSE(slid);
    EXPECT_EQ(slid.error().code, core::ErrorCode::kUnsupported);
    return;
  }
  ASSERT_TRUE(ops_->AttachAt(Clone("target"), {nullptr, Path("work")}));
  ASSERT_EQ(::mount("new", Path("old").c_str(), "tmpfs", 0, nullptr), 0);
  std::ofstream(Path("old") + "/who") << "new";
  MountFd next = Clone("old");
  UniqueFd held(::open((Path("work") + "/who").c_str(), O_RDONLY));
  dev_t top = DevOf(held.Get());

  std::atomic<bool> stop{false};
  std::atomic<int> looks{0};
  std::string wrong;
  std::thread looker([&] {
    while (!stop) {
      std::string who = Who(Path("work"));
      if (who != "target" && who != "new")
        wrong = who.empty() ? "nothing" : who;
      ++looks;
    }
  });
  while (looks < 10)
    std::this_thread::yield();
  auto slid = ops_->SlideBeneath(next, {nullptr, Path("work")});
  std::string between = Who(Path("work"));
  auto off = ops_->DetachTop({nullptr, Path("work")}, top);
  int then = looks;
  while (looks < then + 10)
    std::this_thread::yield();
  stop = true;
  looker.join();
  EXPECT_TRUE(slid) << slid.error().ToString();
  EXPECT_EQ(between, "target");
  EXPECT_TRUE(off) << off.error().ToString();
  EXPECT_EQ(wrong, "");
  EXPECT_EQ(Who(Path("work")), "new");
  char buf[16] = "";
  EXPECT_EQ(::read(held.Get(), buf, sizeof buf), 6) << "open files go on";
}

TEST_F(MountOpsTest, TheTopIsNotTakenOffIfItIsAnothersMount) {
  MountFd target = Clone("target");
  auto off = ops_->DetachTop({nullptr, Path("work")}, DevOf(target.Get()));
  ASSERT_FALSE(off);
  EXPECT_EQ(off.error().code, ErrorCode::kConflict);
  EXPECT_EQ(Who(Path("work")), "source");
}

TEST_F(MountOpsTest, APrivateNamespaceIsEnteredToMountAndUnmount) {
  pid_t pid = Stranger(MS_PRIVATE);
  auto ns = ops_->NamespaceOf(pid);
  ASSERT_TRUE(ns) << ns.error().ToString();
  MountFd target = Clone("target");
  ASSERT_TRUE(ops_->AttachAt(target, {nullptr, Path("work")}));
  EXPECT_EQ(WhoIn(pid, Path("work")), "source") << "private: not propagated";

  auto copy = ops_->CloneTree(target.Get(), "");
  ASSERT_TRUE(copy) << copy.error().ToString();
  auto on = ops_->AttachAt(*copy, {&*ns, Path("work")});
  ASSERT_TRUE(on) << on.error().ToString();
  EXPECT_EQ(WhoIn(pid, Path("work")), "target");
  auto table = ops_->TableIn(*ns);
  ASSERT_TRUE(table) << table.error().ToString();
  ASSERT_NE(table->TopAt(Path("work")), nullptr);
  EXPECT_EQ(table->TopAt(Path("work"))->dev, DevOf(target.Get()));
  EXPECT_EQ(table->DepthAt(Path("work")), 2u);

  auto off = ops_->DetachTop({&*ns, Path("work")}, DevOf(target.Get()));
  EXPECT_TRUE(off) << off.error().ToString();
  EXPECT_EQ(WhoIn(pid, Path("work")), "source");
  EXPECT_EQ(Who(Path("work")), "target") << "ours is untouched";
}

TEST_F(MountOpsTest, ASlaveNamespaceFollowsAttachSlideAndDetach) {
  ASSERT_EQ(::mount(nullptr, base_.c_str(), nullptr, MS_SHARED | MS_REC,
                    nullptr),
            0);
  pid_t pid = Stranger(MS_SLAVE);
  MountFd source = Clone("work");
  MountFd target = Clone("target");
  ASSERT_TRUE(ops_->AttachAt(target, {nullptr, Path("work")}));
  EXPECT_EQ(WhoIn(pid, Path("work")), "target");
  UniqueFd fd(::openat(source.Get(), "who", O_RDONLY));
  char buf[16] = "";
  ASSERT_EQ(::read(fd.Get(), buf, sizeof buf), 6);
  EXPECT_STREQ(buf, "source") << "our clone must hear of nothing";
  if (!ops_->HasBeneath())
    return;
  std::ofstream(Path("old") + "/who") << "new";
  MountFd next = Clone("old");
  auto slid = ops_->SlideBeneath(next, {nullptr, Path("work")});
  ASSERT_TRUE(slid) << slid.error().ToString();
  EXPECT_EQ(WhoIn(pid, Path("work")), "target");
  ASSERT_TRUE(ops_->DetachTop({nullptr, Path("work")}, DevOf(target.Get())));
  EXPECT_EQ(Who(Path("work")), "new");
  EXPECT_EQ(WhoIn(pid, Path("work")), "new");
}

TEST_F(MountOpsTest, AChrootedWitnessIsServedByItsOwnPaths) {
  pid_t pid = Stranger(MS_PRIVATE, base_.c_str());
  auto ns = ops_->NamespaceOf(pid);
  ASSERT_TRUE(ns);
  auto table = ops_->TableIn(*ns);
  ASSERT_TRUE(table) << table.error().ToString();
  ASSERT_NE(table->TopAt("/work"), nullptr);
  MountFd target = Clone("target");
  auto on = ops_->AttachAt(target, {&*ns, "/work"});
  ASSERT_TRUE(on) << on.error().ToString();
  EXPECT_EQ(WhoIn(pid, "/work"), "target");
  EXPECT_EQ(Who(Path("work")), "source");
}

TEST_F(MountOpsTest, ANamespaceOutlivesItsWitness) {
  pid_t pid = Stranger(MS_PRIVATE);
  auto ns = ops_->NamespaceOf(pid);
  ASSERT_TRUE(ns);
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  children_.clear();
  auto table = ops_->TableIn(*ns);
  ASSERT_TRUE(table) << table.error().ToString();
  EXPECT_NE(table->TopAt(Path("work")), nullptr);
  auto gone = ops_->NamespaceOf(pid);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code, ErrorCode::kGone);
}

TEST_F(MountOpsTest, TheOverlayIsMadeDetachedWithItsOptions) {
  UniqueFd fuse(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!fuse)
    GTEST_SKIP() << "SKIPPED for want of: /dev/fuse";
  OverlaySpec spec;
  spec.fuse_fd = fuse.Get();
  spec.source = Path("work");
  spec.root_mode = S_IFDIR | 0755;
  spec.flags.nosuid = true;
  spec.flags.noexec = true;
  auto overlay = ops_->MakeOverlay(spec);
  ASSERT_TRUE(overlay) << overlay.error().ToString();
  pollfd readable{fuse.Get(), POLLIN, 0};
  ASSERT_EQ(::poll(&readable, 1, 5000), 1) << "INIT waits to be read";
  EXPECT_EQ(Who(Path("work")), "source") << "nobody sees it yet";

  ASSERT_TRUE(ops_->AttachAt(*overlay, {nullptr, Path("work")}));
  auto table = ops_->TableOf(0);
  ASSERT_TRUE(table);
  const MountEntry* top = table->TopAt(Path("work"));
  ASSERT_NE(top, nullptr);
  EXPECT_EQ(top->fs_type, "fuse.livemv");
  EXPECT_EQ(top->source, Path("work"));
  EXPECT_TRUE(top->HasOption("nosuid"));
  EXPECT_TRUE(top->HasOption("noexec"));
  EXPECT_FALSE(top->HasOption("nodev"));
  EXPECT_NE(top->super_options.find("default_permissions"), std::string::npos);
  EXPECT_NE(top->super_options.find("allow_other"), std::string::npos);
  EXPECT_NE(top->super_options.find("max_read=1048576"), std::string::npos);
  auto id = ops_->IdOf(*overlay);
  ASSERT_TRUE(id);
  EXPECT_EQ(*id, top->id);
  ASSERT_TRUE(ops_->DetachTop({nullptr, Path("work")}, top->dev));
  EXPECT_EQ(Who(Path("work")), "source");
}

TEST_F(MountOpsTest, AnOverlayOnADescriptorThatIsNotFuseSaysSo) {
  OverlaySpec spec;
  UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  spec.fuse_fd = null.Get();
  spec.source = Path("work");
  spec.root_mode = S_IFDIR;
  auto overlay = ops_->MakeOverlay(spec);
  ASSERT_FALSE(overlay);
  EXPECT_NE(overlay.error().ToString().find(Path("work")), std::string::npos);
}

TEST_F(MountOpsTest, ADirectoryTargetIsACopyOfItsMount) {
  ASSERT_EQ(::mkdir((Path("target") + "/sub").c_str(), 0755), 0);
  std::ofstream(Path("target") + "/sub/who") << "sub";
  auto mount = ops_->MountTarget(Path("target") + "/sub", "", Path("scratch"),
                                 1'000'000'000);
  ASSERT_TRUE(mount) << mount.error().ToString();
  ASSERT_TRUE(ops_->AttachAt(mount->mount, {nullptr, Path("work")}));
  EXPECT_EQ(Who(Path("work")), "sub");
}

TEST_F(MountOpsTest, ATargetThatCannotBeMountedSaysWhy) {
  auto missing =
      ops_->MountTarget(Path("none"), "", Path("scratch"), 1'000'000'000);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().sys_errno, ENOENT);
  auto options = ops_->MountTarget(Path("target"), "soft", Path("scratch"),
                                   1'000'000'000);
  ASSERT_FALSE(options);
  EXPECT_EQ(options.error().code, ErrorCode::kInvalid);
  auto file = ops_->MountTarget(Path("target") + "/who", "", Path("scratch"),
                                1'000'000'000);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().sys_errno, ENOTDIR);
}

TEST_F(MountOpsTest, AnNfsTargetIsRefusedWhereTheKernelHasNoClient) {
  core::Status client = HasNfsClient();
  auto mount = ops_->MountTarget("127.0.0.1:/none", "vers=4.2,timeo=5,retry=0",
                                 Path("scratch"), 5'000'000'000);
  ASSERT_FALSE(mount);
  if (!client) {
    EXPECT_EQ(mount.error().code, ErrorCode::kUnsupported);
    EXPECT_EQ(mount.error().what, client.error().what);
  }
  EXPECT_TRUE(std::filesystem::is_empty(Path("scratch")));
}

TEST(MountTarget, TellsNfsNamesFromDirectories) {
  EXPECT_TRUE(IsNfsName("nas:/export"));
  EXPECT_TRUE(IsNfsName("[fe80::1]:/export/sub"));
  EXPECT_FALSE(IsNfsName("/mnt/a:/b"));
  EXPECT_FALSE(IsNfsName("./nas:/x"));
  EXPECT_FALSE(IsNfsName("dir/nas:/x"));
  EXPECT_FALSE(IsNfsName("nas"));
  EXPECT_FALSE(IsNfsName(":/x"));
  EXPECT_FALSE(IsNfsName(""));
}

TEST(MountProbes, ThisKernelIsTold) {
  if (::geteuid() != 0)
    GTEST_SKIP() << "SKIPPED for want of: root";
  EXPECT_TRUE(HasFsopen());
  auto flags = FlagsOf(AT_FDCWD);
  EXPECT_FALSE(flags) << "AT_FDCWD is no descriptor";
  UniqueFd proc(::open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  EXPECT_TRUE(FlagsOf(proc.Get()));
}

}  // namespace
}  // namespace livemv::mount
