#include "migrator/proc/opens_in_flight.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <time.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "migrator/proc/proc_files.h"
#include "migrator/proc/proc_parse.h"

namespace livemv::proc {
namespace {

using core::Result;
using core::Status;

// What is left of an open once the path has been walked takes some
// microseconds; where it waits it is seen to wait.
constexpr uint64_t kEnoughNs = 200'000;
constexpr long kLookAgainNs = 200'000;
// A thread on a processor shows in its run time at the next tick (HZ is at least
// 100); one whose run time stands still for longer is on none, and its stack is
// as it was left.
constexpr int64_t kStandsStillNs = 10'000'000;

int64_t NowNs() {
  struct timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

bool IsOpen(const std::string& syscall) {
  switch (std::strtol(syscall.c_str(), nullptr, 10)) {
    case SYS_open:
    case SYS_creat:
    case SYS_openat:
    case SYS_openat2:
    case SYS_open_by_handle_at:
      return !syscall.starts_with("running");
    default:
      return false;
  }
}

class Opens {
 public:
  Status Find(const std::set<pid_t>& exclude) {
    ASSIGN_OR_RETURN(std::vector<int> pids, ListNumbers(AT_FDCWD, "/proc"));
    for (int pid : pids) {
      if (exclude.contains(pid))
        continue;
      const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
      auto tids = ListNumbers(AT_FDCWD, tasks.c_str());
      if (!tids)
        continue;  // gone
      for (int tid : *tids)
        Look(tasks + "/" + std::to_string(tid));
    }
    return {};
  }

  // Drops those that have passed.
  bool AllPassed() {
    std::erase_if(threads_, [this](const auto& thread) {
      return Passed(thread.first, *thread.second);
    });
    return threads_.empty();
  }

  const std::string& First() const { return threads_.begin()->first; }

 private:
  struct Seen {
    int64_t since_ns;  // the run time has been as it is
    uint64_t ran_ns;
    uint64_t more_ns = 0;  // it has run since the first look
  };

  // "" if it is gone.
  std::string Read(const std::string& thread, const char* file) {
    const std::string path = thread + "/" + file;
    Status read = ReadShortFileAt(AT_FDCWD, path.c_str(), &text_);
    return read ? text_ : std::string();
  }

  uint64_t RanNs(const std::string& thread) {
    return std::strtoull(Read(thread, "schedstat").c_str(), nullptr, 10);
  }

  // Interruptibly only for a FIFO's other end, for FUSE, or for the end of a
  // lease.
  bool Waits(char state, const std::string& thread) {
    if (state == 'S')
      return Read(thread, "wchan") == "__break_lease";
    return state == 'D' && IsOpen(Read(thread, "syscall")) &&
           Read(thread, "wchan") != "request_wait_answer";
  }

  void Look(const std::string& thread) {
    const auto is = ParseStat(Read(thread, "stat"));
    if (!is || (is->flags & kPfKernelThread) != 0)
      return;
    if (is->state == 'R' || Waits(is->state, thread))
      threads_[thread] = std::make_unique<Seen>(NowNs(), RanNs(thread));
  }

  // Put off the processor somewhere else than in an open.
  bool LeftElsewhere(const std::string& thread) {
    const std::string stack = Read(thread, "stack");
    return !stack.empty() && stack.find("open") == std::string::npos;
  }

  bool Passed(const std::string& thread, Seen& seen) {
    const auto is = ParseStat(Read(thread, "stat"));
    if (!is)
      return true;
    if (is->state != 'R')
      return !Waits(is->state, thread);
    const uint64_t ran = RanNs(thread);
    if (ran != seen.ran_ns) {
      seen.more_ns += ran - seen.ran_ns;
      seen.ran_ns = ran;
      seen.since_ns = NowNs();
      return seen.more_ns >= kEnoughNs &&
             Read(thread, "stack").find("open") == std::string::npos;
    }
    return NowNs() - seen.since_ns >= kStandsStillNs && LeftElsewhere(thread);
  }

  std::map<std::string, std::unique_ptr<Seen>> threads_;
  std::string text_;
};

}  // namespace

Status LetOpensPass(const std::set<pid_t>& exclude, int64_t deadline_ns) {
  Opens opens;
  TRY(opens.Find(exclude));
  while (!opens.AllPassed()) {
    if (NowNs() > deadline_ns)
      return core::Fail(core::ErrorCode::kTimeout,
                        opens.First() +
                            " may be in the middle of opening a file");
    struct timespec nap = {0, kLookAgainNs};
    ::nanosleep(&nap, nullptr);
  }
  return {};
}

}  // namespace livemv::proc
