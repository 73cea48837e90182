#include "migrator/trace/guardian.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/log.h"
#include "migrator/trace/recovery.h"

namespace livemv::trace {
namespace {

void BlockSignals() {
  sigset_t all;
  ::sigfillset(&all);
  ::sigdelset(&all, DeadlineSignal());
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
}

}  // namespace

void PrepareProcessForFreeze() {
  if (::chdir("/") != 0)
    LOG_WARN("cannot change to /: {}", strerror(errno));
  // What is there now is brought in; what comes later is locked when touched.
  if (::mlockall(MCL_CURRENT) != 0 || ::mlockall(MCL_FUTURE | MCL_ONFAULT) != 0)
    LOG_WARN("memory cannot be locked: {}", strerror(errno));
  core::UniqueFd score(
      ::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  if (!score || ::write(score.Get(), "-1000", 5) != 5)
    LOG_DEBUG("the OOM score cannot be lowered: {}", strerror(errno));
  struct rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0)
      LOG_WARN("the limit of descriptors cannot be raised: {}",
               strerror(errno));
  }
  // Naps end when they should.
  ::prctl(PR_SET_TIMERSLACK, 1);
}

core::Result<std::unique_ptr<Guardian>> Guardian::Start(Escrow& escrow) {
  std::unique_ptr<Guardian> guardian(new Guardian(escrow));
  guardian->tracer_ = core::UniqueFd(
      static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)));
  if (!guardian->tracer_)
    return core::FailSys(errno, "pidfd_open of ourselves");
  guardian->dismissed_ = core::UniqueFd(::eventfd(0, EFD_CLOEXEC));
  if (!guardian->dismissed_)
    return core::FailSys(errno, "eventfd");
  // Like fork, but with the descriptor table shared. The C library's fork
  // handlers are not needed: there is one thread, and so no lock is held.
  long pid = ::syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
  if (pid < 0)
    return core::FailSys(errno, "fork the guardian");
  if (pid == 0)
    guardian->Watch();
  guardian->pid_ = static_cast<pid_t>(pid);
  return guardian;
}

void Guardian::Watch() {
  // Away from the terminal's and the process group's signals.
  ::setsid();
  ::prctl(PR_SET_NAME, "livemv-guardian");
  BlockSignals();
  // Locks are not inherited.
  if (::mlockall(MCL_CURRENT) == 0)
    ::mlockall(MCL_FUTURE | MCL_ONFAULT);
  struct pollfd ends[2] = {{tracer_.Get(), POLLIN, 0},
                           {dismissed_.Get(), POLLIN, 0}};
  while (::poll(ends, 2, -1) < 0 && errno == EINTR) {
  }
  bool died = (ends[1].revents & POLLIN) == 0;
  auto ops = MakePtraceOps();
  auto tasks = MakeTaskView();
  core::HoldLogs();
  Recovery(*ops, *tasks, escrow_).Run();
  core::ReleaseLogs();
  if (died)
    LOG_WARN("the tracer died; everything it had stopped is {}",
             escrow_.header().committed ? "finished and running"
                                        : "as before and running");
  ::_exit(0);
}

Guardian::~Guardian() {
  if (pid_ < 0)
    return;
  bool leftovers = std::ranges::any_of(escrow_.threads(), [](auto& t) {
    return t.state == ThreadState::kEscrowed || t.state == ThreadState::kParked;
  });
  uint64_t one = 1;
  if (::write(dismissed_.Get(), &one, sizeof one) != sizeof one)
    LOG_ERROR("the guardian cannot be dismissed: {}", strerror(errno));
  if (leftovers) {
    // It still looks at them, in the table that we share.
    (void)tracer_.Release();
    (void)dismissed_.Release();
    return;
  }
  int status = 0;
  // It may have been killed, which is no harm now.
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace livemv::trace
