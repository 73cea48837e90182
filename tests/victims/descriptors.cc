// Descriptors of files and directories. Usage: descriptors DIR CASE

#include <dirent.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <functional>
#include <map>
#include <set>
#include <vector>

#include "victim.h"

namespace {

using victim::Expect;
using victim::MakeFile;
using victim::Open;
using victim::Ready;
using victim::UntilTold;

std::string dir;

std::string File(const char* name = "file") {
  return MakeFile(dir + "/" + name, 20'000);
}

[[noreturn]] void Run(const std::function<void()>& check, long pause_us = 20'000) {
  Ready();
  victim::Ok("%ld", UntilTold(check, pause_us));
}

bool Same(int a, int b) {
  return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, a, b) == 0;
}

void Offset() {
  int fd = Open(File(), O_RDWR);
  off_t at = lseek(fd, 3000, SEEK_SET);
  Run([=]() mutable {
    Expect(lseek(fd, 0, SEEK_CUR) == at, "the offset");
    char c;
    Expect(read(fd, &c, 1) == 1 && c == victim::ByteAt(at), "the byte there");
    if (++at == 19'000)
      at = lseek(fd, 3000, SEEK_SET);
  });
}

// Each flag is there, and no other has come.
void Flag(int flag, bool by_fcntl = false) {
  int fd = open(File().c_str(), O_RDWR | (by_fcntl ? 0 : flag));
  if (fd < 0)
    victim::Cannot("open with this flag");
  if (by_fcntl && fcntl(fd, F_SETFL, flag) != 0)
    victim::Cannot("set this flag");
  int want = fcntl(fd, F_GETFL);
  Expect((want & flag) == flag, "the flag is set at all");
  Run([=] {
    int have = fcntl(fd, F_GETFL);
    if (have != want)
      victim::Die("flags %o, not %o", have, want);
    if (flag != O_DIRECT)
      victim::ExpectBytes(fd, 100, 50);
  });
}

void Direct() {
  int fd = open(File().c_str(), O_RDWR | O_DIRECT);
  if (fd < 0)
    victim::Cannot("open with O_DIRECT");
  void* block = nullptr;
  Expect(posix_memalign(&block, 4096, 4096) == 0, "memory");
  long n = 0;
  Run([=]() mutable {
    Expect((fcntl(fd, F_GETFL) & O_DIRECT) != 0, "O_DIRECT");
    memset(block, static_cast<int>(++n), 4096);
    Expect(pwrite(fd, block, 4096, 8192) == 4096, "write");
    memset(block, 0, 4096);
    Expect(pread(fd, block, 4096, 8192) == 4096, "read");
    for (int i = 0; i < 4096; ++i)
      Expect(static_cast<unsigned char*>(block)[i] == (n & 0xff), "the bytes");
  });
}

void Owner() {
  int fd = Open(File(), O_RDONLY);
  f_owner_ex owner = {F_OWNER_PID, getpid()};
  Expect(fcntl(fd, F_SETOWN_EX, &owner) == 0, "F_SETOWN_EX");
  Expect(fcntl(fd, F_SETSIG, SIGRTMIN + 3) == 0, "F_SETSIG");
  Run([=] {
    f_owner_ex now = {};
    Expect(fcntl(fd, F_GETOWN_EX, &now) == 0, "F_GETOWN_EX");
    Expect(now.type == F_OWNER_PID && now.pid == getpid(), "the owner");
    Expect(fcntl(fd, F_GETSIG) == SIGRTMIN + 3, "its signal");
  });
}

void CloseOnExec() {
  int stays = Open(File("stays"), O_RDONLY);
  int goes = Open(File("goes"), O_RDONLY | O_CLOEXEC);
  int both = dup(goes);
  Run([=] {
    Expect(fcntl(stays, F_GETFD) == 0, "not close-on-exec");
    Expect(fcntl(goes, F_GETFD) == FD_CLOEXEC, "close-on-exec");
    Expect(fcntl(both, F_GETFD) == 0, "not of the other number");
    pid_t child = fork();
    if (child == 0) {
      std::string test = "test -e /proc/self/fd/" + std::to_string(stays) +
                         " -a ! -e /proc/self/fd/" + std::to_string(goes) +
                         " -a -e /proc/self/fd/" + std::to_string(both);
      execl("/bin/sh", "sh", "-c", test.c_str(), nullptr);
      _exit(9);
    }
    int status;
    Expect(waitpid(child, &status, 0) == child && status == 0,
           "the program that was executed has two of the three");
  }, 20'000);
}

void PathOnly(bool directory) {
  std::string path = directory ? dir : File();
  File();
  int fd = Open(path, O_PATH | O_CLOEXEC | (directory ? O_DIRECTORY : 0));
  Run([=] {
    char c;
    Expect(read(fd, &c, 1) == -1 && errno == EBADF, "it cannot be read");
    Expect((fcntl(fd, F_GETFL) & O_PATH) != 0, "O_PATH");
    int again = directory
                    ? openat(fd, "file", O_RDONLY)
                    : open(("/proc/self/fd/" + std::to_string(fd)).c_str(),
                           O_RDONLY);
    Expect(again >= 0, "it leads somewhere");
    victim::ExpectBytes(again, 0, 100);
    close(again);
  });
}

void SymbolicLink() {
  std::string path = dir + "/link";
  (void)!symlink("nowhere", path.c_str());
  int fd = Open(path, O_PATH | O_NOFOLLOW);
  Run([=] {
    char text[20];
    Expect(readlinkat(fd, "", text, sizeof text) == 7, "its text");
  });
}

void Device() {
  std::string path = dir + "/null";
  if (mknod(path.c_str(), S_IFCHR | 0600, 1 << 8 | 3) != 0 && errno != EEXIST)
    victim::Cannot("make a device node");
  int fd = open(path.c_str(), O_RDWR);
  if (fd < 0)
    victim::Cannot("open a device node");
  Run([=] { Expect(write(fd, "x", 1) == 1, "write"); });
}

void Dup() {
  int a = Open(File(), O_RDWR), b = dup(a), c = Open(File(), O_RDWR);
  Expect(dup2(b, 200) == 200, "dup2");
  long n = 0;
  Run([=]() mutable {
    Expect(Same(a, b) && Same(a, 200), "one description");
    Expect(!Same(a, c), "another description");
    ++n;
    Expect(lseek(a, n, SEEK_SET) == n, "seek");
    Expect(lseek(b, 0, SEEK_CUR) == n && lseek(200, 0, SEEK_CUR) == n,
           "one offset");
    Expect(lseek(c, 0, SEEK_CUR) == 0, "its own offset");
  });
}

void SendFd(int to, int fd) {
  char byte = 'x', control[CMSG_SPACE(sizeof fd)] = {};
  iovec one = {&byte, 1};
  msghdr message = {};
  message.msg_iov = &one;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  Expect(sendmsg(to, &message, 0) == 1, "sendmsg");
}

int ReceiveFd(int from) {
  char byte, control[CMSG_SPACE(sizeof(int))] = {};
  iovec one = {&byte, 1};
  msghdr message = {};
  message.msg_iov = &one;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  int fd = -1;
  if (recvmsg(from, &message, 0) != 1 || CMSG_FIRSTHDR(&message) == nullptr)
    victim::Die("recvmsg");
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return fd;
}

// Three processes got one description by a socket; each moves it one on.
void Passed() {
  int ends[2];
  Expect(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
  pid_t children[2];
  int turn[3][2];
  for (auto& pipe_ends : turn)
    Expect(pipe(pipe_ends) == 0, "pipe");
  for (int n = 0; n < 2; ++n) {
    children[n] = fork();
    if (children[n] == 0) {
      int fd = ReceiveFd(ends[1]);
      for (char c; read(turn[n][0], &c, 1) == 1;) {
        char byte;
        if (c == 'e')
          _exit(0);
        if (read(fd, &byte, 1) != 1 || write(turn[2][1], &byte, 1) != 1)
          _exit(1);
      }
      _exit(2);
    }
  }
  int fd = Open(File(), O_RDONLY);
  SendFd(ends[0], fd);
  SendFd(ends[0], fd);
  off_t at = 0;
  Ready();
  long n = UntilTold([&] {
    for (int k = 0; k < 2; ++k) {
      char byte;
      Expect(write(turn[k][1], "x", 1) == 1, "ask");
      Expect(read(turn[2][0], &byte, 1) == 1, "answer");
      Expect(byte == victim::ByteAt(at), "the byte at the shared offset");
      ++at;
    }
    Expect(lseek(fd, 0, SEEK_CUR) == at, "the shared offset");
    if (at > 19'000)
      at = lseek(fd, 0, SEEK_SET);
  });
  for (int k = 0; k < 2; ++k) {
    int status;
    Expect(write(turn[k][1], "e", 1) == 1, "end");
    Expect(waitpid(children[k], &status, 0) == children[k] && status == 0,
           "the child");
  }
  victim::Ok("%ld", n);
}

// Nobody has it but a socket's queue; what is written to it later is in the
// file that others see.
void InFlight() {
  int ends[2];
  Expect(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
  std::string path = File();
  int fd = Open(path, O_RDWR);
  SendFd(ends[0], fd);
  close(fd);
  Ready();
  UntilTold([] {});
  fd = ReceiveFd(ends[1]);
  Expect(pwrite(fd, "in flight", 9, 500) == 9, "write");
  int other = Open(path, O_RDONLY);
  char text[9];
  Expect(pread(other, text, 9, 500) == 9 && memcmp(text, "in flight", 9) == 0,
         "others see what was written");
  victim::Ok("1");
}

// Two processes with one table (CLONE_FILES).
void SharedTable() {
  static int number = Open(File(), O_RDWR);
  static char stack[65536];
  int child = clone(
      [](void*) {
        for (;;) {
          if (lseek(number, 0, SEEK_CUR) < 0 || fsync(number) != 0)
            _exit(1);
          victim::NapUs(5000);
        }
        return 0;
      },
      stack + sizeof stack, CLONE_FILES | SIGCHLD, nullptr);
  Expect(child > 0, "clone");
  Ready();
  long n = UntilTold([&] {
    Expect(waitpid(child, nullptr, WNOHANG) == 0, "the other lives");
    victim::ExpectBytes(number, 0, 50);
  });
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  victim::Ok("%ld", n);
}

void Drop() {
  if (setgid(65534) != 0 || setuid(65534) != 0)
    victim::Die("drop privileges");
}

// It could not open its file again.
void Dropped(mode_t mode) {
  std::string path = MakeFile(dir + "/file", 1000, 0600);
  int fd = Open(path, O_RDWR);
  Expect(chmod(path.c_str(), mode) == 0, "chmod");
  Drop();
  long n = 0;
  Run([=]() mutable {
    Expect(open(path.c_str(), O_RDWR) == -1 && errno == EACCES,
           "opened anew it is refused");
    Expect(pwrite(fd, &n, sizeof n, 992) == sizeof n, "write");
    long got;
    Expect(pread(fd, &got, sizeof got, 992) == sizeof got && got == n, "read");
    ++n;
  });
}

// Its own file, of a mode that keeps even its owner out.
void ModeForbids() {
  std::string path = MakeFile(dir + "/file", 1000, 0600);
  Expect(chown(path.c_str(), 65534, 65534) == 0, "chown");
  int fd = Open(path, O_RDWR);
  Expect(chmod(path.c_str(), 0) == 0, "chmod");
  Drop();
  Run([=] {
    Expect(open(path.c_str(), O_RDONLY) == -1 && errno == EACCES,
           "opened anew it is refused");
    victim::ExpectBytes(fd, 0, 100);
    Expect(pwrite(fd, "x", 1, 999) == 1, "write");
  });
}

void Many(int count) {
  rlimit limit = {static_cast<rlim_t>(count + 20),
                  static_cast<rlim_t>(count + 20)};
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
    victim::Cannot("have so many descriptors");
  std::vector<int> fds;
  for (int n = 0; n < count; ++n) {
    // Of a few files, each description with an offset of its own.
    std::string name = "file" + std::to_string(n % 50);
    fds.push_back(Open(File(name.c_str()), O_RDWR));
    Expect(lseek(fds.back(), n, SEEK_SET) == n, "seek");
  }
  size_t next = 0;
  Run([=]() mutable {
    for (int k = 0; k < 20; ++k) {
      next = (next + 1) % fds.size();
      Expect(lseek(fds[next], 0, SEEK_CUR) == static_cast<off_t>(next),
             "each has its offset");
      victim::ExpectBytes(fds[next], static_cast<off_t>(next), 10);
    }
  });
}

// Not one number is free.
void FullTable() {
  int first = Open(File(), O_RDWR), last = first;
  rlimit limit = {40, 40};
  Expect(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
  for (int fd; (fd = open(File("other").c_str(), O_RDONLY)) >= 0;)
    last = fd;
  Expect(errno == EMFILE && last == 39, "it is full");
  Run([=] {
    Expect(dup(first) == -1 && errno == EMFILE, "it is still full");
    for (int fd = first; fd <= last; ++fd)
      victim::ExpectBytes(fd, 0, 10);
  });
}

void CreateFlags() {
  std::string path = dir + "/created";
  unlink(path.c_str());
  int fd = Open(path, O_RDWR | O_CREAT | O_EXCL | O_TRUNC | O_NOCTTY);
  Expect(write(fd, "kept", 4) == 4, "write");
  Run([=] {
    char text[5];
    Expect(pread(fd, text, 5, 0) == 4 && memcmp(text, "kept", 4) == 0,
           "it was not cut");
  });
}

// A directory's descriptor, before the first entry.
void Directory() {
  std::set<std::string> want = {".", ".."};
  for (int n = 0; n < 300; ++n) {
    std::string name = "entry" + std::to_string(n);
    MakeFile(dir + "/" + name, 0);
    want.insert(name);
  }
  int fd = Open(dir, O_RDONLY | O_DIRECTORY);
  Ready();
  // Not meanwhile: half-way it could not be moved.
  UntilTold([] {});
  DIR* listing = fdopendir(fd);
  std::multiset<std::string> got;
  while (dirent* entry = readdir(listing))
    got.insert(entry->d_name);
  Expect(got == std::multiset<std::string>(want.begin(), want.end()),
         "each entry once");
  victim::Ok("1");
}

// The rest of it, without one twice and without one missing.
void HalfRead(bool to_its_end) {
  std::map<std::string, int> got;
  for (int n = 0; n < 400; ++n)
    MakeFile(dir + "/entry" + std::to_string(n), 0);
  int fd = Open(dir, O_RDONLY | O_DIRECTORY);
  auto some = [&] {
    char block[1024];
    long length = syscall(SYS_getdents64, fd, block, sizeof block);
    Expect(length >= 0, "getdents");
    for (long at = 0; at < length;) {
      unsigned short size;
      memcpy(&size, block + at + 16, sizeof size);
      ++got[block + at + 19];
      at += size;
    }
    return length > 0;
  };
  some();
  while (to_its_end && some()) {
  }
  Ready();
  UntilTold([] {});
  while (some()) {
  }
  for (int n = 0; n < 400; ++n)
    Expect(got["entry" + std::to_string(n)] == 1, "each entry once");
  victim::Ok("1");
}

// By one of two names, which goes.
void OneNameGone() {
  std::string path = File(), other = dir + "/other";
  (void)!link(path.c_str(), other.c_str());
  int fd = Open(path, O_RDWR), by_other = Open(other, O_RDWR);
  if (getenv("VICTIM_PREPARE") == nullptr)
    Expect(unlink(path.c_str()) == 0, "unlink");
  char n = 0;
  Run([=]() mutable {
    char got;
    ++n;
    Expect(pwrite(fd, &n, 1, 7) == 1, "write");
    Expect(pread(by_other, &got, 1, 7) == 1 && got == n, "it is one file");
    struct stat a, b;
    Expect(fstat(fd, &a) == 0 && fstat(by_other, &b) == 0 &&
               a.st_ino == b.st_ino && a.st_nlink == 1,
           "one inode with one name");
  });
}

// Which no name leads to any more.
void Deleted(const std::string& how) {
  std::string path = File("gone");
  int fd;
  if (how == "tmpfile") {
    fd = open(dir.c_str(), O_RDWR | O_TMPFILE, 0600);
    if (fd < 0)
      victim::Cannot("open with O_TMPFILE");
    Expect(pwrite(fd, "kept", 4, 3) == 4, "write");
  } else {
    fd = Open(path, O_RDWR);
    Expect(pwrite(fd, "kept", 4, 3) == 4, "write");
    if (how == "deleted")
      Expect(unlink(path.c_str()) == 0, "unlink");
    else
      Expect(rename(File("new").c_str(), path.c_str()) == 0, "rename");
  }
  // Shared with a child.
  pid_t child = fork();
  if (child == 0)
    for (;;)
      pause();
  Ready();
  long n = UntilTold([&] {
    char text[4];
    Expect(pread(fd, text, 4, 3) == 4 && memcmp(text, "kept", 4) == 0,
           "its bytes");
    struct stat st;
    Expect(fstat(fd, &st) == 0 && st.st_nlink == 0, "it has no name");
  });
  if (how == "tmpfile") {
    std::string link = "/proc/self/fd/" + std::to_string(fd);
    unlink((dir + "/named").c_str());
    Expect(linkat(AT_FDCWD, link.c_str(), AT_FDCWD, (dir + "/named").c_str(),
                  AT_SYMLINK_FOLLOW) == 0,
           "it can be given a name");
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  victim::Ok("%ld", n);
}

// What a database does to one file.
void Durable() {
  int fd = Open(File("data"), O_RDWR);
  long n = 0;
  Run([=]() mutable {
    ++n;
    Expect(pwrite(fd, &n, sizeof n, 4000) == sizeof n, "write");
    Expect(fdatasync(fd) == 0, "fdatasync");
    Expect(ftruncate(fd, 20'000 + n % 100) == 0, "ftruncate");
    struct stat st;
    Expect(fstat(fd, &st) == 0 && st.st_size == 20'000 + n % 100, "its size");
    long got;
    Expect(pread(fd, &got, sizeof got, 4000) == sizeof got && got == n, "read");
    victim::ExpectBytes(fd, 0, 100);
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3)
    victim::Die("usage");
  dir = argv[1];
  const std::map<std::string, std::function<void()>> cases = {
      {"offset", Offset},
      {"append", [] { Flag(O_APPEND); }},
      {"sync", [] { Flag(O_SYNC); }},
      {"dsync", [] { Flag(O_DSYNC); }},
      {"direct", Direct},
      {"nonblock", [] { Flag(O_NONBLOCK); }},
      {"noatime", [] { Flag(O_NOATIME); }},
      {"async", [] { Flag(O_ASYNC); }},
      {"append_later", [] { Flag(O_APPEND, true); }},
      {"owner", Owner},
      {"close_on_exec", CloseOnExec},
      {"path_only", [] { PathOnly(false); }},
      {"path_only_directory", [] { PathOnly(true); }},
      {"symbolic_link", SymbolicLink},
      {"device", Device},
      {"dup", Dup},
      {"passed", Passed},
      {"in_flight", InFlight},
      {"shared_table", SharedTable},
      {"dropped", [] { Dropped(0600); }},
      {"dropped_mode_0", [] { Dropped(0); }},
      {"mode_forbids", ModeForbids},
      {"1", [] { Many(1); }},
      {"253", [] { Many(253); }},
      {"254", [] { Many(254); }},
      {"5000", [] { Many(5000); }},
      {"full_table", FullTable},
      {"create_flags", CreateFlags},
      {"directory", Directory},
      {"half_read", [] { HalfRead(false); }},
      {"read_to_its_end", [] { HalfRead(true); }},
      {"one_name_gone", OneNameGone},
      {"deleted", [] { Deleted("deleted"); }},
      {"replaced", [] { Deleted("replaced"); }},
      {"tmpfile", [] { Deleted("tmpfile"); }},
      {"durable", Durable},
  };
  auto found = cases.find(argv[2]);
  if (found == cases.end())
    victim::Die("no such case");
  found->second();
}
