#pragma once

// An address in another process; it cannot be dereferenced by mistake.
//
// Thread contract: a value.

#include <cstdint>

namespace livemv::trace {

class RemotePtr {
 public:
  constexpr RemotePtr() = default;
  constexpr explicit RemotePtr(uint64_t address) : address_(address) {}
  constexpr uint64_t address() const { return address_; }
  constexpr explicit operator bool() const { return address_ != 0; }
  constexpr RemotePtr operator+(uint64_t n) const {
    return RemotePtr(address_ + n);
  }
  constexpr bool operator==(const RemotePtr&) const = default;

 private:
  uint64_t address_ = 0;
};

}  // namespace livemv::trace
