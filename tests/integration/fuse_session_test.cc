// A session on the real kernel: a FUSE mount over a directory, served by a
// worker process that a small supervisor restarts. Needs root and /dev/fuse.

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <thread>

#include "core/fault_points.h"
#include "fusefs/session.h"
#include "tests/support/fake_dir_core.h"

namespace livemv::fusefs {
namespace {

using namespace std::chrono_literals;

// What the supervisor owns, shared with worker and test.
struct Shared {
  SavedInit init;
  std::atomic<pid_t> worker;
  std::atomic<int> workers;        // started so far
  std::atomic<int> stop_reason;    // 1 + StopReason of the last session
  std::atomic<int> command;        // 1 close the gate, 2 open it, 0 done
  std::atomic<int> command_errno;  // of the last command
  std::atomic<int> no_resend;
  char faults[256];  // for the next worker alone
};

bool Eventually(const std::function<bool()>& ready) {
  for (int i = 0; i < 10000; i++) {
    if (ready())
      return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

[[noreturn]] void RunWorker(int fuse_fd, const std::string& source,
                            Shared* shared, void* intents_memory, bool resume) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::umask(0);
  // A page that is absent when SIGKILL arrives would turn into EIO.
  ::mlockall(MCL_CURRENT | MCL_FUTURE);
  if (!core::ArmFaults(shared->faults))
    ::_exit(3);
  shared->faults[0] = '\0';
  fake::DirCore dir(source);
  auto intents = IntentTable::Attach(intents_memory, IntentTable::Bytes());
  if (!intents)
    ::_exit(4);
  Session session(fuse_fd, &dir, &shared->init, intents->get());
  if (!session.Start(resume))
    ::_exit(5);
  if (resume && !session.resent())
    shared->no_resend = 1;
  shared->workers++;
  StopReason reason;
  while (!session.WaitFor(1'000'000, &reason)) {
    int command = shared->command;
    if (command == 1) {
      timespec now;
      ::clock_gettime(CLOCK_MONOTONIC, &now);
      auto status = session.DrainAndClose((now.tv_sec + 5) * 1'000'000'000ll);
      shared->command_errno = status ? 0 : ETIMEDOUT;
      shared->command = 0;
    } else if (command == 2) {
      session.OpenGate();
      shared->command = 0;
    }
  }
  shared->stop_reason = 1 + static_cast<int>(reason);
  ::_exit(0);
}

// Restarts the worker until it ends by itself.
[[noreturn]] void RunSupervisor(int fuse_fd, const std::string& source,
                                Shared* shared, void* intents) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (bool resume = false;; resume = true) {
    pid_t pid = ::fork();
    if (pid == 0)
      RunWorker(fuse_fd, source, shared, intents, resume);
    shared->worker = pid;
    int status;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFEXITED(status))
      ::_exit(WEXITSTATUS(status));
  }
}

class FuseSession : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0)
      GTEST_SKIP() << "SKIPPED for want of: root";
    core::UniqueFd fuse(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    if (!fuse)
      GTEST_SKIP() << "SKIPPED for want of: /dev/fuse";
    char name[] = "/tmp/livemv-fuse-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    base_ = name;
    source_ = base_ + "/source";
    mnt_ = base_ + "/mnt";
    std::filesystem::create_directory(source_);
    std::filesystem::create_directory(mnt_);
    if (!fake::DirCore(source_).usable())
      GTEST_SKIP() << "SKIPPED for want of: handles of inode and generation "
                      "on the filesystem of /tmp (ext4)";
    // Nothing that is mounted here outlives this process.
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0) << strerror(errno);
    ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    shared_ = static_cast<Shared*>(Map(sizeof(Shared)));
    void* intents = Map(IntentTable::Bytes());
    std::string options = "fd=" + std::to_string(fuse.Get()) +
                          ",rootmode=40000,user_id=0,group_id=0,allow_other,"
                          "default_permissions,max_read=1048576";
    ASSERT_EQ(::mount("livemv", mnt_.c_str(), "fuse.livemv",
                      MS_NOSUID | MS_NODEV, options.c_str()),
              0)
        << strerror(errno);
    supervisor_ = ::fork();
    if (supervisor_ == 0)
      RunSupervisor(fuse.Get(), source_, shared_, intents);
    // Only supervisor and worker hold the connection: if they fail, this
    // process gets ENOTCONN instead of waiting for ever.
    fuse.Reset();
    ASSERT_TRUE(Eventually([&] { return shared_->workers > 0; }));
  }

  void TearDown() override {
    if (supervisor_ > 0) {
      EXPECT_EQ(::umount2(mnt_.c_str(), 0), 0) << strerror(errno);
      int status = -1;
      bool ended = Eventually(
          [&] { return ::waitpid(supervisor_, &status, WNOHANG) != 0; });
      EXPECT_TRUE(ended);
      if (!ended) {
        ::kill(supervisor_, SIGKILL);  // takes the worker with it
        ::waitpid(supervisor_, &status, 0);
      }
      EXPECT_EQ(status, 0);
      EXPECT_EQ(shared_->stop_reason,
                1 + static_cast<int>(StopReason::kUnmounted));
    }
    for (auto [memory, bytes] : maps_)
      ::munmap(memory, bytes);
    std::error_code ignored;
    if (!base_.empty())
      std::filesystem::remove_all(base_, ignored);
  }

  void* Map(size_t bytes) {
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    maps_.emplace_back(memory, bytes);
    return memory;
  }
  std::string At(const std::string& name) const { return mnt_ + "/" + name; }
  void KillWorker() {
    int before = shared_->workers;
    ::kill(shared_->worker, SIGKILL);
    ASSERT_TRUE(Eventually([&] { return shared_->workers > before; }));
  }
  int Command(int command) {
    shared_->command = command;
    EXPECT_TRUE(Eventually([&] { return shared_->command == 0; }));
    return command == 1 ? shared_->command_errno.load() : 0;
  }
  static void WriteFile(const std::string& path, const std::string& data) {
    core::UniqueFd fd(::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644));
    ASSERT_TRUE(fd) << path << ": " << strerror(errno);
    ASSERT_EQ(::write(fd.Get(), data.data(), data.size()),
              static_cast<ssize_t>(data.size()));
  }
  static std::string ReadFile(const std::string& path) {
    core::UniqueFd fd(::open(path.c_str(), O_RDONLY));
    std::string data(1 << 21, '\0');
    ssize_t n = ::read(fd.Get(), data.data(), data.size());
    data.resize(n > 0 ? static_cast<size_t>(n) : 0);
    return data;
  }

  std::string base_, source_, mnt_;
  Shared* shared_ = nullptr;
  pid_t supervisor_ = 0;
  std::vector<std::pair<void*, size_t>> maps_;
};

TEST_F(FuseSession, ServesTheUsualOperations) {
  WriteFile(At("f"), "hello");
  EXPECT_EQ(ReadFile(At("f")), "hello");
  EXPECT_EQ(ReadFile(source_ + "/f"), "hello");
  struct stat st, under;
  ASSERT_EQ(::stat(At("f").c_str(), &st), 0);
  ASSERT_EQ(::stat((source_ + "/f").c_str(), &under), 0);
  EXPECT_EQ(st.st_ino, under.st_ino);
  EXPECT_EQ(st.st_size, 5);
  EXPECT_EQ(st.st_blksize, under.st_blksize);

  struct statx x, x_under;
  ASSERT_EQ(::statx(AT_FDCWD, At("f").c_str(), 0, STATX_ALL, &x), 0);
  ASSERT_EQ(::statx(AT_FDCWD, (source_ + "/f").c_str(), 0, STATX_ALL, &x_under),
            0);
  EXPECT_TRUE(x.stx_mask & STATX_BTIME);
  EXPECT_EQ(x.stx_btime.tv_sec, x_under.stx_btime.tv_sec);
  EXPECT_EQ(x.stx_btime.tv_nsec, x_under.stx_btime.tv_nsec);

  EXPECT_EQ(::rename(At("f").c_str(), At("g").c_str()), 0);
  EXPECT_EQ(::access(At("f").c_str(), F_OK), -1);
  EXPECT_EQ(::link(At("g").c_str(), At("h").c_str()), 0);
  EXPECT_EQ(::symlink("g", At("s").c_str()), 0);
  EXPECT_EQ(ReadFile(At("s")), "hello");
  EXPECT_EQ(::mkdir(At("d").c_str(), 0750), 0);
  EXPECT_EQ(::rmdir(At("d").c_str()), 0);
  EXPECT_EQ(::mkfifo(At("p").c_str(), 0600), 0);
  EXPECT_EQ(::unlink(At("p").c_str()), 0);
  EXPECT_EQ(::truncate(At("g").c_str(), 2), 0);
  EXPECT_EQ(ReadFile(At("h")), "he");
  EXPECT_EQ(::chmod(At("g").c_str(), 0600), 0);
  EXPECT_EQ(::setxattr(At("g").c_str(), "user.name", "value", 5, 0), 0);
  char value[16] = {};
  EXPECT_EQ(::getxattr(At("g").c_str(), "user.name", value, sizeof value), 5);
  EXPECT_EQ(::getxattr(At("g").c_str(), "user.none", value, sizeof value), -1);
  EXPECT_EQ(errno, ENODATA);
  EXPECT_EQ(::open(mnt_.c_str(), O_TMPFILE | O_RDWR, 0600), -1);
  EXPECT_EQ(errno, EOPNOTSUPP);
  struct statfs fs;
  EXPECT_EQ(::statfs(mnt_.c_str(), &fs), 0);
  EXPECT_GT(fs.f_blocks, 0u);
}

TEST_F(FuseSession, CopiesMapsAndOpensByHandle) {
  std::string big(1'500'000, 'x');
  WriteFile(At("from"), big);
  core::UniqueFd from(::open(At("from").c_str(), O_RDONLY));
  core::UniqueFd to(::open(At("to").c_str(), O_CREAT | O_RDWR, 0644));
  for (size_t left = big.size(); left > 0;) {
    ssize_t n =
        ::copy_file_range(from.Get(), nullptr, to.Get(), nullptr, left, 0);
    ASSERT_GT(n, 0) << strerror(errno);
    left -= static_cast<size_t>(n);
  }
  EXPECT_EQ(ReadFile(At("to")), big);

  auto* map = static_cast<char*>(
      ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, to.Get(), 0));
  ASSERT_NE(map, MAP_FAILED);
  std::memcpy(map, "mapped", 6);
  EXPECT_EQ(::msync(map, 4096, MS_SYNC), 0);
  ::munmap(map, 4096);
  EXPECT_EQ(ReadFile(source_ + "/to").substr(0, 6), "mapped");

  struct {
    file_handle head;
    char bytes[128];
  } handle;
  handle.head.handle_bytes = sizeof handle.bytes;
  int mount_id;
  ASSERT_EQ(::name_to_handle_at(AT_FDCWD, At("to").c_str(), &handle.head,
                                &mount_id, 0),
            0);
  core::UniqueFd mnt(::open(mnt_.c_str(), O_RDONLY | O_DIRECTORY));
  // Out of the caches, so that the kernel has to ask for "." of the number.
  WriteFile("/proc/sys/vm/drop_caches", "2");
  core::UniqueFd again(::open_by_handle_at(mnt.Get(), &handle.head, O_RDONLY));
  ASSERT_TRUE(again) << strerror(errno);
  char buf[6];
  EXPECT_EQ(::pread(again.Get(), buf, 6, 0), 6);
  EXPECT_EQ(std::string(buf, 6), "mapped");
}

TEST_F(FuseSession, ListsFiveThousandNamesOnceEachAcrossAKill) {
  std::set<std::string> made;
  for (int i = 0; i < 5000; i++) {
    made.insert("name-" + std::to_string(i));
    core::UniqueFd fd(::open((source_ + "/name-" + std::to_string(i)).c_str(),
                             O_CREAT | O_WRONLY, 0644));
    ASSERT_TRUE(fd);
  }
  for (bool kill : {false, true}) {
    DIR* dir = ::opendir(mnt_.c_str());
    ASSERT_NE(dir, nullptr);
    std::multiset<std::string> seen;
    while (dirent* d = ::readdir(dir)) {
      seen.insert(d->d_name);
      if (kill && seen.size() % 1000 == 0)
        KillWorker();
    }
    ::closedir(dir);
    EXPECT_EQ(seen.size(), 5002u);
    for (const std::string& name : made)
      EXPECT_EQ(seen.count(name), 1u) << name;
  }
  EXPECT_EQ(shared_->no_resend, 0);
}

TEST_F(FuseSession, KillsUnderLoadCostNoErrors) {
  std::atomic<bool> stop{false};
  std::atomic<long> ops{0}, errors{0};
  std::mutex mu;
  std::string first_error;
  auto fail = [&](const std::string& what) {
    int err = errno;
    std::lock_guard lock(mu);
    if (errors++ == 0)
      first_error = what + ": " + strerror(err);
  };
  auto work = [&](int id) {
    const std::string dir = At("t" + std::to_string(id));
    if (::mkdir(dir.c_str(), 0755) != 0)
      fail("mkdir of the thread's own");
    const std::string chunk(256 << 10, static_cast<char>('a' + id));
    for (long n = 0; !stop; n++) {
      std::string a = dir + "/a" + std::to_string(n);
      std::string b = dir + "/b" + std::to_string(n);
      std::string c = dir + "/c" + std::to_string(n);
      int fd = ::open(a.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
      if (fd < 0) {
        fail("create " + a);
        continue;
      }
      errno = 0;
      if (::write(fd, chunk.data(), chunk.size()) !=
          static_cast<ssize_t>(chunk.size()))
        fail("write " + a);
      std::string back(chunk.size(), '\0');
      if (::pread(fd, back.data(), back.size(), 0) !=
              static_cast<ssize_t>(back.size()) ||
          back != chunk)
        fail("read back " + a);
      if (::close(fd) != 0)
        fail("close " + a);
      if (::rename(a.c_str(), b.c_str()) != 0)
        fail("rename " + a);
      if (::link(b.c_str(), c.c_str()) != 0)
        fail("link " + b);
      if (::unlink(b.c_str()) != 0)
        fail("unlink " + b);
      if (::setxattr(c.c_str(), "user.x", "1", 1, XATTR_CREATE) != 0)
        fail("setxattr " + c);
      if (::removexattr(c.c_str(), "user.x") != 0)
        fail("removexattr " + c);
      if (::unlink(c.c_str()) != 0)
        fail("unlink " + c);
      if (::mkdir(a.c_str(), 0755) != 0)
        fail("mkdir " + a);
      if (::rmdir(a.c_str()) != 0)
        fail("rmdir " + a);
      ops += 13;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++)
    threads.emplace_back(work, i);
  int kills = 0;
  auto end = std::chrono::steady_clock::now() + 6s;
  while (std::chrono::steady_clock::now() < end) {
    // A new worker gets some work done before it is killed, at a moment that
    // has nothing to do with what it does.
    long before = ops;
    EXPECT_TRUE(Eventually([&] { return ops > before + 20; }));
    KillWorker();
    kills++;
  }
  stop = true;
  for (std::thread& t : threads)
    t.join();
  EXPECT_EQ(errors, 0) << first_error;
  EXPECT_GT(kills, 10);
  EXPECT_GT(ops, 500);
  RecordProperty("kills", kills);
  RecordProperty("ops", static_cast<int>(ops));
  std::printf("%d kills, %ld operations, %ld errors\n", kills, ops.load(),
              errors.load());
}

// Kills the worker at each point of each operation that must not run twice.
TEST_F(FuseSession, AKillAtAnyPointGivesTheRightAnswer) {
  struct Op {
    const char* name;
    std::function<void()> prepare;
    std::function<int()> act;
    std::function<bool()> done;
  };
  auto exists = [&](const char* name) {
    return ::access((source_ + "/" + name).c_str(), F_OK) == 0;
  };
  auto inode = [&](const char* name) {
    struct stat st {};
    ::stat((source_ + "/" + name).c_str(), &st);
    return st.st_ino;
  };
  ino_t noted = 0;
  auto fresh = [&] {
    for (const auto& entry : std::filesystem::directory_iterator(mnt_))
      std::filesystem::remove_all(entry.path());
    WriteFile(At("a"), "a");
    WriteFile(At("b"), "b");
    ASSERT_EQ(::mkdir(At("d").c_str(), 0755), 0);
    ASSERT_EQ(::setxattr(At("a").c_str(), "user.old", "1", 1, 0), 0);
    noted = inode("a");
  };
  const std::vector<Op> ops = {
      {"unlink", fresh, [&] { return ::unlink(At("a").c_str()); },
       [&] { return !exists("a"); }},
      {"rmdir", fresh, [&] { return ::rmdir(At("d").c_str()); },
       [&] { return !exists("d"); }},
      {"mkdir", fresh, [&] { return ::mkdir(At("e").c_str(), 0700); },
       [&] { return exists("e"); }},
      {"mknod", fresh, [&] { return ::mkfifo(At("p").c_str(), 0700); },
       [&] { return exists("p"); }},
      {"symlink", fresh, [&] { return ::symlink("a", At("s").c_str()); },
       [&] { return exists("s"); }},
      {"link", fresh, [&] { return ::link(At("a").c_str(), At("l").c_str()); },
       [&] { return inode("l") == noted; }},
      {"rename", fresh,
       [&] { return ::rename(At("a").c_str(), At("b").c_str()); },
       [&] { return !exists("a") && inode("b") == noted; }},
      {"rename", fresh,
       [&] {
         return ::renameat2(AT_FDCWD, At("a").c_str(), AT_FDCWD,
                            At("b").c_str(), RENAME_EXCHANGE);
       },
       [&] { return exists("a") && inode("b") == noted; }},
      {"rename", fresh,
       [&] {
         return ::renameat2(AT_FDCWD, At("a").c_str(), AT_FDCWD,
                            At("n").c_str(), RENAME_NOREPLACE);
       },
       [&] { return !exists("a") && inode("n") == noted; }},
      {"create", fresh,
       [&] {
         core::UniqueFd fd(
             ::open(At("x").c_str(), O_CREAT | O_EXCL | O_WRONLY, 0600));
         return fd && ::write(fd.Get(), "x", 1) == 1 ? 0 : -1;
       },
       [&] { return ReadFile(source_ + "/x") == "x"; }},
      {"open", fresh,
       [&] {
         core::UniqueFd fd(::open(At("a").c_str(), O_TRUNC | O_WRONLY));
         return fd ? 0 : -1;
       },
       [&] { return ReadFile(source_ + "/a").empty(); }},
      {"write", fresh,
       [&] {
         core::UniqueFd fd(::open(At("a").c_str(), O_APPEND | O_WRONLY));
         return fd && ::write(fd.Get(), "z", 1) == 1 ? 0 : -1;
       },
       [&] { return ReadFile(source_ + "/a") == "az"; }},
      {"setxattr", fresh,
       [&] {
         return ::setxattr(At("a").c_str(), "user.new", "1", 1, XATTR_CREATE);
       },
       [&] {
         return ::getxattr((source_ + "/a").c_str(), "user.new", nullptr, 0) ==
                1;
       }},
      {"removexattr", fresh,
       [&] { return ::removexattr(At("a").c_str(), "user.old"); },
       [&] {
         return ::getxattr((source_ + "/a").c_str(), "user.old", nullptr, 0) ==
                -1;
       }},
  };
  for (const Op& op : ops)
    for (const char* point : {"begun", "executed", "before_reply"}) {
      // Plain writes have no record, so only the last point.
      if (std::string_view(op.name) == "write" &&
          std::string_view(point) != "before_reply")
        continue;
      op.prepare();
      std::string spec =
          std::string("fuse.") + point + "." + op.name + "=kill@1";
      std::strcpy(shared_->faults, spec.c_str());
      KillWorker();  // the next one has the fault
      int before = shared_->workers;
      errno = 0;
      int result = op.act();
      EXPECT_EQ(result, 0) << spec << ": " << strerror(errno);
      EXPECT_TRUE(op.done()) << spec;
      EXPECT_TRUE(Eventually([&] { return shared_->workers > before; }))
          << spec << " killed nobody";
    }
}

TEST_F(FuseSession, TheGateStallsAndLosesNothing) {
  WriteFile(At("f"), "");
  core::UniqueFd held(::open(At("f").c_str(), O_RDWR | O_CLOEXEC));
  for (int round = 0; round < 20; round++) {
    ASSERT_EQ(Command(1), 0);
    std::atomic<bool> done{false};
    std::thread client([&] {
      EXPECT_EQ(::mkdir(At("d").c_str(), 0755), 0) << strerror(errno);
      EXPECT_EQ(::rmdir(At("d").c_str()), 0) << strerror(errno);
      done = true;
    });
    // close(2) of an overlay descriptor passes a closed gate.
    core::UniqueFd copy(::dup(held.Get()));
    copy.Reset();
    EXPECT_FALSE(done);
    EXPECT_NE(::access((source_ + "/d").c_str(), F_OK), 0);
    Command(2);
    client.join();
    EXPECT_TRUE(done);
  }
}

TEST_F(FuseSession, AKillWithAClosedGateLosesNothing) {
  ASSERT_EQ(Command(1), 0);
  std::thread client(
      [&] { EXPECT_EQ(::mkdir(At("d").c_str(), 0755), 0) << strerror(errno); });
  // The successor starts with an open gate.
  KillWorker();
  client.join();
  EXPECT_TRUE(std::filesystem::exists(source_ + "/d"));
}

}  // namespace
}  // namespace livemv::fusefs
