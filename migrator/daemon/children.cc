#include "migrator/daemon/children.h"

#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "core/log.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

namespace livemv::daemon {

using core::FailSys;
using core::Result;
using core::UniqueFd;

namespace {

constexpr int kChannelNumber = 3;

// Between fork and exec: only async-signal-safe calls.
[[noreturn]] void ExecSelf(int channel_fd, bool new_session,
                           const char* const* argv) {
  if (new_session)
    ::setsid();
  // Number 3 without close-on-exec; everything else goes at exec or in
  // BecomeDaemon.
  if (channel_fd == kChannelNumber)
    ::fcntl(channel_fd, F_SETFD, 0);
  else if (::dup2(channel_fd, kChannelNumber) < 0)
    ::_exit(127);
  ::execv("/proc/self/exe", const_cast<char* const*>(argv));
  ::_exit(127);
}

}  // namespace

Result<Child> Spawn(const HandoffView& view, bool new_session) {
  ASSIGN_OR_RETURN(auto ends, Channel::Pair());
  const std::string name = "livemv-" + view.role;
  const char* argv[] = {name.c_str(), kChildMark, view.settings->id.c_str(),
                        nullptr};
  pid_t pid = ::fork();
  if (pid < 0)
    return FailSys(errno, "fork the " + view.role);
  if (pid == 0)
    ExecSelf(ends.second.Fd(), new_session, argv);
  Child child;
  child.pid = pid;
  child.pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  child.channel = std::move(ends.first);
  ends.second.Close();
  if (!child.pidfd) {
    int error = errno;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return FailSys(error, "pidfd_open of the " + view.role);
  }
  if (core::Status sent = SendHandoff(child.channel, view); !sent) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return std::unexpected(std::move(sent).error().With("hand over to the " +
                                                        view.role));
  }
  return child;
}

std::string Ended::ToString() const {
  if (!by_signal)
    return "exited with " + std::to_string(code);
  const char* name = ::sigabbrev_np(code);
  return std::string("was killed by SIG") +
         (name != nullptr ? name : std::to_string(code).c_str());
}

Result<Ended> Reap(Child& child) {
  siginfo_t info{};
  while (::waitid(P_PID, static_cast<id_t>(child.pid), &info, WEXITED) != 0) {
    if (errno != EINTR)
      return FailSys(errno, "waitid");
  }
  child.pid = 0;
  child.pidfd.Reset();
  child.channel.Close();
  return Ended{info.si_code != CLD_EXITED, info.si_status};
}

void BecomeDaemon(int channel_fd) {
  for (int fd = 3; fd < channel_fd; fd++)
    ::close(fd);
  ::syscall(SYS_close_range, static_cast<unsigned>(channel_fd) + 1, ~0u, 0);
  ::fcntl(channel_fd, F_SETFD, FD_CLOEXEC);
  // The standard descriptors may be files in the tree that is to be moved, or
  // a terminal that goes away.
  UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (int fd = 0; fd < 3 && null; fd++)
    ::dup2(null.Get(), fd);
  if (::chdir("/") != 0)
    LOG_WARN("chdir /: {}", ::strerror(errno));
  ::umask(0077);
  // A signal to end would leave applications with a dead overlay: only `abort`
  // and `finish` end a migration.
  for (int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGTSTP,
                     SIGTTIN, SIGTTOU})
    ::signal(signal, SIG_IGN);
}

void ProtectFromPressure() {
  if (UniqueFd fd(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC)); fd)
    (void)!::write(fd.Get(), "-1000", 5);
  // include/uapi/linux/prctl.h, 5.6: memory reclaim on behalf of this process
  // does not wait for the I/O that this process has to do.
  ::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
  // Small stacks and few arenas, since all of it becomes resident.
  pthread_attr_t attr;
  ::pthread_attr_init(&attr);
  ::pthread_attr_setstacksize(&attr, 512 << 10);
  ::pthread_setattr_default_np(&attr);
  ::pthread_attr_destroy(&attr);
  ::mallopt(M_ARENA_MAX, 8);
  // What is freed is kept: each megabyte that comes anew from the kernel is
  // cleared and locked before its first byte is used.
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 64 << 20);
  struct rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_max = std::max<rlim_t>(files.rlim_max, 1 << 20);
    files.rlim_cur = files.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &files) != 0) {
      ::getrlimit(RLIMIT_NOFILE, &files);
      files.rlim_cur = files.rlim_max;
      ::setrlimit(RLIMIT_NOFILE, &files);
    }
  }
}

void LockMemory() {
  // Locked memory cannot be given back (madvise(2), MADV_DONTNEED).
  ::malloc_trim(0);
  // Not MCL_ONFAULT: a request that is being copied into a page that is not
  // present fails with EIO if the worker is killed then (fs/fuse/dev.c,
  // fuse_copy_fill).
  if (::mlockall(MCL_CURRENT | MCL_FUTURE) != 0)
    LOG_WARN("mlockall: {}", ::strerror(errno));
}

}  // namespace livemv::daemon
