// Appends numbered lines to three files that it holds open (log.N by relative
// path, O_APPEND), and to a fourth by relative path each time. Usage:
// appender NAME [PAUSE_US]. Lines: "NAME FILE SEQ\n", written in one piece.

#include <fcntl.h>

#include "victim.h"

int main(int argc, char** argv) {
  if (argc < 2)
    victim::Die("usage");
  const char* name = argv[1];
  long pause_us = argc > 2 ? atol(argv[2]) : 1000;
  int fds[3];
  for (int i = 0; i < 3; ++i) {
    char path[64];
    snprintf(path, sizeof path, "log.%d", i);
    fds[i] = open(path, O_WRONLY | O_APPEND | (i == 1 ? O_CLOEXEC : 0));
    if (fds[i] < 0)
      victim::Die("open %s", path);
  }
  victim::Ready();
  long seq = 0;
  while (!victim::Told()) {
    for (int i = 0; i < 4; ++i) {
      char line[96];
      int len = snprintf(line, sizeof line, "%s %d %ld\n", name, i, seq);
      int fd = i < 3 ? fds[i] : open("log.3", O_WRONLY | O_APPEND | O_CLOEXEC);
      if (fd < 0)
        victim::Die("open log.3");
      if (write(fd, line, static_cast<size_t>(len)) != len)
        victim::Die("write to log.%d", i);
      if (i == 3 && close(fd) != 0)
        victim::Die("close log.3");
    }
    ++seq;
    if (pause_us > 0)
      victim::NapUs(pause_us);
  }
  for (int i = 0; i < 3; ++i) {
    if (fcntl(fds[i], F_GETFD) != (i == 1 ? FD_CLOEXEC : 0))
      victim::Die("close-on-exec of log.%d changed", i);
    if ((fcntl(fds[i], F_GETFL) & (O_ACCMODE | O_APPEND)) !=
        (O_WRONLY | O_APPEND))
      victim::Die("flags of log.%d changed", i);
  }
  victim::Ok("%ld", seq);
}
