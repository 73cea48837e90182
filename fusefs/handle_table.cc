#include "fusefs/handle_table.h"

#include <sys/stat.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace livemv::fusefs {
namespace {

// include/linux/exportfs.h: FILEID_INO32_GEN, two words of the host.
constexpr int kInoGenType = 1;
constexpr size_t kInoGenBytes = 8;

}  // namespace

struct HandleTable::Blob {
  uint64_t ino;
  uint32_t type;
  int32_t handle_type;
  uint32_t handle_len;
  char handle[];  // handle_len of them

  static Blob* Make(const Object& object) {
    const std::string& bytes = object.handle.bytes;
    auto* blob =
        static_cast<Blob*>(std::malloc(sizeof(Blob) + bytes.size()));
    if (blob == nullptr)
      throw std::bad_alloc();
    blob->ino = object.ino;
    blob->type = object.type;
    blob->handle_type = object.handle.type;
    blob->handle_len = static_cast<uint32_t>(bytes.size());
    std::memcpy(blob->handle, bytes.data(), bytes.size());
    return blob;
  }
  Object ToObject() const {
    return Object{{handle_type, std::string(handle, handle_len)}, ino, type};
  }
};

std::optional<uint64_t> HandleTable::Pack(const Object& object) {
  const core::FileHandle& handle = object.handle;
  if (object.type != S_IFREG || handle.type != kInoGenType ||
      handle.bytes.size() != kInoGenBytes)
    return std::nullopt;
  uint64_t packed;
  std::memcpy(&packed, handle.bytes.data(), sizeof packed);
  if (Unpack(packed).ino != object.ino)
    return std::nullopt;
  return packed;
}

Object HandleTable::Unpack(uint64_t packed) {
  uint32_t ino;
  std::memcpy(&ino, &packed, sizeof ino);
  std::string bytes(kInoGenBytes, '\0');
  std::memcpy(bytes.data(), &packed, sizeof packed);
  return Object{{kInoGenType, std::move(bytes)}, ino, S_IFREG};
}

HandleTable::~HandleTable() {
  blobs_.ForEach([](state::FileId, Blob* blob) { std::free(blob); });
}

void HandleTable::Put(state::FileId id, const Object& object) {
  Erase(id);
  if (std::optional<uint64_t> packed = Pack(object))
    packed_.Put(id, *packed);
  else
    blobs_.Put(id, Blob::Make(object));
  if (object.type == S_IFREG)
    files_++;
  if (by_ino_.Contains(object.ino))
    more_by_ino_.emplace(object.ino, id);
  else
    by_ino_.Put(object.ino, id);
}

void HandleTable::Erase(state::FileId id) {
  std::optional<Object> object = Find(id);
  if (!object)
    return;
  ForgetIno(object->ino, id);
  if (object->type == S_IFREG)
    files_--;
  if (Blob* const* blob = blobs_.Find(id)) {
    std::free(*blob);
    blobs_.Erase(id);
  } else {
    packed_.Erase(id);
  }
}

void HandleTable::ForgetIno(uint64_t ino, state::FileId id) {
  auto [begin, end] = more_by_ino_.equal_range(ino);
  if (*by_ino_.Find(ino) == id) {
    by_ino_.Erase(ino);
    if (begin != end) {
      by_ino_.Put(ino, begin->second);
      more_by_ino_.erase(begin);
    }
    return;
  }
  for (auto it = begin; it != end; ++it) {
    if (it->second == id) {
      more_by_ino_.erase(it);
      return;
    }
  }
}

std::optional<Object> HandleTable::Find(state::FileId id) const {
  if (const uint64_t* packed = packed_.Find(id))
    return Unpack(*packed);
  if (Blob* const* blob = blobs_.Find(id))
    return (*blob)->ToObject();
  return std::nullopt;
}

bool HandleTable::Contains(state::FileId id) const {
  return packed_.Contains(id) || blobs_.Contains(id);
}

std::vector<state::FileId> HandleTable::FindByIno(uint64_t ino) const {
  std::vector<state::FileId> ids;
  const state::FileId* first = by_ino_.Find(ino);
  if (first == nullptr)
    return ids;
  ids.push_back(*first);
  auto [begin, end] = more_by_ino_.equal_range(ino);
  for (auto it = begin; it != end; ++it)
    ids.push_back(it->second);
  return ids;
}

}  // namespace livemv::fusefs
