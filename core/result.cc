#include "core/result.h"

#include <cerrno>

namespace livemv::core {

std::string ErrnoName(int err) {
  const char* name = strerrorname_np(err);
  return name != nullptr ? name : "E" + std::to_string(err);
}

int Error::Errno() const {
  if (sys_errno != 0)
    return sys_errno;
  switch (code) {
    case ErrorCode::kInvalid:
      return EINVAL;
    case ErrorCode::kUnsupported:
      return EOPNOTSUPP;
    case ErrorCode::kTimeout:
      return ETIMEDOUT;
    case ErrorCode::kConflict:
      return EAGAIN;
    case ErrorCode::kGone:
      return ESTALE;
    default:
      return EIO;
  }
}

std::string Error::ToString() const {
  if (sys_errno == 0)
    return what;
  const char* text = strerrordesc_np(sys_errno);
  return what + ": " + (text != nullptr ? text : "unknown error") + " (" +
         ErrnoName(sys_errno) + ")";
}

Error Error::With(std::string_view context) && {
  what.insert(0, std::string(context) + ": ");
  return std::move(*this);
}

}  // namespace livemv::core
