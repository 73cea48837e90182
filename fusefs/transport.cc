#include "fusefs/transport.h"

#define FUSE_USE_VERSION 314
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "core/log.h"
#include "fusefs/fuse_wire.h"

namespace livemv::fusefs {
namespace {

thread_local const fuse_in_header* current_request = nullptr;
thread_local Transport* current_transport = nullptr;

uint64_t OfferedFlags(const char* request, size_t len) {
  constexpr size_t kOldBody = 16;  // before flags2
  if (len < sizeof(fuse_in_header) + kOldBody)
    return 0;
  fuse_init_in in{};
  std::memcpy(&in, request + sizeof(fuse_in_header),
              std::min(len - sizeof(fuse_in_header), sizeof in));
  uint64_t flags = in.flags;
  if (flags & wire::kInitExt)
    flags |= static_cast<uint64_t>(in.flags2) << 32;
  return flags;
}

}  // namespace

Transport::Transport(int fd, SavedInit* saved) : fd_(fd), saved_(saved) {
  // A property of the open file that supervisor and worker share; the
  // supervisor does not read.
  int flags = ::fcntl(fd_, F_GETFL);
  if (flags < 0 || ::fcntl(fd_, F_SETFL, flags | O_NONBLOCK) < 0)
    LOG_ERROR("make the FUSE descriptor {} non-blocking: {}", fd_,
              core::ErrnoName(errno));
}

Transport::ReadResult Transport::Read(char* buf, size_t size, size_t* len,
                                      int* err) {
  constexpr int kAbortedReads = 100;  // and as many milliseconds
  for (int aborted = 0;;) {
    ssize_t got = ::read(fd_, buf, size);
    if (got < 0) {
      // fs/fuse/dev.c: ENOENT means that the request was interrupted before
      // it was handed out, ENODEV that the superblock is gone.
      if (errno == EINTR || errno == ENOENT)
        continue;
      // The superblock goes while a request was being handed out (there,
      // fpq->connected): the next read says ENODEV. After an abort by way of
      // /sys/fs/fuse/connections every read says this.
      if (errno == ECONNABORTED && aborted++ < kAbortedReads) {
        ::usleep(1000);
        continue;
      }
      if (errno == EAGAIN)
        return ReadResult::kNothing;
      if (errno == ENODEV || errno == ENOTCONN)
        return ReadResult::kUnmounted;
      *err = errno;
      return ReadResult::kError;
    }
    if (got == 0)  // a socket whose peer is gone
      return ReadResult::kUnmounted;
    const auto* header = reinterpret_cast<const fuse_in_header*>(buf);
    if (static_cast<size_t>(got) < sizeof *header ||
        header->len != static_cast<size_t>(got)) {
      *err = EPROTO;
      return ReadResult::kError;
    }
    *len = static_cast<size_t>(got);
    if (header->opcode == FUSE_INIT && *len <= sizeof saved_->request) {
      std::memcpy(saved_->request, buf, *len);
      saved_->request_len.store(static_cast<uint32_t>(*len),
                                std::memory_order_release);
    }
    return ReadResult::kRequest;
  }
}

bool Transport::Empty() const {
  struct pollfd p = {fd_, POLLIN, 0};
  return ::poll(&p, 1, 0) == 0;
}

int Transport::Write(const struct iovec* iov, int count) {
  for (;;) {
    if (::writev(fd_, iov, count) >= 0)
      return 0;
    int err = errno;
    if (err == EINTR)
      continue;
    if (err == EAGAIN) {  // a socket in tests; /dev/fuse never says so
      struct pollfd p = {fd_, POLLOUT, 0};
      ::poll(&p, 1, -1);
      continue;
    }
    return err;
  }
}

int Transport::Reply(uint64_t unique, int err, const void* body, size_t len) {
  fuse_out_header header{};
  header.len = static_cast<uint32_t>(sizeof header + (err == 0 ? len : 0));
  header.error = -err;
  header.unique = unique;
  struct iovec iov[2] = {{&header, sizeof header},
                         {const_cast<void*>(body), len}};
  int result = Write(iov, err == 0 && len > 0 ? 2 : 1);
  if (result != 0 && result != ENOENT) {
    replies_refused_++;
    LOG_ERROR("reply to request {:#x}: {}", unique, core::ErrnoName(result));
  }
  return result;
}

core::Status Transport::Notify(int32_t code, const void* body, size_t len,
                               const void* more, size_t more_len) {
  fuse_out_header header{};
  header.len = static_cast<uint32_t>(sizeof header + len + more_len);
  header.error = code;
  header.unique = 0;
  struct iovec iov[3] = {{&header, sizeof header},
                         {const_cast<void*>(body), len},
                         {const_cast<void*>(more), more_len}};
  int count = more_len > 0 ? 3 : len > 0 ? 2 : 1;
  switch (int err = Write(iov, count)) {
    case 0:
      return {};
    case EINVAL:
      return core::Fail(core::ErrorCode::kUnsupported,
                        "FUSE notification " + std::to_string(code) +
                            " is unknown to this kernel");
    default:
      return core::FailSys(err, "FUSE notification " + std::to_string(code));
  }
}

const fuse_in_header* Transport::Request() {
  return current_request;
}

Transport* Transport::Current() {
  return current_transport;
}

void Transport::SetRequest(const fuse_in_header* request) {
  current_request = request;
  current_transport = request == nullptr ? nullptr : this;
}

const fuse_custom_io* Transport::CustomIo() {
  static constexpr fuse_custom_io kIo = {
      &Transport::WritevHook, &Transport::ReadHook, nullptr, nullptr};
  return &kIo;
}

ssize_t Transport::ReadHook(int, void*, size_t, void*) {
  errno = ENOTSUP;  // the session reads; libfuse only needs the hook to exist
  return -1;
}

ssize_t Transport::WritevHook(int, struct iovec* iov, int count, void*) {
  // libfuse replies on the thread that handles the request.
  CHECK(current_transport != nullptr);
  return current_transport->WriteFromLibfuse(iov, count);
}

ssize_t Transport::WriteFromLibfuse(struct iovec* iov, int count) {
  const auto* header = static_cast<const fuse_out_header*>(iov[0].iov_base);
  const uint32_t len = header->len;
  if (current_request->opcode == FUSE_INIT && header->error == 0 && count > 1)
    return WriteInitReply(iov, count);
  int err = Write(iov, count);
  if (err == 0)
    return len;
  if (err != ENOENT) {
    replies_refused_++;
    LOG_ERROR("reply to opcode {} of request {:#x}: {}",
              current_request->opcode, header->unique, core::ErrnoName(err));
  }
  errno = err;
  return -1;
}

ssize_t Transport::WriteInitReply(struct iovec* iov, int count) {
  auto* header = static_cast<fuse_out_header*>(iov[0].iov_base);
  fuse_init_out reply{};
  size_t have = 0;
  for (int i = 1; i < count; i++) {
    size_t n = std::min(iov[i].iov_len, sizeof reply - have);
    std::memcpy(reinterpret_cast<char*>(&reply) + have, iov[i].iov_base, n);
    have += n;
  }
  PatchInitReply(KernelFlags(), &reply);
  static_assert(sizeof reply <= sizeof saved_->reply);
  if (swallow_init_) {
    swallow_init_ = false;
    if (saved_->reply_len != sizeof reply ||
        std::memcmp(saved_->reply, &reply, sizeof reply) != 0)
      LOG_WARN(
          "this worker would negotiate other FUSE flags ({:#x} {:#x}) than "
          "the kernel was given",
          reply.flags, reply.flags2);
    return header->len;
  }
  header->len = sizeof *header + sizeof reply;
  struct iovec out[2] = {{header, sizeof *header}, {&reply, sizeof reply}};
  int err = Write(out, 2);
  // ENOENT: the predecessor's reply was accepted and it died before it could
  // note so.
  if (err != 0 && err != ENOENT) {
    LOG_ERROR("reply to INIT: {}", core::ErrnoName(err));
    errno = err;
    return -1;
  }
  std::memcpy(saved_->reply, &reply, sizeof reply);
  saved_->reply_len.store(sizeof reply, std::memory_order_release);
  LOG_INFO("FUSE {}.{}: flags {:#x} {:#x}, max_write {}", reply.major,
           reply.minor, reply.flags, reply.flags2, reply.max_write);
  return header->len;
}

uint64_t Transport::KernelFlags() const {
  return OfferedFlags(saved_->request,
                      saved_->request_len.load(std::memory_order_acquire));
}

void PatchInitReply(uint64_t offered, struct fuse_init_out* reply) {
  auto* out = reinterpret_cast<wire::InitOut*>(reply);
  // Parallel look-ups in a directory: libfuse 3.14 takes the wish and forgets
  // to pass it on. Killpriv v2 spares a GETXATTR of security.capability before
  // every write; the flags that it needs are taken from the raw requests.
  const uint64_t wanted = FUSE_PARALLEL_DIROPS | wire::kHandleKillprivV2 |
                          wire::kSetxattrExt | wire::kDirectIoAllowMmap |
                          wire::kHasResend | wire::kPassthrough;
  uint64_t add = wanted & offered;
  if (!(offered & wire::kInitExt))
    add &= 0xffffffffull;
  out->flags |= static_cast<uint32_t>(add);
  if (add >> 32) {
    out->flags |= static_cast<uint32_t>(wire::kInitExt);
    out->flags2 |= static_cast<uint32_t>(add >> 32);
  }
  // A backing file on a filesystem that is itself stacked is refused (ELOOP):
  // so the overlay can still be a layer of an overlayfs.
  if (add & wire::kPassthrough)
    out->max_stack_depth = 1;
  out->minor = std::max(out->minor, wire::kMinor);
}

}  // namespace livemv::fusefs
