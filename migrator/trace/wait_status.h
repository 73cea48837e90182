#pragma once

// What waitpid(2) said about a tracee that was seized with
// PTRACE_O_TRACESYSGOOD.
//
// Thread contract: a value.

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

namespace livemv::trace {

class WaitStatus {
 public:
  explicit WaitStatus(int raw = 0) : raw_(raw) {}

  // Exited or killed: the thread is no more.
  bool Ended() const { return WIFEXITED(raw_) || WIFSIGNALED(raw_); }
  // The stop that PTRACE_INTERRUPT asks for, or a group-stop.
  bool EventStop() const {
    return WIFSTOPPED(raw_) && raw_ >> 16 == PTRACE_EVENT_STOP;
  }
  // Stopped by job control (SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU).
  bool GroupStop() const { return EventStop() && WSTOPSIG(raw_) != SIGTRAP; }
  bool SyscallStop() const {
    return WIFSTOPPED(raw_) && WSTOPSIG(raw_) == (SIGTRAP | 0x80);
  }
  // Stopped before a signal is acted upon.
  bool SignalStop() const {
    return WIFSTOPPED(raw_) && raw_ >> 16 == 0 && !SyscallStop();
  }
  int Signal() const { return WSTOPSIG(raw_); }
  int raw() const { return raw_; }

 private:
  int raw_;
};

}  // namespace livemv::trace
