#include "migrator/copy/verifier.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/log.h"

namespace livemv::copy {

using core::Result;
using core::Status;

AlignedBuffer::AlignedBuffer(size_t bytes)
    : size_((bytes + kAlign - 1) / kAlign * kAlign),
      data_(static_cast<char*>(std::aligned_alloc(kAlign, size_))) {
  CHECK(data_ != nullptr);
}

void AlignedBuffer::Free::operator()(char* p) const { std::free(p); }

Result<Verifier::File> Verifier::Open(state::FileId id,
                                      std::shared_ptr<AlignedBuffer> buffer) {
  File file;
  file.sys_ = objects_->sys();
  file.buffer_ = std::move(buffer);
  std::optional<fusefs::Object> object = objects_->Find(id);
  if (!object)
    return core::Fail(core::ErrorCode::kGone, "verification: no object");
  if (!direct_refused_.load()) {
    auto fd = file.sys_->OpenByHandle(objects_->RootFd(), object->handle,
                                      O_RDONLY | O_DIRECT);
    if (fd) {
      file.fd_ = std::move(*fd);
      file.direct_ = true;
      return file;
    }
    // open(2): EINVAL where the filesystem does not support O_DIRECT.
    if (fd.error().sys_errno != EINVAL)
      return core::Fail(std::move(fd).error().With("verification"));
    direct_refused_.store(true);
  }
  ASSIGN_OR_RETURN(file.fd_,
                   file.sys_->OpenByHandle(objects_->RootFd(), object->handle,
                                           O_RDONLY));
  return file;
}

Result<size_t> Verifier::File::Fill(uint64_t begin, uint64_t end) {
  size_t done = 0, want = end - begin;
  while (done < want) {
    auto n = sys_->PRead(fd_.Get(), buffer_->Get() + done, want - done,
                         static_cast<off_t>(begin + done));
    if (!n)
      return core::Fail(std::move(n).error().With("verification"));
    done += *n;
    // A direct read that is not a whole number of blocks is the end.
    if (*n == 0 || done % AlignedBuffer::kAlign != 0)
      break;
  }
  return done;
}

Result<core::Hash128> Verifier::File::Hash(const Pieces& pieces) {
  constexpr uint64_t kAlign = AlignedBuffer::kAlign;
  core::Hasher hasher;
  if (pieces.empty())
    return hasher.Value();
  uint64_t begin = pieces.front().begin / kAlign * kAlign;
  uint64_t end = (pieces.back().end + kAlign - 1) / kAlign * kAlign;
  CHECK(end - begin <= buffer_->size());
  if (!direct_) {
    // Clean pages go, so the read that follows asks the storage. Best effort:
    // pages mapped or dirtied again stay.
    TRY(sys_->FAdvise(fd_.Get(), begin, end - begin, POSIX_FADV_DONTNEED));
  }
  ASSIGN_OR_RETURN(size_t n, Fill(begin, end));
  std::memset(buffer_->Get() + n, 0, end - begin - n);
  for (const fusefs::ByteRange& piece : pieces)
    hasher.Add(buffer_->Get() + (piece.begin - begin), piece.end - piece.begin);
  return hasher.Value();
}

}  // namespace livemv::copy
