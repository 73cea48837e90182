#include "core/state/byte_map.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/log.h"

namespace livemv::state {
namespace {

constexpr uint64_t kWordBits = 64;
constexpr uint64_t kAllBits = ~0ull;

uint64_t WordsFor(uint64_t size) {
  return size / kWordBits + (size % kWordBits != 0);
}

uint64_t ChunksFor(uint64_t local_end) {
  return local_end / kChunkBytes + (local_end % kChunkBytes != 0);
}

// off + len, or the largest offset if that overflows.
uint64_t EndOf(uint64_t off, uint64_t len) {
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  return len > kMax - off ? kMax : off + len;
}

std::vector<ByteMap::Range> RangesOf(const ChunkSet& set) {
  std::vector<ByteMap::Range> out;
  uint64_t i = set.NextPresent(0);
  while (i < set.size()) {
    uint64_t end = set.NextAbsent(i);
    out.push_back({i, end - i});
    i = set.NextPresent(end);
  }
  return out;
}

}  // namespace

// ---------------------------------------------------------------- ChunkSet

ChunkSet::ChunkSet(const ChunkSet& o) : size_(o.size_), count_(o.count_) {
  if (o.words_) {
    words_ = std::make_unique<uint64_t[]>(WordsFor(size_));
    std::copy_n(o.words_.get(), WordsFor(size_), words_.get());
  }
}

ChunkSet& ChunkSet::operator=(const ChunkSet& o) {
  if (this != &o)
    *this = ChunkSet(o);
  return *this;
}

ChunkSet::ChunkSet(ChunkSet&& o) noexcept
    : size_(std::exchange(o.size_, 0)),
      count_(std::exchange(o.count_, 0)),
      words_(std::move(o.words_)) {}

ChunkSet& ChunkSet::operator=(ChunkSet&& o) noexcept {
  size_ = std::exchange(o.size_, 0);
  count_ = std::exchange(o.count_, 0);
  words_ = std::move(o.words_);
  return *this;
}

bool ChunkSet::Has(uint64_t i) const {
  if (i >= size_)
    return false;
  if (!words_)
    return count_ != 0;
  return (words_[i / kWordBits] >> (i % kWordBits) & 1) != 0;
}

void ChunkSet::Put(uint64_t first, uint64_t count) {
  Change(first, count, true);
}

void ChunkSet::Take(uint64_t first, uint64_t count) {
  Change(first, count, false);
}

void ChunkSet::Change(uint64_t first, uint64_t count, bool present) {
  CHECK(first <= size_ && count <= size_ - first);
  if (count == 0 || count_ == (present ? size_ : 0))
    return;
  if (!words_) {
    words_ = std::make_unique<uint64_t[]>(WordsFor(size_));
    if (count_ != 0) {  // full until now; bits past size_ stay 0
      std::fill_n(words_.get(), WordsFor(size_), kAllBits);
      if (size_ % kWordBits != 0)
        words_[size_ / kWordBits] = (1ull << size_ % kWordBits) - 1;
    }
  }
  for (uint64_t i = first, end = first + count; i < end;) {
    uint64_t bit = i % kWordBits;
    uint64_t n = std::min(kWordBits - bit, end - i);
    uint64_t mask = (n == kWordBits ? kAllBits : (1ull << n) - 1) << bit;
    uint64_t& word = words_[i / kWordBits];
    count_ -= static_cast<uint64_t>(std::popcount(word));
    word = present ? word | mask : word & ~mask;
    count_ += static_cast<uint64_t>(std::popcount(word));
    i += n;
  }
  if (count_ == 0 || count_ == size_)
    words_.reset();
}

void ChunkSet::Resize(uint64_t size) {
  if (size < size_) {
    Take(size, size_ - size);  // a full set becomes one of words, for a moment
    size_ = size;
    if (count_ == size_)
      words_.reset();
    return;
  }
  if (size == size_)
    return;
  if (count_ != 0) {
    auto words = std::make_unique<uint64_t[]>(WordsFor(size));
    if (words_)
      std::copy_n(words_.get(), WordsFor(size_), words.get());
    bool full = !words_;
    words_ = std::move(words);
    uint64_t old = std::exchange(size_, size);
    if (full) {
      count_ = 0;
      Put(0, old);
    }
    return;
  }
  size_ = size;
}

uint64_t ChunkSet::Next(uint64_t from, bool present) const {
  if (from >= size_)
    return size_;
  if (!words_)
    return (count_ != 0) == present ? from : size_;
  for (uint64_t w = from / kWordBits; w < WordsFor(size_); w++) {
    uint64_t word = present ? words_[w] : ~words_[w];
    if (w == from / kWordBits)
      word &= kAllBits << (from % kWordBits);
    if (word != 0)
      return std::min(
          size_, w * kWordBits + static_cast<uint64_t>(std::countr_zero(word)));
  }
  return size_;
}

bool ChunkSet::operator==(const ChunkSet& o) const {
  // Equal counts: both have words or neither has.
  return size_ == o.size_ && count_ == o.count_ &&
         (!words_ || std::equal(words_.get(), words_.get() + WordsFor(size_),
                                o.words_.get()));
}

// ----------------------------------------------------------------- ByteMap

ByteMap::ByteMap(uint64_t local_end) : local_end_(local_end) {
  copied_.Resize(ChunksFor(local_end));
  hot_.Resize(ChunksFor(local_end));
}

ByteMap::ByteMap(const ByteMap& o)
    : local_end_(o.local_end_), copied_(o.copied_), hot_(o.hot_) {
  if (o.remote_)
    remote_ = std::make_unique<std::vector<Range>>(*o.remote_);
}

ByteMap& ByteMap::operator=(const ByteMap& o) {
  if (this != &o)
    *this = ByteMap(o);
  return *this;
}

ByteMap::Range ByteMap::ChunkBytesOf(uint64_t chunk) const {
  CHECK(chunk < Chunks());
  uint64_t off = chunk * kChunkBytes;
  return {off, std::min(kChunkBytes, local_end_ - off)};
}

ByteMap::Range ByteMap::ChunksIn(uint64_t off, uint64_t len) const {
  uint64_t end = std::min(EndOf(off, len), local_end_);
  if (off >= end)
    return {std::min(ChunkOf(off), Chunks()), 0};
  uint64_t first = ChunkOf(off);
  return {first, ChunkOf(end - 1) + 1 - first};
}

void ByteMap::ShrinkTo(uint64_t new_end) {
  CHECK(new_end <= local_end_);
  local_end_ = new_end;
  copied_.Resize(ChunksFor(new_end));
  hot_.Resize(ChunksFor(new_end));
  if (!remote_)
    return;
  while (!remote_->empty() && remote_->back().first >= new_end)
    remote_->pop_back();
  if (remote_->empty()) {
    remote_.reset();
    return;
  }
  Range& last = remote_->back();
  last.count = std::min(last.count, new_end - last.first);
}

void ByteMap::RaiseTo(uint64_t new_end) {
  CHECK(new_end >= local_end_);
  if (new_end == local_end_)
    return;
  if (local_end_ % kChunkBytes != 0)
    copied_.Take(Chunks() - 1, 1);
  local_end_ = new_end;
  copied_.Resize(ChunksFor(new_end));
  hot_.Resize(ChunksFor(new_end));
}

void ByteMap::CheckChunks(uint64_t first, uint64_t count) const {
  CHECK(first <= Chunks() && count <= Chunks() - first);
}

void ByteMap::MarkCopied(uint64_t first, uint64_t count, bool hot) {
  CheckChunks(first, count);
  copied_.Put(first, count);
  if (hot)
    hot_.Put(first, count);
}

void ByteMap::Withdraw(uint64_t first, uint64_t count) {
  CheckChunks(first, count);
  copied_.Take(first, count);
}

void ByteMap::MarkHot(uint64_t first, uint64_t count) {
  CheckChunks(first, count);
  hot_.Put(first, count);
}

void ByteMap::Unhot(uint64_t first, uint64_t count) {
  CheckChunks(first, count);
  hot_.Take(first, count);
}

void ByteMap::MakeRemote(uint64_t off, uint64_t len) {
  CHECK(off <= local_end_ && len <= local_end_ - off);
  if (len == 0)
    return;
  if (!remote_)
    remote_ = std::make_unique<std::vector<Range>>();
  // Everything that overlaps or touches [off, off+len) becomes one extent.
  auto begin = std::partition_point(
      remote_->begin(), remote_->end(),
      [&](const Range& r) { return r.first + r.count < off; });
  uint64_t lo = off, hi = off + len;
  auto end = begin;
  for (; end != remote_->end() && end->first <= hi; ++end) {
    lo = std::min(lo, end->first);
    hi = std::max(hi, end->first + end->count);
  }
  if (begin == end) {
    remote_->insert(begin, {lo, hi - lo});
    return;
  }
  *begin = {lo, hi - lo};
  remote_->erase(begin + 1, end);
}

bool ByteMap::IsRemote(uint64_t off, uint64_t len) const {
  return RemoteBytesIn(off, len) == len;
}

uint64_t ByteMap::RemoteBytesIn(uint64_t off, uint64_t len) const {
  if (!remote_)
    return 0;
  uint64_t end = EndOf(off, len), sum = 0;
  auto it = std::partition_point(
      remote_->begin(), remote_->end(),
      [&](const Range& r) { return r.first + r.count <= off; });
  for (; it != remote_->end() && it->first < end; ++it)
    sum += std::min(end, it->first + it->count) - std::max(off, it->first);
  return sum;
}

std::vector<ByteMap::Segment> ByteMap::Split(uint64_t off, uint64_t len) const {
  return SplitAt(off, len, false);
}

std::vector<ByteMap::Segment> ByteMap::SplitForWrite(uint64_t off,
                                                     uint64_t len) const {
  return SplitAt(off, len, true);
}

std::vector<ByteMap::Segment> ByteMap::SplitAt(uint64_t off, uint64_t len,
                                               bool with_copied) const {
  std::vector<Segment> out;
  auto add = [&](uint64_t from, uint64_t to, Owner owner, bool copied) {
    if (!out.empty() && out.back().owner == owner &&
        out.back().copied == copied)
      out.back().len += to - from;
    else
      out.push_back({from, to - from, owner, copied});
  };
  const uint64_t end = EndOf(off, len);
  const uint64_t local = std::min(end, local_end_);
  static const std::vector<Range> kNone;
  const std::vector<Range>& remote = remote_ ? *remote_ : kNone;
  auto next = std::partition_point(
      remote.begin(), remote.end(),
      [&](const Range& r) { return r.first + r.count <= off; });
  uint64_t at = off;
  while (at < local) {
    if (next != remote.end() && next->first <= at) {
      uint64_t to = std::min(local, next->first + next->count);
      add(at, to, Owner::kTarget, false);
      at = to;
      ++next;
      continue;
    }
    uint64_t to = next != remote.end() ? std::min(local, next->first) : local;
    bool copied = false;
    if (with_copied) {
      uint64_t chunk = ChunkOf(at);
      copied = copied_.Has(chunk);
      uint64_t other =
          copied ? copied_.NextAbsent(chunk) : copied_.NextPresent(chunk);
      if (other < Chunks())
        to = std::min(to, other * kChunkBytes);
    }
    add(at, to, Owner::kSource, copied);
    at = to;
  }
  if (at < end)
    add(at, end, Owner::kTarget, false);
  return out;
}

bool ByteMap::WantsCopy(uint64_t chunk) const {
  if (chunk >= Chunks() || copied_.Has(chunk))
    return false;
  Range bytes = ChunkBytesOf(chunk);
  return !IsRemote(bytes.first, bytes.count);
}

std::optional<uint64_t> ByteMap::NextToCopy(uint64_t from) const {
  uint64_t chunk = copied_.NextAbsent(from);
  while (chunk < Chunks()) {
    Range bytes = ChunkBytesOf(chunk);
    if (!remote_ || !IsRemote(bytes.first, bytes.count))
      return chunk;
    // Wholly remote, hence by one extent: on to the chunk where that ends.
    auto extent = std::partition_point(
        remote_->begin(), remote_->end(),
        [&](const Range& r) { return r.first + r.count <= bytes.first; });
    uint64_t past = extent->first + extent->count;
    chunk = past == local_end_
                ? Chunks()
                : copied_.NextAbsent(std::max(chunk + 1, ChunkOf(past)));
  }
  return std::nullopt;
}

uint64_t ByteMap::CopiedBytes() const {
  uint64_t sum = copied_.Count() * kChunkBytes;
  if (Chunks() != 0 && copied_.Has(Chunks() - 1))
    sum -= kChunkBytes - ChunkBytesOf(Chunks() - 1).count;
  if (!remote_)
    return sum;
  for (const Range& copied : CopiedRanges())
    sum -= RemoteBytesIn(copied.first * kChunkBytes,
                         std::min(copied.count * kChunkBytes,
                                  local_end_ - copied.first * kChunkBytes));
  return sum;
}

uint64_t ByteMap::RemoteBytes() const {
  return RemoteBytesIn(0, local_end_);
}

std::vector<ByteMap::Range> ByteMap::CopiedRanges() const {
  return RangesOf(copied_);
}
std::vector<ByteMap::Range> ByteMap::HotRanges() const {
  return RangesOf(hot_);
}
std::vector<ByteMap::Range> ByteMap::RemoteRanges() const {
  return remote_ ? *remote_ : std::vector<Range>();
}

bool ByteMap::operator==(const ByteMap& o) const {
  return local_end_ == o.local_end_ && copied_ == o.copied_ && hot_ == o.hot_ &&
         RemoteRanges() == o.RemoteRanges();
}

void ByteMap::CheckInvariants() const {
  CHECK(copied_.size() == ChunksFor(local_end_));
  CHECK(hot_.size() == ChunksFor(local_end_));
  for (const ChunkSet* set : {&copied_, &hot_}) {
    uint64_t count = 0;
    for (const Range& r : RangesOf(*set))
      count += r.count;
    CHECK(count == set->Count());
  }
  CHECK(!remote_ || !remote_->empty());
  bool first = true;
  uint64_t end = 0;
  for (const Range& r : RemoteRanges()) {
    CHECK(r.count != 0);
    CHECK(first || r.first > end);  // a gap between any two
    first = false;
    end = r.first + r.count;
    CHECK(end <= local_end_);
  }
}

}  // namespace livemv::state
