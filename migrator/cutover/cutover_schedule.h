#pragma once

// When the next attempt at a cutover is due. Only attempts that stopped
// processes count; while a straggler is in the way it is looked at regularly
// and the attempts made so far stay as they are.
//
// Thread contract: a plain value; times are CLOCK_MONOTONIC in ns.

#include <cstdint>
#include <optional>

namespace livemv::cutover {

class CutoverSchedule {
 public:
  struct Policy {
    int attempts = 5;
    int64_t first_wait_ns = 1'000'000'000;  // doubles with each failed attempt
    int64_t longest_wait_ns = 30'000'000'000;
    int64_t straggler_wait_ns = 500'000'000;
  };

  CutoverSchedule() : CutoverSchedule(Policy{}) {}
  explicit CutoverSchedule(Policy policy) : policy_(policy) {}

  // An attempt that failed at now. froze: processes were stopped.
  void Failed(int64_t now, bool froze);
  // A straggler is in the way.
  void Blocked(int64_t now);
  // Starts over: the operator asked again, or the state was left.
  void Reset();

  // When to try next; nullopt: given up. 0 at the start.
  std::optional<int64_t> NextAt() const;
  bool GivenUp() const { return failed_ >= policy_.attempts; }
  int failed() const { return failed_; }

 private:
  Policy policy_;
  int failed_ = 0;
  int64_t next_at_ = 0;
};

}  // namespace livemv::cutover
