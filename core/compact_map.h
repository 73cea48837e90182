#pragma once

// A map from 64-bit numbers to small plain values that takes little more than
// the two: for what a worker must know of each file of a tree of millions.
//
// Sorted arrays, many of them, so that each is short: with a million entries
// an insertion moves some tens of kilobytes, and there is never a moment in
// which all of it is copied. They are pages of their own: in the heap of a
// process with many threads what they leave behind as they grow is as much
// again.
//
// Thread contract: a plain value; the owner synchronizes.

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>

namespace livemv::core {

// An array of plain values that grows in steps of a sixteenth: doubling would
// leave a quarter of all memory unused.
template <class T>
class PageArray {
 public:
  static_assert(std::is_trivially_copyable_v<T>);
  PageArray() = default;
  ~PageArray() { Move(0); }
  PageArray(const PageArray&) = delete;
  PageArray& operator=(const PageArray&) = delete;

  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  // at: from begin() to end().
  void Insert(const T* at, const T& value) {
    const size_t index = static_cast<size_t>(at - data_);
    if ((size_ + 1) * sizeof(T) > bytes_)
      Move(RoundUp((size_ + size_ / 16 + 4) * sizeof(T)));
    std::memmove(data_ + index + 1, data_ + index, (size_ - index) * sizeof(T));
    data_[index] = value;
    size_++;
  }
  // at: before end().
  void Erase(const T* at) {
    const size_t index = static_cast<size_t>(at - data_);
    size_--;
    std::memmove(data_ + index, data_ + index + 1, (size_ - index) * sizeof(T));
    if (const size_t less = RoundUp((size_ + size_ / 16) * sizeof(T));
        less < bytes_ / 2)
      Move(less);
  }

 private:
  static constexpr size_t kPage = 4096;
  static size_t RoundUp(size_t bytes) {
    const size_t unit = bytes < kPage ? 64 : kPage;
    return (bytes + unit - 1) / unit * unit;
  }
  // Into a piece of memory of that size, of the heap if it is small.
  void Move(size_t bytes) {
    const bool was_pages = bytes_ >= kPage, pages = bytes >= kPage;
    void* to = nullptr;
    if (pages && was_pages) {
      to = ::mremap(data_, bytes_, bytes, MREMAP_MAYMOVE);
    } else if (pages) {
      to = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    } else if (bytes != 0) {
      to = std::malloc(bytes);
    }
    if (to == MAP_FAILED || (to == nullptr && bytes != 0))
      throw std::bad_alloc();
    if (!(pages && was_pages)) {
      if (size_ != 0 && to != nullptr)
        std::memcpy(to, data_, size_ * sizeof(T));
      if (was_pages)
        ::munmap(data_, bytes_);
      else
        std::free(data_);
    }
    data_ = static_cast<T*>(to);
    bytes_ = bytes;
  }

  T* data_ = nullptr;
  size_t size_ = 0;
  size_t bytes_ = 0;  // of memory; from kPage on of its own mapping
};

template <class Value, int kPartBits = 8>
class CompactMap {
 public:
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
    part.Insert(it, Entry{key, value});
    size_++;
  }
  // False if there was none.
  bool Erase(uint64_t key) {
    Part& part = parts_[PartOf(key)];
    auto it = LowerBound(part, key);
    if (it == part.end() || it->key != key)
      return false;
    part.Erase(it);
    size_--;
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
  using Part = PageArray<Entry>;
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
