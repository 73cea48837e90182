#include "migrator/daemon/channel.h"

#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace livemv::daemon {

using core::ErrorCode;
using core::Fail;
using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;

int64_t MonotonicNs() {
  struct timespec ts{};
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1'000'000'000LL + ts.tv_nsec;
}

namespace {

Status WaitFor(int fd, short events, int64_t deadline_ns) {
  for (;;) {
    int timeout = -1;
    if (deadline_ns >= 0) {
      int64_t left = deadline_ns - MonotonicNs();
      timeout = left <= 0 ? 0
                          : static_cast<int>(std::min<int64_t>(
                                (left + 999'999) / 1'000'000, 1 << 30));
    }
    struct pollfd p = {fd, events, 0};
    int n = ::poll(&p, 1, timeout);
    if (n > 0)
      return {};
    if (n == 0) {
      if (timeout == 0)
        return Fail(ErrorCode::kTimeout, "no answer on the channel in time");
      continue;
    }
    if (errno != EINTR)
      return FailSys(errno, "poll the channel");
  }
}

}  // namespace

Result<std::pair<Channel, Channel>> Channel::Pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
    return FailSys(errno, "socketpair");
  UniqueFd a(fds[0]), b(fds[1]);
  // Room for the largest message; the default is about 200 KiB, overhead
  // included.
  int size = 4 * static_cast<int>(kMaxText);
  for (int fd : fds)
    ::setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
  return std::make_pair(Channel(std::move(a)), Channel(std::move(b)));
}

Status Channel::Send(const std::string& text, const std::vector<int>& fds,
                     int64_t deadline_ns) {
  if (!fd_)
    return Fail(ErrorCode::kGone, "the channel is closed");
  if (text.size() > kMaxText || fds.size() > kMaxFds)
    return Fail(ErrorCode::kInvalid, "message too large for the channel");
  struct iovec iov = {const_cast<char*>(text.data()), text.size()};
  struct msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)];
  if (!fds.empty()) {
    std::memset(control, 0, sizeof control);
    msg.msg_control = control;
    msg.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    struct cmsghdr* header = CMSG_FIRSTHDR(&msg);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  for (;;) {
    ssize_t n = ::sendmsg(fd_.Get(), &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0)
      return {};
    if (errno == EINTR)
      continue;
    if (errno == EPIPE || errno == ECONNRESET)
      return Fail(ErrorCode::kGone, "the peer of the channel is gone");
    if (errno != EAGAIN)
      return FailSys(errno, "send on the channel");
    TRY(WaitFor(fd_.Get(), POLLOUT, deadline_ns));
  }
}

Result<Message> Channel::Receive(int64_t deadline_ns) {
  if (!fd_)
    return Fail(ErrorCode::kGone, "the channel is closed");
  Message out;
  out.text.resize(kMaxText);
  alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)];
  for (;;) {
    struct iovec iov = {out.text.data(), out.text.size()};
    struct msghdr msg{};
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control;
    msg.msg_controllen = sizeof control;
    ssize_t n =
        ::recvmsg(fd_.Get(), &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0 && errno == EAGAIN) {
      TRY(WaitFor(fd_.Get(), POLLIN, deadline_ns));
      continue;
    }
    if (n == 0 || (n < 0 && errno == ECONNRESET))
      return Fail(ErrorCode::kGone, "the peer of the channel is gone");
    if (n < 0)
      return FailSys(errno, "receive on the channel");
    for (struct cmsghdr* header = CMSG_FIRSTHDR(&msg); header != nullptr;
         header = CMSG_NXTHDR(&msg, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
        continue;
      size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; i++) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
        out.fds.emplace_back(fd);
      }
    }
    if ((msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
      return Fail(ErrorCode::kCorrupt,
                  "a message on the channel was cut off (descriptor limit?)");
    out.text.resize(static_cast<size_t>(n));
    return out;
  }
}

}  // namespace livemv::daemon
