// The real kernel behind the Syscalls seam.

#include <dirent.h>
#include <fcntl.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/syscalls.h"

namespace livemv::core {
namespace {

// Longer than any create that does not wait for a disk.
constexpr int kBusyNumberTries = 100;
constexpr useconds_t kBusyNumberUs = 500;

struct KernelHandle {
  struct file_handle h;
  unsigned char bytes[MAX_HANDLE_SZ];
};

struct KernelDirent {
  uint64_t ino;
  int64_t off;
  uint16_t reclen;
  uint8_t type;
  char name[];
};

// /proc/self/fd/N: reaches the object behind an O_PATH descriptor for calls
// that have no *at form. The magic link resolves to the object itself, links
// included (man 5 proc).
class ProcFd {
 public:
  explicit ProcFd(int fd) {
    snprintf(path_, sizeof path_, "/proc/self/fd/%d", fd);
  }
  const char* Path() const { return path_; }

 private:
  char path_[32];
};

// A thread keeps its capabilities while it acts as somebody else
// (capabilities(7), SECBIT_NO_SETUID_FIXUP).
Status KeepCapabilities() {
  static thread_local bool kept = false;
  if (kept)
    return {};
  const int bits = ::prctl(PR_GET_SECUREBITS);
  if (bits < 0 ||
      ::prctl(PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP) != 0)
    return FailSys(errno, "prctl(PR_SET_SECUREBITS)");
  kept = true;
  return {};
}

Status Check(long rc, const char* call) {
  if (rc < 0)
    return FailSys(errno, call);
  return {};
}

class RealSyscalls final : public Syscalls {
 public:
  void CloseFd(int fd) noexcept override { ::close(fd); }

  Result<UniqueFd> OpenAt(int dirfd, const char* path, int flags,
                          mode_t mode) override {
    int fd = ::openat(dirfd, path, flags | O_CLOEXEC, mode);
    if (fd < 0)
      return FailSys(errno, "openat");
    return UniqueFd(fd);
  }

  Result<UniqueFd> OpenByHandle(int mount_fd, const FileHandle& handle,
                                int flags) override {
    KernelHandle k;
    k.h.handle_bytes = static_cast<unsigned>(handle.bytes.size());
    k.h.handle_type = handle.type;
    std::memcpy(k.bytes, handle.bytes.data(), handle.bytes.size());
    int fd = ::open_by_handle_at(mount_fd, &k.h, flags | O_CLOEXEC);
    // ext4 says ENOMEM for a number whose next inode is just being made
    // (fs/inode.c: iget_locked gives up on I_CREATING), which takes no longer
    // than a create. Then the handle is stale, or memory is short indeed.
    for (int tries = 0; fd < 0 && errno == ENOMEM && tries < kBusyNumberTries;
         tries++) {
      ::usleep(kBusyNumberUs);
      fd = ::open_by_handle_at(mount_fd, &k.h, flags | O_CLOEXEC);
    }
    if (fd < 0)
      return FailSys(errno, "open_by_handle_at");
    return UniqueFd(fd);
  }

  Result<FileHandle> NameToHandle(int dirfd, const char* path) override {
    KernelHandle k;
    k.h.handle_bytes = MAX_HANDLE_SZ;
    int mount_id = 0;
    if (::name_to_handle_at(dirfd, path, &k.h, &mount_id,
                            *path == 0 ? AT_EMPTY_PATH : 0) < 0)
      return FailSys(errno, "name_to_handle_at");
    return FileHandle{k.h.handle_type,
                      std::string(reinterpret_cast<char*>(k.bytes),
                                  k.h.handle_bytes)};
  }

  Result<size_t> PRead(int fd, void* buf, size_t len, off_t off) override {
    ssize_t n = ::pread(fd, buf, len, off);
    if (n < 0)
      return FailSys(errno, "pread");
    return static_cast<size_t>(n);
  }
  Result<size_t> PWrite(int fd, const void* buf, size_t len,
                        off_t off) override {
    ssize_t n = ::pwrite(fd, buf, len, off);
    if (n < 0)
      return FailSys(errno, "pwrite");
    return static_cast<size_t>(n);
  }
  Result<size_t> WriteAppend(int fd, const void* buf, size_t len) override {
    struct iovec iov = {const_cast<void*>(buf), len};
    ssize_t n = ::pwritev2(fd, &iov, 1, -1, RWF_APPEND);
    if (n < 0)
      return FailSys(errno, "pwritev2");
    return static_cast<size_t>(n);
  }
  Status FSync(int fd) override { return Check(::fsync(fd), "fsync"); }
  Status FDataSync(int fd) override {
    return Check(::fdatasync(fd), "fdatasync");
  }
  Status SyncFs(int fd) override { return Check(::syncfs(fd), "syncfs"); }
  Status FTruncate(int fd, uint64_t len) override {
    return Check(::ftruncate(fd, static_cast<off_t>(len)), "ftruncate");
  }
  Status FAllocate(int fd, int mode, uint64_t off, uint64_t len) override {
    return Check(::fallocate(fd, mode, static_cast<off_t>(off),
                             static_cast<off_t>(len)),
                 "fallocate");
  }
  Result<off_t> LSeek(int fd, off_t off, int whence) override {
    off_t r = ::lseek(fd, off, whence);
    if (r < 0)
      return FailSys(errno, "lseek");
    return r;
  }
  Status FAdvise(int fd, uint64_t off, uint64_t len, int advice) override {
    // Returns the errno instead of setting it (man 2 posix_fadvise).
    int err = ::posix_fadvise(fd, static_cast<off_t>(off),
                              static_cast<off_t>(len), advice);
    if (err != 0)
      return FailSys(err, "posix_fadvise");
    return {};
  }
  Result<Stat> StatAt(int dirfd, const char* path, unsigned mask) override {
    Stat st;
    if (::statx(dirfd, path, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH, mask, &st) <
        0)
      return FailSys(errno, "statx");
    return st;
  }
  Result<struct statfs> FStatFs(int fd) override {
    struct statfs s;
    if (::fstatfs(fd, &s) < 0)
      return FailSys(errno, "fstatfs");
    return s;
  }
  Result<std::vector<DirEntry>> ReadDir(int fd, int64_t offset,
                                        size_t max_bytes) override {
    if (max_bytes < 4096)
      max_bytes = 4096;
    auto buf = std::make_unique<char[]>(max_bytes);
    long n = 0;
    // Twice from the beginning, if that shows nothing, not even ".": ext4 keeps
    // the place of a descriptor that is read at the end before anything else,
    // and takes it for its own once after a rewind (fs/ext4/dir.c,
    // ext4_dx_readdir, last_pos; seen on 6.18).
    for (int looks = offset == 0 ? 2 : 1; looks > 0 && n == 0; --looks) {
      if (::lseek(fd, offset, SEEK_SET) < 0)
        return FailSys(errno, "lseek");
      n = ::syscall(SYS_getdents64, fd, buf.get(), max_bytes);
      if (n < 0)
        return FailSys(errno, "getdents64");
    }
    std::vector<DirEntry> out;
    for (long pos = 0; pos < n;) {
      auto* d = reinterpret_cast<KernelDirent*>(buf.get() + pos);
      out.push_back({d->ino, d->off, d->type, d->name});
      pos += d->reclen;
    }
    return out;
  }

  Status MkDirAt(int dirfd, const char* path, mode_t mode) override {
    return Check(::mkdirat(dirfd, path, mode), "mkdirat");
  }
  Status MkNodAt(int dirfd, const char* path, mode_t mode,
                 dev_t dev) override {
    return Check(::mknodat(dirfd, path, mode, dev), "mknodat");
  }
  Status SymLinkAt(const char* text, int dirfd, const char* path) override {
    return Check(::symlinkat(text, dirfd, path), "symlinkat");
  }
  Result<std::string> ReadLinkAt(int dirfd, const char* path) override {
    char buf[4096 + 1];
    ssize_t n = ::readlinkat(dirfd, path, buf, sizeof buf);
    if (n < 0)
      return FailSys(errno, "readlinkat");
    return std::string(buf, static_cast<size_t>(n));
  }
  Status LinkFd(int fd, int dirfd, const char* path) override {
    return Check(::linkat(AT_FDCWD, ProcFd(fd).Path(), dirfd, path,
                          AT_SYMLINK_FOLLOW),
                 "linkat");
  }
  Status UnlinkAt(int dirfd, const char* path, int flags) override {
    return Check(::unlinkat(dirfd, path, flags), "unlinkat");
  }
  Status RenameAt(int olddir, const char* oldpath, int newdir,
                  const char* newpath, unsigned flags) override {
    return Check(::renameat2(olddir, oldpath, newdir, newpath, flags),
                 "renameat2");
  }

  Status ChMod(int fd, mode_t mode) override {
    return Check(::chmod(ProcFd(fd).Path(), mode), "chmod");
  }
  Status ChOwn(int fd, uid_t uid, gid_t gid) override {
    return Check(::fchownat(fd, "", uid, gid, AT_EMPTY_PATH), "fchownat");
  }
  Status UTimens(int fd, const struct timespec times[2]) override {
    // utimensat(fd, "", AT_EMPTY_PATH) acts on links too (since Linux 5.8).
    if (::utimensat(fd, "", times, AT_EMPTY_PATH) == 0)
      return {};
    return FailSys(errno, "utimensat");
  }
  Result<std::string> GetXattr(int fd, const char* name) override {
    std::string value(256, '\0');
    for (;;) {
      ssize_t n = ::getxattr(ProcFd(fd).Path(), name, value.data(),
                             value.size());
      if (n >= 0) {
        value.resize(static_cast<size_t>(n));
        return value;
      }
      if (errno != ERANGE || value.size() > 65536)
        return FailSys(errno, "getxattr");
      value.resize(value.size() * 16);
    }
  }
  Status SetXattr(int fd, const char* name, std::string_view value,
                  int flags) override {
    return Check(::setxattr(ProcFd(fd).Path(), name, value.data(),
                            value.size(), flags),
                 "setxattr");
  }
  Result<std::vector<std::string>> ListXattr(int fd) override {
    std::string list(1024, '\0');
    for (;;) {
      ssize_t n = ::listxattr(ProcFd(fd).Path(), list.data(), list.size());
      if (n >= 0) {
        list.resize(static_cast<size_t>(n));
        break;
      }
      if (errno != ERANGE || list.size() > 65536)
        return FailSys(errno, "listxattr");
      list.resize(65536);
    }
    std::vector<std::string> names;
    for (size_t pos = 0; pos < list.size();) {
      names.emplace_back(list.c_str() + pos);
      pos += names.back().size() + 1;
    }
    return names;
  }
  Status RemoveXattr(int fd, const char* name) override {
    return Check(::removexattr(ProcFd(fd).Path(), name), "removexattr");
  }

  Result<Identity> ActAs(const Identity& who) override {
    static thread_local Identity current;
    if (who == current)
      return current;
    TRY(KeepCapabilities());
    // The wrapper of the C library would set the groups of all threads. Only
    // this call can fail (setgroups(2)); the others tell nothing (setfsuid(2)).
    if (who.groups != current.groups &&
        ::syscall(SYS_setgroups, who.groups.size(), who.groups.data()) != 0)
      return FailSys(errno, "setgroups");
    ::setfsgid(who.gid);
    ::setfsuid(who.uid);
    if (static_cast<uid_t>(::setfsuid(static_cast<uid_t>(-1))) != who.uid ||
        static_cast<gid_t>(::setfsgid(static_cast<gid_t>(-1))) != who.gid) {
      ::setfsuid(current.uid);
      ::setfsgid(current.gid);
      ::syscall(SYS_setgroups, current.groups.size(), current.groups.data());
      return FailSys(EPERM, "setfsuid");
    }
    return std::exchange(current, who);
  }

  int64_t MonotonicNs() override { return Now(CLOCK_MONOTONIC); }
  int64_t RealtimeNs() override { return Now(CLOCK_REALTIME); }

 private:
  static int64_t Now(clockid_t clock) {
    struct timespec ts;
    ::clock_gettime(clock, &ts);
    return ts.tv_sec * 1'000'000'000LL + ts.tv_nsec;
  }
};

}  // namespace

std::unique_ptr<Syscalls> MakeRealSyscalls() {
  return std::make_unique<RealSyscalls>();
}

}  // namespace livemv::core
