#include "migrator/trace/ptrace_ops.h"

#include <errno.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <string>

// Younger than Debian 12's headers or named differently in them.
#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#ifndef PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG
#define PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG 0x4210
#define PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG 0x4211
#endif
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

namespace livemv::trace {
namespace {

using core::ErrorCode;
using core::Fail;
using core::FailSys;

core::Status Request(long request, pid_t tid, uint64_t addr, uint64_t data,
                     const char* name) {
  // The raw call: glibc's prototype wants an enum that lacks newer requests.
  if (::syscall(SYS_ptrace, request, static_cast<long>(tid), addr, data) >= 0)
    return {};
  int err = errno;
  std::string what = std::string(name) + " thread " + std::to_string(tid);
  if (err == ESRCH)
    return std::unexpected(
        core::Error{ErrorCode::kGone, ESRCH, std::move(what)});
  return FailSys(err, std::move(what));
}

template <class T>
uint64_t Address(T* p) {
  return reinterpret_cast<uint64_t>(p);
}

// Ends a blocking waitpid of this thread at a deadline: from then on a signal
// comes each millisecond, so that one that falls between the look at the clock
// and the wait is no loss.
class DeadlineTimer {
 public:
  DeadlineTimer() {
    struct sigevent ev = {};
    ev.sigev_notify = SIGEV_THREAD_ID;
    ev.sigev_signo = DeadlineSignal();
    ev.sigev_notify_thread_id = static_cast<pid_t>(::syscall(SYS_gettid));
    made_ = ::timer_create(CLOCK_MONOTONIC, &ev, &timer_) == 0;
  }
  ~DeadlineTimer() {
    if (made_)
      ::timer_delete(timer_);
  }
  DeadlineTimer(const DeadlineTimer&) = delete;
  DeadlineTimer& operator=(const DeadlineTimer&) = delete;

  // False if the kernel gave no timer.
  bool Arm(int64_t deadline_ns) {
    if (!made_)
      return false;
    if (armed_ == deadline_ns)
      return true;
    struct itimerspec at = {};
    at.it_value.tv_sec = deadline_ns / 1'000'000'000;
    at.it_value.tv_nsec = deadline_ns % 1'000'000'000;
    at.it_interval.tv_nsec = 1'000'000;
    if (::timer_settime(timer_, TIMER_ABSTIME, &at, nullptr) != 0)
      return false;
    armed_ = deadline_ns;
    return true;
  }
  void Disarm() {
    struct itimerspec never = {};
    ::timer_settime(timer_, 0, &never, nullptr);
    armed_ = 0;
  }

 private:
  timer_t timer_{};
  bool made_ = false;
  int64_t armed_ = 0;
};

class RealPtraceOps final : public PtraceOps {
 public:
  core::Status Seize(pid_t tid) override {
    return Request(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD, "seize");
  }
  core::Status Interrupt(pid_t tid) override {
    return Request(PTRACE_INTERRUPT, tid, 0, 0, "interrupt");
  }
  core::Status Resume(pid_t tid, bool stop_at_syscalls, int signal) override {
    return Request(stop_at_syscalls ? PTRACE_SYSCALL : PTRACE_CONT, tid, 0,
                   static_cast<uint64_t>(signal), "resume");
  }
  core::Status Detach(pid_t tid) override {
    return Request(PTRACE_DETACH, tid, 0, 0, "detach");
  }
  core::Result<Registers> GetRegisters(pid_t tid) override {
    Registers regs{};
    TRY(Request(PTRACE_GETREGS, tid, 0, Address(&regs), "read registers of"));
    return regs;
  }
  core::Status SetRegisters(pid_t tid, const Registers& regs) override {
    return Request(PTRACE_SETREGS, tid, 0, Address(&regs),
                   "write registers of");
  }
  core::Result<uint64_t> GetSignalMask(pid_t tid) override {
    uint64_t mask = 0;
    TRY(Request(PTRACE_GETSIGMASK, tid, sizeof mask, Address(&mask),
                "read signal mask of"));
    return mask;
  }
  core::Status SetSignalMask(pid_t tid, uint64_t mask) override {
    return Request(PTRACE_SETSIGMASK, tid, sizeof mask, Address(&mask),
                   "write signal mask of");
  }
  core::Status SuspendSeccomp(pid_t tid) override {
    return Request(PTRACE_SETOPTIONS, tid, 0,
                   PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP,
                   "suspend seccomp of");
  }
  core::Result<RemotePtr> GetRseqArea(pid_t tid) override {
    struct {
      uint64_t address;
      uint32_t size, signature, flags, pad;
    } area = {};
    auto got = Request(PTRACE_GET_RSEQ_CONFIGURATION, tid, sizeof area,
                       Address(&area), "read rseq area of");
    // EIO: a kernel without rseq.
    if (!got && got.error().sys_errno == EIO)
      return RemotePtr();
    TRY(got);
    return RemotePtr(area.address);
  }
  core::Result<SyscallUserDispatch> GetUserDispatch(pid_t tid) override {
    SyscallUserDispatch config;
    auto got =
        Request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, sizeof config,
                Address(&config), "read syscall user dispatch of");
    // EIO: the request is younger (6.4) than the kernel. It cannot be known
    // whether dispatch is on; so few programs use it that it is taken as off.
    if (!got && got.error().sys_errno == EIO)
      return SyscallUserDispatch{};
    TRY(got);
    return config;
  }
  core::Status SetUserDispatch(pid_t tid,
                               const SyscallUserDispatch& config) override {
    return Request(PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, tid, sizeof config,
                   Address(&config), "write syscall user dispatch of");
  }

  core::Result<std::optional<WaitEvent>> Wait(pid_t tid,
                                              int64_t deadline_ns) override {
    static thread_local DeadlineTimer timer;
    bool past = deadline_ns <= MonotonicNs();
    if (!past && !timer.Arm(deadline_ns))
      return FailSys(errno, "arm a deadline timer");
    for (;;) {
      int raw = 0;
      // __WNOTHREAD: only tracees of this thread; __WALL: threads too.
      pid_t got =
          ::waitpid(tid, &raw, __WALL | __WNOTHREAD | (past ? WNOHANG : 0));
      if (got > 0)
        return std::optional(WaitEvent{got, WaitStatus(raw)});
      if (got == 0)
        return std::nullopt;
      if (errno == EINTR) {
        if (MonotonicNs() >= deadline_ns) {
          past = true;  // one look without waiting
          timer.Disarm();
        }
        continue;
      }
      int err = errno;
      std::string what = "wait for thread " + std::to_string(tid);
      if (err == ECHILD)
        return std::unexpected(
            core::Error{ErrorCode::kGone, ECHILD, std::move(what)});
      return FailSys(err, std::move(what));
    }
  }
};

}  // namespace

int DeadlineSignal() {
  return SIGRTMIN + 5;
}

int64_t MonotonicNs() {
  struct timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

std::unique_ptr<PtraceOps> MakePtraceOps() {
  // The handler does nothing; without SA_RESTART it ends waitpid with EINTR.
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  ::sigaction(DeadlineSignal(), &action, nullptr);
  return std::make_unique<RealPtraceOps>();
}

}  // namespace livemv::trace
