#pragma once

// The kernel's side of a FUSE connection on a SEQPACKET socket pair: sends
// requests, collects replies and notifications, and hands unanswered requests
// out again when asked to (FUSE_NOTIFY_RESEND), as Linux 6.9 does.
//
// Thread contract: one thread.

#include <linux/fuse.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/unique_fd.h"

namespace livemv::fake {

struct FuseReply {
  uint64_t unique = 0;  // as the worker wrote it, resent bit included
  int err = 0;          // 0 or an errno
  std::string body;
  template <class T>
  T As() const {
    T out{};
    std::memcpy(&out, body.data(), std::min(body.size(), sizeof out));
    return out;
  }
};

// The bytes of a wire struct.
template <class T>
std::string Bytes(const T& value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}
// A name as requests carry it.
inline std::string Name(const std::string& name) {
  return name + '\0';
}

class FakeFuse {
 public:
  // offered: INIT flags of this kernel, all 64 bits.
  explicit FakeFuse(uint64_t offered = ~0ull & ~(1ull << 31));

  int worker_fd() const { return worker_.Get(); }
  bool knows_resend = true;

  // Queues a request; returns its unique (even, growing).
  uint64_t Send(uint32_t opcode, uint64_t nodeid, const std::string& body = "",
                uint32_t uid = 0, uint32_t gid = 0);
  // As if a worker had read the request and died: it comes when asked to
  // resend.
  uint64_t Lose(uint32_t opcode, uint64_t nodeid, const std::string& body = "",
                uint32_t uid = 0, uint32_t gid = 0);
  uint64_t SendInit();
  // The reply to unique, within ms milliseconds; other messages are kept.
  std::optional<FuseReply> Wait(uint64_t unique, int ms = 5000);
  FuseReply Ask(uint32_t opcode, uint64_t nodeid, const std::string& body = "",
                uint32_t uid = 0, uint32_t gid = 0);
  // Codes of the notifications so far.
  std::vector<int> Notifications();
  // Requests without a reply yet.
  size_t Unanswered();
  // The superblock goes away.
  void Unmount();

 private:
  void Take(int ms);  // at most one message from the worker
  uint64_t SendAs(uint64_t unique, std::string bytes);
  std::string Make(uint32_t opcode, uint64_t nodeid, const std::string& body,
                   uint32_t uid, uint32_t gid);

  const uint64_t offered_;
  core::UniqueFd kernel_, worker_;
  uint64_t next_ = 2;
  std::map<uint64_t, std::string> unanswered_;  // by unique without the bit
  std::map<uint64_t, FuseReply> replies_;       // likewise
  std::vector<int> notifications_;
};

}  // namespace livemv::fake
