#pragma once

// UniqueFd owns one descriptor and closes it once.
//
// A descriptor that came from a Syscalls seam is closed through that seam, so
// that the simulator sees every close; one made from a plain number is closed
// with close(2). Errors of close are ignored here: a file whose close error
// matters is fsynced first.
//
// Thread contract: like an int; not shared without external synchronization.

#include <unistd.h>

#include <utility>

namespace livemv::core {

class FdCloser {
 public:
  virtual ~FdCloser() = default;
  virtual void CloseFd(int fd) noexcept = 0;
};

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd, FdCloser* closer = nullptr)
      : fd_(fd), closer_(closer) {}
  UniqueFd(UniqueFd&& o) noexcept
      : fd_(std::exchange(o.fd_, -1)), closer_(o.closer_) {}
  UniqueFd& operator=(UniqueFd&& o) noexcept {
    if (this != &o) {
      Reset();
      fd_ = std::exchange(o.fd_, -1);
      closer_ = o.closer_;
    }
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;
  ~UniqueFd() { Reset(); }

  int Get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  // Gives the number away; the caller closes it.
  int Release() { return std::exchange(fd_, -1); }
  void Reset() {
    if (fd_ < 0)
      return;
    if (closer_ != nullptr)
      closer_->CloseFd(fd_);
    else
      ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_ = -1;
  FdCloser* closer_ = nullptr;
};

}  // namespace livemv::core
