// Files of the tree in memory, and programs that run from it.
// Usage: mappings DIR CASE

#include <sys/mman.h>
#include <sys/wait.h>

#include "victim.h"

namespace {

using victim::Expect;
using victim::Open;

constexpr size_t kSize = 3 * 4096;

char* Map(int fd, int protection, int flags) {
  void* at = mmap(nullptr, kSize, protection, flags, fd, 0);
  if (at == MAP_FAILED)
    victim::Cannot("map this");
  return static_cast<char*>(at);
}

bool IsWhole(const char* at, size_t from) {
  for (size_t i = from; i < kSize; ++i)
    if (at[i] != victim::ByteAt(static_cast<off_t>(i)))
      return false;
  return true;
}

// Two processes count in one file, without system calls in between.
[[noreturn]] void Shared(const std::string& path) {
  int fd = Open(path, O_RDWR);
  auto* count = reinterpret_cast<long*>(
      Map(fd, PROT_READ | PROT_WRITE, MAP_SHARED) + 4096);
  close(fd);
  __atomic_store_n(count, 0, __ATOMIC_SEQ_CST);
  int ended[2];
  Expect(pipe(ended) == 0, "pipe");
  pid_t child = fork();
  if (child == 0) {
    auto* flag = count + 1;
    long mine = 0;
    __atomic_store_n(flag, 0, __ATOMIC_SEQ_CST);
    for (; __atomic_load_n(flag, __ATOMIC_SEQ_CST) == 0; ++mine) {
      __atomic_fetch_add(count, 1, __ATOMIC_SEQ_CST);
      for (int spin = 0; spin < 1'000'000; ++spin)
        asm volatile("pause");
    }
    _exit(write(ended[1], &mine, sizeof mine) == sizeof mine ? 0 : 1);
  }
  long mine = 0, other = 0;
  victim::Ready();
  victim::UntilTold([&] {
    __atomic_fetch_add(count, 1, __ATOMIC_SEQ_CST);
    ++mine;
  });
  __atomic_store_n(count + 1, 1, __ATOMIC_SEQ_CST);
  Expect(read(ended[0], &other, sizeof other) == sizeof other, "the child");
  waitpid(child, nullptr, 0);
  if (*count != mine + other)
    victim::Die("%ld counted of %ld and %ld", *count, mine, other);
  victim::Ok("%ld", *count);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3)
    victim::Die("usage");
  const std::string dir = argv[1], what = argv[2];
  const std::string path = victim::MakeFile(dir + "/file", kSize, 0755);
  if (what == "shared")
    Shared(path);
  if (what == "exe") {
    // Runs again from a copy of itself in the tree.
    const std::string copy = dir + "/program";
    if (argc > 3) {
      victim::Ready();
      victim::Ok("%ld", victim::UntilTold([&] {
        char exe[4096];
        ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);
        Expect(length > 0, "it has a program");
        exe[length] = 0;
        Expect(copy == exe, "its program's path");
      }));
    }
    if (access(copy.c_str(), X_OK) != 0) {
      std::string command = "cp /proc/" + std::to_string(getpid()) + "/exe '" +
                            copy + "'";
      Expect(system(command.c_str()) == 0, "copy itself");
    }
    execl(copy.c_str(), copy.c_str(), dir.c_str(), "exe", "again", nullptr);
    victim::Cannot("execute what is in the tree");
  }
  const bool is_private = what != "shared_read_only";
  int fd = Open(path, what == "private_written" ? O_RDWR : O_RDONLY);
  char* at = Map(fd,
                 PROT_READ | (what == "private_dirty" ? PROT_WRITE : 0) |
                     (what == "text" ? PROT_EXEC : 0),
                 is_private ? MAP_PRIVATE : MAP_SHARED);
  size_t from = 0;
  if (what == "private_dirty") {
    memset(at, 'D', 4096);
    from = 4096;
  } else if (what == "locked" && mlock(at, kSize) != 0) {
    victim::Cannot("mlock");
  }
  if (what != "private_written")
    close(fd);
  victim::Ready();
  victim::Ok("%ld", victim::UntilTold([&] {
    Expect(IsWhole(at, from), "the mapped bytes");
    for (size_t i = 0; i < from; ++i)
      Expect(at[i] == 'D', "its own bytes");
  }));
}
