#pragma once

// Cooperative threads under a seeded scheduler: the same seed gives the same
// interleaving. A fiber runs until it yields (every simulated system call and
// every blocking act of core/sync.h does); then the next one is drawn among
// those whose condition holds. Simulated time moves only when nobody can run.
//
// A killed group of fibers is dropped where it stands: its stacks are freed
// without unwinding, as a SIGKILL leaves a process.
//
// Thread contract: one Fibers object, one thread.

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/sync.h"

namespace livemv::sim {

class Fibers final : public core::Scheduler {
 public:
  explicit Fibers(uint64_t seed);
  ~Fibers() override;

  // Starts body as a fiber of a group (a simulated process).
  void Spawn(std::string name, int group, std::function<void()> body);
  // Drops all fibers of the group. Not callable from one of them.
  void Kill(int group);
  bool Alive(int group) const;

  // Runs until done() holds or no fiber can ever run again or max_steps are
  // spent. False in the last two cases; Stuck() then says who waits.
  bool Run(const std::function<bool()>& done, uint64_t max_steps);
  std::string Stuck() const;

  // From a fiber: lets another one run (or the same one again).
  void Yield();
  void WaitUntil(const std::function<bool()>& ready,
                 int64_t deadline_ns) override;
  int64_t NowNs() override { return now_ns_; }
  void Sleep(int64_t ns) { WaitUntil([] { return false; }, now_ns_ + ns); }

  std::mt19937_64& rng() { return rng_; }
  uint64_t Draw(uint64_t below) { return below == 0 ? 0 : rng_() % below; }
  uint64_t steps() const { return steps_; }
  // The group of the running fiber; -1 outside.
  int CurrentGroup() const { return current_ ? current_->group : -1; }
  const char* CurrentName() const {
    return current_ ? current_->name.c_str() : "outside";
  }

 private:
  struct Fiber {
    std::string name;
    int group;
    std::function<void()> body;
    const std::function<bool()>* ready = nullptr;  // null: can run
    int64_t deadline_ns = -1;
    bool done = false;
    std::unique_ptr<char[]> stack;
    void* at = nullptr;  // its stack pointer while it does not run
  };
  static void Enter();
  void SwitchToMain();
  bool CanRun(const Fiber& f) const;

  std::mt19937_64 rng_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<std::unique_ptr<char[]>> spare_stacks_;
  Fiber* current_ = nullptr;
  void* main_ = nullptr;  // the stack pointer of Run
  int64_t now_ns_ = 1'000'000'000;
  uint64_t steps_ = 0;
};

}  // namespace livemv::sim
