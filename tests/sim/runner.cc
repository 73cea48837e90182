#include "tests/sim/runner.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/sim/world.h"

namespace livemv::sim {
namespace {

constexpr uint64_t kBatch = 300;
constexpr double kStuckSeconds = 60;

// What a child has computed, so that a machine that is busy, or was suspended,
// is not taken for a simulation that is stuck.
double CpuSeconds(pid_t pid) {
  clockid_t clock;
  struct timespec used = {};
  if (clock_getcpuclockid(pid, &clock) == 0)
    clock_gettime(clock, &used);
  return static_cast<double>(used.tv_sec) +
         static_cast<double>(used.tv_nsec) / 1e9;
}

double Now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// What a child tells its parent, also if it crashes.
struct Shared {
  volatile uint64_t seed, schedules, steps, mishaps;
  volatile int failed;
  char why[1000];
};

Shared* NewShared() {
  void* p = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED)
    std::abort();
  return static_cast<Shared*>(p);
}

void Note(Shared* shared, const std::string& why) {
  std::strncpy(shared->why, why.c_str(), sizeof shared->why - 1);
  shared->failed = 1;
}

std::string RunOne(const Plan& plan, const Switches& on, Shared* shared) {
  auto world = std::make_unique<World>(plan, on, false);
  std::string why = world->Run();
  if (shared != nullptr) {
    shared->steps = shared->steps + world->steps();
    shared->mishaps = shared->mishaps + world->mishaps();
  }
  return why;
}

struct Child {
  pid_t pid = -1;
  Shared* shared = nullptr;
  uint64_t last_seed = 0;
  double since = 0;
};

std::string HowItEnded(int status) {
  if (WIFSIGNALED(status))
    return "crashed: " + std::string(strsignal(WTERMSIG(status)));
  return "ended with code " + std::to_string(WEXITSTATUS(status));
}

std::vector<size_t> Indices(const std::string& text) {
  std::vector<size_t> out;
  for (size_t pos = 0; pos < text.size();) {
    size_t end = std::min(text.find(',', pos), text.size());
    std::string one = text.substr(pos, end - pos);
    if (!one.empty() && one != "-")
      out.push_back(std::strtoull(one.c_str(), nullptr, 10));
    pos = end + 1;
  }
  return out;
}

template <class T>
bool KeepOnly(std::vector<T>* all, const std::string& text) {
  std::vector<T> kept;
  for (size_t i : Indices(text)) {
    if (i >= all->size())
      return false;
    kept.push_back((*all)[i]);
  }
  *all = std::move(kept);
  return true;
}

}  // namespace

Violation Find(const Search& search, Totals* totals) {
  const double began = Now();
  uint64_t next = search.first_seed;
  const uint64_t end = search.schedules == 0
                           ? ~0ull
                           : search.first_seed + search.schedules;
  std::vector<Child> children(static_cast<size_t>(search.jobs));
  for (Child& child : children)
    child.shared = NewShared();
  Violation found;
  bool running = true;
  while (running) {
    running = false;
    const double now = Now();
    for (Child& child : children) {
      const bool time_up =
          search.seconds > 0 && now - began > search.seconds;
      if (child.pid > 0) {
        int status = 0;
        Shared* s = child.shared;
        if (waitpid(child.pid, &status, WNOHANG) != child.pid) {
          running = true;
          const double used = CpuSeconds(child.pid);
          if (s->seed != child.last_seed) {
            child.last_seed = s->seed;
            child.since = used;
          } else if (used - child.since > kStuckSeconds) {
            Note(s, "runs for ever without a system call");
            kill(child.pid, SIGKILL);
          } else if (!found.why.empty() || time_up) {
            kill(child.pid, SIGKILL);
          }
          continue;
        }
        const bool ours = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        if (found.why.empty() && (s->failed || (!ours && status != 0))) {
          found.seed = s->seed;
          found.why = s->failed ? s->why : HowItEnded(status);
        }
        totals->schedules += s->schedules;
        totals->steps += s->steps;
        totals->mishaps += s->mishaps;
        child.pid = -1;
      }
      if (!found.why.empty() || time_up || next >= end)
        continue;
      const uint64_t from = next, to = std::min(end, next + kBatch);
      next = to;
      std::memset(child.shared, 0, sizeof *child.shared);
      child.last_seed = 0;
      child.since = 0;
      fflush(nullptr);
      child.pid = fork();
      if (child.pid == 0) {
        Shared* s = child.shared;
        for (uint64_t seed = from; seed < to; seed++) {
          s->seed = seed;
          std::string why =
              RunOne(MakePlan(seed, search.world), search.on, s);
          s->schedules = s->schedules + 1;
          if (!why.empty()) {
            Note(s, why);
            _exit(1);
          }
        }
        _exit(0);
      }
      running = true;
    }
    if (running)
      poll(nullptr, 0, 5);
  }
  for (Child& child : children)
    munmap(child.shared, sizeof(Shared));
  totals->seconds += Now() - began;
  return found;
}

std::string RunInChild(const Plan& plan, const Switches& on) {
  Shared* shared = NewShared();
  fflush(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    alarm(static_cast<unsigned>(kStuckSeconds));
    std::string why = RunOne(plan, on, nullptr);
    if (!why.empty())
      Note(shared, why);
    _exit(0);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  std::string why = shared->failed ? shared->why
                    : status == 0  ? std::string()
                                   : HowItEnded(status);
  munmap(shared, sizeof(Shared));
  return why;
}

Plan Shrink(const Plan& plan, const Switches& on, std::string* why) {
  Plan best = plan;
  const double began = Now();
  auto try_it = [&](const Plan& candidate) {
    Plan p = candidate;
    for (uint64_t i = 0; i < 12; i++) {
      // The same draws of the scheduler meet other steps now: try a few.
      p.interleaving = candidate.interleaving + i;
      std::string now = RunInChild(p, on);
      if (!now.empty()) {
        *why = now;
        best = p;
        return true;
      }
    }
    return false;
  };
  bool smaller = true;
  while (smaller && Now() - began < 60) {
    smaller = false;
    auto without = [&](auto member) {
      for (size_t i = (best.*member).size(); i-- > 0;) {
        Plan candidate = best;
        (candidate.*member).erase((candidate.*member).begin() +
                                  static_cast<ptrdiff_t>(i));
        smaller = try_it(candidate) || smaller;
      }
    };
    for (int who = 0; who < 2; who++)
      for (size_t i = best.ops[who].size(); i-- > 0;) {
        Plan candidate = best;
        candidate.ops[who].erase(candidate.ops[who].begin() +
                                 static_cast<ptrdiff_t>(i));
        smaller = try_it(candidate) || smaller;
      }
    without(&Plan::events);
  }
  return best;
}

std::string ReplayArguments(const Plan& plan) {
  const Plan whole = MakePlan(plan.seed, plan.world);
  // Elements are told by their draws; kept ones are in their old order.
  auto list = [](const auto& all, const auto& kept, auto same) {
    std::string out;
    size_t at = 0;
    for (const auto& one : kept) {
      while (at < all.size() && !same(all[at], one))
        at++;
      out += (out.empty() ? "" : ",") + std::to_string(at++);
    }
    return out.empty() ? std::string("-") : out;
  };
  auto same_op = [](const Op& x, const Op& y) {
    return x.what == y.what && x.a == y.a && x.b == y.b && x.c == y.c;
  };
  auto same_event = [](const Event& x, const Event& y) {
    return x.what == y.what && x.steps == y.steps && x.a == y.a &&
           x.after_ops == y.after_ops && x.call == y.call &&
           x.in_stall == y.in_stall;
  };
  return "--seed=" + std::to_string(plan.seed) + " --world=" +
         plan.world->name + " --interleaving=" +
         std::to_string(plan.interleaving) + " --keep=" +
         list(whole.ops[0], plan.ops[0], same_op) + "/" +
         list(whole.ops[1], plan.ops[1], same_op) + "/" +
         list(whole.events, plan.events, same_event);
}

std::string InWords(const Plan& plan) {
  std::string out;
  for (int who = 0; who < 2; who++) {
    out += who == 0 ? "  A:" : "  B:";
    for (const Op& op : plan.ops[who])
      out += " " + Describe(op);
    out += "\n";
  }
  for (const Event& event : plan.events)
    out += "  " + Describe(event) + "\n";
  return out;
}

bool Keep(Plan* plan, const std::string& kept) {
  const size_t one = kept.find('/');
  const size_t two = one == std::string::npos ? one : kept.find('/', one + 1);
  if (two == std::string::npos)
    return false;
  return KeepOnly(&plan->ops[0], kept.substr(0, one)) &&
         KeepOnly(&plan->ops[1], kept.substr(one + 1, two - one - 1)) &&
         KeepOnly(&plan->events, kept.substr(two + 1));
}

}  // namespace livemv::sim
