#pragma once

// Errors as values. A function that can fail returns Result<T> or Status; no
// exception is used for control flow. An Error says what was attempted and on
// what; errno is turned into an Error once, at the system call.
//
// Thread contract: plain values, no shared state.

#include <cstring>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace livemv::core {

enum class ErrorCode {
  kSystem,       // a system call failed; sys_errno says why
  kInvalid,      // a caller's value does not suit
  kUnsupported,  // kernel, filesystem or this version cannot do it
  kCorrupt,      // stored data contradicts itself
  kTimeout,      // a deadline passed
  kConflict,     // state moved meanwhile; trying again may work
  kAborted,      // given up on request
  kGone,         // the object (process, file, peer) no longer exists
};

struct [[nodiscard]] Error {
  ErrorCode code = ErrorCode::kSystem;
  int sys_errno = 0;  // 0 unless code is kSystem or an errno is meant for a user
  std::string what;   // operation and operand, without the errno text

  static Error System(int err, std::string what) {
    return Error{ErrorCode::kSystem, err, std::move(what)};
  }
  static Error Of(ErrorCode code, std::string what) {
    return Error{code, 0, std::move(what)};
  }

  // The errno that an application behind the overlay should see: never 0.
  int Errno() const;
  // "open /a/b: No such file or directory (ENOENT)"
  std::string ToString() const;
  // The same error with "context: " in front of what.
  Error With(std::string_view context) &&;
};

template <class T>
using Result = std::expected<T, Error>;
using Status = std::expected<void, Error>;

inline std::unexpected<Error> Fail(Error e) {
  return std::unexpected<Error>(std::move(e));
}
inline std::unexpected<Error> Fail(ErrorCode code, std::string what) {
  return std::unexpected<Error>(Error::Of(code, std::move(what)));
}
inline std::unexpected<Error> FailSys(int err, std::string what) {
  return std::unexpected<Error>(Error::System(err, std::move(what)));
}

// "ENOENT" for 2; "E4711" for a number without a name.
std::string ErrnoName(int err);

}  // namespace livemv::core

// TRY(expr): evaluates a Status or Result and returns its error from the
// enclosing function. ASSIGN_OR_RETURN(decl, expr): the same, keeping the value.
#define LIVEMV_CONCAT_(a, b) a##b
#define LIVEMV_CONCAT(a, b) LIVEMV_CONCAT_(a, b)
#define TRY(expr)                                              \
  do {                                                         \
    if (auto try_result_ = (expr); !try_result_)               \
      return std::unexpected(std::move(try_result_).error());  \
  } while (false)
#define ASSIGN_OR_RETURN(decl, expr) \
  ASSIGN_OR_RETURN_(LIVEMV_CONCAT(try_value_, __LINE__), decl, expr)
#define ASSIGN_OR_RETURN_(tmp, decl, expr)           \
  auto tmp = (expr);                                 \
  if (!tmp)                                          \
    return std::unexpected(std::move(tmp).error());  \
  decl = std::move(*tmp)
