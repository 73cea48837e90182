#pragma once

// Who owns which byte of one file, and what of it the target has (rule 1).
//
//   0 ........................ local end ............ the file's size
//   chunks of kChunkBytes, the      |  the target's alone
//   last one ends at the local end  |
//
// Below the local end a byte is the source's unless it lies in a remote
// extent. A chunk is *copied* if the target has its source-owned bytes: the
// map may claim less than is true, never more. A chunk is *hot* if the two
// sides may differ after a host crash; copied and hot are independent.
//
// A wholly copied or wholly uncopied file takes no memory beyond the object
// (64 bytes), so there may be millions.
//
// All ranges are half-open; offsets and lengths are bytes, chunks are indices.
// Thread contract: a plain value; the owner synchronizes.

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/state/ids.h"

namespace livemv::state {

// A set of the integers [0, size). Empty and full sets take no heap memory.
class ChunkSet {
 public:
  ChunkSet() = default;
  ChunkSet(const ChunkSet& o);
  ChunkSet& operator=(const ChunkSet& o);
  ChunkSet(ChunkSet&& o) noexcept;
  ChunkSet& operator=(ChunkSet&& o) noexcept;

  uint64_t size() const { return size_; }
  uint64_t Count() const { return count_; }
  bool Has(uint64_t i) const;
  void Put(uint64_t first, uint64_t count);
  void Take(uint64_t first, uint64_t count);
  // New members of a larger set are absent.
  void Resize(uint64_t size);
  // The first i >= from that is present (or absent); size() if there is none.
  uint64_t NextPresent(uint64_t from) const { return Next(from, true); }
  uint64_t NextAbsent(uint64_t from) const { return Next(from, false); }
  bool operator==(const ChunkSet& o) const;

 private:
  uint64_t Next(uint64_t from, bool present) const;
  void Change(uint64_t first, uint64_t count, bool present);

  uint64_t size_ = 0;
  uint64_t count_ = 0;                 // members present
  std::unique_ptr<uint64_t[]> words_;  // null if count_ is 0 or size_
};

class ByteMap {
 public:
  struct Range {  // bytes or chunks, as said where it is used
    uint64_t first = 0, count = 0;
    bool operator==(const Range&) const = default;
  };
  enum class Owner : uint8_t { kSource, kTarget };
  struct Segment {
    uint64_t off = 0, len = 0;
    Owner owner = Owner::kSource;
    // kSource only, and only from SplitForWrite: the chunk is claimed as
    // copied, so a write goes to the target as well.
    bool copied = false;
    bool operator==(const Segment&) const = default;
  };

  // Nothing below a local end of 0: a new file, the target's alone.
  explicit ByteMap(uint64_t local_end = 0);
  ByteMap(const ByteMap& o);
  ByteMap& operator=(const ByteMap& o);
  ByteMap(ByteMap&&) noexcept = default;
  ByteMap& operator=(ByteMap&&) noexcept = default;

  uint64_t local_end() const { return local_end_; }
  uint64_t Chunks() const { return copied_.size(); }
  static uint64_t ChunkOf(uint64_t off) { return off / kChunkBytes; }
  Range ChunkBytesOf(uint64_t chunk) const;  // bytes; chunk < Chunks()
  // The chunks that [off, off+len) touches below the local end.
  Range ChunksIn(uint64_t off, uint64_t len) const;

  // The local end falls to new_end <= local_end(). What lies past it is
  // forgotten; a copied last chunk stays copied, since it became shorter.
  void ShrinkTo(uint64_t new_end);
  // Abort only: the source has the bytes up to new_end >= local_end() now. A
  // chunk that becomes longer is no longer claimed as copied.
  void RaiseTo(uint64_t new_end);

  // Chunk ranges lie below Chunks(). MarkCopied(hot) marks hot as well;
  // without hot an older hot mark stays. Withdraw leaves hot marks alone.
  void MarkCopied(uint64_t first, uint64_t count, bool hot);
  void Withdraw(uint64_t first, uint64_t count);
  void MarkHot(uint64_t first, uint64_t count);
  void Unhot(uint64_t first, uint64_t count);
  // [off, off+len) lies below the local end.
  void MakeRemote(uint64_t off, uint64_t len);

  bool IsCopied(uint64_t chunk) const { return copied_.Has(chunk); }
  bool IsHot(uint64_t chunk) const { return hot_.Has(chunk); }
  bool AnyHot() const { return hot_.Count() != 0; }
  // Every byte of [off, off+len) is remote. len > 0, below the local end.
  bool IsRemote(uint64_t off, uint64_t len) const;

  // Who owns the bytes of [off, off+len), in order, neighbours joined.
  std::vector<Segment> Split(uint64_t off, uint64_t len) const;
  // The same with `copied` set, neighbours of equal owner and copied joined.
  std::vector<Segment> SplitForWrite(uint64_t off, uint64_t len) const;

  // Below the local end, not copied, not wholly remote.
  bool WantsCopy(uint64_t chunk) const;
  // The first chunk >= from that wants to be copied.
  std::optional<uint64_t> NextToCopy(uint64_t from) const;
  bool AllCopied() const { return !NextToCopy(0).has_value(); }
  // Source-owned bytes in copied chunks, and remote bytes below the local end.
  uint64_t CopiedBytes() const;
  uint64_t RemoteBytes() const;

  std::vector<Range> CopiedRanges() const;  // chunks
  std::vector<Range> HotRanges() const;     // chunks
  std::vector<Range> RemoteRanges() const;  // bytes

  bool operator==(const ByteMap& o) const;
  // Aborts the program if the map contradicts itself; for tests.
  void CheckInvariants() const;

 private:
  std::vector<Segment> SplitAt(uint64_t off, uint64_t len, bool copied) const;
  uint64_t RemoteBytesIn(uint64_t off, uint64_t len) const;
  void CheckChunks(uint64_t first, uint64_t count) const;

  uint64_t local_end_;
  ChunkSet copied_, hot_;  // of Chunks() members
  // Sorted, apart from each other, below the local end; null if there is none.
  std::unique_ptr<std::vector<Range>> remote_;
};

}  // namespace livemv::state
