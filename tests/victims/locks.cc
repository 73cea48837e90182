// Locks and leases on files of the tree, with a contender that tries all the
// time and must never get one. Usage: locks DIR CASE

#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <atomic>

#include "victim.h"

namespace {

using victim::Expect;
using victim::Open;

std::string path;

struct flock Range(short type, off_t from, off_t length) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = from;
  lock.l_len = length;
  return lock;
}

enum class Kind { kFlock, kOfd, kPosix };

bool Take(Kind kind, int fd, bool wait) {
  struct flock lock = Range(F_WRLCK, 10, 10);
  if (kind == Kind::kFlock)
    return flock(fd, wait ? LOCK_EX : LOCK_EX | LOCK_NB) == 0;
  if (kind == Kind::kOfd)
    return fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock) == 0;
  return fcntl(fd, wait ? F_SETLKW : F_SETLK, &lock) == 0;
}

struct Shared {
  std::atomic<bool> ending, waiter_got_it;
  std::atomic<long> tries;
};

// Opens it anew each time; whoever gets the lock says so by its status.
pid_t Contend(Kind kind, Shared* shared) {
  pid_t child = fork();
  if (child != 0)
    return child;
  while (!shared->ending) {
    int fd = Open(path, O_RDWR | O_CLOEXEC);
    if (Take(kind, fd, false))
      _exit(1);
    if (errno != EAGAIN && errno != EACCES)
      _exit(2);
    close(fd);
    ++shared->tries;
    victim::NapUs(5000);
  }
  _exit(0);
}

// Blocked until the holder lets go, and not told of any signal before.
pid_t Wait(Kind kind, Shared* shared, int held) {
  pid_t child = fork();
  if (child != 0)
    return child;
  close(held);
  int fd = Open(path, O_RDWR | O_CLOEXEC);
  if (!Take(kind, fd, true))
    _exit(3);
  shared->waiter_got_it = true;
  _exit(shared->ending ? 0 : 1);
}

void ExpectEnded(pid_t child, const char* what) {
  int status;
  if (waitpid(child, &status, 0) != child || status != 0)
    victim::Die("%s: status %x", what, status);
}

// by_fork: a child holds the lock's description too and lives on without it.
[[noreturn]] void Hold(Kind kind, bool waiter, bool by_fork, int open_flags) {
  void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Expect(memory != MAP_FAILED, "memory");
  auto* shared = new (memory) Shared{};
  pid_t waits = 0, other = 0;
  // The children have no part in the holder's lock.
  int go[2];
  Expect(pipe(go) == 0, "pipe");
  pid_t contends = fork();
  if (contends == 0) {
    char c;
    close(go[1]);
    (void)!read(go[0], &c, 1);
    pid_t inner = Contend(kind, shared);
    int status = 0;
    waitpid(inner, &status, 0);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 9);
  }
  int fd = Open(path, open_flags);
  if (!Take(kind, fd, false))
    victim::Cannot("take this lock");
  close(go[0]);
  close(go[1]);
  if (waiter)
    waits = Wait(kind, shared, fd);
  if (by_fork && (other = fork()) == 0)
    for (;;)
      pause();
  // Seen once at least by each.
  while (shared->tries == 0)
    victim::NapUs(1000);
  victim::NapUs(100'000);
  victim::Ready();
  victim::UntilTold([&] {
    Expect(!shared->waiter_got_it, "whoever waits for it goes on waiting");
    Expect(waitpid(contends, nullptr, WNOHANG) == 0, "nobody else got it");
  });
  long tries = shared->tries;
  shared->ending = true;
  ExpectEnded(contends, "the contender");
  if (by_fork) {
    close(fd);  // the child's copy keeps it
    int again = Open(path, O_RDWR);
    Expect(!Take(kind, again, false), "it is the description's");
    kill(other, SIGKILL);
    waitpid(other, nullptr, 0);
    Expect(Take(kind, again, false), "with its last user it is gone");
  } else {
    close(fd);
  }
  if (waiter)
    ExpectEnded(waits, "whoever waited for it");
  victim::Ok("%ld", tries);
}

[[noreturn]] void Lease() {
  int fd = Open(path, O_RDONLY);
  if (fcntl(fd, F_SETLEASE, F_RDLCK) != 0)
    victim::Cannot("take a lease");
  signal(SIGIO, [](int) { victim::Die("the lease was broken"); });
  victim::Ready();
  victim::Ok("%ld", victim::UntilTold([&] {
    Expect(fcntl(fd, F_GETLEASE) == F_RDLCK, "the lease");
  }));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3)
    victim::Die("usage");
  const std::string what = argv[2];
  path = victim::MakeFile(std::string(argv[1]) + "/locked", 1000);
  if (what == "flock")
    Hold(Kind::kFlock, true, false, O_RDWR);
  if (what == "flock_read_only")
    Hold(Kind::kFlock, true, false, O_RDONLY);
  if (what == "flock_forked")
    Hold(Kind::kFlock, false, true, O_RDWR);
  if (what == "ofd")
    Hold(Kind::kOfd, true, false, O_RDWR);
  if (what == "ofd_forked")
    Hold(Kind::kOfd, false, true, O_RDWR);
  if (what == "posix")
    Hold(Kind::kPosix, true, false, O_RDWR);
  if (what == "lease")
    Lease();
  victim::Die("no such case");
}
