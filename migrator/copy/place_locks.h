#pragma once

// Locks over objects and names of the target, taken by number, so that two
// appliers never act on one place or object at once. Whoever holds some never
// waits for more (TryAdd), so there is no deadlock.
//
// Thread contract: all methods from any thread; a Hold belongs to one thread.

#include <cstdint>
#include <unordered_set>
#include <vector>

#include "core/state/ids.h"
#include "core/sync.h"

namespace livemv::copy {

class PlaceLocks {
 public:
  class Hold {
   public:
    explicit Hold(PlaceLocks* locks) : locks_(locks) {}
    ~Hold() { Release(); }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    // Waits until none of keys is held by others, then takes all. Only while
    // this holds nothing.
    void Acquire(std::vector<uint64_t> keys);
    // Takes key too if nobody has it. If somebody does: releases everything,
    // waits until key is free, and returns false; the caller looks again.
    bool TryAdd(uint64_t key);
    void Release();

   private:
    bool Mine(uint64_t key) const;
    PlaceLocks* const locks_;
    std::vector<uint64_t> keys_;
  };

  static uint64_t KeyOf(state::FileId object) { return object; }
  static uint64_t KeyOf(state::FileId dir, const std::string& name);

 private:
  core::Mutex mu_;
  core::CondVar freed_;
  std::unordered_set<uint64_t> held_;  // guarded by mu_
};

}  // namespace livemv::copy
