#pragma once

// Runs many schedules in child processes (fibers that were killed leave their
// memory behind, so a child runs a batch and ends), finds the first violation
// and makes it small.
//
// Thread contract: one thread.

#include <cstdint>
#include <string>

#include "tests/sim/mechanisms.h"
#include "tests/sim/plan.h"

namespace livemv::sim {

struct Totals {
  uint64_t schedules = 0, steps = 0, mishaps = 0;
  double seconds = 0;
};

struct Violation {
  uint64_t seed = 0;
  std::string why;  // empty: none
};

struct Search {
  uint64_t first_seed = 1;
  uint64_t schedules = 0;  // at most; 0: until the time is up
  double seconds = 0;      // 0: no limit
  int jobs = 1;
  const WorldKind* world = nullptr;
  Switches on;
};
Violation Find(const Search& search, Totals* totals);

// One plan, in a child; empty or what went wrong (also if it crashes).
std::string RunInChild(const Plan& plan, const Switches& on);
// Leaves out what is not needed for a violation.
Plan Shrink(const Plan& plan, const Switches& on, std::string* why);
// The arguments that repeat a plan, and the plan in words.
std::string ReplayArguments(const Plan& plan);
std::string InWords(const Plan& plan);
// From the argument of --keep: "1,2/0//3" (operations of A, of B, events) with
// "-" for none.
bool Keep(Plan* plan, const std::string& kept);

}  // namespace livemv::sim
