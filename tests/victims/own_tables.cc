// A thread with a working directory and descriptors of its own (unshare): it
// appends "O SEQ\n" to log.20 in its directory by a held descriptor, and
// checks that its directory holds log.20. With an argument the main thread
// ends first, so that the process has no leader.

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>

#include "victim.h"

namespace {

pthread_barrier_t ready;

void* Run(void*) {
  if (unshare(CLONE_FS | CLONE_FILES) != 0)
    victim::Die("unshare");
  int fd = open("log.20", O_WRONLY | O_APPEND);
  if (fd < 0)
    victim::Die("open");
  pthread_barrier_wait(&ready);
  long seq = 0;
  while (!victim::Told()) {
    char line[32];
    int len = snprintf(line, sizeof line, "O %ld\n", seq++);
    if (write(fd, line, static_cast<size_t>(len)) != len)
      victim::Die("write");
    if (access("log.20", W_OK) != 0)
      victim::Die("log.20 by path");
    victim::NapUs(1000);
  }
  victim::Ok("%ld", seq);
}

}  // namespace

int main(int argc, char**) {
  pthread_t thread;
  pthread_barrier_init(&ready, nullptr, 2);
  if (pthread_create(&thread, nullptr, Run, nullptr) != 0)
    victim::Die("thread");
  pthread_barrier_wait(&ready);
  if (argc > 1) {
    victim::Ready();
    pthread_exit(nullptr);
  }
  if (chdir("/") != 0)
    victim::Die("chdir");
  victim::Ready();
  pthread_join(thread, nullptr);
}
