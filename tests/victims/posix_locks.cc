// Holds POSIX locks through two descriptors of one file and one of another, and
// a child waits for the second. Usage: posix_locks FILE OTHER [MORE]. On FILE:
// bytes 0 to 9 for writing, 20 to 29 for reading, and MORE single ones, 1000,
// 1002 and so on, for writing.

#include <fcntl.h>
#include <sys/wait.h>

#include "victim.h"

namespace {

bool Lock(int fd, int how, short type, off_t start, off_t len) {
  struct flock range = {};
  range.l_type = type;
  range.l_whence = SEEK_SET;
  range.l_start = start;
  range.l_len = len;
  return fcntl(fd, how, &range) == 0;
}

int Open(const char* path) {
  int fd = open(path, O_RDWR);
  if (fd < 0)
    victim::Die("open %s", path);
  return fd;
}

// Ends with 0 once it has the lock, which must not be before it is let go of.
[[noreturn]] void Wait(int fd, int told) {
  if (!Lock(fd, F_SETLKW, F_WRLCK, 0, 0))
    _exit(2);
  struct pollfd in = {told, POLLIN, 0};
  _exit(poll(&in, 1, 0) == 1 ? 0 : 3);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3)
    victim::Die("usage");
  int one = Open(argv[1]), two = Open(argv[1]), other = Open(argv[2]);
  if (!Lock(one, F_SETLK, F_WRLCK, 0, 10) ||
      !Lock(two, F_SETLK, F_RDLCK, 20, 10) ||
      !Lock(other, F_SETLK, F_WRLCK, 0, 0))
    victim::Die("lock");
  for (long i = 0; argc > 3 && i < atol(argv[3]); ++i)
    if (!Lock(one, F_SETLK, F_WRLCK, 1000 + 2 * i, 1))
      victim::Die("lock %ld", i);
  int told[2];
  if (pipe(told) != 0)
    victim::Die("pipe");
  pid_t child = fork();
  if (child == 0)
    Wait(other, told[0]);
  victim::Ready();
  while (!victim::Told()) {
    int status;
    if (waitpid(child, &status, WNOHANG) != 0)
      victim::Die("the child did not wait: %x", status);
    victim::NapUs(1000);
  }
  if (write(told[1], "x", 1) != 1)
    victim::Die("tell");
  // Any close of a file lets go of all locks on it.
  close(other);
  int status;
  if (waitpid(child, &status, 0) != child || status != 0)
    victim::Die("child status %x", status);
  victim::Ok("%d", 0);
}
