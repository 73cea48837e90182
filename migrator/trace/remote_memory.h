#pragma once

// Reading and writing the memory of a stopped thread, and the trampoline in
// its vdso.
//
// Errors: kGone when the process is no more; kSystem with EFAULT for an
// address that is not there; kUnsupported for a process without our vdso.
//
// Thread contract: stateless; any thread.

#include <sys/types.h>

#include <cstddef>

#include "core/result.h"
#include "migrator/trace/remote_ptr.h"

namespace livemv::trace {

class RemoteMemory {
 public:
  RemoteMemory(pid_t pid, pid_t tid) : pid_(pid), tid_(tid) {}

  core::Status Read(RemotePtr from, void* to, size_t len) const;
  // Only where the process itself may write.
  core::Status Write(RemotePtr to, const void* from, size_t len) const;

  template <class T>
  core::Result<T> Read(RemotePtr from) const {
    T value{};
    TRY(Read(from, &value, sizeof value));
    return value;
  }
  template <class T>
  core::Status Write(RemotePtr to, const T& value) const {
    return Write(to, &value, sizeof value);
  }

  // The address of the trampoline, which is written (with the program before
  // it) if it is not there yet.
  // The page becomes a private copy of this process; no mapping changes.
  core::Result<RemotePtr> PutTrampoline() const;

 private:
  core::Result<RemotePtr> FindVdso() const;
  core::Status WriteForced(RemotePtr to, const void* from, size_t len) const;

  pid_t pid_, tid_;
};

}  // namespace livemv::trace
