#pragma once

// What the victims have in common. A victim prints "ready" once it holds what
// it is to hold, works until its standard input is closed, checks itself, and
// prints one line that begins with "ok" or says what is wrong. It exits with 0
// only if all was well. If the kernel cannot do what it is about, it prints
// "cannot ..." in place of "ready". With VICTIM_PREPARE in the environment it
// ends when it has made its files. Most take the directory to work in and the
// name of a case.

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <string>

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
  if (getenv("VICTIM_PREPARE") != nullptr)
    _exit(0);
}

// What is missing: found out, not assumed.
[[noreturn]] inline void Cannot(const char* what) {
  printf("cannot %s (%s)\n", what, strerror(errno));
  fflush(stdout);
  _exit(0);
}

inline void Expect(bool is_so, const char* what) {
  if (!is_so)
    Die("not so: %s", what);
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

// The byte at an offset of every file that MakeFile has made.
inline char ByteAt(off_t offset) {
  return static_cast<char>('a' + (offset ^ offset >> 8) % 26);
}

// The path of a file of size bytes, made unless it is there.
inline std::string MakeFile(const std::string& path, off_t size,
                            mode_t mode = 0644) {
  struct stat st;
  if (stat(path.c_str(), &st) == 0 && st.st_size == size)
    return path;
  int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  std::string bytes;
  for (off_t at = 0; at < size; ++at)
    bytes += ByteAt(at);
  if (fd < 0 || write(fd, bytes.data(), bytes.size()) != size ||
      fchmod(fd, mode) != 0)
    Die("make %s", path.c_str());
  close(fd);
  return path;
}

inline int Open(const std::string& path, int flags, mode_t mode = 0644) {
  int fd = open(path.c_str(), flags, mode);
  if (fd < 0)
    Die("open %s", path.c_str());
  return fd;
}

// The bytes that MakeFile wrote are there.
inline void ExpectBytes(int fd, off_t from, size_t length) {
  std::string bytes(length, 0);
  if (pread(fd, bytes.data(), length, from) != static_cast<ssize_t>(length))
    Die("read %zu bytes at %ld", length, static_cast<long>(from));
  for (size_t i = 0; i < length; ++i)
    if (bytes[i] != ByteAt(from + static_cast<off_t>(i)))
      Die("byte %zu at %ld is %d", i, static_cast<long>(from), bytes[i]);
}

inline void NapUs(long us) {
  struct timespec nap = {us / 1'000'000, us % 1'000'000 * 1000};
  if (nanosleep(&nap, nullptr) != 0)
    Die("nanosleep");
}

// Does check again and again until standard input is closed, and then once.
template <class Check>
long UntilTold(Check check, long pause_us = 20'000) {
  long times = 0;
  while (!Told()) {
    check();
    ++times;
    NapUs(pause_us);
  }
  check();
  return times;
}

}  // namespace victim
