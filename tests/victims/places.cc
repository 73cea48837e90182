// Working directories and roots in the tree. Usage: places DIR CASE

#include <sched.h>
#include <sys/wait.h>

#include "victim.h"

namespace {

std::string Cwd() {
  char path[4096];
  if (getcwd(path, sizeof path) == nullptr)
    victim::Die("getcwd");
  return path;
}

void Go(const std::string& to) {
  if (mkdir(to.c_str(), 0755) != 0 && errno != EEXIST)
    victim::Die("mkdir");
  if (chdir(to.c_str()) != 0)
    victim::Die("chdir");
}

// The same string all the time, and paths that begin there.
[[noreturn]] void Stay(const std::string& path) {
  victim::Ready();
  victim::Ok("%ld", victim::UntilTold([&] {
    victim::Expect(Cwd() == path, "the working directory's path");
    int fd = victim::Open("here", O_RDONLY | O_CLOEXEC);
    victim::ExpectBytes(fd, 0, 100);
    close(fd);
  }));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3)
    victim::Die("usage");
  const std::string dir = argv[1], what = argv[2];
  if (what == "cwd") {
    Go(dir + "/in");
    victim::MakeFile("here", 100);
    Stay(dir + "/in");
  } else if (what == "renamed") {
    Go(dir + "/before");
    victim::MakeFile("here", 100);
    if (rename((dir + "/before").c_str(), (dir + "/after").c_str()) != 0 &&
        errno != ENOTEMPTY)
      victim::Die("rename");
    Go(dir + "/after");
    victim::MakeFile("here", 100);
    Stay(dir + "/after");
  } else if (what == "odd_name") {
    std::string path = dir;
    for (const std::string& name :
         {std::string("a\nb"), std::string("c (deleted)"),
          std::string(255, 'n'), std::string("\\040 \"'")})
      Go(path += "/" + name);
    victim::MakeFile("here", 100);
    Stay(path);
  } else if (what == "deleted") {
    Go(dir + "/gone");
    if (rmdir((dir + "/gone").c_str()) != 0)
      victim::Die("rmdir");
    victim::Ready();
    victim::Ok("%ld", victim::UntilTold([] {
      char path[4096];
      victim::Expect(getcwd(path, sizeof path) == nullptr && errno == ENOENT,
                     "it has no path");
    }));
  } else if (what == "closed") {
    // It is in a directory that it may not search.
    Go(dir + "/closed");
    victim::MakeFile("here", 100);
    if (chmod(".", 0700) != 0 || setgid(65534) != 0 || setuid(65534) != 0)
      victim::Die("drop privileges");
    victim::Ready();
    victim::Ok("%ld", victim::UntilTold([&] {
      victim::Expect(Cwd() == dir + "/closed", "the working directory's path");
      victim::Expect(access("here", R_OK) != 0 && errno == EACCES,
                     "what is in it may not be read");
    }));
  } else if (what == "long") {
    // Longer than the kernel prints.
    if (chdir(dir.c_str()) != 0)
      victim::Die("chdir");
    for (int n = 0; n < 20; ++n)
      Go(std::string(250, static_cast<char>('a' + n)));
    victim::MakeFile("here", 100);
    victim::Ready();
    victim::Ok("%ld", victim::UntilTold([] {
      int fd = victim::Open("here", O_RDONLY | O_CLOEXEC);
      victim::ExpectBytes(fd, 0, 100);
      close(fd);
    }));
  } else if (what == "shared") {
    // One cwd of two processes (CLONE_FS): who changes it changes it for both.
    Go(dir + "/one");
    Go(dir + "/two");
    static char stack[65536];
    static const std::string at[2] = {dir + "/one", dir + "/two"};
    int child = clone(
        [](void*) {
          for (long n = 0;; ++n) {
            Go(at[n % 2]);
            victim::NapUs(20'000);
          }
          return 0;
        },
        stack + sizeof stack, CLONE_FS | SIGCHLD, nullptr);
    if (child < 0)
      victim::Die("clone");
    victim::Ready();
    long seen[2] = {0, 0};
    victim::UntilTold([&] {
      std::string now = Cwd();
      victim::Expect(now == at[0] || now == at[1], "one of the two");
      ++seen[now == at[1]];
    });
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    victim::Expect(seen[0] > 0 && seen[1] > 0, "it is shared");
    victim::Ok("%ld", seen[0]);
  } else if (what == "root") {
    Go(dir + "/jail");
    victim::MakeFile("here", 100);
    if (chroot(".") != 0 || chdir("/") != 0)
      victim::Cannot("chroot");
    Stay("/");
  }
  victim::Die("no such case");
}
