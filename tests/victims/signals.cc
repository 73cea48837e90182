// Receives queued real-time signals from a child, each exactly once and in
// order, and a SIGUSR1 at a time in sigsuspend, ppoll and epoll_pwait, which
// alone let it through and each of which must end with EINTR.

#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#include "victim.h"

namespace {

volatile sig_atomic_t usr1 = 0;
volatile long expected = 0;
volatile sig_atomic_t disordered = 0;

void OnUsr1(int) {
  usr1 = usr1 + 1;
}
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

int main(int argc, char** argv) {
  // How often an epoll_pwait may end without a signal: for killed tracers.
  long early = argc > 1 ? atol(argv[1]) : 0;
  struct sigaction action = {};
  action.sa_handler = OnUsr1;
  sigaction(SIGUSR1, &action, nullptr);
  action.sa_handler = nullptr;
  action.sa_sigaction = OnQueued;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGRTMIN + 8, &action, nullptr);
  sigset_t all_but_usr1, former;
  sigfillset(&all_but_usr1);
  sigdelset(&all_but_usr1, SIGUSR1);
  int requests[2], quiet[2];
  int epoll_fd = epoll_create1(0);
  epoll_event watch = {};
  watch.events = EPOLLIN;
  if (pipe(requests) != 0 || pipe(quiet) != 0 ||
      epoll_ctl(epoll_fd, EPOLL_CTL_ADD, quiet[0], &watch) != 0)
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
    sigset_t waiting;
    sigemptyset(&waiting);
    sigaddset(&waiting, SIGUSR1);
    sigaddset(&waiting, SIGRTMIN + 8);
    sigprocmask(SIG_BLOCK, &waiting, &former);
    int before = usr1;
    int way = static_cast<int>(rounds % 3);
    if (write(requests[1], "x", 1) != 1)
      victim::Die("request");
    int r;
    if (way == 0) {
      r = sigsuspend(&all_but_usr1);
    } else if (way == 1) {
      pollfd nothing = {quiet[0], POLLIN, 0};
      r = ppoll(&nothing, 1, nullptr, &all_but_usr1);
    } else {
      epoll_event event;
      do {
        r = epoll_pwait(epoll_fd, &event, 1, -1, &all_but_usr1);
      } while (r == -1 && errno == EINTR && usr1 == before && early-- > 0);
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
