#pragma once

// A map from 64-bit numbers to small plain values that takes little more than
// the two: for what a worker must know of each file of a tree of millions.
//
// Sorted arrays, many of them, so that each is short: with a million entries
// an insertion moves some kilobytes, and there is never a moment in which all
// of it is copied.
//
// Thread contract: a plain value; the owner synchronizes.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace livemv::core {

template <class Value, int kPartBits = 10>
class CompactMap {
 public:
  static_assert(std::is_trivially_copyable_v<Value>);

  // Null if there is none. Valid until the next change of the map.
  const Value* Find(uint64_t key) const {
    const Part& part = parts_[PartOf(key)];
    auto it = LowerBound(part, key);
    return it == part.end() || it->key != key ? nullptr : &it->value;
  }
  bool Contains(uint64_t key) const { return Find(key) != nullptr; }
  void Put(uint64_t key, Value value) {
    Part& part = parts_[PartOf(key)];
    auto it = LowerBound(part, key);
    if (it != part.end() && it->key == key) {
      it->value = value;
      return;
    }
    const auto at = it - part.begin();
    // In small steps: doubling would leave a quarter of all memory unused.
    if (part.size() == part.capacity())
      part.reserve(part.size() + part.size() / 8 + 4);
    part.insert(part.begin() + at, Entry{key, value});
    size_++;
  }
  // False if there was none.
  bool Erase(uint64_t key) {
    Part& part = parts_[PartOf(key)];
    auto it = LowerBound(part, key);
    if (it == part.end() || it->key != key)
      return false;
    part.erase(it);
    size_--;
    if (part.size() < part.capacity() / 2)
      part.shrink_to_fit();
    return true;
  }
  size_t Size() const { return size_; }
  bool Empty() const { return size_ == 0; }
  // visit(key, value), in no order; it does not change the map.
  template <class Visit>
  void ForEach(const Visit& visit) const {
    for (const Part& part : parts_)
      for (const Entry& entry : part)
        visit(entry.key, entry.value);
  }

 private:
  struct Entry {
    uint64_t key;
    Value value;
  };
  using Part = std::vector<Entry>;
  // Numbers of files are not random: inode numbers in a row. Not the factor by
  // which a table of such maps chooses among them.
  static size_t PartOf(uint64_t key) {
    return key * 0xBF58476D1CE4E5B9ull >> (64 - kPartBits);
  }
  template <class P>
  static auto LowerBound(P& part, uint64_t key) {
    return std::lower_bound(
        part.begin(), part.end(), key,
        [](const Entry& entry, uint64_t k) { return entry.key < k; });
  }

  std::array<Part, size_t{1} << kPartBits> parts_;
  size_t size_ = 0;
};

}  // namespace livemv::core
