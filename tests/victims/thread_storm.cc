// Three threads that start short-lived threads all the time, each of which
// appends one line "T SEQ\n" to FILE, and one thread that spins in user mode.

#include <fcntl.h>
#include <pthread.h>

#include <atomic>

#include "victim.h"

namespace {

int fd = -1;
std::atomic<bool> stop{false};
std::atomic<long> seq{0}, spins{0};

void* Short(void*) {
  char line[32];
  int len = snprintf(line, sizeof line, "T %ld\n", seq++);
  if (write(fd, line, static_cast<size_t>(len)) != len)
    victim::Die("write");
  return nullptr;
}

void* Starter(void*) {
  while (!stop) {
    pthread_t thread;
    int err = pthread_create(&thread, nullptr, Short, nullptr);
    if (err != 0) {
      errno = err;
      victim::Die("pthread_create");
    }
    pthread_join(thread, nullptr);
    victim::NapUs(300);
  }
  return nullptr;
}

void* Spinner(void*) {
  while (!stop)
    ++spins;
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || (fd = open(argv[1], O_WRONLY | O_APPEND)) < 0)
    victim::Die("open");
  pthread_t threads[4];
  for (int i = 0; i < 4; ++i)
    pthread_create(&threads[i], nullptr, i < 3 ? Starter : Spinner, nullptr);
  victim::Ready();
  char c;
  while (read(0, &c, 1) > 0) {
  }
  stop = true;
  for (pthread_t thread : threads)
    pthread_join(thread, nullptr);
  victim::Ok("%ld", seq.load());
}
