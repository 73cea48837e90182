#include "migrator/cutover/cutover_schedule.h"

#include <algorithm>

namespace livemv::cutover {

void CutoverSchedule::Failed(int64_t now, bool froze) {
  if (!froze) {
    Blocked(now);
    return;
  }
  ++failed_;
  int64_t wait = policy_.first_wait_ns;
  for (int i = 1; i < failed_ && wait < policy_.longest_wait_ns; ++i)
    wait *= 2;
  next_at_ = now + std::min(wait, policy_.longest_wait_ns);
}

void CutoverSchedule::Blocked(int64_t now) {
  next_at_ = now + policy_.straggler_wait_ns;
}

void CutoverSchedule::Reset() {
  failed_ = 0;
  next_at_ = 0;
}

std::optional<int64_t> CutoverSchedule::NextAt() const {
  if (GivenUp())
    return std::nullopt;
  return next_at_;
}

}  // namespace livemv::cutover
