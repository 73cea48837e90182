// Times one system call in a loop: bench/overlay's small jobs.
//
//     calls JOB DIR COUNT
//
// Prints nanoseconds a call. Jobs: stat, negative (stat of names that are not
// there), open (open, read 4 KiB, close), readdir (per entry), create (with
// close), unlink (of what create made), append (120 bytes each), fsync (4 KiB
// and fsync). stat, open and readdir want files f0 to fN in DIR.

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace {

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "calls: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

int Open(const std::string& path, int flags) {
  int fd = open(path.c_str(), flags, 0644);
  if (fd < 0)
    Die("open " + path);
  return fd;
}

std::vector<std::string> Names(const char* stem, long count) {
  std::vector<std::string> names;
  for (long i = 0; i < count; i++)
    names.push_back(stem + std::to_string(i));
  return names;
}

long FilesHere() {
  long n = 0;
  while (access(("f" + std::to_string(n)).c_str(), F_OK) == 0)
    n++;
  return n;
}

double NsEach(long count, const std::function<void(long)>& call) {
  const auto begin = std::chrono::steady_clock::now();
  for (long i = 0; i < count; i++)
    call(i);
  const std::chrono::duration<double, std::nano> took =
      std::chrono::steady_clock::now() - begin;
  return took.count() / static_cast<double>(count);
}

double Stat(long count) {
  const auto names = Names("f", FilesHere());
  struct stat st;
  return NsEach(count, [&](long i) {
    const auto& name = names[static_cast<size_t>(i) % names.size()];
    if (stat(name.c_str(), &st) != 0)
      Die("stat " + name);
  });
}

double Negative(long count) {
  const auto names = Names("missing", 100);
  struct stat st;
  for (const std::string& name : names)
    stat(name.c_str(), &st);
  return NsEach(count, [&](long i) {
    if (stat(names[static_cast<size_t>(i) % names.size()].c_str(), &st) == 0)
      Die("a missing file is there");
  });
}

double OpenReadClose(long count) {
  const auto names = Names("f", FilesHere());
  char buf[4096];
  return NsEach(count, [&](long i) {
    const auto& name = names[static_cast<size_t>(i) % names.size()];
    int fd = Open(name, O_RDONLY);
    if (read(fd, buf, sizeof buf) < 0)
      Die("read " + name);
    close(fd);
  });
}

double ReadDir(long count) {
  long seen = 0;
  const double each = NsEach(count, [&](long) {
    DIR* dir = opendir(".");
    if (dir == nullptr)
      Die("opendir");
    while (readdir(dir) != nullptr)
      seen++;
    closedir(dir);
  });
  return each * static_cast<double>(count) / static_cast<double>(seen);
}

double Create(long count) {
  const auto names = Names("new", count);
  return NsEach(count, [&](long i) {
    close(Open(names[static_cast<size_t>(i)], O_WRONLY | O_CREAT | O_EXCL));
  });
}

double Unlink(long count) {
  const auto names = Names("new", count);
  return NsEach(count, [&](long i) {
    if (unlink(names[static_cast<size_t>(i)].c_str()) != 0)
      Die("unlink");
  });
}

double Append(long count) {
  int fd = Open("log", O_WRONLY | O_APPEND | O_CREAT);
  const std::string line(120, 'l');
  return NsEach(count, [&](long) {
    if (write(fd, line.data(), line.size()) != 120)
      Die("append");
  });
}

double FSync(long count) {
  int fd = Open("synced", O_WRONLY | O_CREAT);
  const std::string block(4096, 's');
  return NsEach(count, [&](long) {
    if (write(fd, block.data(), block.size()) != 4096 || fsync(fd) != 0)
      Die("fsync");
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, double (*)(long)> jobs = {
      {"stat", Stat},     {"negative", Negative}, {"open", OpenReadClose},
      {"readdir", ReadDir}, {"create", Create},   {"unlink", Unlink},
      {"append", Append}, {"fsync", FSync}};
  const auto job = argc == 4 ? jobs.find(argv[1]) : jobs.end();
  if (job == jobs.end()) {
    std::fprintf(stderr, "usage: calls JOB DIR COUNT\n");
    return 64;
  }
  if (chdir(argv[2]) != 0)
    Die(std::string("chdir ") + argv[2]);
  std::printf("%.1f\n", job->second(std::atol(argv[3])));
}
