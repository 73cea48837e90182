#include "core/sync.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>
#include <vector>

namespace livemv::core {
namespace {

TEST(CondVar, AWaitEndsWithANotification) {
  Mutex mu;
  CondVar cv;
  bool ready = false;
  std::thread t([&] {
    MutexLock lock(mu);
    ready = true;
    cv.NotifyAll();
  });
  MutexLock lock(mu);
  while (!ready)
    cv.Wait(lock);
  lock.unlock();
  t.join();
  EXPECT_TRUE(ready);
}

TEST(CondVar, AWaitWithADeadlineSaysThatItPassed) {
  Mutex mu;
  CondVar cv;
  MutexLock lock(mu);
  while (cv.WaitFor(lock, 1'000'000)) {  // spurious returns are allowed
  }
  EXPECT_TRUE(lock.owns_lock());
}

// Runs what the others would do whenever somebody waits.
class ScriptedScheduler final : public Scheduler {
 public:
  void WaitUntil(const std::function<bool()>& ready,
                 int64_t deadline_ns) override {
    waits++;
    for (;;) {
      if (ready())
        return;
      if (!script.empty()) {
        auto act = script.front();
        script.erase(script.begin());
        act();
        continue;
      }
      ASSERT_GE(deadline_ns, 0) << "would wait for ever";
      now = deadline_ns;
      return;
    }
  }
  int64_t NowNs() override { return now; }
  std::vector<std::function<void()>> script;
  int64_t now = 100;
  int waits = 0;
};

class UnderAScheduler : public testing::Test {
 protected:
  void SetUp() override { Scheduler::SetCurrent(&scheduler_); }
  void TearDown() override { Scheduler::SetCurrent(nullptr); }
  ScriptedScheduler scheduler_;
};

TEST_F(UnderAScheduler, ALockWaitsUntilItsHolderLetsGo) {
  Mutex mu;
  mu.lock();
  scheduler_.script = {[&] { mu.unlock(); }};
  mu.lock();
  EXPECT_TRUE(scheduler_.script.empty());
  mu.unlock();
  EXPECT_EQ(scheduler_.waits, 2) << "every lock is a point to switch at";
}

TEST_F(UnderAScheduler, AConditionWaitGivesTheLockAwayAndTakesItBack) {
  Mutex mu;
  CondVar cv;
  bool held_by_other = false;
  MutexLock lock(mu);
  scheduler_.script = {[&] {
    MutexLock other(mu);
    held_by_other = true;
    cv.NotifyAll();
  }};
  EXPECT_TRUE(cv.WaitFor(lock, 1000));
  EXPECT_TRUE(held_by_other);
  EXPECT_TRUE(lock.owns_lock());
}

TEST_F(UnderAScheduler, ADeadlineIsTheSchedulersTime) {
  Mutex mu;
  CondVar cv;
  MutexLock lock(mu);
  EXPECT_FALSE(cv.WaitFor(lock, 1000));
  EXPECT_EQ(scheduler_.now, 1100);
}

}  // namespace
}  // namespace livemv::core
