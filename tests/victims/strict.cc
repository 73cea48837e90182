// Appends lines "S SEQ\n" to FILE under a seccomp filter that kills for
// anything but write, poll, nanosleep and exit.

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "victim.h"

int main(int argc, char** argv) {
  int fd = argc > 1 ? open(argv[1], O_WRONLY | O_APPEND) : -1;
  if (fd < 0)
    victim::Die("open");
  victim::Ready();
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 5, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_poll, 4, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_nanosleep, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog program = {sizeof filter / sizeof *filter, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    victim::Die("seccomp");
  long seq = 0;
  while (!victim::Told()) {
    char line[32];
    int len = snprintf(line, sizeof line, "S %ld\n", seq++);
    if (write(fd, line, static_cast<size_t>(len)) != len)
      victim::Die("write");
    victim::NapUs(1000);
  }
  victim::Ok("%ld", seq);
}
