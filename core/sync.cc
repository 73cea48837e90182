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
  if (timeout_ns < 0) {
    cv_.wait(lock);
    return true;
  }
  return cv_.wait_for(lock, std::chrono::nanoseconds(timeout_ns)) ==
         std::cv_status::no_timeout;
}

void CondVar::NotifyAll() {
  if (Scheduler::Current()) {
    signals_++;
    return;
  }
  cv_.notify_all();
}

}  // namespace livemv::core
