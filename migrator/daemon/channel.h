#pragma once

// Messages between livemv's own processes over a SOCK_SEQPACKET socketpair:
// one text (JSON) and up to kMaxFds descriptors a message. The kernel keeps
// message boundaries, so there is no framing, and a peer that dies is an end
// of file.
//
// Thread contract: one thread sends and one receives at a time; a mutex around
// Send is the owner's business.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/result.h"
#include "core/unique_fd.h"

namespace livemv::daemon {

struct Message {
  std::string text;
  std::vector<core::UniqueFd> fds;
};

class Channel {
 public:
  static constexpr size_t kMaxText = 128 * 1024;
  static constexpr size_t kMaxFds = 128;  // the kernel's limit is 253

  Channel() = default;
  explicit Channel(core::UniqueFd fd) : fd_(std::move(fd)) {}
  static core::Result<std::pair<Channel, Channel>> Pair();

  // Deadlines are CLOCK_MONOTONIC in ns; < 0: none; 0: do not block at all
  // (kTimeout at once). kGone when the peer is gone. The descriptors are
  // borrowed.
  core::Status Send(const std::string& text, const std::vector<int>& fds = {},
                    int64_t deadline_ns = -1);
  core::Result<Message> Receive(int64_t deadline_ns = -1);

  int Fd() const { return fd_.Get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }
  void Close() { fd_.Reset(); }
  core::UniqueFd Take() { return std::move(fd_); }

 private:
  core::UniqueFd fd_;
};

int64_t MonotonicNs();

}  // namespace livemv::daemon
