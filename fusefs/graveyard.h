#pragma once

// FileIds that may have lost their last name: the barrier looks at them and
// destroys what belonged to those that are really gone.
//
// Thread contract: all methods from any thread; none blocks.

#include <unordered_set>
#include <vector>

#include "core/state/ids.h"
#include "core/sync.h"

namespace livemv::fusefs {

class Graveyard {
 public:
  void Add(state::FileId id) {
    core::MutexLock lock(mu_);
    ids_.insert(id);
  }
  void Remove(state::FileId id) {
    core::MutexLock lock(mu_);
    ids_.erase(id);
  }
  std::vector<state::FileId> All() {
    core::MutexLock lock(mu_);
    return {ids_.begin(), ids_.end()};
  }
  size_t Count() {
    core::MutexLock lock(mu_);
    return ids_.size();
  }

 private:
  core::Mutex mu_;
  std::unordered_set<state::FileId> ids_;  // guarded by mu_
};

}  // namespace livemv::fusefs
