// livemv-sim: see README.md in this folder.

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>

#include "tests/sim/runner.h"
#include "tests/sim/world.h"

namespace livemv::sim {
namespace {

const char kHelp[] =
    "livemv-sim: runs the migration's real code against an in-memory kernel.\n"
    "\n"
    "  --schedules=N      seeds to run (default: 1000)\n"
    "  --seconds=S        or as many as fit into S seconds\n"
    "  --seed=S           the first seed; alone: this one only\n"
    "  --jobs=J           processes (default: 1)\n"
    "  --world=W          only this mixture of operations and mishaps\n"
    "  --without=M[,M...] with these safety mechanisms taken away\n"
    "  --trace            prints each step (of one seed)\n"
    "  --interleaving=X --keep=K   repeats a shrunk schedule\n"
    "  --mechanisms       takes each mechanism away in turn; fails unless each\n"
    "                     time a violation is found\n"
    "  --within=N         of them, only those that N schedules are to show\n"
    "  --alone            without what makes up for them: none of those is to\n"
    "                     be found\n"
    "Exit code: 0 no violation, 1 a violation, 2 wrong use.\n";

struct Options {
  Search search;
  bool seed_given = false, trace = false, mechanisms = false;
  bool alone = false;
  int within = 0;  // 0: all of them
  std::string keep, without;
  uint64_t interleaving = 0;
};

bool Value(const char* arg, const char* name, std::string* out) {
  const size_t n = std::strlen(name);
  if (std::strncmp(arg, name, n) != 0 || arg[n] != '=')
    return false;
  *out = arg + n + 1;
  return true;
}

int Usage(const std::string& what) {
  fprintf(stderr, "%s\n%s", what.c_str(), kHelp);
  return 2;
}

void Report(const Totals& t) {
  printf("%llu schedules, %llu steps, %llu mishaps in %.1f s: %.0f schedules "
         "a second\n",
         static_cast<unsigned long long>(t.schedules),
         static_cast<unsigned long long>(t.steps),
         static_cast<unsigned long long>(t.mishaps), t.seconds,
         static_cast<double>(t.schedules) / std::max(t.seconds, 1e-9));
}

// Prints a violation whole, and small.
void Explain(const Violation& v, const Options& o) {
  printf("VIOLATION: %s\n  replay: tests/simulate --seed=%llu%s%s%s%s\n",
         v.why.c_str(), static_cast<unsigned long long>(v.seed),
         o.search.world != nullptr ? " --world=" : "",
         o.search.world != nullptr ? o.search.world->name : "",
         o.without.empty() ? "" : " --without=", o.without.c_str());
  fflush(stdout);
  std::string why;
  Plan small =
      Shrink(MakePlan(v.seed, o.search.world), o.search.on, &why);
  if (why.empty())
    why = v.why;
  printf("shrunk: %s\n%s  replay: tests/simulate %s%s%s --trace\n",
         why.c_str(), InWords(small).c_str(), ReplayArguments(small).c_str(),
         o.without.empty() ? "" : " --without=", o.without.c_str());
}

int RunOneSeed(const Options& o) {
  Plan plan = MakePlan(o.search.first_seed, o.search.world);
  if (o.interleaving != 0)
    plan.interleaving = o.interleaving;
  if (!o.keep.empty() && !Keep(&plan, o.keep))
    return Usage("--keep names what the schedule does not have");
  printf("world %s\n%s", plan.world->name, InWords(plan).c_str());
  fflush(stdout);
  World world(plan, o.search.on, o.trace);
  std::string why = world.Run();
  printf("%s\n", why.empty() ? "no violation" : ("VIOLATION: " + why).c_str());
  fflush(stdout);
  // Fibers that were killed hold locks: nothing is taken down.
  _exit(why.empty() ? 0 : 1);
}

// A simulation that only came to a standstill says nothing of what the
// mechanism is for: data that is lost, wrong or not where it should be.
bool IsRealViolation(const std::string& why) {
  for (const char* other : {"stuck", "crashed", "ended with", "runs for ever",
                            "the worker does not start"})
    if (why.starts_with(other))
      return false;
  return true;
}

// The first real violation among search's schedules; totals of all that ran.
Violation FindReal(Search search, Totals* totals) {
  const uint64_t end = search.first_seed + search.schedules;
  while (search.first_seed < end) {
    Violation v = Find(search, totals);
    if (v.why.empty() || IsRealViolation(v.why))
      return v;
    search.first_seed = v.seed + 1;
    search.schedules = end - search.first_seed;
  }
  return {};
}

int RunMechanisms(Options o) {
  int missed = 0;
  for (const Mechanism& m : Mechanisms()) {
    if (!o.without.empty() &&
        (',' + o.without + ',').find(',' + std::string(m.name) + ',') ==
            std::string::npos)
      continue;
    Search search = o.search;
    if (o.alone && m.covered_by == nullptr)
      continue;
    search.on = Without(m);
    if (o.alone) {
      search.on = Switches();
      TakeAway(m, &search.on);
    }
    if (search.world == nullptr)
      search.world = FindWorld(m.world);
    search.schedules = static_cast<uint64_t>(m.within);
    search.seconds = 0;
    if (m.within == 0) {
      printf("%-24s not asserted: %s\n", m.name, m.what);
      continue;
    }
    if (o.within != 0 && m.within > o.within) {
      printf("%-24s left for a longer run: %s\n", m.name, m.what);
      continue;
    }
    Totals totals;
    Violation v = FindReal(search, &totals);
    missed += v.why.empty() != o.alone ? 1 : 0;
    printf("%-24s %s after %llu: %s\n", m.name,
           v.why.empty() ? "NOT FOUND" : "found",
           static_cast<unsigned long long>(totals.schedules),
           v.why.substr(0, 110).c_str());
    fflush(stdout);
  }
  printf(o.alone ? "%d mechanisms are needed beside what makes up for them\n"
                 : "%d mechanisms could be taken away unnoticed\n",
         missed);
  return missed == 0 ? 0 : 1;
}

int Main(int argc, char** argv) {
  spdlog::set_level(spdlog::level::off);
  Options o;
  o.search.schedules = 1000;
  for (int i = 1; i < argc; i++) {
    const char* arg = argv[i];
    std::string v;
    if (std::strcmp(arg, "--help") == 0 || std::strcmp(arg, "-h") == 0) {
      printf("%s\nworlds:", kHelp);
      for (const WorldKind& w : WorldKinds())
        printf(" %s", w.name);
      printf("\nmechanisms:\n");
      for (const Mechanism& m : Mechanisms())
        printf("  %-24s %s\n", m.name, m.what);
      return 0;
    }
    if (Value(arg, "--schedules", &v)) {
      o.search.schedules = std::strtoull(v.c_str(), nullptr, 10);
    } else if (Value(arg, "--seconds", &v)) {
      o.search.seconds = std::strtod(v.c_str(), nullptr);
      o.search.schedules = 0;
    } else if (Value(arg, "--seed", &v)) {
      o.search.first_seed = std::strtoull(v.c_str(), nullptr, 10);
      o.seed_given = true;
    } else if (Value(arg, "--within", &v)) {
      o.within = std::atoi(v.c_str());
    } else if (Value(arg, "--jobs", &v)) {
      o.search.jobs = std::max(1, std::atoi(v.c_str()));
    } else if (Value(arg, "--world", &v)) {
      if ((o.search.world = FindWorld(v)) == nullptr)
        return Usage("no such world: " + v);
    } else if (Value(arg, "--without", &v)) {
      o.without = v;
      std::istringstream names(v);
      for (std::string name; std::getline(names, name, ',');) {
        const Mechanism* m = FindMechanism(name);
        if (m == nullptr)
          return Usage("no such mechanism: " + name);
        TakeAway(*m, &o.search.on);
      }
    } else if (Value(arg, "--keep", &v)) {
      o.keep = v;
    } else if (Value(arg, "--interleaving", &v)) {
      o.interleaving = std::strtoull(v.c_str(), nullptr, 10);
    } else if (std::strcmp(arg, "--trace") == 0) {
      o.trace = true;
    } else if (std::strcmp(arg, "--alone") == 0) {
      o.alone = o.mechanisms = true;
    } else if (std::strcmp(arg, "--mechanisms") == 0) {
      o.mechanisms = true;
    } else {
      return Usage(std::string("unknown argument ") + arg);
    }
  }
  if (o.mechanisms)
    return RunMechanisms(o);
  bool many = false;
  for (int i = 1; i < argc; i++)
    many = many || std::strncmp(argv[i], "--sch", 5) == 0 ||
           std::strncmp(argv[i], "--sec", 5) == 0;
  if (o.seed_given && !many)
    return RunOneSeed(o);
  Totals totals;
  Violation v = Find(o.search, &totals);
  if (!v.why.empty())
    Explain(v, o);
  Report(totals);
  return v.why.empty() ? 0 : 1;
}

}  // namespace
}  // namespace livemv::sim

int main(int argc, char** argv) {
  return livemv::sim::Main(argc, argv);
}
