#include "migrator/copy/place_locks.h"

#include <algorithm>

#include "core/hash.h"

namespace livemv::copy {

uint64_t PlaceLocks::KeyOf(state::FileId dir, const std::string& name) {
  // A collision only makes two strangers wait for each other.
  return (core::Hash64Of(name.data(), name.size()) ^
          (dir * 0x9e3779b97f4a7c15ull)) |
         1ull << 63;
}

void PlaceLocks::Hold::Acquire(std::vector<uint64_t> keys) {
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  core::MutexLock lock(locks_->mu_);
  while (std::any_of(keys.begin(), keys.end(), [this](uint64_t key) {
    return locks_->held_.contains(key);
  }))
    locks_->freed_.Wait(lock);
  locks_->held_.insert(keys.begin(), keys.end());
  keys_ = std::move(keys);
}

bool PlaceLocks::Hold::Mine(uint64_t key) const {
  return std::find(keys_.begin(), keys_.end(), key) != keys_.end();
}

bool PlaceLocks::Hold::TryAdd(uint64_t key) {
  if (Mine(key))
    return true;
  {
    core::MutexLock lock(locks_->mu_);
    if (locks_->held_.insert(key).second) {
      keys_.push_back(key);
      return true;
    }
  }
  Release();
  core::MutexLock lock(locks_->mu_);
  while (locks_->held_.contains(key))
    locks_->freed_.Wait(lock);
  return false;
}

void PlaceLocks::Hold::Release() {
  if (keys_.empty())
    return;
  core::MutexLock lock(locks_->mu_);
  for (uint64_t key : keys_)
    locks_->held_.erase(key);
  keys_.clear();
  locks_->freed_.NotifyAll();
}

}  // namespace livemv::copy
