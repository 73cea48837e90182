#include "core/state/node_table.h"

#include <cstdint>
#include <cstring>
#include <string>

#include "core/hash.h"

namespace livemv::state {
namespace {

using core::ErrorCode;
using core::Fail;
using core::FileHandle;

// include/linux/exportfs.h: FILEID_INO32_GEN, two 32-bit words: inode number,
// generation. (tmpfs uses the same type with three words.)
constexpr int32_t kInoGenType = 1;
constexpr size_t kInoGenBytes = 8;

FileId FirstIdFor(const FileHandle& handle) {
  std::string bytes(reinterpret_cast<const char*>(&handle.type),
                    sizeof handle.type);
  bytes += handle.bytes;
  return kTableBit |
         (core::Hash64Of(bytes.data(), bytes.size()) & (kAliasBit - 1));
}

FileId NextId(FileId id) {
  return kTableBit | ((id + 1) & (kAliasBit - 1));
}

std::string HexId(FileId id) {
  char text[24];
  snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(id));
  return text;
}

}  // namespace

std::optional<FileId> NodeTable::Pack(const FileHandle& handle) {
  if (handle.type != kInoGenType || handle.bytes.size() != kInoGenBytes)
    return std::nullopt;
  // The handle is in the byte order of the host, as the kernel's words are.
  uint32_t ino = 0, generation = 0;
  std::memcpy(&ino, handle.bytes.data(), 4);
  std::memcpy(&generation, handle.bytes.data() + 4, 4);
  FileId id = static_cast<FileId>(ino) << 32 | generation;
  // Inode number 0 is no inode; from 2^29 on it would reach the tag bits.
  if (ino == 0 || id >= kAliasBit)
    return std::nullopt;
  return id;
}

void NodeTable::SetRoot(const FileHandle& handle) {
  core::MutexLock lock(mu_);
  root_ = handle;
}

core::Status NodeTable::Adopt(const NodeFact& fact) {
  if ((fact.id & kTableBit) == 0 || (fact.id & kTargetBit) != 0)
    return Fail(
        ErrorCode::kCorrupt,
        "node record with a number that is not the table's: " + HexId(fact.id));
  core::MutexLock lock(mu_);
  auto [it, added] = by_id_.emplace(fact.id, fact.handle);
  if (!added && it->second != fact.handle)
    return Fail(ErrorCode::kCorrupt,
                "two source handles are journaled as node " + HexId(fact.id));
  return {};
}

core::Result<FileId> NodeTable::IdFor(const FileHandle& handle) {
  if (handle.bytes.empty())
    return Fail(ErrorCode::kInvalid, "a file handle without bytes");
  core::MutexLock lock(mu_);
  if (root_ && *root_ == handle)
    return kRootId;
  if (std::optional<FileId> packed = Pack(handle))
    return *packed;
  FileId id = FirstIdFor(handle);
  for (;; id = NextId(id)) {
    auto it = by_id_.find(id);
    if (it == by_id_.end())
      break;
    if (it->second == handle)
      return id;
  }
  TRY(journal_->Append(NodeFact{id, handle}));
  by_id_.emplace(id, handle);
  return id;
}

core::Result<FileHandle> NodeTable::HandleOf(FileId id) {
  core::MutexLock lock(mu_);
  if (id == kRootId && root_)
    return *root_;
  if (id >= kTableBit) {
    auto it = by_id_.find(id);
    if (it != by_id_.end())
      return it->second;
  } else if (uint32_t ino = static_cast<uint32_t>(id >> 32); ino != 0) {
    uint32_t generation = static_cast<uint32_t>(id);
    FileHandle handle;
    handle.type = kInoGenType;
    handle.bytes.append(reinterpret_cast<const char*>(&ino), 4);
    handle.bytes.append(reinterpret_cast<const char*>(&generation), 4);
    return handle;
  }
  return Fail(ErrorCode::kGone, "no source file has the number " + HexId(id));
}

void NodeTable::Forget(FileId id) {
  core::MutexLock lock(mu_);
  // A handle whose hash collided stands right after the one it collided with
  // and would not be found past a gap: then the entry stays.
  if (!by_id_.contains(NextId(id)))
    by_id_.erase(id);
}

size_t NodeTable::KeptHandles() {
  core::MutexLock lock(mu_);
  return by_id_.size();
}

}  // namespace livemv::state
