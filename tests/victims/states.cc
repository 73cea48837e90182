// Processes in every state and with every setting, with a descriptor and a
// working directory in the tree. Usage: states DIR CASE

#include <linux/sched.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <atomic>
#include <functional>
#include <map>
#include <vector>

#include "victim.h"

extern char** environ;

namespace {

using victim::Expect;
using victim::Open;
using victim::UntilTold;

int file = -1;

void Check() {
  victim::ExpectBytes(file, 10, 100);
  int here = Open("held", O_RDONLY | O_CLOEXEC);
  victim::ExpectBytes(here, 0, 10);
  close(here);
}

[[noreturn]] void Run(const std::function<void()>& check = Check) {
  victim::Ready();
  victim::Ok("%ld", UntilTold(check));
}

void ExpectEnds(pid_t child, int want, const char* what) {
  int status;
  if (waitpid(child, &status, 0) != child || status != want)
    victim::Die("%s: status %x", what, status);
}

// A hundred threads, most of which never make a system call.
void Spinners() {
  static std::atomic<bool> stop{false};
  static std::atomic<long> rounds{0};
  for (int n = 0; n < 100; ++n) {
    pthread_t thread;
    auto body = [](void* number) -> void* {
      nice(15);
      while (!stop) {
        for (int k = 0; k < 10'000; ++k)
          asm volatile("pause");
        if (reinterpret_cast<long>(number) > 1)
          victim::NapUs(500'000);
        ++rounds;
      }
      return nullptr;
    };
    Expect(pthread_create(&thread, nullptr, body,
                          reinterpret_cast<void*>(static_cast<long>(n))) == 0,
           "a thread");
  }
  Run();
}

// Children that open, write and end all the time; some fork once more.
void ForkStorm() {
  std::string path = "storm";
  victim::MakeFile(path, 0);
  victim::Ready();
  long n = UntilTold([&] {
    pid_t child = fork();
    if (child == 0) {
      int fd = open(path.c_str(), O_WRONLY | O_APPEND);
      if (fd < 0 || write(fd, "x", 1) != 1)
        _exit(1);
      pid_t inner = fork();
      if (inner == 0)
        _exit(write(fd, "y", 1) == 1 && pread(file, &inner, 1, 0) == 1 ? 0 : 1);
      int status;
      _exit(waitpid(inner, &status, 0) == inner && status == 0 ? 0 : 1);
    }
    ExpectEnds(child, 0, "a child");
  }, 5000);
  victim::Ok("%ld", n);
}

void SpawnStorm() {
  victim::Ready();
  victim::Ok("%ld", UntilTold([] {
    const char* words[] = {"sh", "-c", "test -e held", nullptr};
    pid_t child;
    Expect(posix_spawn(&child, "/bin/sh", nullptr, nullptr,
                       const_cast<char**>(words), environ) == 0,
           "spawn");
    ExpectEnds(child, 0, "a program");
  }, 10'000));
}

// Children that are killed, with what they hold, at any moment.
void KillStorm() {
  victim::Ready();
  unsigned dice = 1;
  victim::Ok("%ld", UntilTold([&] {
    pid_t child = fork();
    if (child == 0) {
      if (open("held", O_RDWR) < 0)
        _exit(1);
      for (;;)
        pread(file, &dice, 1, 0);
    }
    dice = dice * 1103515245 + 12345;
    victim::NapUs(1000 + dice % 30'000);
    kill(child, SIGKILL);
    ExpectEnds(child, SIGKILL, "the killed");
  }));
}

// A parent that waits in vfork until its child executes a program.
void Vfork() {
  victim::Ready();
  victim::Ok("%ld", UntilTold([] {
    pid_t child = vfork();
    if (child == 0) {
      timespec nap = {0, 300'000'000};
      syscall(SYS_nanosleep, &nap, nullptr);
      execl("/bin/sh", "sh", "-c", "test -e held", nullptr);
      _exit(9);
    }
    ExpectEnds(child, 0, "the program");
  }));
}

// A stopped child: the parent is told nothing meanwhile, and SIGCONT works.
void StoppedChild() {
  pid_t child = fork();
  if (child == 0) {
    raise(SIGSTOP);
    Check();
    _exit(0);
  }
  int status;
  Expect(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status),
         "it stops");
  victim::Ready();
  long n = UntilTold([&] {
    Expect(waitpid(child, &status, WUNTRACED | WCONTINUED | WNOHANG) == 0,
           "nothing is told of it");
  });
  kill(child, SIGCONT);
  Expect(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status),
         "it goes on");
  ExpectEnds(child, 0, "the job");
  victim::Ok("%ld", n);
}

// Stops and continues a child all the time; each is reported once.
void StopStorm() {
  pid_t child = fork();
  if (child == 0)
    for (;;) {
      Check();
      victim::NapUs(500);
    }
  victim::Ready();
  long n = UntilTold([&] {
    int status;
    kill(child, SIGSTOP);
    Expect(waitpid(child, &status, WUNTRACED | WCONTINUED) == child &&
               WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP,
           "it stops");
    victim::NapUs(2000);
    Expect(waitpid(child, &status, WUNTRACED | WCONTINUED | WNOHANG) == 0,
           "once");
    kill(child, SIGCONT);
    Expect(waitpid(child, &status, WUNTRACED | WCONTINUED) == child &&
               WIFCONTINUED(status),
           "it goes on");
  }, 2000);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  victim::Ok("%ld", n);
}

// Only read, write and _exit. A child that is woken by a pipe.
void SeccompStrict() {
  int ask[2], answer[2];
  Expect(pipe(ask) == 0 && pipe(answer) == 0, "pipe");
  int log = Open("strict", O_RDWR | O_CREAT | O_TRUNC);
  pid_t child = fork();
  if (child == 0) {
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0)
      _exit(9);
    for (char c; syscall(SYS_read, ask[0], &c, 1) == 1 && c != 'e';) {
      if (syscall(SYS_write, log, "s", 1) != 1)
        break;
      syscall(SYS_write, answer[1], "a", 1);
    }
    syscall(SYS_exit, 0);
  }
  auto once = [&] {
    char c;
    Expect(write(ask[1], "x", 1) == 1, "ask");
    Expect(read(answer[0], &c, 1) == 1, "answer");
  };
  close(answer[1]);
  char c;
  Expect(write(ask[1], "x", 1) == 1, "ask");
  if (read(answer[0], &c, 1) != 1)
    victim::Cannot("enter strict seccomp");
  victim::Ready();
  long n = UntilTold(once) + 2;
  Expect(write(ask[1], "e", 1) == 1, "end");
  ExpectEnds(child, 0, "the confined");
  struct stat st;
  Expect(fstat(log, &st) == 0, "stat");
  if (st.st_size != n)
    victim::Die("%ld written of %ld", static_cast<long>(st.st_size), n);
  victim::Ok("%ld", n);
}

// System calls are turned into SIGSYS wherever the freeze finds it.
volatile char selector = 0;
volatile long dispatched = 0;

void UserDispatch() {
  struct sigaction action = {};
  action.sa_handler = [](int) {
    selector = 0;
    dispatched = dispatched + 1;
  };
  sigaction(SIGSYS, &action, nullptr);
  if (prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 0, 0, &selector) != 0)
    victim::Cannot("turn syscall user dispatch on");
  victim::Ready();
  long n = 0;
  while (true) {
    selector = 1;
    for (long spin = 0; spin < 50'000; ++spin)
      asm volatile("pause");
    syscall(SYS_getppid);  // this one is dispatched; the handler opens the way
    Expect(dispatched == ++n, "dispatched once each");
    Expect(selector == 0, "by its handler");
    Check();
    if (victim::Told())
      break;
    victim::NapUs(5000);
  }
  prctl(59, 0, 0, 0, 0);
  victim::Ok("%ld", n);
}

// What is set for SIGTRAP stays, and none is delivered.
void Sigtrap(const std::string& how) {
  static volatile long traps = 0;
  struct sigaction action = {}, now;
  action.sa_handler = how == "ignored" ? SIG_IGN : [](int) { traps = traps + 1; };
  Expect(sigaction(SIGTRAP, &action, nullptr) == 0, "sigaction");
  sigset_t set, mask;
  sigemptyset(&set);
  sigaddset(&set, SIGTRAP);
  if (how == "blocked")
    sigprocmask(SIG_BLOCK, &set, nullptr);
  Run([&] {
    Check();
    Expect(sigaction(SIGTRAP, nullptr, &now) == 0 &&
               now.sa_handler == action.sa_handler,
           "the handler of SIGTRAP");
    Expect(sigprocmask(SIG_BLOCK, nullptr, &mask) == 0 &&
               sigismember(&mask, SIGTRAP) == (how == "blocked"),
           "the mask");
    Expect(sigpending(&mask) == 0 && sigismember(&mask, SIGTRAP) == 0,
           "none is pending");
    Expect(traps == 0, "none came");
  });
}

// A signal that is blocked and pending all the time; it comes once.
void PendingSignal() {
  static volatile long came = 0;
  struct sigaction action = {};
  action.sa_handler = [](int) { came = came + 1; };
  sigaction(SIGUSR2, &action, nullptr);
  sigset_t set, mask;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  raise(SIGUSR2);
  victim::Ready();
  long n = UntilTold([&] {
    Check();
    Expect(sigpending(&mask) == 0 && sigismember(&mask, SIGUSR2) == 1,
           "it is pending");
    Expect(came == 0, "and has not come");
  });
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
  Expect(came == 1, "it comes once");
  victim::Ok("%ld", n);
}

// Traced by its parent, as by a debugger. Whoever traces holds nothing.
void Traced() {
  pid_t child = fork();
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0)
      _exit(1);
    for (;;) {
      Check();
      victim::NapUs(5000);
    }
  }
  close(file);
  Expect(chdir("/") == 0, "chdir");
  victim::Ready();
  long n = UntilTold([&] {
    int status;
    Expect(waitpid(child, &status, WNOHANG) == 0, "it runs on untouched");
  });
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  victim::Ok("%ld", n);
}

// A debugger that works in the tree, of a program that does not.
void Tracer() {
  pid_t child = fork();
  if (child == 0) {
    close(file);
    if (chdir("/") != 0 || ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0)
      _exit(1);
    for (;;) {
      raise(SIGUSR1);
      victim::NapUs(3000);
    }
  }
  victim::Ready();
  long n = UntilTold([&] {
    int status;
    Expect(waitpid(child, &status, 0) == child && WIFSTOPPED(status) &&
               WSTOPSIG(status) == SIGUSR1,
           "its stops and no others");
    Expect(ptrace(PTRACE_CONT, child, nullptr, nullptr) == 0, "continue");
    Check();
  });
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  victim::Ok("%ld", n);
}

// In namespaces of its own. The descriptor is from before.
void Namespaces(int flags, unsigned long propagation) {
  if (unshare(flags) != 0)
    victim::Cannot("make such namespaces");
  if (propagation != 0 &&
      mount(nullptr, "/", nullptr, MS_REC | propagation, nullptr) != 0)
    victim::Cannot("set propagation");
  if ((flags & CLONE_NEWPID) == 0)
    Run();
  pid_t child = fork();
  if (child == 0) {
    for (;;) {
      Check();
      Expect(getpid() == 1, "it is the first there");
      victim::NapUs(5000);
    }
  }
  victim::Ready();
  long n = UntilTold([&] {
    Check();
    Expect(waitpid(child, nullptr, WNOHANG) == 0, "it lives");
  });
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  victim::Ok("%ld", n);
}

// Not one page more may be mapped.
void NoMemory() {
  Check();
  std::string path = "held";
  rlimit limit = {1, 1};
  Expect(setrlimit(RLIMIT_AS, &limit) == 0, "setrlimit");
  Expect(mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
             MAP_FAILED,
         "no memory");
  victim::Ready();
  victim::Ok("%ld", UntilTold([&] {
    char bytes[50];
    Expect(pread(file, bytes, 50, 100) == 50, "read");
    for (off_t i = 0; i < 50; ++i)
      Expect(bytes[i] == victim::ByteAt(100 + i), "the bytes");
    int fd = open(path.c_str(), O_RDONLY);
    Expect(fd >= 0, "open");
    close(fd);
  }));
}

void Locked() {
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0)
    victim::Cannot("lock its memory");
  Run();
}

void NotDumpable() {
  Expect(prctl(PR_SET_DUMPABLE, 0) == 0, "prctl");
  Run([] {
    Check();
    Expect(prctl(PR_GET_DUMPABLE) == 0, "not dumpable");
  });
}

void NoExecutableMemory() {
  if (prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0) != 0)
    victim::Cannot("refuse executable memory (PR_SET_MDWE)");
  Run();
}

// Spins without a stack for most of the time.
void NoStack() {
  victim::Ready();
  long n = UntilTold([] {
    Check();
    long left = 500'000;
    asm volatile(
        "mov %%rsp, %%r12\n\t"
        "xor %%esp, %%esp\n\t"
        "1: pause\n\t"
        "sub $1, %0\n\t"
        "jnz 1b\n\t"
        "test %%rsp, %%rsp\n\t"
        "jz 2f\n\t"
        "ud2\n\t"
        "2: mov %%r12, %%rsp\n\t"
        : "+r"(left)
        :
        : "r12", "cc", "memory");
  }, 10'000);
  victim::Ok("%ld", n);
}

// Stands in a handler on a small stack of its own most of the time.
void SmallStack() {
  static char stack[16384];
  stack_t alternate = {};
  alternate.ss_sp = stack;
  alternate.ss_size = sizeof stack;
  Expect(sigaltstack(&alternate, nullptr) == 0, "sigaltstack");
  static volatile long came = 0;
  struct sigaction action = {};
  action.sa_flags = SA_ONSTACK;
  action.sa_handler = [](int) {
    for (long spin = 0; spin < 20'000; ++spin)
      asm volatile("pause");
    came = came + 1;
  };
  sigaction(SIGUSR1, &action, nullptr);
  long n = 0;
  Run([&] {
    raise(SIGUSR1);
    Expect(came == ++n, "once");
    Check();
    stack_t now;
    Expect(sigaltstack(nullptr, &now) == 0 && now.ss_sp == stack &&
               now.ss_size == sizeof stack,
           "its alternate stack");
  });
}

// Timers that tick: what is counted is what has passed.
void Timers() {
  static std::atomic<long> signals{0};
  struct sigaction action = {};
  action.sa_flags = SA_RESTART;
  action.sa_sigaction = [](int, siginfo_t* info, void*) {
    signals += 1 + info->si_overrun;
  };
  action.sa_flags |= SA_SIGINFO;
  sigaction(SIGRTMIN + 5, &action, nullptr);
  timer_t timer;
  sigevent event = {};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 5;
  Expect(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer");
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  itimerspec every = {{0, 20'000'000}, {0, 20'000'000}};
  int64_t begun = victim::NowNs();
  Expect(timer_settime(timer, 0, &every, nullptr) == 0, "arm");
  Expect(timerfd_settime(fd, 0, &every, nullptr) == 0, "arm");
  long expired = 0;
  victim::Ready();
  long n = 0;
  do {
    uint64_t more;
    if (read(fd, &more, sizeof more) == sizeof more)
      expired += static_cast<long>(more);
    Check();
    ++n;
    timespec nap = {0, 5'000'000};
    nanosleep(&nap, nullptr);
  } while (!victim::Told());
  long passed = (victim::NowNs() - begun) / 20'000'000;
  uint64_t more;
  if (read(fd, &more, sizeof more) == sizeof more)
    expired += static_cast<long>(more);
  if (expired < passed - 2 || expired > passed + 2)
    victim::Die("the descriptor counted %ld of %ld", expired, passed);
  // A signal that is pending takes the overruns of its time with it.
  long slack = 3 + passed / 50;
  if (signals < passed - slack || signals > passed + slack)
    victim::Die("%ld signals of %ld", signals.load(), passed);
  victim::Ok("%ld", n);
}

// A program of 32 bits: "pause() for ever", in 100 bytes, if the kernel runs it.
void ThirtyTwoBits() {
  static const unsigned char code[] = {
      0xb8, 29, 0, 0, 0,  // mov eax, pause
      0xcd, 0x80,         // int 0x80
      0xeb, 0xf7};        // again
  unsigned char elf[84 + sizeof code] = {0x7f, 'E', 'L', 'F', 1, 1, 1};
  auto half = [&](int at, unsigned value) {
    elf[at] = static_cast<unsigned char>(value);
    elf[at + 1] = static_cast<unsigned char>(value >> 8);
  };
  auto word = [&](int at, unsigned value) {
    half(at, value);
    half(at + 2, value >> 16);
  };
  half(16, 2), half(18, 3), word(20, 1);
  word(24, 0x8048054), word(28, 52);
  half(40, 52), half(42, 32), half(44, 1);
  word(52, 1), word(56, 0), word(60, 0x8048000), word(64, 0x8048000);
  word(68, sizeof elf), word(72, sizeof elf), word(76, 5), word(80, 4096);
  memcpy(elf + 84, code, sizeof code);
  int program = memfd_create("program", MFD_CLOEXEC);
  Expect(write(program, elf, sizeof elf) == sizeof elf, "write");
  int failed[2];
  Expect(pipe2(failed, O_CLOEXEC) == 0, "pipe");
  pid_t child = fork();
  if (child == 0) {
    char* none[] = {nullptr};
    fexecve(program, none, none);
    int err = errno;
    (void)!write(failed[1], &err, sizeof err);
    _exit(9);
  }
  close(failed[1]);
  int err;
  if (read(failed[0], &err, sizeof err) == sizeof err) {
    errno = err;
    victim::Cannot("execute a program of 32 bits");
  }
  victim::Ready();
  long n = UntilTold([&] {
    Expect(waitpid(child, nullptr, WNOHANG) == 0, "it lives");
  });
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  victim::Ok("%ld", n);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3)
    victim::Die("usage");
  if (chdir(argv[1]) != 0)
    victim::Die("chdir");
  file = Open(victim::MakeFile("held", 1000), O_RDWR);
  const std::map<std::string, std::function<void()>> cases = {
      {"spinners", Spinners},
      {"fork_storm", ForkStorm},
      {"spawn_storm", SpawnStorm},
      {"kill_storm", KillStorm},
      {"vfork", Vfork},
      {"stopped_child", StoppedChild},
      {"stop_storm", StopStorm},
      {"seccomp_strict", SeccompStrict},
      {"user_dispatch", UserDispatch},
      {"sigtrap_ignored", [] { Sigtrap("ignored"); }},
      {"sigtrap_blocked", [] { Sigtrap("blocked"); }},
      {"sigtrap_handled", [] { Sigtrap("handled"); }},
      {"pending_signal", PendingSignal},
      {"traced", Traced},
      {"tracer", Tracer},
      {"mounts_private", [] { Namespaces(CLONE_NEWNS, MS_PRIVATE); }},
      {"mounts_slave", [] { Namespaces(CLONE_NEWNS, MS_SLAVE); }},
      {"mounts_shared", [] { Namespaces(CLONE_NEWNS, MS_SHARED); }},
      {"pids", [] { Namespaces(CLONE_NEWPID, 0); }},
      {"users", [] { Namespaces(CLONE_NEWUSER, 0); }},
      {"container",
       [] { Namespaces(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID, MS_PRIVATE); }},
      {"no_memory", NoMemory},
      {"locked", Locked},
      {"not_dumpable", NotDumpable},
      {"no_executable_memory", NoExecutableMemory},
      {"no_stack", NoStack},
      {"small_stack", SmallStack},
      {"timers", Timers},
      {"32_bits", ThirtyTwoBits},
  };
  auto found = cases.find(argv[2]);
  if (found == cases.end())
    victim::Die("no such case");
  found->second();
}
