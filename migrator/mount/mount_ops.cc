#include "migrator/mount/mount_ops.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

#include "migrator/mount/mount_ops_calls.h"
#include "migrator/mount/target_mount.h"

namespace livemv::mount {

using core::ErrorCode;
using core::Fail;
using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;

namespace {

// A child in another namespace makes one or two calls; only a namespace lock
// held elsewhere can delay it.
constexpr int kChildMs = 10'000;

// path without its leading slash, for use from a root descriptor.
const char* FromRoot(const std::string& path) {
  const char* p = path.c_str();
  while (*p == '/')
    ++p;
  return *p == '\0' ? "." : p;
}

// What fsconfig and fsmount have to say about a failure: one line a read.
std::string Messages(int fs_fd) {
  std::string all;
  char buf[512];
  for (int lines = 0; lines < 8; ++lines) {
    ssize_t n = ::read(fs_fd, buf, sizeof buf);
    if (n <= 0)
      break;
    all += (all.empty() ? " (" : "; ") + std::string(buf, size_t(n));
  }
  return all.empty() ? all : all + ")";
}

// Runs act in a forked child inside ns, its current directory being the root
// that ns's paths start from. act returns 0 or -errno and must be
// async-signal-safe: this process may have threads.
template <class Act>
int InNamespace(const MountNamespace& ns, Act act) {
  pid_t child = ::fork();
  if (child < 0)
    return -errno;
  if (child == 0) {
    int err = CallEnterMounts(ns.ns_fd());
    if (err == 0 && ::fchdir(ns.root_fd()) < 0)
      err = -errno;
    if (err == 0)
      err = act();
    ::_exit(err < 0 ? -err : 0);
  }
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
  pollfd wait_for{pidfd.Get(), POLLIN, 0};
  int ready = 0;
  do
    ready = ::poll(&wait_for, 1, kChildMs);
  while (ready < 0 && errno == EINTR);
  if (pidfd && ready == 0)
    ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR)
      return -errno;
  return WIFEXITED(status) ? -WEXITSTATUS(status) : -ETIMEDOUT;
}

class RealMountOps : public MountOps {
 public:
  Result<MountFd> CloneTree(int dirfd, const std::string& path) override {
    int fd = CallCloneTree(dirfd, path.c_str());
    if (fd < 0)
      return FailSys(-fd, "copy the mount at " +
                              (path.empty() ? "a directory" : path));
    MountFd mount{UniqueFd(fd)};
    // A copy of a shared mount is its peer: a mount on the original would
    // show up in it.
    int err = CallMakePrivate(fd, "", false);
    if (err < 0)
      return FailSys(-err, "make the copy of the mount at " + path +
                               " private");
    return mount;
  }

  Result<MountFd> MakeOverlay(const OverlaySpec& spec) override {
    int opened = CallFsOpen("fuse");
    if (opened == -ENODEV)
      return Fail(ErrorCode::kUnsupported,
                  "this kernel has no FUSE (fsopen fuse: ENODEV)");
    if (opened < 0)
      return FailSys(-opened, "fsopen fuse");
    UniqueFd fs(opened);
    char mode[16];
    std::snprintf(mode, sizeof mode, "%o", spec.root_mode & S_IFMT);
    const std::pair<const char*, std::string> strings[] = {
        {"source", spec.source},
        {"subtype", "livemv"},
        {"fd", std::to_string(spec.fuse_fd)},
        {"rootmode", mode},
        {"user_id", std::to_string(spec.uid)},
        {"group_id", std::to_string(spec.gid)},
        {"max_read", "1048576"},
    };
    for (const auto& [key, value] : strings)
      if (int err = CallFsConfigString(fs.Get(), key, value.c_str()); err < 0)
        return FailSys(-err, "overlay option " + std::string(key) + "=" +
                                 value + Messages(fs.Get()));
    for (const char* flag : {"allow_other", "default_permissions"})
      if (int err = CallFsConfigFlag(fs.Get(), flag); err < 0)
        return FailSys(-err, "overlay option " + std::string(flag) +
                                 Messages(fs.Get()));
    if (int err = CallFsConfigCreate(fs.Get()); err < 0)
      return FailSys(-err, "make the overlay's filesystem for " + spec.source +
                               Messages(fs.Get()));
    unsigned attributes = (spec.flags.read_only ? MOUNT_ATTR_RDONLY : 0) |
                          (spec.flags.nosuid ? MOUNT_ATTR_NOSUID : 0) |
                          (spec.flags.nodev ? MOUNT_ATTR_NODEV : 0) |
                          (spec.flags.noexec ? MOUNT_ATTR_NOEXEC : 0);
    int fd = CallFsMount(fs.Get(), attributes);
    if (fd < 0)
      return FailSys(-fd, "fsmount of the overlay for " + spec.source +
                              Messages(fs.Get()));
    return MountFd(UniqueFd(fd));
  }

  Status ForgetNames(const MountFd& overlay) override {
    UniqueFd fs(CallFsPick(overlay.Get()));
    if (fs.Get() < 0)
      return FailSys(-fs.Get(), "fspick of the overlay");
    if (int err = CallFsReconfigure(fs.Get()); err < 0)
      return FailSys(-err, "reconfigure the overlay" + Messages(fs.Get()));
    return {};
  }

  Result<TargetMount> MountTarget(const std::string& target,
                              const std::string& options,
                              const std::string& scratch,
                              int64_t timeout_ns) override {
    if (IsNfsName(target)) {
      TRY(HasNfsClient());
      return MountNfs(target, options, scratch, timeout_ns);
    }
    UniqueFd dir(::open(target.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!dir)
      return FailSys(errno, "open the target directory " + target);
    if (!options.empty())
      return Fail(ErrorCode::kInvalid,
                  "mount options are for targets of the form host:/export; " +
                      target + " is a mounted directory already");
    ASSIGN_OR_RETURN(MountFd copy, CloneTree(dir.Get(), ""));
    return TargetMount{std::move(copy), "", ""};
  }

  Status AttachAt(const MountFd& mount, const MountPoint& at) override {
    return Move(mount, at, false);
  }

  Status SlideBeneath(const MountFd& mount, const MountPoint& at) override {
    if (!HasBeneath())
      return Fail(ErrorCode::kUnsupported,
                  "this kernel cannot mount beneath a mount (needs 6.5)");
    return Move(mount, at, true);
  }

  Status DetachTop(const MountPoint& at, dev_t dev) override {
    ASSIGN_OR_RETURN(MountTable table,
                     at.ns != nullptr ? TableIn(*at.ns) : TableOf(0));
    const MountEntry* top = table.TopAt(at.path);
    if (top == nullptr || top->dev != dev)
      return Fail(ErrorCode::kConflict,
                  "unmount " + at.ToString() + ": " +
                      (top == nullptr ? "nothing is mounted there"
                                      : "the top is " + top->fs_type + " of " +
                                            top->source));
    int err = at.ns != nullptr ? InNamespace(*at.ns,
                                             [&] {
                                               return CallDetach(
                                                   FromRoot(at.path));
                                             })
                               : CallDetach(at.path.c_str());
    if (err < 0)
      return FailSys(-err, "unmount " + at.ToString());
    return {};
  }

  Result<MountTable> TableOf(pid_t pid) override {
    return MountTable::Of(pid);
  }

  // The witness may have ended and its number be another's: a child that
  // enters the namespace reads its own table.
  Result<MountTable> TableIn(const MountNamespace& ns) override {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) < 0)
      return FailSys(errno, "pipe");
    UniqueFd from(ends[0]);
    UniqueFd to(ends[1]);
    pid_t child = ::fork();
    if (child < 0)
      return FailSys(errno, "fork");
    if (child == 0) {
      int err = PrintTable(ns, to.Get());
      ::_exit(err < 0 ? -err : 0);
    }
    to.Reset();
    std::string text;
    char buf[16384];
    for (;;) {
      ssize_t n = ::read(from.Get(), buf, sizeof buf);
      if (n < 0 && errno == EINTR)
        continue;
      if (n <= 0)
        break;
      text.append(buf, static_cast<size_t>(n));
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0)
      if (errno != EINTR)
        return FailSys(errno, "waitpid");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
      return FailSys(WIFEXITED(status) ? WEXITSTATUS(status) : EINTR,
                     "read the mounts of the namespace of process " +
                         std::to_string(ns.witness()));
    return MountTable::Parse(text);
  }

  // fdinfo and not statx: it asks no filesystem.
  Result<uint64_t> IdOf(const MountFd& mount) override {
    std::string path = "/proc/self/fdinfo/" + std::to_string(mount.Get());
    std::ifstream in(path);
    std::string key;
    uint64_t id = 0;
    while (in >> key)
      if (key == "mnt_id:" && in >> id)
        return id;
    return Fail(ErrorCode::kInvalid, path + " names no mount");
  }

  Result<MountNamespace> NamespaceOf(pid_t pid) override {
    return MountNamespace::Of(pid);
  }

  bool HasBeneath() override {
    static const bool has = CallProbeBeneath() == -EBADF;
    return has;
  }

 private:
  Status Move(const MountFd& mount, const MountPoint& at, bool beneath) {
    int err = 0;
    if (at.ns == nullptr) {
      err = CallMoveMount(mount.Get(), AT_FDCWD, at.path.c_str(), beneath);
    } else {
      err = InNamespace(*at.ns, [&] {
        return CallMoveMount(mount.Get(), at.ns->root_fd(), FromRoot(at.path),
                             beneath);
      });
    }
    if (err < 0)
      return FailSys(-err, (beneath ? "mount beneath " : "mount on ") +
                               at.ToString());
    return {};
  }

  // In a child, async-signal-safe. The root of ns may be below the
  // namespace's root, so the child takes it as its own: mountinfo is printed
  // as seen from there. The thread's own link into /proc is opened before the
  // namespace is left, since another namespace may have no /proc, and it is
  // read by number because "self" there would be somebody else.
  static int PrintTable(const MountNamespace& ns, int out) {
    int proc = ::open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (proc < 0)
      return -errno;
    if (int err = CallEnterMounts(ns.ns_fd()); err < 0)
      return err;
    if (::fchdir(ns.root_fd()) < 0 || ::chroot(".") < 0)
      return -errno;
    int in = ::openat(proc, "mountinfo", O_RDONLY | O_CLOEXEC);
    if (in < 0)
      return -errno;
    char buf[4096];
    for (;;) {
      ssize_t n = ::read(in, buf, sizeof buf);
      if (n < 0)
        return -errno;
      if (n == 0)
        return 0;
      for (ssize_t done = 0; done < n;) {
        ssize_t w = ::write(out, buf + done, static_cast<size_t>(n - done));
        if (w < 0)
          return -errno;
        done += w;
      }
    }
  }
};

}  // namespace

Result<MountNamespace> MountNamespace::Of(pid_t pid) {
  MountNamespace ns;
  std::string proc = "/proc/" + (pid == 0 ? "self" : std::to_string(pid));
  ns.witness_ = pid;
  ns.ns_ = UniqueFd(::open((proc + "/ns/mnt").c_str(), O_RDONLY | O_CLOEXEC));
  if (ns.ns_)
    ns.root_ = UniqueFd(::open((proc + "/root").c_str(),
                               O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!ns.ns_ || !ns.root_) {
    if (errno == ENOENT || errno == ESRCH)
      return Fail(ErrorCode::kGone, proc + ": no such process");
    return FailSys(errno, "open the mount namespace of " + proc);
  }
  struct stat st;
  if (::fstat(ns.ns_.Get(), &st) < 0)
    return FailSys(errno, "stat " + proc + "/ns/mnt");
  ns.inode_ = st.st_ino;
  return ns;
}

std::string MountPoint::ToString() const {
  if (ns == nullptr)
    return path;
  return path + " in the mount namespace of process " +
         std::to_string(ns->witness());
}

std::unique_ptr<MountOps> MakeRealMountOps() {
  return std::make_unique<RealMountOps>();
}

core::Status CoverEmpty(const std::string& dir, const std::string& source) {
  if (::mount(source.c_str(), dir.c_str(), "tmpfs",
              MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
              "mode=0555,size=4k") != 0)
    return core::FailSys(errno, "cover " + dir + " by an empty mount");
  return {};
}

bool HasFsopen() {
  int fd = CallFsOpen("proc");
  if (fd >= 0)
    ::close(fd);
  // mount_setattr of no mount at all: ENOSYS only where it is missing.
  return fd >= 0 && CallMakePrivate(-1, "", false) != -ENOSYS;
}

Result<MountFlags> FlagsOf(int fd) {
  struct statvfs st;
  if (::fstatvfs(fd, &st) < 0)
    return FailSys(errno, "statvfs of a mount");
  return MountFlags{(st.f_flag & ST_RDONLY) != 0, (st.f_flag & ST_NOSUID) != 0,
                    (st.f_flag & ST_NODEV) != 0, (st.f_flag & ST_NOEXEC) != 0};
}

}  // namespace livemv::mount
