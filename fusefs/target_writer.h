#pragma once

// Writes and fsyncs of target objects for which an application waits at most
// a limited time (double writes; rules 1 and 2).
//
// Thread contract: all methods from any thread.

#include <cstdint>
#include <functional>
#include <span>

#include "core/result.h"
#include "core/syscalls.h"
#include "fusefs/object_store.h"

namespace livemv::fusefs {

using state::FileId;

class TargetWriter {
 public:
  struct Outcome {
    // kTimeout: the limit passed.
    core::Status status;
    // The call may still act on the file; late will be called, once, on
    // another thread, with its result after it has returned. late is never
    // called if in_flight is false.
    bool in_flight = false;
  };
  using Late = std::function<void(core::Status)>;

  virtual ~TargetWriter() = default;
  // All of data at off of id's object, or an error. Returns at the limit (ns
  // from now) at the latest. data is copied if it must outlive the call.
  virtual Outcome Write(FileId id, std::span<const char> data, uint64_t off,
                        int64_t limit_ns, Late late) = 0;
  virtual Outcome FSync(FileId id, int64_t limit_ns, Late late) = 0;
};

// Acts in the caller's thread and knows no limit: for tests.
class InlineTargetWriter final : public TargetWriter {
 public:
  explicit InlineTargetWriter(ObjectStore* objects) : objects_(objects) {}
  Outcome Write(FileId id, std::span<const char> data, uint64_t off,
                int64_t limit_ns, Late late) override;
  Outcome FSync(FileId id, int64_t limit_ns, Late late) override;

 private:
  ObjectStore* const objects_;
};

// pwrite until all of data is written. A pwrite of 0 bytes is EIO.
core::Status PWriteAll(core::Syscalls* sys, int fd, std::span<const char> data,
                       uint64_t off);

}  // namespace livemv::fusefs
