// The seams on the real machine.

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "migrator/cutover/opener.h"
#include "migrator/cutover/seams.h"
#include "migrator/proc/opens_in_flight.h"
#include "migrator/proc/proc_files.h"

namespace livemv::cutover {

using core::ErrorCode;
using core::Fail;
using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;

namespace {

class RealProcessScanner : public ProcessScanner {
 public:
  Result<proc::Snapshot> Capture(const proc::TreeRef& tree,
                                 const proc::Options& options) override {
    return proc::Capture(tree, options);
  }
  Result<proc::Holder> CaptureOne(const proc::TreeRef& tree, pid_t pid,
                                  const proc::Options& options) override {
    return proc::CaptureOne(tree, pid, options);
  }
  Status Identify(std::vector<proc::Holder>* holders, bool frozen) override {
    return proc::IdentifyDescriptions(holders, frozen);
  }

  Status LetOpensPass(const std::set<pid_t>& exclude,
                      int64_t deadline_ns) override {
    return proc::LetOpensPass(exclude, deadline_ns);
  }

  std::vector<pid_t> ChildrenOf(pid_t pid) override {
    std::vector<pid_t> children;
    std::error_code gone;  // an empty answer then, as promised
    for (const auto& task : std::filesystem::directory_iterator(
             "/proc/" + std::to_string(pid) + "/task", gone)) {
      std::ifstream in(task.path() / "children");
      for (pid_t child; in >> child;)
        children.push_back(child);
    }
    return children;
  }

  Result<uint64_t> OwnMountNamespace() override {
    struct stat st;
    if (::stat("/proc/self/ns/mnt", &st) < 0)
      return FailSys(errno, "stat /proc/self/ns/mnt");
    return st.st_ino;
  }
};

std::string LinkOf(const Seat& seat) {
  std::string task = "/proc/" + std::to_string(seat.pid) + "/task/" +
                     std::to_string(seat.tid);
  return seat.number < 0 ? task + "/cwd"
                         : task + "/fd/" + std::to_string(seat.number);
}

// What F_GETFL shows of the flags a file was opened with; O_LARGEFILE comes
// and goes with the caller's word size.
int Comparable(int flags) {
  constexpr int kLargeFile = 0100000;
  return flags & ~(O_CLOEXEC | kLargeFile);
}

class RealDescriptorOps : public DescriptorOps {
 public:
  // Through the magic link, which leads to the inode itself and asks no
  // filesystem; the handle is made of what the kernel has in memory. Pinned
  // first: the number may be another file's at the next call.
  Result<ObjectRef> ObjectAt(const Seat& seat) override {
    std::string link = LinkOf(seat);
    UniqueFd pin(::open(link.c_str(), O_PATH | O_CLOEXEC));
    if (!pin)
      return FailSys(errno, "open " + link);
    alignas(file_handle) char buf[sizeof(file_handle) + MAX_HANDLE_SZ];
    auto* handle = reinterpret_cast<file_handle*>(buf);
    handle->handle_bytes = MAX_HANDLE_SZ;
    int mount_id;
    if (::name_to_handle_at(pin.Get(), "", handle, &mount_id, AT_EMPTY_PATH) <
        0)
      return FailSys(errno, "name_to_handle_at " + link);
    struct statx st;
    if (::statx(pin.Get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO,
                &st) < 0)
      return FailSys(errno, "statx " + link);
    return ObjectRef{ObjectName(handle->handle_type, handle->f_handle,
                                handle->handle_bytes),
                     st.stx_ino};
  }

  Result<UniqueFd> OpenBeneath(int dirfd, const std::string& path, int flags,
                               uint64_t ino) override {
    // First without opening it: a name that leads to something else by now
    // (a FIFO would block) is not opened.
    ASSIGN_OR_RETURN(UniqueFd seen, Open(dirfd, path, O_PATH | O_NOFOLLOW));
    TRY(Check(seen.Get(), path, ino));
    if (flags == (O_PATH | O_NOFOLLOW))
      return seen;
    ASSIGN_OR_RETURN(UniqueFd fd, Open(dirfd, path, flags));
    TRY(Check(fd.Get(), path, ino));
    TRY(CheckFlags(fd.Get(), path, flags));
    return fd;
  }

  Result<UniqueFd> OpenObject(int dirfd, const core::FileHandle& handle,
                              int flags, uint64_t ino) override {
    const std::string what = "inode " + std::to_string(ino);
    // open_by_handle_at takes no O_PATH descriptor before Linux 6.12.
    UniqueFd mount(::openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!mount)
      return FailSys(errno, "open the directory to open " + what + " below");
    alignas(file_handle) char buf[sizeof(file_handle) + MAX_HANDLE_SZ];
    auto* h = reinterpret_cast<file_handle*>(buf);
    if (handle.bytes.size() > MAX_HANDLE_SZ)
      return Fail(ErrorCode::kInvalid, "the handle of " + what + " is too long");
    h->handle_type = handle.type;
    h->handle_bytes = static_cast<unsigned>(handle.bytes.size());
    std::memcpy(h->f_handle, handle.bytes.data(), handle.bytes.size());
    UniqueFd fd(::open_by_handle_at(mount.Get(), h, flags | O_CLOEXEC));
    if (!fd)
      return FailSys(errno, "open " + what + " by its handle");
    TRY(Check(fd.Get(), what, ino));
    TRY(CheckFlags(fd.Get(), what, flags));
    return fd;
  }

  Result<uint64_t> InodeOf(int fd) override {
    struct statx st;
    if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &st) < 0)
      return FailSys(errno, "statx of an open file");
    return st.stx_ino;
  }

  Result<UniqueFd> DirectoryIn(pid_t pid, const std::string& path) override {
    std::string whole = "/proc/" + std::to_string(pid) + "/root" + path;
    UniqueFd fd(::open(whole.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!fd)
      return FailSys(errno, "open " + whole);
    return fd;
  }

  Status SetPosition(int fd, int64_t position) override {
    if (::lseek(fd, position, SEEK_SET) < 0)
      return FailSys(errno, "set the position to " + std::to_string(position));
    return {};
  }

  bool HasOwner(const Seat& seat) override {
    auto fd = Steal(seat);
    if (!fd)
      return false;  // gone: the look in the freeze does not show it
    f_owner_ex owner{};
    return ::fcntl(fd->Get(), F_GETSIG) > 0 ||
           (::fcntl(fd->Get(), F_GETOWN_EX, &owner) == 0 && owner.pid != 0);
  }

  Status CopyOwner(const Seat& seat, int fd) override {
    ASSIGN_OR_RETURN(UniqueFd old, Steal(seat));
    f_owner_ex owner{};
    int signal = ::fcntl(old.Get(), F_GETSIG);
    if (signal < 0 || ::fcntl(old.Get(), F_GETOWN_EX, &owner) < 0)
      return FailSys(errno, "read the signal owner of " + LinkOf(seat));
    if (::fcntl(fd, F_SETSIG, signal) < 0 ||
        (owner.pid != 0 && ::fcntl(fd, F_SETOWN_EX, &owner) < 0))
      return FailSys(errno, "set the signal owner for " + LinkOf(seat));
    return {};
  }

  Result<UniqueFd> Duplicate(int fd) override {
    UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy)
      return FailSys(errno, "duplicate a descriptor");
    return copy;
  }

  Result<UniqueFd> Share(const Seat& seat) override { return Steal(seat); }

  // flock(2) cannot change a lock in place: it is let go first, and somebody
  // else may get it. Nobody can, since nobody else knows the description's
  // file yet.
  Status SetLocks(int fd, const Locks& have, const Locks& want) override {
    for (const proc::LockLine& lock : LocksLess(have, want))
      TRY(SetLock(fd, lock, true));
    for (const proc::LockLine& lock : LocksLess(want, have))
      TRY(SetLock(fd, lock, false));
    return {};
  }

  Result<Locks> AllOfProcesses() override {
    ASSIGN_OR_RETURN(std::string text, proc::ReadFile("/proc/locks"));
    Locks locks = proc::ParseLocks(text);
    std::erase_if(locks, [](const proc::LockLine& lock) {
      return lock.waiting || lock.kind != proc::LockKind::kPosix;
    });
    return locks;
  }

  Status Verify(const Seat& seat, int fd) override {
    if (seat.number >= 0) {
      long differs = ::syscall(SYS_kcmp, seat.tid, ::getpid(), KCMP_FILE,
                               seat.number, fd);
      if (differs < 0)
        return FailSys(errno, "kcmp " + LinkOf(seat));
      if (differs != 0)
        return Fail(ErrorCode::kConflict,
                    LinkOf(seat) + " is not what it was to become");
      return {};
    }
    std::string link = LinkOf(seat);
    struct statx is, should;
    unsigned mask = STATX_INO | STATX_MNT_ID;
    if (::statx(AT_FDCWD, link.c_str(), AT_STATX_DONT_SYNC, mask, &is) < 0)
      return FailSys(errno, "statx " + link);
    if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, mask, &should) < 0)
      return FailSys(errno, "statx the new directory for " + link);
    if (is.stx_ino != should.stx_ino || is.stx_mnt_id != should.stx_mnt_id)
      return Fail(ErrorCode::kConflict, link + " is not what it was to become");
    return {};
  }

 private:
  static Status SetLock(int fd, const proc::LockLine& lock, bool off) {
    int rc;
    if (lock.kind == proc::LockKind::kFlock) {
      const int how = off ? LOCK_UN : lock.write ? LOCK_EX : LOCK_SH;
      rc = ::flock(fd, how | LOCK_NB);
    } else {
      struct flock range {};
      range.l_type = static_cast<short>(off          ? F_UNLCK
                                        : lock.write ? F_WRLCK
                                                     : F_RDLCK);
      range.l_whence = SEEK_SET;
      range.l_start = static_cast<off_t>(lock.start);
      if (lock.end != UINT64_MAX)  // 0: to the end, wherever it will be
        range.l_len = static_cast<off_t>(lock.end - lock.start + 1);
      rc = ::fcntl(fd, F_OFD_SETLK, &range);
    }
    if (rc == 0)
      return {};
    const std::string what =
        std::string(off ? "let go of" : "take") + " a " +
        proc::LockKindName(lock.kind) + " for " +
        (lock.write ? "writing" : "reading");
    if (errno == EWOULDBLOCK || errno == EACCES)
      return Fail(ErrorCode::kConflict, what + ": another process holds it");
    return FailSys(errno, what);
  }

  static Result<UniqueFd> Open(int dirfd, const std::string& path, int flags) {
    open_how how{};
    how.flags = static_cast<uint64_t>(static_cast<unsigned>(flags | O_CLOEXEC));
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS |
                  RESOLVE_NO_MAGICLINKS;
    for (;;) {
      long fd = ::syscall(SYS_openat2, dirfd, path.c_str(), &how, sizeof how);
      if (fd >= 0)
        return UniqueFd(static_cast<int>(fd));
      // EAGAIN: a rename elsewhere raced with the check of ".."; there is none
      // in our paths, but the kernel may still say so.
      if (errno != EINTR && errno != EAGAIN)
        return FailSys(errno, "open \"" + path + "\"");
    }
  }

  Status Check(int fd, const std::string& path, uint64_t ino) {
    ASSIGN_OR_RETURN(uint64_t is, InodeOf(fd));
    if (is != ino)
      return Fail(ErrorCode::kConflict, "\"" + path + "\" is inode " +
                                            std::to_string(is) + ", not " +
                                            std::to_string(ino) + " any more");
    return {};
  }

  Status CheckFlags(int fd, const std::string& what, int flags) {
    if ((flags & O_PATH) != 0)
      return {};
    int got = ::fcntl(fd, F_GETFL);
    if (Comparable(got) != Comparable(flags))
      return Fail(ErrorCode::kUnsupported,
                  "open \"" + what + "\": flags " + std::to_string(flags) +
                      " became " + std::to_string(got));
    return {};
  }

  static Result<UniqueFd> Steal(const Seat& seat) {
    UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, seat.pid, 0)));
    if (!pidfd)
      return FailSys(errno, "pidfd_open " + std::to_string(seat.pid));
    // pidfd_getfd takes from the leader's table; a thread with a table of its
    // own has none that can be had this way.
    if (seat.tid != seat.pid)
      return Fail(ErrorCode::kUnsupported,
                  "descriptor of a thread with a table of its own");
    long fd = ::syscall(SYS_pidfd_getfd, pidfd.Get(), seat.number, 0);
    if (fd < 0)
      return FailSys(errno, "pidfd_getfd " + LinkOf(seat));
    return UniqueFd(static_cast<int>(fd));
  }
};

class RealClock : public Clock {
 public:
  int64_t NowNs() override {
    timespec now;
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000ll + now.tv_nsec;
  }
  void WaitNs(int64_t ns) override {
    timespec left{ns / 1'000'000'000, ns % 1'000'000'000};
    while (::nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
  }
};

}  // namespace

std::unique_ptr<ProcessScanner> MakeRealProcessScanner() {
  return std::make_unique<RealProcessScanner>();
}

std::unique_ptr<DescriptorOps> MakeRealDescriptorOps() {
  return std::make_unique<RealDescriptorOps>();
}

std::unique_ptr<Clock> MakeRealClock() {
  return std::make_unique<RealClock>();
}

}  // namespace livemv::cutover
