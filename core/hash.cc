#include "core/hash.h"

#include <xxhash.h>

#include <new>

namespace livemv::core {

Hash128 HashOf(const void* data, size_t len) {
  XXH128_hash_t h = XXH3_128bits(data, len);
  return {h.high64, h.low64};
}

uint64_t Hash64Of(const void* data, size_t len) {
  return XXH3_64bits(data, len);
}

Hasher::Hasher() : state_(XXH3_createState()) {
  if (state_ == nullptr)
    throw std::bad_alloc();
  XXH3_128bits_reset(state_);
}
Hasher::~Hasher() {
  XXH3_freeState(state_);
}
void Hasher::Add(const void* data, size_t len) {
  XXH3_128bits_update(state_, data, len);
}
Hash128 Hasher::Value() const {
  XXH128_hash_t h = XXH3_128bits_digest(state_);
  return {h.high64, h.low64};
}

}  // namespace livemv::core
