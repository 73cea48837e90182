#include "migrator/proc/dying.h"

#include <sys/syscall.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <optional>
#include <vector>

#include "migrator/proc/proc_files.h"
#include "migrator/proc/proc_parse.h"

namespace livemv::proc {

using core::Result;
using core::Status;

namespace {

// Not here: open with O_CREAT or O_TRUNC cannot be told from others without its
// arguments, and no open is known to wait once it is killed.
constexpr long kChangeNothing[] = {
    SYS_fsync,     SYS_fdatasync,  SYS_syncfs,     SYS_sync_file_range,
    SYS_close,     SYS_read,       SYS_pread64,    SYS_readv,
    SYS_preadv,    SYS_preadv2,    SYS_fstat,      SYS_newfstatat,
    SYS_statx,     SYS_fstatfs,    SYS_statfs,     SYS_getdents64,
    SYS_readlinkat, SYS_fgetxattr, SYS_flistxattr, SYS_lseek,
};

constexpr uint64_t kKillBit = uint64_t{1} << (SIGKILL - 1);

std::optional<long> CallNumber(std::string_view text) {
  long number = -1;
  auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  // "-1" is a task that waits outside of a call, "running" one that does not.
  if (error != std::errc() || number < 0 ||
      (end != text.data() + text.size() && *end != ' '))
    return std::nullopt;
  return number;
}

enum class Task { kEnds, kWaits, kMayAct, kLives };

Result<Task> LookAtTask(int dirfd, int tid, std::string* call) {
  const std::string at = "task/" + std::to_string(tid) + "/";
  std::string text;
  TRY(ReadShortFileAt(dirfd, (at + "stat").c_str(), &text));
  const std::optional<ProcStat> stat = ParseStat(text);
  if (!stat)
    return core::Fail(core::ErrorCode::kCorrupt, at + "stat is not readable");
  // Set in do_exit before anything is given back (kernel/signal.c,
  // exit_signals), never cleared.
  if ((stat->flags & kPfExiting) != 0 || stat->state == 'Z' ||
      stat->state == 'X')
    return Task::kEnds;
  TRY(ReadShortFileAt(dirfd, (at + "status").c_str(), &text));
  const std::optional<ProcStatus> status = ParseStatus(text);
  // A task with a pending SIGKILL takes it before it returns to the program.
  if (!status || (status->pending & kKillBit) == 0)
    return Task::kLives;
  TRY(ReadShortFileAt(dirfd, (at + "syscall").c_str(), &text));
  if (CallChangesNothing(text))
    return Task::kWaits;
  std::optional<long> number = CallNumber(text);
  *call = "thread " + std::to_string(tid) +
          (number ? " in system call " + std::to_string(*number)
                  : " in the kernel");
  return Task::kMayAct;
}

}  // namespace

bool CallChangesNothing(std::string_view text) {
  const std::optional<long> number = CallNumber(text);
  return number && std::ranges::find(kChangeNothing, *number) !=
                       std::end(kChangeNothing);
}

Result<Ending> LookAtEnding(int dirfd) {
  Ending out;
  out.kind = Ending::Kind::kActsNoMore;
  ASSIGN_OR_RETURN(std::vector<int> tasks, ListNumbers(dirfd, "task"));
  for (int tid : tasks) {
    std::string call;
    Result<Task> task = LookAtTask(dirfd, tid, &call);
    if (!task && task.error().code == core::ErrorCode::kGone)
      continue;  // it has ended meanwhile
    if (!task)
      return std::unexpected(std::move(task).error());
    if (*task == Task::kLives)
      return Ending{};
    if (*task == Task::kWaits)
      out.waiting++;
    if (*task == Task::kMayAct) {
      out.kind = Ending::Kind::kMayAct;
      out.call = std::move(call);
    }
  }
  // One that was being made while the list was read would be in it by now: no
  // task that is being killed makes others (kernel/fork.c, copy_process).
  ASSIGN_OR_RETURN(std::vector<int> again, ListNumbers(dirfd, "task"));
  for (int tid : again)
    if (!std::ranges::binary_search(tasks, tid))
      return Ending{};
  return out;
}

}  // namespace livemv::proc
