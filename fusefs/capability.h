#pragma once

// The capability of a file (capabilities(7)), which the kernel takes away with
// every write, even root's (security/commoncap.c, cap_inode_need_killpriv).
//
// Thread contract: no state.

#include <string>
#include <string_view>

#include "core/result.h"
#include "core/syscalls.h"

namespace livemv::fusefs {

inline constexpr char kCapability[] = "security.capability";

inline bool IsCapability(std::string_view xattr) {
  return xattr == kCapability;
}

// The attribute's value, empty if the file has none. fd may be O_PATH.
core::Result<std::string> CapabilityOf(core::Syscalls* sys, int fd);

}  // namespace livemv::fusefs
