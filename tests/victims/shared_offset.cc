// Parent and child write 16-byte records through one description with a plain
// offset. A record is "P%014ld\n" or "C%014ld\n". Usage: shared_offset FILE

#include <fcntl.h>
#include <sys/wait.h>

#include "victim.h"

namespace {

long Write(int fd, char who) {
  long seq = 0;
  while (!victim::Told()) {
    char record[32];
    snprintf(record, sizeof record, "%c%014ld\n", who, seq);
    if (write(fd, record, 16) != 16)
      victim::Die("write");
    ++seq;
    victim::NapUs(700);
  }
  return seq;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2)
    victim::Die("usage");
  int fd = open(argv[1], O_RDWR);
  if (fd < 0)
    victim::Die("open %s", argv[1]);
  int counts[2];
  if (pipe(counts) != 0)
    victim::Die("pipe");
  pid_t child = fork();
  if (child == 0) {
    long seq = Write(fd, 'C');
    if (write(counts[1], &seq, sizeof seq) != sizeof seq)
      _exit(2);
    _exit(0);
  }
  victim::Ready();
  long mine = Write(fd, 'P'), other = -1;
  if (read(counts[0], &other, sizeof other) != sizeof other)
    victim::Die("the child did not report");
  int status;
  if (waitpid(child, &status, 0) != child || status != 0)
    victim::Die("child status %x", status);
  off_t end = lseek(fd, 0, SEEK_CUR);
  if (end != (mine + other) * 16)
    victim::Die("offset %ld after %ld records", static_cast<long>(end),
                mine + other);
  victim::Ok("%ld %ld", mine, other);
}
