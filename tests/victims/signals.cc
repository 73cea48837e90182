// Receives queued real-time signals from a child, each exactly once and in
// order, and a SIGUSR1 at a time in sigsuspend, pause and a plain read, each
// of which must end with EINTR.

#include <signal.h>
#include <sys/wait.h>

#include "victim.h"

namespace {

volatile sig_atomic_t usr1 = 0;
volatile long expected = 0;
volatile sig_atomic_t disordered = 0;

void OnUsr1(int) { usr1 = usr1 + 1; }
void OnQueued(int, siginfo_t* info, void*) {
  if (info->si_value.sival_int != expected)
    disordered = 1;
  expected = expected + 1;
}

// Sends one SIGUSR1 for each byte, and queued signals all the time.
[[noreturn]] void Sender(pid_t to, int requests) {
  long sent = 0;
  for (;;) {
    pollfd in = {requests, POLLIN, 0};
    if (poll(&in, 1, 1) > 0) {
      char c;
      if (read(requests, &c, 1) <= 0)
        _exit(static_cast<int>(sent & 0x7f));
      victim::NapUs(3000);
      kill(to, SIGUSR1);
    }
    sigval value = {};
    value.sival_int = static_cast<int>(sent);
    if (sigqueue(to, SIGRTMIN + 8, value) == 0)
      ++sent;
  }
}

}  // namespace

int main() {
  struct sigaction action = {};
  action.sa_handler = OnUsr1;
  sigaction(SIGUSR1, &action, nullptr);
  action.sa_handler = nullptr;
  action.sa_sigaction = OnQueued;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGRTMIN + 8, &action, nullptr);
  sigset_t queued, all_but_usr1, former;
  sigemptyset(&queued);
  sigaddset(&queued, SIGRTMIN + 8);
  sigfillset(&all_but_usr1);
  sigdelset(&all_but_usr1, SIGUSR1);
  int requests[2], quiet[2];
  if (pipe(requests) != 0 || pipe(quiet) != 0)
    victim::Die("pipe");
  pid_t self = getpid(), child = fork();
  if (child == 0) {
    close(requests[1]);
    Sender(self, requests[0]);
  }
  close(requests[0]);
  victim::Ready();
  long rounds = 0;
  while (!victim::Told()) {
    // The queued ones stay out of these waits, or they would end them.
    sigset_t usr1_set;
    sigemptyset(&usr1_set);
    sigaddset(&usr1_set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &queued, &former);
    int before = usr1;
    int way = static_cast<int>(rounds % 2);
    int r;
    if (way == 0) {
      sigprocmask(SIG_BLOCK, &usr1_set, nullptr);
      if (write(requests[1], "x", 1) != 1)
        victim::Die("request");
      r = sigsuspend(&all_but_usr1);
      int err = errno;
      sigprocmask(SIG_UNBLOCK, &usr1_set, nullptr);
      errno = err;
    } else {
      char c;
      if (write(requests[1], "x", 1) != 1)
        victim::Die("request");
      r = static_cast<int>(read(quiet[0], &c, 1));
    }
    if (r != -1 || errno != EINTR || usr1 != before + 1)
      victim::Die("wait %d: returned %d, %d signals", way, r, usr1 - before);
    sigprocmask(SIG_SETMASK, &former, nullptr);
    if (disordered)
      victim::Die("a queued signal was lost, doubled or out of order");
    ++rounds;
  }
  close(requests[1]);
  int status;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != (expected & 0x7f))
    victim::Die("sent %d, received %ld", WEXITSTATUS(status), expected & 0x7f);
  victim::Ok("%ld", rounds);
}
