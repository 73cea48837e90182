// Stops itself with SIGSTOP; when it is continued it appends one line to FILE
// through the descriptor that it held all the time.

#include <fcntl.h>
#include <signal.h>

#include "victim.h"

int main(int argc, char** argv) {
  int fd = argc > 1 ? open(argv[1], O_WRONLY | O_APPEND) : -1;
  if (fd < 0)
    victim::Die("open");
  victim::Ready();
  raise(SIGSTOP);
  if (write(fd, "J 0\n", 4) != 4)
    victim::Die("write");
  char c;
  while (read(0, &c, 1) > 0) {
  }
  victim::Ok("1");
}
