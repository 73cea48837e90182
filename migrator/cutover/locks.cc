// Locks as sets of ranges.

#include <algorithm>

#include "migrator/cutover/seams.h"

namespace livemv::cutover {

bool SameLock(const proc::LockLine& a, const proc::LockLine& b) {
  return a.kind == b.kind && a.write == b.write && a.start == b.start &&
         a.end == b.end;
}

Locks HeldLocks(const proc::Descriptor& fd) {
  Locks held;
  for (const proc::LockLine& lock : fd.locks)
    if (!lock.waiting && proc::IsOfDescription(lock))
      held.push_back(lock);
  return held;
}

Locks LocksOfProcess(const proc::Descriptor& fd) {
  Locks held;
  for (const proc::LockLine& lock : fd.locks)
    if (!lock.waiting && lock.kind == proc::LockKind::kPosix)
      held.push_back(lock);
  return held;
}

Locks AsOfDescription(Locks locks) {
  for (proc::LockLine& lock : locks)
    lock.kind = proc::LockKind::kOfd;
  return locks;
}

bool AnyLockOfProcess(const std::vector<proc::Holder>& holders) {
  for (const proc::Holder& holder : holders)
    for (const proc::Task& task : holder.tasks)
      for (const proc::Descriptor& fd : task.fds)
        if (!LocksOfProcess(fd).empty())
          return true;
  return false;
}

Locks LocksLess(const Locks& a, const Locks& b) {
  Locks less;
  for (const proc::LockLine& lock : a)
    if (std::none_of(b.begin(), b.end(), [&](const proc::LockLine& other) {
          return SameLock(lock, other);
        }))
      less.push_back(lock);
  return less;
}

bool SameLocks(const Locks& a, const Locks& b) {
  return LocksLess(a, b).empty() && LocksLess(b, a).empty();
}

}  // namespace livemv::cutover
