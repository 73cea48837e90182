#pragma once

// What the victims have in common. A victim prints "ready" once it holds what
// it is to hold, works until its standard input is closed, checks itself, and
// prints one line that begins with "ok" or says what is wrong. It exits with 0
// only if all was well.

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

namespace victim {

inline int64_t NowNs() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

[[noreturn]] inline void Die(const char* format, ...)
    __attribute__((format(printf, 1, 2)));
inline void Die(const char* format, ...) {
  int err = errno;
  va_list args;
  va_start(args, format);
  vprintf(format, args);
  va_end(args);
  printf(" (%s)\n", strerror(err));
  fflush(stdout);
  _exit(1);
}

inline void Ready() {
  printf("ready\n");
  fflush(stdout);
}

[[noreturn]] inline void Ok(const char* format, ...)
    __attribute__((format(printf, 1, 2)));
inline void Ok(const char* format, ...) {
  printf("ok ");
  va_list args;
  va_start(args, format);
  vprintf(format, args);
  va_end(args);
  printf("\n");
  fflush(stdout);
  _exit(0);
}

// Whether standard input has been closed by the test.
inline bool Told() {
  struct pollfd in = {0, POLLIN, 0};
  return poll(&in, 1, 0) > 0;
}

inline void NapUs(long us) {
  struct timespec nap = {us / 1'000'000, us % 1'000'000 * 1000};
  if (nanosleep(&nap, nullptr) != 0)
    Die("nanosleep");
}

}  // namespace victim
