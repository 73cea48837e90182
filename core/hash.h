#pragma once

// XXH3-128 over bytes, streaming. Not for adversaries: it detects damage.
// Thread contract: one Hasher, one thread.

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>

struct XXH3_state_s;

namespace livemv::core {

struct Hash128 {
  uint64_t high = 0, low = 0;
  auto operator<=>(const Hash128&) const = default;
};

Hash128 HashOf(const void* data, size_t len);
uint64_t Hash64Of(const void* data, size_t len);

class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;
  void Add(const void* data, size_t len);
  Hash128 Value() const;

 private:
  XXH3_state_s* state_;
};

}  // namespace livemv::core
