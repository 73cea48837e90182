#include "core/sync.h"

#include <chrono>

namespace livemv::core {

thread_local Scheduler* Scheduler::current_ = nullptr;

bool CondVar::WaitFor(MutexLock& lock, int64_t timeout_ns) {
  if (Scheduler* s = Scheduler::Current()) {
    uint64_t seen = signals_;
    int64_t deadline = timeout_ns < 0 ? -1 : s->NowNs() + timeout_ns;
    lock.unlock();
    s->WaitUntil([this, seen] { return signals_ != seen; }, deadline);
    lock.lock();
    return signals_ != seen;
  }
  // condition_variable_any would take a mutex of its own each time.
  std::unique_lock<std::mutex> held(lock.mutex()->mu_, std::adopt_lock);
  bool in_time = true;
  if (timeout_ns < 0)
    cv_.wait(held);
  else
    in_time = cv_.wait_for(held, std::chrono::nanoseconds(timeout_ns)) ==
              std::cv_status::no_timeout;
  held.release();
  return in_time;
}

void CondVar::NotifyAll() {
  if (Scheduler::Current()) {
    signals_++;
    return;
  }
  cv_.notify_all();
}

void CondVar::NotifyOne() {
  if (Scheduler::Current()) {
    signals_++;
    return;
  }
  cv_.notify_one();
}

}  // namespace livemv::core
