// Attach, cutover and return on real processes and real mounts, with the real
// tracer. An overlayfs mount stands in for the overlay: other device, same
// inode numbers; what a worker does is played by the test. Needs root.

#include "migrator/cutover/attach.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <functional>
#include <iostream>

#include "core/fault_points.h"
#include "migrator/cutover/cutover.h"
#include "migrator/cutover/opener.h"
#include "migrator/cutover/return_to_source.h"

namespace livemv::cutover {
namespace {

using core::Result;
using core::Status;
using core::UniqueFd;

// overlayfs gives other handles than FUSE does; the inode number does for
// files that nobody removes.
class InodeObjects : public DescriptorOps {
 public:
  Result<ObjectRef> ObjectAt(const Seat& seat) override {
    std::string link = "/proc/" + std::to_string(seat.pid) + "/task/" +
                       std::to_string(seat.tid) +
                       (seat.number < 0 ? "/cwd"
                                        : "/fd/" + std::to_string(seat.number));
    struct stat st;
    if (::stat(link.c_str(), &st) < 0)
      return core::FailSys(errno, "stat " + link);
    uint32_t words[3] = {static_cast<uint32_t>(st.st_ino >> 32),
                         static_cast<uint32_t>(st.st_ino), 1};
    return ObjectRef{ObjectName(0x81, words, sizeof words), st.st_ino};
  }
  Result<UniqueFd> OpenBeneath(int dirfd, const std::string& path, int flags,
                               uint64_t ino) override {
    // The root of an overlayfs has the number of its upper directory.
    if (path == ".") {
      ASSIGN_OR_RETURN(ino, real_->InodeOf(dirfd));
    }
    return real_->OpenBeneath(dirfd, path, flags, ino);
  }
  Result<UniqueFd> OpenObject(int dirfd, const core::FileHandle& handle,
                              int flags, uint64_t ino) override {
    return real_->OpenObject(dirfd, handle, flags, ino);
  }
  Result<uint64_t> InodeOf(int fd) override { return real_->InodeOf(fd); }
  Result<UniqueFd> DirectoryIn(pid_t pid, const std::string& path) override {
    return real_->DirectoryIn(pid, path);
  }
  Status SetPosition(int fd, int64_t position) override {
    return real_->SetPosition(fd, position);
  }
  bool HasOwner(const Seat& seat) override { return real_->HasOwner(seat); }
  Status CopyOwner(const Seat& seat, int fd) override {
    return real_->CopyOwner(seat, fd);
  }
  Result<UniqueFd> Duplicate(int fd) override { return real_->Duplicate(fd); }
  Result<UniqueFd> Share(const Seat& seat) override {
    return real_->Share(seat);
  }
  Result<Locks> AllOfProcesses() override { return real_->AllOfProcesses(); }
  Status SetLocks(int fd, const Locks& have, const Locks& want) override {
    return real_->SetLocks(fd, have, want);
  }
  Status Verify(const Seat& seat, int fd) override {
    return real_->Verify(seat, fd);
  }

 private:
  std::unique_ptr<DescriptorOps> real_ = MakeRealDescriptorOps();
};

class PlayedWorker : public OverlayControl {
 public:
  explicit PlayedWorker(const mount::MountFd* target) : target_(target) {}
  Status Advance(state::Event event, const std::string&) override {
    events.push_back(event);
    return {};
  }
  Status StartRedirect(int64_t) override {
    redirect = true;
    return {};
  }
  Result<std::vector<UniqueFd>> OpenOnTarget(const std::vector<OpenAsk>& asks,
                                             int64_t) override {
    std::vector<UniqueFd> fds;
    for (const OpenAsk& ask : asks)
      fds.emplace_back(::openat(target_->Get(), ask.path_hint.c_str(),
                                ask.flags | O_CLOEXEC));
    return fds;
  }
  Result<std::vector<core::FileHandle>> SourceHandles(
      const std::vector<state::FileId>& ids, int64_t) override {
    return std::vector<core::FileHandle>(ids.size());
  }
  Result<std::vector<bool>> AreDirect(const std::vector<state::FileId>& nodes,
                                      int64_t) override {
    return std::vector<bool>(nodes.size());
  }
  Status LeaveDirect(int64_t) override { return {}; }
  Result<FlushReport> FlushRound(int64_t) override { return FlushReport{}; }
  Result<FlushReport> DrainAndGate(int64_t) override {
    gate_closed = true;
    return FlushReport{};
  }
  Status GiveUpAttach() override { return {}; }
  Status GateOpens(int64_t) override { return {}; }
  Status RefuseOpens() override { return OpenGate(); }
  Status OpenGate() override {
    gate_closed = false;
    return {};
  }
  Status CommitTarget(int64_t) override {
    truth_target = true;
    return {};
  }
  Status RevokeTarget(int64_t) override {
    truth_target = false;
    return {};
  }
  Status CommitSource(int64_t) override { return {}; }

  bool redirect = false, gate_closed = false, truth_target = false;
  std::vector<state::Event> events;

 private:
  const mount::MountFd* target_;
};

// Shared with the writers.
struct Counters {
  std::atomic<int> running, errors;
  std::atomic<long> writes;
};

class AttachOnKernelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0)
      GTEST_SKIP() << "SKIPPED for want of: root";
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    char name[] = "/tmp/livemv-attach-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    base_ = name;
    Tmpfs("");
    for (const char* d : {"fs", "target", "ov"})
      ASSERT_EQ(::mkdir(Path(d).c_str(), 0755), 0);
    Tmpfs("fs");
    Tmpfs("target");
    for (const char* d : {"fs/src", "fs/src/sub", "fs/up", "fs/work",
                          "target/sub"})
      ASSERT_EQ(::mkdir(Path(d).c_str(), 0755), 0);
    for (const char* d : {"fs/src", "target"})
      for (const char* f : {"a", "b", "sub/c"})
        std::ofstream(Path(d) + "/" + f) << std::string(1000, 'x');
    dir_ = Path("fs/src");
    void* shared = ::mmap(nullptr, sizeof(Counters), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(shared, MAP_FAILED);
    counters_ = new (shared) Counters{};

    std::string options = "lowerdir=" + dir_ + ",upperdir=" + Path("fs/up") +
                          ",workdir=" + Path("fs/work");
    if (::mount("ov", Path("ov").c_str(), "overlay", 0, options.c_str()) != 0)
      GTEST_SKIP() << "SKIPPED for want of: overlayfs (" << strerror(errno)
                   << ")";
    source_dir_ = UniqueFd(
        ::open(dir_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    overlay_ = std::move(*mounts_->CloneTree(AT_FDCWD, Path("ov")));
    ASSERT_EQ(::umount2(Path("ov").c_str(), MNT_DETACH), 0);
    target_ = std::move(*mounts_->CloneTree(AT_FDCWD, Path("target")));
    ASSERT_EQ(::umount2(Path("target").c_str(), MNT_DETACH), 0);
    auto source = proc::MakeTreeRef(source_dir_.Get());
    ASSERT_TRUE(source) << source.error().ToString();
    source_ = *source;
    auto tree = TreeOfOverlay(overlay_);
    ASSERT_TRUE(tree) << tree.error().ToString();
    overlay_tree_ = *tree;
    struct stat st;
    ASSERT_EQ(::fstatat(target_.Get(), "", &st, AT_EMPTY_PATH), 0);
    target_dev_ = st.st_dev;
  }

  void TearDown() override {
    EXPECT_TRUE(core::ArmFaults(""));
    for (pid_t pid : pids_)
      ::kill(pid, SIGKILL);
    // Not our children any more: gone when the number is.
    for (pid_t pid : pids_)
      EXPECT_TRUE(Eventually([&] { return ::kill(pid, 0) != 0; })) << pid;
    if (!base_.empty()) {
      ::umount2(base_.c_str(), MNT_DETACH);
      ::rmdir(base_.c_str());
    }
  }

  std::string Path(const std::string& name) {
    return name.empty() ? base_ : base_ + "/" + name;
  }
  void Tmpfs(const std::string& name) {
    ASSERT_EQ(::mount("t", Path(name).c_str(), "tmpfs", 0, "size=16m"), 0);
  }
  bool Eventually(const std::function<bool()>& ready) {
    int64_t until = clock_->NowNs() + 20'000'000'000;
    while (!ready()) {
      if (clock_->NowNs() > until)
        return false;
      clock_->WaitNs(1'000'000);
    }
    return true;
  }

  // Runs body in a process that is not our child (those count as ours).
  pid_t Spawn(const std::function<void()>& body) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    pid_t between = ::fork();
    if (between == 0) {
      pid_t pid = ::fork();
      if (pid == 0) {
        // Ours would make it a holder of everything; and it must not outlive
        // a test that is killed.
        ::close_range(3, ~0u, 0);
        ::alarm(120);
        body();
        ::_exit(0);
      }
      [[maybe_unused]] ssize_t n = ::write(ends[1], &pid, sizeof pid);
      ::_exit(0);
    }
    pid_t pid = 0;
    EXPECT_EQ(::read(ends[0], &pid, sizeof pid), (ssize_t)sizeof pid);
    ::close(ends[0]);
    ::close(ends[1]);
    ::waitpid(between, nullptr, 0);
    pids_.push_back(pid);
    return pid;
  }

  // In DIR: 10 appends to a, 11 is b at 500, shared with a forked child; 12
  // is the directory sub. Writes by descriptor and by relative path.
  pid_t Writer(bool own_namespace = false) {
    int before = counters_->running;
    pid_t pid = Spawn([&] {
      if (own_namespace &&
          (::unshare(CLONE_NEWNS) != 0 ||
           ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0))
        ::_exit(1);
      if (::chdir(dir_.c_str()) != 0)
        ::_exit(1);
      int a = ::open("a", O_WRONLY | O_APPEND);
      int b = ::open("b", O_RDWR);
      int sub = ::open("sub", O_RDONLY | O_DIRECTORY);
      ::dup2(a, 20);
      ::dup3(b, 21, O_CLOEXEC);
      ::dup2(sub, 22);
      ::close(a);
      ::close(b);
      ::close(sub);
      ::lseek(21, 500, SEEK_SET);
      counters_->running++;
      timespec nap{0, 1'000'000};
      for (;;) {
        int c = ::open("sub/c", O_WRONLY | O_APPEND);
        if (c < 0 || ::write(c, "c", 1) != 1 || ::write(20, "a", 1) != 1)
          counters_->errors++;
        if (c >= 0)
          ::close(c);
        counters_->writes++;
        ::nanosleep(&nap, nullptr);
      }
    });
    EXPECT_TRUE(Eventually([&] { return counters_->running > before; }));
    return pid;
  }

  dev_t DevOf(pid_t pid, const std::string& what) {
    struct stat st {};
    std::string path = "/proc/" + std::to_string(pid) + "/" + what;
    EXPECT_EQ(::stat(path.c_str(), &st), 0) << path;
    return st.st_dev;
  }
  void ExpectOn(pid_t pid, dev_t dev, const std::string& cwd) {
    for (const char* what : {"cwd", "fd/20", "fd/21", "fd/22"})
      EXPECT_EQ(DevOf(pid, what), dev) << pid << " " << what;
    char link[4096] = "";
    EXPECT_GT(::readlink(("/proc/" + std::to_string(pid) + "/cwd").c_str(),
                         link, sizeof link - 1),
              0);
    EXPECT_EQ(std::string(link), cwd);
    std::ifstream in("/proc/" + std::to_string(pid) + "/fdinfo/21");
    std::string text((std::istreambuf_iterator<char>(in)), {});
    EXPECT_NE(text.find("pos:\t500\n"), std::string::npos) << text;
    EXPECT_NE(text.find("flags:\t02100002\n"), std::string::npos)
        << "O_RDWR, close-on-exec: " << text;
  }
  // The writers have written again since, and met no error.
  void ExpectTheyWriteOn() {
    long then = counters_->writes;
    EXPECT_TRUE(Eventually([&] { return counters_->writes > then + 20; }));
    EXPECT_EQ(counters_->errors, 0);
  }
  bool Traced(pid_t pid) {
    std::ifstream in("/proc/" + std::to_string(pid) + "/status");
    for (std::string line; std::getline(in, line);)
      if (line.starts_with("TracerPid:"))
        return line != "TracerPid:\t0";
    return false;
  }

  Deps MakeDeps() {
    Deps deps;
    deps.overlay = &worker_;
    deps.scanner = scanner_.get();
    deps.files = &files_;
    deps.mounts = mounts_.get();
    deps.clock = clock_.get();
    deps.make_frozen_set = [] { return trace::FrozenSet::Create(); };
    return deps;
  }
  // For the eye: how long each process stood still.
  static void Show(const char* what, const Outcome& outcome) {
    for (const trace::Pause& pause : outcome.pauses)
      std::cout << what << ": process " << pause.pid << " stood still for "
                << pause.ns / 1000 << " us\n";
  }

  Outcome Attach() {
    AttachRequest request;
    request.dir = dir_;
    request.overlay = &overlay_;
    request.source_dir_fd = source_dir_.Get();
    request.source = source_;
    request.overlay_tree = overlay_tree_;
    request.own = {::getpid()};
    request.pause_ns = 5'000'000'000;  // a loaded machine is not the subject
    return RunAttach(MakeDeps(), request);
  }
  CutoverRequest ForCutover() {
    CutoverRequest request;
    request.dir = dir_;
    request.target = &target_;
    request.overlay_tree = overlay_tree_;
    request.own = {::getpid()};
    request.pause_ns = 5'000'000'000;
    return request;
  }
  dev_t Shown() {
    struct stat st {};
    EXPECT_EQ(::stat(dir_.c_str(), &st), 0);
    return st.st_dev;
  }

  std::unique_ptr<mount::MountOps> mounts_ = mount::MakeRealMountOps();
  std::unique_ptr<ProcessScanner> scanner_ = MakeRealProcessScanner();
  std::unique_ptr<Clock> clock_ = MakeRealClock();
  InodeObjects files_;
  std::string base_, dir_;
  UniqueFd source_dir_;
  mount::MountFd overlay_, target_;
  PlayedWorker worker_{&target_};
  proc::TreeRef source_, overlay_tree_;
  dev_t target_dev_ = 0;
  Counters* counters_ = nullptr;
  std::vector<pid_t> pids_;
};

TEST_F(AttachOnKernelTest, ThereAndOnToTheTarget) {
  pid_t a = Writer();
  pid_t b = Writer();
  Outcome attached = Attach();
  ASSERT_TRUE(attached.status) << attached.status.error().ToString();
  EXPECT_TRUE(worker_.redirect);
  EXPECT_EQ(attached.processes_moved, 2u);
  EXPECT_EQ(Shown(), overlay_tree_.dev);
  for (pid_t pid : {a, b}) {
    ExpectOn(pid, overlay_tree_.dev, dir_);
    EXPECT_FALSE(Traced(pid));
  }
  ExpectTheyWriteOn();

  Show("attach", attached);
  Outcome moved = RunCutover(MakeDeps(), ForCutover());
  ASSERT_TRUE(moved.status) << moved.status.error().ToString();
  Show("cutover", moved);
  for (const std::string& warning : moved.warnings)
    ADD_FAILURE() << warning;
  EXPECT_TRUE(worker_.truth_target);
  EXPECT_FALSE(worker_.gate_closed);
  EXPECT_EQ(Shown(), target_dev_);
  EXPECT_TRUE(moved.stragglers.empty());
  for (pid_t pid : {a, b})
    ExpectOn(pid, target_dev_, dir_);
  ExpectTheyWriteOn();
  Outcome drained = RunDrain(MakeDeps(), ForCutover());
  ASSERT_TRUE(drained.status) << drained.status.error().ToString();
  EXPECT_TRUE(drained.stragglers.empty());
}

TEST_F(AttachOnKernelTest, AndBackToTheSource) {
  pid_t pid = Writer();
  Outcome attached = Attach();
  ASSERT_TRUE(attached.status) << attached.status.error().ToString();
  ReturnRequest request;
  request.dir = dir_;
  request.source_dir_fd = source_dir_.Get();
  request.source = source_;
  request.overlay_tree = overlay_tree_;
  request.target = &target_;
  request.own = {::getpid()};
  request.pause_ns = 5'000'000'000;
  Outcome back = RunReturn(MakeDeps(), request);
  ASSERT_TRUE(back.status) << back.status.error().ToString();
  for (const std::string& warning : back.warnings)
    ADD_FAILURE() << warning;
  EXPECT_EQ(Shown(), source_.dev);
  ExpectOn(pid, source_.dev, dir_);
  ExpectTheyWriteOn();
}

TEST_F(AttachOnKernelTest, AProcessInAMountNamespaceOfItsOwnMovesToo) {
  pid_t pid = Writer(true);
  Outcome attached = Attach();
  ASSERT_TRUE(attached.status) << attached.status.error().ToString();
  std::string there = "/proc/" + std::to_string(pid) + "/root" + dir_;
  struct stat st {};
  ASSERT_EQ(::stat(there.c_str(), &st), 0);
  EXPECT_EQ(st.st_dev, overlay_tree_.dev);
  ExpectOn(pid, overlay_tree_.dev, dir_);
  ExpectTheyWriteOn();

  Outcome moved = RunCutover(MakeDeps(), ForCutover());
  ASSERT_TRUE(moved.status) << moved.status.error().ToString();
  for (const std::string& warning : moved.warnings)
    ADD_FAILURE() << warning;
  ASSERT_EQ(::stat(there.c_str(), &st), 0);
  EXPECT_EQ(st.st_dev, target_dev_);
  ExpectOn(pid, target_dev_, dir_);
  EXPECT_TRUE(moved.stragglers.empty());
  ExpectTheyWriteOn();
}

TEST_F(AttachOnKernelTest, ADescriptionSharedByAForkStaysOne) {
  pid_t parent = Spawn([&] {
    int fd = ::open((dir_ + "/b").c_str(), O_RDWR);
    ::dup2(fd, 21);
    ::close(fd);
    if (::fork() == 0)
      for (;;)
        ::pause();
    counters_->running++;
    for (;;)
      ::pause();
  });
  ASSERT_TRUE(Eventually([&] { return counters_->running == 1; }));
  std::vector<pid_t> children = scanner_->ChildrenOf(parent);
  ASSERT_EQ(children.size(), 1u);
  pids_.push_back(children[0]);
  Outcome attached = Attach();
  ASSERT_TRUE(attached.status) << attached.status.error().ToString();
  EXPECT_EQ(attached.processes_moved, 2u);
  EXPECT_EQ(DevOf(parent, "fd/21"), overlay_tree_.dev);
  std::vector<proc::Holder> holders;
  for (pid_t pid : {parent, children[0]}) {
    auto holder = scanner_->CaptureOne(overlay_tree_, pid, {});
    ASSERT_TRUE(holder);
    holders.push_back(*holder);
  }
  ASSERT_TRUE(scanner_->Identify(&holders, false));
  EXPECT_EQ(holders[0].tasks[0].fds[0].description,
            holders[1].tasks[0].fds[0].description);
}

TEST_F(AttachOnKernelTest, AFailureAtEachPointLeavesEverybodyAsBefore) {
  pid_t pid = Writer();
  for (const char* point :
       {"attach.scanned", "attach.frozen", "attach.swapped"}) {
    ASSERT_TRUE(core::ArmFaults(std::string(point) + "=error:5@1"));
    Outcome outcome = Attach();
    EXPECT_FALSE(outcome.status) << point;
    EXPECT_FALSE(outcome.committed) << point;
    for (const std::string& warning : outcome.warnings)
      ADD_FAILURE() << point << ": " << warning;
    EXPECT_EQ(Shown(), source_.dev) << point;
    ExpectOn(pid, source_.dev, dir_);
    EXPECT_FALSE(Traced(pid));
    ExpectTheyWriteOn();
  }
  ASSERT_TRUE(core::ArmFaults(""));
  Outcome attached = Attach();
  ASSERT_TRUE(attached.status) << attached.status.error().ToString();
  for (const char* point :
       {"cutover.flushed", "cutover.frozen", "cutover.gated",
        "cutover.swapped", "cutover.mounted"}) {
    ASSERT_TRUE(core::ArmFaults(std::string(point) + "=error:5@1"));
    Outcome outcome = RunCutover(MakeDeps(), ForCutover());
    EXPECT_FALSE(outcome.status) << point;
    EXPECT_FALSE(outcome.committed) << point;
    EXPECT_FALSE(worker_.gate_closed) << point;
    EXPECT_EQ(Shown(), overlay_tree_.dev) << point;
    ExpectOn(pid, overlay_tree_.dev, dir_);
    ExpectTheyWriteOn();
  }
  ASSERT_TRUE(core::ArmFaults(""));
  Outcome moved = RunCutover(MakeDeps(), ForCutover());
  ASSERT_TRUE(moved.status) << moved.status.error().ToString();
  ExpectOn(pid, target_dev_, dir_);
}

TEST_F(AttachOnKernelTest, AFailureAfterTheFirstThawBringsEverybodyBack) {
  pid_t pid = Writer();
  ASSERT_TRUE(core::ArmFaults("attach.redirect=error:5@1"));
  Outcome outcome = Attach();
  ASSERT_FALSE(outcome.status);
  EXPECT_FALSE(outcome.committed);
  for (const std::string& warning : outcome.warnings)
    ADD_FAILURE() << warning;
  EXPECT_EQ(Shown(), source_.dev);
  ExpectOn(pid, source_.dev, dir_);
  ExpectTheyWriteOn();
}

}  // namespace
}  // namespace livemv::cutover
