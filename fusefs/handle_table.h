#pragma once

// Which object of the target is whose: FileId to object and inode number back
// to FileId, in little more memory than the numbers take (rule 4).
//
// Thread contract: a plain value; the owner synchronizes.

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/compact_map.h"
#include "core/state/ids.h"
#include "core/syscalls.h"

namespace livemv::fusefs {

struct Object {
  core::FileHandle handle;
  uint64_t ino = 0;   // on the target
  uint32_t type = 0;  // S_IFMT bits
  bool operator==(const Object&) const = default;
};

class HandleTable {
 public:
  HandleTable() = default;
  ~HandleTable();
  HandleTable(const HandleTable&) = delete;
  HandleTable& operator=(const HandleTable&) = delete;

  // In the place of what id had.
  void Put(state::FileId id, const Object& object);
  void Erase(state::FileId id);
  std::optional<Object> Find(state::FileId id) const;
  bool Contains(state::FileId id) const;
  // More than one where the number was used again and the older binding is
  // still there.
  std::vector<state::FileId> FindByIno(uint64_t ino) const;
  // Of regular files.
  size_t Files() const { return files_; }

 private:
  // An object in one piece: type, inode number, and the handle with its bytes.
  struct Blob;
  static std::optional<uint64_t> Pack(const Object& object);
  static Object Unpack(uint64_t packed);
  void ForgetIno(uint64_t ino, state::FileId id);

  // Regular files whose handle is an inode number and a generation (ext4, xfs).
  core::CompactMap<uint64_t> packed_;
  core::CompactMap<Blob*> blobs_;  // all others; owned
  core::CompactMap<state::FileId> by_ino_;
  std::unordered_multimap<uint64_t, state::FileId> more_by_ino_;
  size_t files_ = 0;
};

}  // namespace livemv::fusefs
