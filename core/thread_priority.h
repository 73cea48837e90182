#pragma once

// Thread contract: acts on the thread that calls.

namespace livemv::core {

enum class Rank {
  // For work that applications wait for: it must not queue for a busy
  // processor behind the very processes that wait.
  kAheadOfApplications,
  // For work that nobody waits for.
  kBehindApplications,
};

// The thread's place in the queue for the processor, while one lives. Threads
// made meanwhile inherit it. Without the right to do so nothing happens.
class ScopedRank {
 public:
  explicit ScopedRank(Rank rank);
  ~ScopedRank();
  ScopedRank(const ScopedRank&) = delete;
  ScopedRank& operator=(const ScopedRank&) = delete;

 private:
  int before_;  // nice value
};

}  // namespace livemv::core
