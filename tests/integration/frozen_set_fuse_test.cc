// FrozenSet and a FUSE filesystem whose daemon does not answer.
//
// FLUSH: the call that closes the old description hangs in the process, beyond
// reach. The deadline is kept, everybody else goes on, and the process is put
// back and let go of by the guardian once the daemon answers.
//
// WRITE: the writer keeps the inode locked, and whoever closes a descriptor of
// it waits; that must not be the tracer before its caller opens the gate.

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/unique_fd.h"
#include "migrator/trace/frozen_set.h"
#include "migrator/trace/ptrace_ops.h"
#include "tests/support/victim_path.h"

namespace livemv::trace {
namespace {

namespace fs = std::filesystem;
using core::UniqueFd;

// Answers requests on a tree of one directory with files log.0, log.1, ...;
// requests of the kind `held` wait until `release` is readable, as do all that
// come after the first of them.
class Daemon {
 public:
  Daemon(int dev, int release, uint32_t held)
      : dev_(dev), release_(release), held_(held) {}

  [[noreturn]] void Run() {
    std::vector<char> buf(1 << 20);
    for (;;) {
      ssize_t n = ::read(dev_, buf.data(), buf.size());
      if (n < 0 && errno == EINTR)
        continue;
      if (n < static_cast<ssize_t>(sizeof(fuse_in_header)))
        ::_exit(0);
      fuse_in_header in;
      std::memcpy(&in, buf.data(), sizeof in);
      Answer(in, buf.data() + sizeof in);
    }
  }

 private:
  void Reply(const fuse_in_header& in, int error, const void* data = nullptr,
             size_t len = 0) {
    fuse_out_header out = {};
    out.unique = in.unique;
    out.error = -error;
    out.len = static_cast<uint32_t>(sizeof out + len);
    std::string message(reinterpret_cast<char*>(&out), sizeof out);
    if (len > 0)
      message.append(static_cast<const char*>(data), len);
    (void)!::write(dev_, message.data(), message.size());
  }
  static fuse_attr Attr(uint64_t ino) {
    fuse_attr attr = {};
    attr.ino = ino;
    attr.mode = ino == 1 ? S_IFDIR | 0755 : S_IFREG | 0666;
    attr.nlink = 1;
    return attr;
  }
  void Answer(const fuse_in_header& in, const char* body) {
    if (in.opcode == held_) {
      struct pollfd released = {release_, POLLIN, 0};
      ::poll(&released, 1, -1);
    }
    switch (in.opcode) {
      case FUSE_INIT: {
        fuse_init_out out = {};
        out.major = FUSE_KERNEL_VERSION;
        out.minor = FUSE_KERNEL_MINOR_VERSION;
        out.max_write = 65536;
        return Reply(in, 0, &out, sizeof out);
      }
      case FUSE_LOOKUP: {
        if (std::strncmp(body, "log.", 4) != 0)
          return Reply(in, ENOENT);
        fuse_entry_out out = {};
        out.nodeid = 2 + static_cast<uint64_t>(std::atoi(body + 4));
        out.attr = Attr(out.nodeid);
        return Reply(in, 0, &out, sizeof out);
      }
      case FUSE_GETATTR: {
        fuse_attr_out out = {};
        out.attr = Attr(in.nodeid);
        return Reply(in, 0, &out, sizeof out);
      }
      case FUSE_OPEN: {
        fuse_open_out out = {};
        return Reply(in, 0, &out, sizeof out);
      }
      case FUSE_WRITE: {
        fuse_write_in asked;
        std::memcpy(&asked, body, sizeof asked);
        fuse_write_out out = {};
        out.size = asked.size;
        return Reply(in, 0, &out, sizeof out);
      }
      case FUSE_FLUSH:
      case FUSE_RELEASE:
        return Reply(in, 0);
      case FUSE_FORGET:
      case FUSE_BATCH_FORGET:
      case FUSE_INTERRUPT:
        return;  // have no reply
      default:
        return Reply(in, ENOSYS);
    }
  }

  int dev_, release_;
  uint32_t held_;
};

// Counts of a process's descriptors on a filesystem, and whether its cwd is.
int HeldOn(pid_t pid, dev_t dev) {
  int held = 0;
  std::string base = "/proc/" + std::to_string(pid);
  struct stat st;
  for (int fd = 3; fd < 6; ++fd) {
    std::string path = base + "/fd/" + std::to_string(fd);
    held += ::stat(path.c_str(), &st) == 0 && st.st_dev == dev;
  }
  held += ::stat((base + "/cwd").c_str(), &st) == 0 && st.st_dev == dev;
  return held;
}

// A FUSE filesystem with three files, the like of it on a plain one, and idle
// processes that hold them.
class FrozenSetFuse : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0)
      GTEST_SKIP() << "SKIPPED for want of: root (ptrace and mount)";
    dev_ = UniqueFd(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    if (!dev_)
      GTEST_SKIP() << "SKIPPED for want of: /dev/fuse: " << strerror(errno);
    char root[] = "/tmp/frozen_fuse.XXXXXX";
    ASSERT_NE(::mkdtemp(root), nullptr);
    root_ = root;
    fuse_ = root_ + "/fuse";
    plain_ = root_ + "/plain";
    fs::create_directory(fuse_);
    fs::create_directory(plain_);
    for (int i = 0; i < 3; ++i)
      std::ofstream(plain_ + "/log." + std::to_string(i));
    std::string options = "fd=" + std::to_string(dev_.Get()) +
                          ",rootmode=40000,user_id=0,group_id=0,allow_other";
    ASSERT_EQ(::mount("test", fuse_.c_str(), "fuse", 0, options.c_str()), 0)
        << strerror(errno);
    ASSERT_EQ(::pipe2(release_, O_CLOEXEC), 0);
  }
  void TearDown() override {
    if (root_.empty())
      return;
    (void)!::write(release_[1], "x", 1);
    ::umount2(fuse_.c_str(), MNT_DETACH);
    if (daemon_ > 0) {
      ::kill(daemon_, SIGKILL);
      ::waitpid(daemon_, nullptr, 0);
    }
    fs::remove_all(root_);
  }
  void Serve(uint32_t held) {
    daemon_ = ::fork();
    if (daemon_ == 0) {
      ::close(release_[1]);
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      Daemon(dev_.Get(), release_[0], held).Run();
    }
    dev_.Reset();
    ::close(release_[0]);
    // Not before: the daemon would keep them open.
    ASSERT_EQ(::pipe2(in_, O_CLOEXEC), 0);
    ASSERT_EQ(::pipe2(out_, O_CLOEXEC), 0);
  }
  pid_t Idle(const std::string& cwd) {
    std::string path = VictimPath("idle");
    pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::dup2(in_[0], 0);
      ::dup2(out_[1], 1);
      // What the caller of this test left open would move its files away from
      // the numbers 3 to 5.
      ::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
      if (::chdir(cwd.c_str()) == 0)
        ::execl(path.c_str(), path.c_str(), nullptr);
      ::_exit(126);
    }
    char line[6];
    EXPECT_EQ(::read(out_[0], line, 6), 6);
    return pid;
  }
  // Its three files and working directory on the plain filesystem instead.
  Move ToPlain(pid_t pid, std::vector<UniqueFd>* opened) {
    Move move;
    move.pid = pid;
    for (int i = 0; i < 3; ++i) {
      opened->emplace_back(
          ::open((plain_ + "/log." + std::to_string(i)).c_str(),
                 O_RDWR | O_APPEND | O_CLOEXEC));
      move.fds.push_back({3 + i, opened->back().Get(), false});
    }
    opened->emplace_back(::open(plain_.c_str(), O_RDONLY | O_DIRECTORY));
    move.cwd = opened->back().Get();
    return move;
  }
  void EndIdle(const std::vector<pid_t>& pids) {
    ::close(in_[0]);
    ::close(in_[1]);
    for (pid_t pid : pids) {
      int status = -1;
      EXPECT_EQ(::waitpid(pid, &status, 0), pid);
      EXPECT_EQ(status, 0);
    }
  }

  UniqueFd dev_;
  std::string root_, fuse_, plain_;
  int release_[2], in_[2], out_[2];
  pid_t daemon_ = 0;
};

TEST_F(FrozenSetFuse, AHungFlushKeepsNobodyElse) {
  Serve(FUSE_FLUSH);
  pid_t hung = Idle(fuse_);
  pid_t other = Idle(plain_);
  struct stat fuse_st;
  ASSERT_EQ(::stat(fuse_.c_str(), &fuse_st), 0);
  ASSERT_EQ(HeldOn(hung, fuse_st.st_dev), 4);

  int alive[2];
  ASSERT_EQ(::pipe2(alive, O_CLOEXEC), 0);
  pid_t tracer = ::fork();
  if (tracer == 0) {
    ::close(alive[0]);
    ::close(release_[1]);
    auto set = FrozenSet::Create();
    int64_t begin = MonotonicNs();
    std::vector<Unstopped> unstopped;
    if (!(*set)->Freeze({hung, other}, begin + 300'000'000, &unstopped))
      ::_exit(1);
    std::vector<UniqueFd> opened;
    auto swapped = (*set)->Swap({ToPlain(hung, &opened)});
    if (swapped || swapped.error().code != core::ErrorCode::kTimeout)
      ::_exit(2);
    auto thawed = (*set)->Thaw();
    if (thawed || thawed.error().code != core::ErrorCode::kTimeout)
      ::_exit(3);
    // The deadline, and the grace for putting back.
    ::_exit(MonotonicNs() - begin < 5'000'000'000 ? 0 : 4);
  }
  ::close(alive[1]);
  int status = -1;
  EXPECT_EQ(::waitpid(tracer, &status, 0), tracer);
  EXPECT_EQ(status, 0);
  // The other one goes on, the guardian is still there.
  std::ifstream state("/proc/" + std::to_string(other) + "/status");
  std::string text((std::istreambuf_iterator<char>(state)), {});
  EXPECT_NE(text.find("TracerPid:\t0"), std::string::npos);
  struct pollfd guardian = {alive[0], POLLIN, 0};
  EXPECT_EQ(::poll(&guardian, 1, 0), 0);

  EXPECT_EQ(::write(release_[1], "x", 1), 1);
  EXPECT_EQ(::poll(&guardian, 1, 20'000), 1) << "the guardian does not end";
  EXPECT_EQ(HeldOn(hung, fuse_st.st_dev), 4);
  EndIdle({hung, other});
}

// Found on NFS: a cutover that was put back closed its descriptors of the
// overlay's files after the thaw, behind a writer that waited for the gate, and
// the gate for it.
TEST_F(FrozenSetFuse, ThawDoesNotWaitForAWriterOfTheOldFile) {
  Serve(FUSE_WRITE);
  pid_t moved = Idle(fuse_);
  pid_t tracer = ::fork();
  if (tracer == 0) {
    ::close(release_[1]);
    auto set = FrozenSet::Create();
    std::vector<Unstopped> unstopped;
    if (!(*set)->Freeze({moved}, MonotonicNs() + 2'000'000'000, &unstopped))
      ::_exit(1);
    std::vector<UniqueFd> opened;
    if (!(*set)->Swap({ToPlain(moved, &opened)}) || !(*set)->Undo())
      ::_exit(2);
    // Another one begins to write to a file of it, and is not answered: in the
    // write it has the inode locked.
    pid_t writer = ::fork();
    if (writer == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      int fd = ::open((fuse_ + "/log.0").c_str(), O_WRONLY);
      ::_exit(fd >= 0 && ::write(fd, "x", 1) == 1 ? 0 : 1);
    }
    std::string number;
    for (int64_t until = MonotonicNs() + 10'000'000'000; number != "1";) {
      std::ifstream("/proc/" + std::to_string(writer) + "/syscall") >> number;
      if (MonotonicNs() > until)
        ::_exit(3);
    }
    auto thawed = (*set)->Thaw();
    ::_exit(thawed ? 0 : 4);
  }
  UniqueFd ended(static_cast<int>(::syscall(SYS_pidfd_open, tracer, 0)));
  struct pollfd end = {ended.Get(), POLLIN, 0};
  EXPECT_EQ(::poll(&end, 1, 20'000), 1) << "Thaw hangs";
  EXPECT_EQ(::write(release_[1], "x", 1), 1);
  int status = -1;
  EXPECT_EQ(::waitpid(tracer, &status, 0), tracer);
  EXPECT_EQ(status, 0);
  EndIdle({moved});
}

}  // namespace
}  // namespace livemv::trace
