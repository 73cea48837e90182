// Blocked in one call, with a working directory and a descriptor in the tree.
// The call returns when a child lets it, when the victim is told to end, and
// not before: no EINTR, no error, no bytes that nobody sent. What is waited for
// is outside of the tree. Usage: blocked DIR CASE

#include <linux/futex.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <functional>
#include <map>

#include "victim.h"

namespace {

using victim::Expect;

bool* told;  // shared: the child lets go only then

[[noreturn]] void Finish() {
  Expect(*told, "it returned when it was let, and not before");
  char byte;
  int here = victim::Open("held", O_RDONLY);
  Expect(read(here, &byte, 1) == 1, "its directory");
  victim::Ok("1");
}

// let_go runs in a child when the victim is told; block must then return 0.
[[noreturn]] void Run(const std::function<void()>& let_go,
                      const std::function<int()>& block) {
  pid_t parent = getpid();
  pid_t child = fork();
  if (child == 0) {
    while (!victim::Told())
      victim::NapUs(5000);
    *told = true;
    (void)parent;
    let_go();
    _exit(0);
  }
  victim::Ready();
  if (block() != 0)
    victim::Die("the call failed");
  Finish();
}

void OnSignal(int) {}

struct flock Whole() {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

// A file outside of the tree, locked by a child until it is told.
[[noreturn]] void BlockOnLock(bool posix) {
  int fd = memfd_create("locked", MFD_CLOEXEC);
  std::string path = "/proc/self/fd/" + std::to_string(fd);
  int ready[2];
  Expect(pipe(ready) == 0, "pipe");
  pid_t child = fork();
  if (child == 0) {
    int mine = open(path.c_str(), O_RDWR);
    struct flock lock = Whole();
    if (posix ? fcntl(mine, F_SETLK, &lock) != 0 : flock(mine, LOCK_EX) != 0)
      _exit(1);
    if (write(ready[1], "r", 1) != 1)
      _exit(1);
    while (!victim::Told())
      victim::NapUs(5000);
    *told = true;
    _exit(0);  // and the lock is free
  }
  char c;
  Expect(read(ready[0], &c, 1) == 1, "the lock is held");
  victim::Ready();
  struct flock lock = Whole();
  if (posix ? fcntl(fd, F_SETLKW, &lock) != 0 : flock(fd, LOCK_EX) != 0)
    victim::Die("the lock");
  Finish();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3)
    victim::Die("usage");
  const std::string what = argv[2];
  if (chdir(argv[1]) != 0)
    victim::Die("chdir");
  victim::Open(victim::MakeFile("held", 100), O_RDWR);
  void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Expect(memory != MAP_FAILED, "memory");
  told = static_cast<bool*>(memory);
  auto* word = reinterpret_cast<int*>(told + 64);
  const pid_t self = getpid();
  int ends[2], pair[2];
  Expect(pipe(ends) == 0, "pipe");
  Expect(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
  auto send = [&] { (void)!write(ends[1], "x", 1); };
  char byte;
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigaction(SIGUSR1, &action, nullptr);
  sigset_t usr1, none;
  sigemptyset(&none);
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  auto signal_it = [&] { kill(self, SIGUSR1); };
  auto interrupted = [](long r) { return r == -1 && errno == EINTR ? 0 : 1; };
  if (what == "fifo") {
    // A FIFO of /tmp by its name.
    std::string path = "/tmp/livemv-victim-" + std::to_string(self);
    Expect(mkfifo(path.c_str(), 0600) == 0, "mkfifo");
    int fifo = victim::Open(path, O_RDWR);
    unlink(path.c_str());
    Run([&] { (void)!write(fifo, "x", 1); },
        [&] { return read(fifo, &byte, 1) == 1 ? 0 : 1; });
  }
  if (what == "pipe")
    Run(send, [&] { return read(ends[0], &byte, 1) == 1 ? 0 : 1; });
  if (what == "write") {
    std::string full(65536, 'x');
    Expect(write(ends[1], full.data(), full.size()) == 65536, "fill it");
    Run([&] { (void)!read(ends[0], full.data(), full.size()); },
        [&] { return write(ends[1], full.data(), 5000) == 5000 ? 0 : 1; });
  }
  if (what == "setlkw")
    BlockOnLock(true);
  if (what == "flock")
    BlockOnLock(false);
  if (what == "recv")
    Run([&] { (void)!write(pair[1], "x", 1); },
        [&] { return recv(pair[0], &byte, 1, 0) == 1 ? 0 : 1; });
  if (what == "recv_timeout") {
    timeval hour = {3600, 0};
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &hour, sizeof hour);
    Run([&] { (void)!write(pair[1], "x", 1); },
        [&] { return recv(pair[0], &byte, 1, 0) == 1 ? 0 : 1; });
  }
  if (what == "accept") {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_storage address = {};
    socklen_t size = sizeof address;
    address.ss_family = AF_INET;
    Expect(bind(fd, reinterpret_cast<sockaddr*>(&address), 16) == 0 &&
               listen(fd, 1) == 0 &&
               getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0,
           "listen");
    Run([&] {
      int client = socket(AF_INET, SOCK_STREAM, 0);
      (void)connect(client, reinterpret_cast<sockaddr*>(&address), size);
    }, [&] { return accept(fd, nullptr, nullptr) >= 0 ? 0 : 1; });
  }
  if (what == "poll" || what == "ppoll") {
    pollfd one = {ends[0], POLLIN, 0};
    Run(send, [&] {
      return (what == "poll" ? poll(&one, 1, -1)
                             : ppoll(&one, 1, nullptr, &none)) == 1
                 ? 0
                 : 1;
    });
  }
  if (what == "select")
    Run(send, [&] {
      fd_set set;
      FD_ZERO(&set);
      FD_SET(ends[0], &set);
      return select(ends[0] + 1, &set, nullptr, nullptr, nullptr) == 1 ? 0 : 1;
    });
  if (what == "epoll_wait" || what == "epoll_pwait" || what == "epoll_hour") {
    int set = epoll_create1(0);
    epoll_event event = {};
    event.events = EPOLLIN;
    Expect(epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event) == 0, "add");
    int timeout = what == "epoll_hour" ? 3600'000 : -1;
    Run(send, [&] {
      return (what == "epoll_pwait"
                  ? epoll_pwait(set, &event, 1, timeout, &none)
                  : epoll_wait(set, &event, 1, timeout)) == 1
                 ? 0
                 : 1;
    });
  }
  if (what == "futex")
    Run([&] {
      __atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
      syscall(SYS_futex, word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
    }, [&] {
      long r = syscall(SYS_futex, word, FUTEX_WAIT, 0, nullptr, nullptr, 0);
      return r == 0 || errno == EAGAIN ? 0 : 1;
    });
  if (what == "sigsuspend") {
    sigprocmask(SIG_BLOCK, &usr1, nullptr);
    Run(signal_it, [&] { return interrupted(sigsuspend(&none)); });
  }
  if (what == "pause")
    Run([&] {
      // The parent may be just before its call.
      for (int n = 0; n < 100; ++n) {
        kill(self, SIGUSR1);
        victim::NapUs(20'000);
      }
    }, [&] { return interrupted(pause()); });
  if (what == "sigwait") {
    sigprocmask(SIG_BLOCK, &usr1, nullptr);
    Run(signal_it, [&] {
      int sig;
      return sigwait(&usr1, &sig);
    });
  }
  if (what == "sigwaitinfo") {
    sigprocmask(SIG_BLOCK, &usr1, nullptr);
    Run(signal_it,
        [&] { return sigwaitinfo(&usr1, nullptr) == SIGUSR1 ? 0 : 1; });
  }
  if (what == "waitpid") {
    pid_t waited = fork();
    if (waited == 0) {
      while (!victim::Told())
        victim::NapUs(5000);
      *told = true;
      _exit(7);
    }
    victim::Ready();
    int status;
    Expect(waitpid(waited, &status, 0) == waited && WEXITSTATUS(status) == 7,
           "waitpid");
    Finish();
  }
  if (what == "nanosleep") {
    // Too long to end by itself; a signal tells how much was left.
    timespec day = {86400, 0}, left = {};
    int64_t begun = victim::NowNs();
    Run([&] {
      for (int n = 0; n < 100; ++n) {
        kill(self, SIGUSR1);
        victim::NapUs(20'000);
      }
    }, [&] {
      int r = interrupted(nanosleep(&day, &left));
      int64_t slept = victim::NowNs() - begun;
      int64_t rest = (86400 - left.tv_sec) * 1'000'000'000 - left.tv_nsec;
      if (rest < slept - 1'000'000'000 || rest > slept + 1'000'000'000)
        victim::Die("of %ld ns %ld were counted", static_cast<long>(slept),
                    static_cast<long>(rest));
      return r;
    });
  }
  if (what == "inotify") {
    int fd = inotify_init1(IN_CLOEXEC);
    std::string path = "/tmp/livemv-victim-" + std::to_string(self);
    Expect(mkdir(path.c_str(), 0700) == 0, "mkdir");
    if (inotify_add_watch(fd, path.c_str(), IN_DELETE_SELF) < 0)
      victim::Cannot("watch a directory");
    Run([&] { rmdir(path.c_str()); }, [&] {
      char events[4096];
      return read(fd, events, sizeof events) > 0 ? 0 : 1;
    });
  }
  if (what == "eventfd") {
    int fd = eventfd(0, 0);
    Run([&] {
      uint64_t one = 1;
      (void)!write(fd, &one, sizeof one);
    }, [&] {
      uint64_t got;
      return read(fd, &got, sizeof got) == sizeof got ? 0 : 1;
    });
  }
  if (what == "msgrcv") {
    int queue = msgget(IPC_PRIVATE, 0600);
    if (queue < 0)
      victim::Cannot("make a message queue");
    struct Message {
      long type;
      char text[8];
    };
    Run([&] {
      Message message = {1, "x"};
      msgsnd(queue, &message, 1, 0);
    }, [&] {
      Message message;
      ssize_t n = msgrcv(queue, &message, 8, 0, 0);
      int err = errno;
      msgctl(queue, IPC_RMID, nullptr);
      errno = err;
      return n == 1 ? 0 : 1;
    });
  }
  if (what == "semop" || what == "semtimedop") {
    int set = semget(IPC_PRIVATE, 1, 0600);
    if (set < 0)
      victim::Cannot("make a semaphore");
    Run([&] {
      sembuf up = {0, 1, 0};
      semop(set, &up, 1);
    }, [&] {
      sembuf down = {0, -1, 0};
      timespec hour = {3600, 0};
      int r = what == "semop" ? semop(set, &down, 1)
                              : semtimedop(set, &down, 1, &hour);
      int err = errno;
      semctl(set, 0, IPC_RMID);
      errno = err;
      return r;
    });
  }
  victim::Die("no such case");
}
