#include "tests/support/fake_fuse.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "fusefs/fuse_wire.h"

namespace livemv::fake {

namespace wire = fusefs::wire;

namespace {

int64_t NowMs() {
  struct timespec ts;
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1000 + ts.tv_nsec / 1'000'000;
}

}  // namespace

FakeFuse::FakeFuse(uint64_t offered) : offered_(offered) {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) {
    std::perror("socketpair");
    std::abort();
  }
  kernel_ = core::UniqueFd(fds[0]);
  worker_ = core::UniqueFd(fds[1]);
}

uint64_t FakeFuse::SendAs(uint64_t unique, std::string bytes) {
  std::memcpy(bytes.data() + offsetof(fuse_in_header, unique), &unique,
              sizeof unique);
  if (::send(kernel_.Get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0)
    std::perror("fake kernel: send");
  return unique;
}

std::string FakeFuse::Make(uint32_t opcode, uint64_t nodeid,
                           const std::string& body, uint32_t uid,
                           uint32_t gid) {
  fuse_in_header header{};
  header.len = static_cast<uint32_t>(sizeof header + body.size());
  header.opcode = opcode;
  header.nodeid = nodeid;
  header.uid = uid;
  header.gid = gid;
  header.pid = static_cast<uint32_t>(::getpid());
  return Bytes(header) + body;
}

uint64_t FakeFuse::Send(uint32_t opcode, uint64_t nodeid,
                        const std::string& body, uint32_t uid, uint32_t gid) {
  std::string bytes = Make(opcode, nodeid, body, uid, gid);
  uint64_t unique = next_;
  next_ += 2;
  bool forget = opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET ||
                opcode == FUSE_INTERRUPT;
  if (!forget)
    unanswered_[unique] = bytes;
  return SendAs(unique, bytes);
}

uint64_t FakeFuse::Lose(uint32_t opcode, uint64_t nodeid,
                        const std::string& body, uint32_t uid, uint32_t gid) {
  uint64_t unique = next_;
  next_ += 2;
  unanswered_[unique] = Make(opcode, nodeid, body, uid, gid);
  return unique;
}

uint64_t FakeFuse::SendInit() {
  fuse_init_in in{};
  in.major = 7;
  in.minor = 45;
  in.max_readahead = 131072;
  in.flags = static_cast<uint32_t>(offered_);
  in.flags2 = static_cast<uint32_t>(offered_ >> 32);
  return Send(FUSE_INIT, 0, Bytes(in));
}

void FakeFuse::Take(int ms) {
  struct pollfd p = {kernel_.Get(), POLLIN, 0};
  if (::poll(&p, 1, ms) <= 0)
    return;
  std::string buf(64 << 10, '\0');  // no test asks for a larger reply
  ssize_t got = ::recv(kernel_.Get(), buf.data(), buf.size(), MSG_DONTWAIT);
  if (got < static_cast<ssize_t>(sizeof(fuse_out_header)))
    return;
  fuse_out_header header;
  std::memcpy(&header, buf.data(), sizeof header);
  if (header.unique == 0) {
    notifications_.push_back(header.error);
    if (header.error == wire::kNotifyResend && knows_resend)
      for (const auto& [unique, bytes] : unanswered_)
        SendAs(unique | wire::kResentBit, bytes);
    return;
  }
  uint64_t unique = header.unique & ~wire::kResentBit;
  if (unanswered_.erase(unique) == 0) {
    std::fprintf(stderr, "fake kernel: a second reply to %llu\n",
                 static_cast<unsigned long long>(unique));
    std::abort();
  }
  replies_[unique] = FuseReply{
      header.unique, -header.error,
      buf.substr(sizeof header, static_cast<size_t>(got) - sizeof header)};
}

std::optional<FuseReply> FakeFuse::Wait(uint64_t unique, int ms) {
  for (int64_t end = NowMs() + ms;;) {
    if (auto it = replies_.find(unique); it != replies_.end()) {
      FuseReply reply = std::move(it->second);
      replies_.erase(it);
      return reply;
    }
    int64_t left = end - NowMs();
    if (left < 0)
      return std::nullopt;
    Take(static_cast<int>(left));  // with 0: what is there already
  }
}

FuseReply FakeFuse::Ask(uint32_t opcode, uint64_t nodeid,
                        const std::string& body, uint32_t uid, uint32_t gid) {
  auto reply = Wait(Send(opcode, nodeid, body, uid, gid));
  return reply ? *reply : FuseReply{0, ETIMEDOUT, ""};
}

std::vector<int> FakeFuse::Notifications() {
  Take(0);
  return notifications_;
}

size_t FakeFuse::Unanswered() {
  return unanswered_.size();
}

void FakeFuse::Unmount() {
  ::shutdown(kernel_.Get(), SHUT_RDWR);
}

}  // namespace livemv::fake
