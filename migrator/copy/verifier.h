#pragma once

// Reads what the copier wrote back from the target's storage, not from the
// cache that was just filled (hazard H25): with O_DIRECT where the filesystem
// takes it, else after dropping the clean pages.
//
// Thread contract: Check from any thread; each call needs a buffer of one
// chunk. Blocks on the target.

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/hash.h"
#include "core/result.h"
#include "fusefs/byte_ledger.h"

namespace livemv::copy {

// The bytes of a chunk that the copier is answerable for: below the local end
// and not remote, as they were when it was copied.
using Pieces = std::vector<fusefs::ByteRange>;

// A buffer that O_DIRECT takes.
class AlignedBuffer {
 public:
  static constexpr size_t kAlign = 4096;
  explicit AlignedBuffer(size_t bytes);
  char* Get() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(char* p) const;
  };
  size_t size_;
  std::unique_ptr<char, Free> data_;
};

class Verifier {
 public:
  explicit Verifier(fusefs::ObjectStore* objects) : objects_(objects) {}

  // One file at a time: keeps its descriptor open between chunks.
  class File {
   public:
    // XXH3-128 of pieces, which lie within one chunk, as the storage has them.
    // Bytes past the object's end count as zeros.
    core::Result<core::Hash128> Hash(const Pieces& pieces);

   private:
    friend class Verifier;
    core::Result<size_t> Fill(uint64_t begin, uint64_t end);
    core::Syscalls* sys_ = nullptr;
    core::UniqueFd fd_;
    bool direct_ = false;
    std::shared_ptr<AlignedBuffer> buffer_;
  };
  // buffer holds at least one chunk and two alignments.
  core::Result<File> Open(state::FileId id,
                          std::shared_ptr<AlignedBuffer> buffer);

 private:
  fusefs::ObjectStore* const objects_;
  std::atomic<bool> direct_refused_{false};
};

}  // namespace livemv::copy
