#include "fusefs/capability.h"

#include <cerrno>

namespace livemv::fusefs {

core::Result<std::string> CapabilityOf(core::Syscalls* sys, int fd) {
  auto value = sys->GetXattr(fd, kCapability);
  // The filesystem has no such attribute, or no attributes at all.
  if (!value && (value.error().sys_errno == ENODATA ||
                 value.error().sys_errno == EOPNOTSUPP))
    return std::string();
  return value;
}

}  // namespace livemv::fusefs
