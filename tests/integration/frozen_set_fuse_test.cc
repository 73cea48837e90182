// FrozenSet and a FUSE filesystem whose daemon does not answer FLUSH: the call
// that closes the old description hangs in the process, beyond reach. The
// deadline is kept, everybody else goes on, and the process is put back and
// let go of by the guardian once the daemon answers.

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
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
// a FLUSH waits until `release` is readable.
class Daemon {
 public:
  Daemon(int dev, int release) : dev_(dev), release_(release) {}

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
      case FUSE_FLUSH: {
        struct pollfd released = {release_, POLLIN, 0};
        ::poll(&released, 1, -1);
        return Reply(in, 0);
      }
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

TEST(FrozenSetFuse, AHungFlushKeepsNobodyElse) {
  if (::geteuid() != 0)
    GTEST_SKIP() << "SKIPPED for want of: root (ptrace and mount)";
  UniqueFd dev(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!dev)
    GTEST_SKIP() << "SKIPPED for want of: /dev/fuse: " << strerror(errno);
  char root[] = "/tmp/frozen_fuse.XXXXXX";
  ASSERT_NE(::mkdtemp(root), nullptr);
  std::string fuse = std::string(root) + "/fuse";
  std::string plain = std::string(root) + "/plain";
  fs::create_directory(fuse);
  fs::create_directory(plain);
  for (int i = 0; i < 3; ++i)
    std::ofstream(plain + "/log." + std::to_string(i));
  std::string options = "fd=" + std::to_string(dev.Get()) +
                        ",rootmode=40000,user_id=0,group_id=0,allow_other";
  ASSERT_EQ(::mount("test", fuse.c_str(), "fuse", 0, options.c_str()), 0)
      << strerror(errno);
  int release[2], out[2], in[2], alive[2];
  ASSERT_EQ(::pipe2(release, O_CLOEXEC), 0);
  pid_t daemon = ::fork();
  if (daemon == 0) {
    ::close(release[1]);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    Daemon(dev.Get(), release[0]).Run();
  }
  dev.Reset();
  ::close(release[0]);

  // One on the FUSE filesystem, one beside it.
  std::string path = VictimPath("idle");
  auto start = [&](const std::string& cwd, int from, int to) {
    pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::dup2(from, 0);
      ::dup2(to, 1);
      // What the caller of this test left open would move its files away from
      // the numbers 3 to 5.
      ::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
      if (::chdir(cwd.c_str()) == 0)
        ::execl(path.c_str(), path.c_str(), nullptr);
      ::_exit(126);
    }
    return pid;
  };
  ASSERT_EQ(::pipe2(in, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(out, O_CLOEXEC), 0);
  pid_t hung = start(fuse, in[0], out[1]);
  pid_t other = start(plain, in[0], out[1]);
  char line[6];
  ASSERT_EQ(::read(out[0], line, 6), 6);
  ASSERT_EQ(::read(out[0], line, 6), 6);
  struct stat fuse_st;
  ASSERT_EQ(::stat(fuse.c_str(), &fuse_st), 0);
  ASSERT_EQ(HeldOn(hung, fuse_st.st_dev), 4);

  ASSERT_EQ(::pipe2(alive, O_CLOEXEC), 0);
  pid_t tracer = ::fork();
  if (tracer == 0) {
    ::close(alive[0]);
    ::close(release[1]);
    auto set = FrozenSet::Create();
    int64_t begin = MonotonicNs();
    std::vector<Unstopped> unstopped;
    if (!(*set)->Freeze({hung, other}, begin + 300'000'000, &unstopped))
      ::_exit(1);
    Move move;
    move.pid = hung;
    std::vector<UniqueFd> opened;
    for (int i = 0; i < 3; ++i) {
      opened.emplace_back(::open((plain + "/log." + std::to_string(i)).c_str(),
                                 O_RDWR | O_APPEND | O_CLOEXEC));
      move.fds.push_back({3 + i, opened.back().Get(), false});
    }
    opened.emplace_back(::open(plain.c_str(), O_RDONLY | O_DIRECTORY));
    move.cwd = opened.back().Get();
    auto swapped = (*set)->Swap({move});
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

  EXPECT_EQ(::write(release[1], "x", 1), 1);
  EXPECT_EQ(::poll(&guardian, 1, 20'000), 1) << "the guardian does not end";
  EXPECT_EQ(HeldOn(hung, fuse_st.st_dev), 4);
  ::close(in[0]);
  ::close(in[1]);
  for (pid_t pid : {hung, other}) {
    EXPECT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_EQ(status, 0);
  }
  EXPECT_EQ(::umount2(fuse.c_str(), MNT_DETACH), 0);
  ::kill(daemon, SIGKILL);
  ::waitpid(daemon, nullptr, 0);
  fs::remove_all(root);
}

}  // namespace
}  // namespace livemv::trace
