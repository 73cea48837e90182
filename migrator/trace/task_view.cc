#include "migrator/trace/task_view.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string_view>

#include "core/unique_fd.h"

namespace livemv::trace {
namespace {

using core::ErrorCode;
using core::Fail;
using core::FailSys;

constexpr uint64_t Bit(int sig) {
  return uint64_t{1} << (sig - 1);
}

std::string TaskPath(pid_t pid, pid_t tid, const char* file) {
  return "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/" +
         file;
}

template <class T = std::string>
core::Result<T> SysOrGone(int err, const std::string& what) {
  if (err == ENOENT || err == ESRCH)
    return std::unexpected(core::Error{ErrorCode::kGone, err, what});
  return FailSys(err, what);
}

// A /proc file of one page at most; one read gives all of it.
core::Result<std::string> ReadSmall(const std::string& path) {
  core::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd)
    return SysOrGone(errno, "open " + path);
  std::string text(8192, '\0');
  ssize_t n = ::read(fd.Get(), text.data(), text.size());
  if (n < 0)
    return SysOrGone(errno, "read " + path);
  text.resize(static_cast<size_t>(n));
  return text;
}

// The number behind "\nName:"; 0 if there is no such line.
uint64_t Field(std::string_view text, std::string_view name, int base) {
  size_t at = text.find(name);
  if (at == std::string_view::npos)
    return 0;
  return std::strtoull(text.data() + at + name.size(), nullptr, base);
}

class ProcTaskView final : public TaskView {
 public:
  core::Result<std::vector<pid_t>> Threads(pid_t pid) override {
    std::string path = "/proc/" + std::to_string(pid) + "/task";
    DIR* dir = ::opendir(path.c_str());
    if (dir == nullptr)
      return SysOrGone<std::vector<pid_t>>(errno, "open " + path);
    std::vector<pid_t> tids;
    errno = 0;
    while (struct dirent* entry = ::readdir(dir)) {
      pid_t tid = static_cast<pid_t>(std::strtol(entry->d_name, nullptr, 10));
      if (tid > 0)
        tids.push_back(tid);
      errno = 0;
    }
    int err = errno;
    ::closedir(dir);
    // ENOENT: the last thread went away between open and read.
    if (err != 0)
      return SysOrGone<std::vector<pid_t>>(err, "list " + path);
    if (tids.empty())
      return Fail(ErrorCode::kGone, "process " + std::to_string(pid));
    return tids;
  }

  core::Result<TaskStat> Stat(pid_t pid, pid_t tid) override {
    ASSIGN_OR_RETURN(std::string text, ReadSmall(TaskPath(pid, tid, "stat")));
    // "tid (any name, also with ')') S ppid pgrp session tty tpgid flags ..."
    size_t name_end = text.rfind(')');
    TaskStat stat;
    if (name_end == std::string::npos ||
        std::sscanf(text.c_str() + name_end + 1,
                    " %c %d %*d %*d %*d %*d %u"         // 3 to 9
                    " %*s %*s %*s %*s %*s %*s %*s %*s"  // 10 to 17
                    " %*s %*s %*s %*s %*s %*s %*s %*s"  // 18 to 25
                    " %*s %*s %*s %*s %*s %*s %*s %*s"  // 26 to 33
                    " %*s %*s %*s %*s %*s %d",          // 34 to 39
                    &stat.state, &stat.parent, &stat.flags, &stat.cpu) != 4)
      return Fail(ErrorCode::kCorrupt,
                  "stat of thread " + std::to_string(tid) + ": " + text);
    return stat;
  }

  core::Result<TaskSecurity> Security(pid_t pid, pid_t tid) override {
    ASSIGN_OR_RETURN(std::string text, ReadSmall(TaskPath(pid, tid, "status")));
    TaskSecurity task;
    task.tracer = static_cast<pid_t>(Field(text, "\nTracerPid:", 10));
    task.seccomp = Field(text, "\nSeccomp:", 10) != 0;
    task.pending = Field(text, "\nSigPnd:", 16);
    task.shared_pending = Field(text, "\nShdPnd:", 16);
    task.blocked = Field(text, "\nSigBlk:", 16);
    task.ignored = Field(text, "\nSigIgn:", 16);
    task.caught = Field(text, "\nSigCgt:", 16);
    task.voluntary_switches = Field(text, "\nvoluntary_ctxt_switches:", 10);
    return task;
  }

  std::string WaitsIn(pid_t pid, pid_t tid) override {
    std::string text;
    if (auto call = CurrentCall(pid, tid))
      text = "system call " + std::to_string(*call);
    auto channel = ReadSmall(TaskPath(pid, tid, "wchan"));
    if (channel && !channel->empty() && *channel != "0")
      text += (text.empty() ? "" : ", ") + *channel;
    return text.empty() ? "in no system call" : text;
  }

  core::Result<long> CurrentCall(pid_t pid, pid_t tid) override {
    ASSIGN_OR_RETURN(std::string text,
                     ReadSmall(TaskPath(pid, tid, "syscall")));
    // "running", or "-1 ..." when it is stopped elsewhere.
    char* end = nullptr;
    long nr = std::strtol(text.c_str(), &end, 10);
    if (end == text.c_str() || nr < 0)
      return Fail(ErrorCode::kGone, "in no system call");
    return nr;
  }

  core::Result<int64_t> LeftCpuNs(pid_t pid, pid_t tid) override {
    ASSIGN_OR_RETURN(std::string text, ReadSmall(TaskPath(pid, tid, "sched")));
    size_t at = text.find("\nse.exec_start");
    size_t colon = at == std::string::npos ? at : text.find(':', at);
    if (colon == std::string::npos)
      return Fail(ErrorCode::kUnsupported,
                  "this kernel has no /proc/PID/sched");
    // Milliseconds, with six decimals.
    long ms = 0, ns = 0;
    if (std::sscanf(text.c_str() + colon + 1, "%ld.%6ld", &ms, &ns) != 2)
      return Fail(ErrorCode::kCorrupt, "sched of thread: " + text);
    return ms * 1'000'000 + ns;
  }

  bool WaitsForVfork(pid_t pid, pid_t tid) override {
    auto nr = CurrentCall(pid, tid);
    return nr && (*nr == SYS_vfork || *nr == SYS_clone || *nr == SYS_clone3);
  }

  bool SharesMemory(pid_t a, pid_t b) override {
    return ::syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0;
  }
};

}  // namespace

uint64_t Deliverable(const TaskSecurity& task, uint64_t pending,
                     uint64_t blocked) {
  constexpr uint64_t kIgnoredByDefault =
      Bit(SIGCHLD) | Bit(SIGURG) | Bit(SIGWINCH) | Bit(SIGCONT);
  return pending & ~blocked & ~task.ignored &
         (task.caught | ~kIgnoredByDefault);
}

std::unique_ptr<TaskView> MakeTaskView() {
  return std::make_unique<ProcTaskView>();
}

}  // namespace livemv::trace
