#pragma once

// A counter in memory that worker and supervisor share: the worker counts, the
// supervisor looks. Independent of every thread that may wait for the target,
// so that a slow target never looks like a hung worker (hazard H16).
//
// Thread contract: Beat from one thread, Beats from any.

#include <atomic>
#include <cstdint>

#include "core/result.h"
#include "core/unique_fd.h"

namespace livemv::daemon {

// A sealed-size memfd of that many zero bytes.
core::Result<core::UniqueFd> MakeMemFd(const char* name, size_t bytes);

// A shared mapping of a memfd; unmapped at the end.
class SharedMemory {
 public:
  static core::Result<SharedMemory> Map(int fd, size_t bytes);
  SharedMemory(SharedMemory&& o) noexcept
      : at_(o.at_), bytes_(o.bytes_) { o.at_ = nullptr; }
  SharedMemory& operator=(SharedMemory&&) = delete;
  SharedMemory(const SharedMemory&) = delete;
  ~SharedMemory();
  void* Get() const { return at_; }
  size_t size() const { return bytes_; }

 private:
  SharedMemory(void* at, size_t bytes) : at_(at), bytes_(bytes) {}
  void* at_;
  size_t bytes_;
};

class Heartbeat {
 public:
  static constexpr size_t kBytes = 4096;
  static core::Result<Heartbeat> Map(int fd);
  void Beat() { Counter()->fetch_add(1, std::memory_order_relaxed); }
  uint64_t Beats() const { return Counter()->load(std::memory_order_relaxed); }

 private:
  explicit Heartbeat(SharedMemory memory) : memory_(std::move(memory)) {}
  std::atomic<uint64_t>* Counter() const {
    return static_cast<std::atomic<uint64_t>*>(memory_.Get());
  }
  SharedMemory memory_;
};

}  // namespace livemv::daemon
