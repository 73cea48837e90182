#pragma once

// TargetWriter by threads that the worker process starts: each runs Run. A
// job that no thread has begun when its limit passes is taken back, so it is
// not in flight; one that hangs in the kernel keeps its thread.
//
// Thread contract: all methods from any thread.

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "core/sync.h"
#include "fusefs/target_writer.h"

namespace livemv::fusefs {

class DoubleWriter final : public TargetWriter {
 public:
  explicit DoubleWriter(ObjectStore* objects)
      : objects_(objects), sys_(objects->sys()) {}

  Outcome Write(FileId id, std::span<const char> data, uint64_t off,
                int64_t limit_ns, Late late) override;
  Outcome FSync(FileId id, int64_t limit_ns, Late late) override;

  // Performs jobs until stop is true. Call Wake after setting stop.
  void Run(const std::atomic<bool>& stop);
  // Performs one job if there is one; false if there was none.
  bool Step();
  void Wake();

 private:
  struct Job {
    FileId id = state::kNoFile;
    bool is_fsync = false;
    std::string data;
    uint64_t off = 0;
    Late late;
    bool begun = false, done = false, given_up = false;  // guarded by mu_
    core::Status status;
    core::CondVar over;
  };
  Outcome Submit(std::shared_ptr<Job> job, int64_t limit_ns);
  void Perform(const std::shared_ptr<Job>& job);

  core::Status Act(const Job& job);

  ObjectStore* const objects_;
  core::Syscalls* const sys_;
  core::Mutex mu_;
  core::CondVar work_;
  std::deque<std::shared_ptr<Job>> queue_;  // guarded by mu_
};

}  // namespace livemv::fusefs
