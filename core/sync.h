#pragma once

// Mutex, CondVar and background work for the rooms that the simulator drives
// (core/state, fusefs, migrator/copy). In the program they are the standard
// library's; on a thread that runs under a simulated scheduler every blocking
// act goes to that scheduler instead, which decides who runs next. Nothing in
// those rooms blocks in any other way (no sleep, no std::mutex).
//
// Thread contract: as for the standard types.

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace livemv::core {

// What the simulator implements. The current scheduler belongs to the thread.
class Scheduler {
 public:
  virtual ~Scheduler() = default;
  // Lets others run; returns when ready() is true or the deadline
  // (MonotonicNs of the seam, <0: none) has passed. ready is called between
  // steps and must not block.
  virtual void WaitUntil(const std::function<bool()>& ready,
                         int64_t deadline_ns) = 0;
  virtual int64_t NowNs() = 0;

  static Scheduler* Current() { return current_; }
  static void SetCurrent(Scheduler* s) { current_ = s; }

 private:
  static thread_local Scheduler* current_;
};

class Mutex {
 public:
  void lock() {
    if (Scheduler* s = Scheduler::Current()) [[unlikely]] {
      s->WaitUntil([this] { return !held_; }, -1);
      held_ = true;
      return;
    }
    mu_.lock();
  }
  void unlock() {
    if (Scheduler::Current()) [[unlikely]] {
      held_ = false;
      return;
    }
    mu_.unlock();
  }

 private:
  std::mutex mu_;
  bool held_ = false;  // under a simulated scheduler only
  friend class CondVar;
};

using MutexLock = std::unique_lock<Mutex>;

class CondVar {
 public:
  // Spurious returns are possible, as with any condition variable.
  void Wait(MutexLock& lock) { WaitFor(lock, -1); }
  // timeout_ns < 0: none. False if the timeout passed.
  bool WaitFor(MutexLock& lock, int64_t timeout_ns);
  void NotifyAll();
  // Where all that wait can do what there is to do, and one is enough.
  void NotifyOne();

 private:
  std::condition_variable cv_;
  uint64_t signals_ = 0;  // under a simulated scheduler only
};

}  // namespace livemv::core
