// Threads that sleep 900 ms in every kind of call, again and again. None may
// end early, with EINTR, or more than SLACK_MS late (default 700; a timeout
// that only the socket knows begins anew with each freeze and may be late at
// will). A second argument says how often a call that ends with EINTR at its
// interruption may do so: once for a tracer that is killed.

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <atomic>

#include "victim.h"

namespace {

constexpr long kMs = 900;
long slack_ms = 700;
std::atomic<bool> stop{false};
std::atomic<long> rounds{0};
long may_end_early = 0;

timespec Ts() {
  return {0, kMs * 1'000'000};
}

int Nanosleep() {
  timespec t = Ts();
  return nanosleep(&t, nullptr);
}
int ClockAbsolute() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  t.tv_nsec += kMs * 1'000'000;
  t.tv_sec += t.tv_nsec / 1'000'000'000;
  t.tv_nsec %= 1'000'000'000;
  errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr);
  return errno == 0 ? 0 : -1;
}
int quiet[2];
int Poll() {
  pollfd p = {quiet[0], POLLIN, 0};
  return poll(&p, 1, kMs);
}
int Ppoll() {
  pollfd p = {quiet[0], POLLIN, 0};
  timespec t = Ts();
  sigset_t none;
  sigemptyset(&none);
  return ppoll(&p, 1, &t, &none);
}
int Select() {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(quiet[0], &set);
  timeval t = {0, kMs * 1000};
  return select(quiet[0] + 1, &set, nullptr, nullptr, &t);
}
int Pselect() {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(quiet[0], &set);
  timespec t = Ts();
  sigset_t none;
  sigemptyset(&none);
  return pselect(quiet[0] + 1, &set, nullptr, nullptr, &t, &none);
}
int epoll_fd;
int EpollWait() {
  epoll_event event;
  return epoll_wait(epoll_fd, &event, 1, kMs);
}
int EpollPwait() {
  epoll_event event;
  sigset_t none;
  sigemptyset(&none);
  return epoll_pwait(epoll_fd, &event, 1, kMs, &none);
}
int Futex() {
  static int word = 0;
  timespec t = Ts();
  long r = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &t, nullptr, 0);
  return r == -1 && errno == ETIMEDOUT ? 0 : -1;
}
int SigTimedWait() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  timespec t = Ts();
  return sigtimedwait(&set, nullptr, &t) == -1 && errno == EAGAIN ? 0 : -1;
}
int sockets[2];
int RecvTimeout() {
  char c;
  return recv(sockets[0], &c, 1, 0) == -1 && errno == EAGAIN ? 0 : -1;
}

struct Sleeper {
  const char* name;
  int (*sleep)();
  long extra_ms;
  bool ends_with_eintr;  // -EINTR, and not -ERESTART…, inside the kernel
};
const Sleeper kSleepers[] = {
    {"nanosleep", Nanosleep, 0, false},
    {"clock_nanosleep", ClockAbsolute, 0, false},
    {"poll", Poll, 0, false},
    {"ppoll", Ppoll, 0, false},
    {"select", Select, 0, false},
    {"pselect", Pselect, 0, false},
    {"epoll_wait", EpollWait, 0, true},
    {"epoll_pwait", EpollPwait, 0, true},
    {"futex", Futex, 0, false},
    {"sigtimedwait", SigTimedWait, 0, true},
    {"recv", RecvTimeout, 3600'000, true},
};

void* Run(void* arg) {
  const Sleeper& s = *static_cast<const Sleeper*>(arg);
  long early = s.ends_with_eintr ? may_end_early : 0;
  while (!stop) {
    int64_t begin = victim::NowNs();
    errno = 0;
    if (s.sleep() != 0) {
      if (errno == EINTR && early-- > 0)
        continue;
      victim::Die("%s failed", s.name);
    }
    int64_t us = (victim::NowNs() - begin) / 1000;
    // Millisecond timeouts are rounded by half a millisecond when they are
    // shortened.
    if (us < kMs * 1000 - 1000)
      victim::Die("%s ended after %ld us", s.name, static_cast<long>(us));
    if (us > (kMs + slack_ms + s.extra_ms) * 1000)
      victim::Die("%s took %ld us", s.name, static_cast<long>(us));
    ++rounds;
  }
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1)
    slack_ms = atol(argv[1]);
  if (argc > 2)
    may_end_early = atol(argv[2]);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  epoll_fd = epoll_create1(0);
  if (pipe(quiet) != 0 || epoll_fd < 0 ||
      socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0)
    victim::Die("set up");
  epoll_event event = {};
  event.events = EPOLLIN;
  timeval t = {0, kMs * 1000};
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, quiet[0], &event) != 0 ||
      setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t) != 0)
    victim::Die("set up");
  pthread_t threads[sizeof kSleepers / sizeof *kSleepers];
  for (size_t i = 0; i < sizeof kSleepers / sizeof *kSleepers; ++i) {
    if (pthread_create(&threads[i], nullptr, Run,
                       const_cast<Sleeper*>(&kSleepers[i])) != 0)
      victim::Die("thread");
  }
  victim::Ready();
  char c;
  while (read(0, &c, 1) > 0) {
  }
  stop = true;
  for (pthread_t thread : threads)
    pthread_join(thread, nullptr);
  victim::Ok("%ld", rounds.load());
}
