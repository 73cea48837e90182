// Forks children that execute this program again, which appends a line
// "E SEQ\n" to FILE through the inherited descriptor.

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include "victim.h"

extern char** environ;

int main(int argc, char** argv) {
  if (argc == 4 && strcmp(argv[1], "child") == 0) {
    char line[32];
    int len = snprintf(line, sizeof line, "E %s\n", argv[3]);
    return write(atoi(argv[2]), line, static_cast<size_t>(len)) == len ? 0 : 1;
  }
  int fd = argc > 1 ? open(argv[1], O_WRONLY | O_APPEND) : -1;
  if (fd < 0)
    victim::Die("open");
  victim::Ready();
  long seq = 0;
  while (!victim::Told()) {
    char number[16], sequence[24], child[] = "child", self[] = "/proc/self/exe";
    snprintf(number, sizeof number, "%d", fd);
    snprintf(sequence, sizeof sequence, "%ld", seq);
    char* args[] = {self, child, number, sequence, nullptr};
    pid_t pid;
    if (seq % 2 == 0) {
      int err = posix_spawn(&pid, self, nullptr, nullptr, args, environ);
      if (err != 0) {
        errno = err;
        victim::Die("posix_spawn");
      }
    } else if ((pid = fork()) == 0) {
      execv(self, args);
      _exit(127);
    }
    int status;
    if (waitpid(pid, &status, 0) != pid || status != 0)
      victim::Die("child %ld ended with %x", seq, status);
    ++seq;
  }
  victim::Ok("%ld", seq);
}
