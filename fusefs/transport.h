#pragma once

// The wire: reads requests from and writes replies to the /dev/fuse
// descriptor (not owned), keeps INIT for successors, and knows on each thread
// which raw request is being answered, since libfuse 3.14 drops some of its
// flags and its unique.
//
// Thread contract: all methods from any thread; SetRequest and Request are of
// the calling thread.

#include <linux/fuse.h>
#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <string_view>

#include "core/result.h"
#include "fusefs/fuse_wire.h"

struct fuse_custom_io;

namespace livemv::fusefs {

// Lives in memory shared with the supervisor, zeroed before the first worker.
// A length is stored after the bytes it speaks of.
struct SavedInit {
  std::atomic<uint32_t> request_len;  // 0: no worker has read INIT yet
  std::atomic<uint32_t> reply_len;    // 0: the kernel has no answer yet
  char request[512];
  char reply[256];  // fuse_init_out as the kernel accepted it
};

class Transport {
 public:
  // fd: /dev/fuse or a SEQPACKET socket that plays it; made non-blocking.
  Transport(int fd, SavedInit* saved);

  enum class ReadResult { kRequest, kNothing, kUnmounted, kError };
  // One look at the device; never waits. buf needs BufferBytes(). INIT is
  // saved on the way. kError: *err says why.
  ReadResult Read(char* buf, size_t size, size_t* len, int* err);
  bool Empty() const;  // whether Read would find nothing
  int fd() const { return fd_; }

  // Writes one reply or notification; 0 or an errno. ENOENT: the kernel no
  // longer waits for it (interrupted, aborted), which is normal.
  int Write(const struct iovec* iov, int count);
  int Reply(uint64_t unique, int err, const void* body, size_t len);
  // kUnsupported where the kernel does not know the code (EINVAL).
  core::Status Notify(int32_t code, const void* body, size_t len,
                      const void* more = nullptr, size_t more_len = 0);

  // The request that this thread is answering, or null.
  static const fuse_in_header* Request();
  // The transport of that request.
  static Transport* Current();
  // It was sent before, to a worker that did not answer.
  static bool IsResent() {
    return (Request()->unique & wire::kResentBit) != 0;
  }
  template <class Body>
  static const Body* RequestBody() {
    return reinterpret_cast<const Body*>(Request() + 1);
  }
  void SetRequest(const fuse_in_header* request);

  // libfuse's hooks; userdata is not used, the thread's transport is.
  static const fuse_custom_io* CustomIo();

  // The next INIT reply is recorded for the kernel's past self: it is not
  // written, because the kernel has had its answer (resume).
  void SwallowInitReply() { swallow_init_ = true; }
  // What the kernel offers, from the saved INIT; 0 before INIT.
  uint64_t KernelFlags() const;

  uint64_t replies_refused() const { return replies_refused_; }

 private:
  ssize_t WriteFromLibfuse(struct iovec* iov, int count);
  ssize_t WriteInitReply(struct iovec* iov, int count);
  static ssize_t WritevHook(int, struct iovec* iov, int count, void*);
  static ssize_t ReadHook(int, void*, size_t, void*);

  const int fd_;
  SavedInit* const saved_;
  bool swallow_init_ = false;
  std::atomic<uint64_t> replies_refused_{0};  // other than ENOENT
};

// The INIT reply that libfuse made, with what it does not know added: killpriv
// v2, extended setxattr, shared mappings of uncached files, resend. offered:
// the kernel's flags. A pure function.
void PatchInitReply(uint64_t offered, struct fuse_init_out* reply);

}  // namespace livemv::fusefs
