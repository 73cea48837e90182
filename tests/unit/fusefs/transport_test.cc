#include "fusefs/transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include "fusefs/fuse_wire.h"
#include "tests/support/fuse_bench.h"

namespace livemv::fusefs {
namespace {

using fake::Eventually;
using fake::FuseBench;
using fake::Name;

TEST(PatchInitReply, AddsWhatTheKernelOffers) {
  fuse_init_out reply{};
  reply.minor = 38;
  PatchInitReply(~0ull, &reply);
  EXPECT_TRUE(reply.flags & wire::kHandleKillprivV2);
  EXPECT_TRUE(reply.flags & wire::kSetxattrExt);
  EXPECT_TRUE(reply.flags & wire::kInitExt);
  EXPECT_EQ(reply.flags2, (wire::kDirectIoAllowMmap | wire::kHasResend |
                           wire::kPassthrough) >>
                              32);
  EXPECT_EQ(reinterpret_cast<wire::InitOut*>(&reply)->max_stack_depth, 1u);
  EXPECT_EQ(reply.minor, wire::kMinor);
}

TEST(PatchInitReply, AddsNothingThatTheKernelLacks) {
  fuse_init_out reply{};
  PatchInitReply(0, &reply);
  EXPECT_EQ(reply.flags, 0u);
  EXPECT_EQ(reply.flags2, 0u);
}

TEST(PatchInitReply, LeavesTheUpperHalfAloneWithoutTheExtension) {
  fuse_init_out reply{};
  PatchInitReply(wire::kHasResend | wire::kHandleKillprivV2, &reply);
  EXPECT_EQ(reply.flags, wire::kHandleKillprivV2);  // no lower flag but this
  EXPECT_EQ(reply.flags2, 0u);
}

TEST(Transport, NegotiatesWhatTheOverlayNeedsAndSavesIt) {
  FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  fuse_init_out reply = b.Init();
  EXPECT_EQ(reply.max_write, 1u << 20);
  EXPECT_EQ(reply.max_background, 256);
  const uint32_t wanted =
      FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT |
      FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_DO_READDIRPLUS |
      FUSE_READDIRPLUS_AUTO | FUSE_PARALLEL_DIROPS | FUSE_POSIX_ACL |
      FUSE_MAX_PAGES | FUSE_EXPLICIT_INVAL_DATA | FUSE_HANDLE_KILLPRIV_V2;
  EXPECT_EQ(reply.flags & wanted, wanted);
  const uint32_t unwanted = FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS |
                            FUSE_WRITEBACK_CACHE | FUSE_AUTO_INVAL_DATA |
                            FUSE_HANDLE_KILLPRIV | FUSE_NO_OPEN_SUPPORT |
                            FUSE_NO_OPENDIR_SUPPORT | FUSE_SPLICE_READ;
  EXPECT_EQ(reply.flags & unwanted, 0u);
  EXPECT_NE(reply.flags2 & (wire::kPassthrough >> 32), 0u);
  ASSERT_TRUE(Eventually([&] { return b.saved.reply_len != 0; }));
  EXPECT_EQ(b.saved.request_len, sizeof(fuse_in_header) + sizeof(fuse_init_in));
  EXPECT_EQ(memcmp(b.saved.reply, &reply, sizeof reply), 0);
}

TEST(Transport, SuccessorSwallowsTheInitReplyAndGetsTheLostRequest) {
  FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  b.session->Stop();
  b.session->Wait();
  // The dead worker had read this one: it is gone from the socket.
  uint64_t lost = b.kernel.Send(FUSE_GETATTR, 1, std::string(16, '\0'));
  char buf[4096];
  ASSERT_GT(::recv(b.kernel.worker_fd(), buf, sizeof buf, 0), 0);

  ASSERT_TRUE(b.StartNext());
  EXPECT_TRUE(b.session->resent());
  auto reply = b.kernel.Wait(lost);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->err, 0);
  EXPECT_EQ(reply->unique, lost | wire::kResentBit);
  // The fake kernel aborts at a second reply to INIT.
  EXPECT_THAT(b.kernel.Notifications(),
              testing::ElementsAre(wire::kNotifyResend));
  EXPECT_EQ(b.kernel.Unanswered(), 0u);
}

TEST(Transport, SuccessorAnswersAnInitThatWasReadButNotAnswered) {
  FuseBench b;
  uint64_t init = b.kernel.SendInit();
  // A worker that dies after saving the request.
  Transport dead(b.kernel.worker_fd(), &b.saved);
  char buf[8192];
  size_t len;
  int err;
  ASSERT_EQ(dead.Read(buf, sizeof buf, &len, &err),
            Transport::ReadResult::kRequest);

  ASSERT_TRUE(b.StartNext());
  auto reply = b.kernel.Wait(init);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->err, 0);
  EXPECT_EQ(b.kernel.Ask(FUSE_GETATTR, 1, std::string(16, '\0')).err, 0);
}

TEST(Transport, SuccessorGetsAnInitThatWasReadAndNotSaved) {
  FuseBench b;
  uint64_t init = b.kernel.SendInit();
  char buf[4096];
  ASSERT_GT(::recv(b.kernel.worker_fd(), buf, sizeof buf, 0), 0);

  ASSERT_TRUE(b.StartNext());
  auto reply = b.kernel.Wait(init);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->err, 0);
  EXPECT_EQ(reply->unique, init | wire::kResentBit);
  EXPECT_EQ(b.kernel.Ask(FUSE_GETATTR, 1, std::string(16, '\0')).err, 0);
}

TEST(Transport, NotificationsReachTheKernelButNotFromAHandler) {
  FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  EXPECT_TRUE(b.session->InvalidateInode(7));
  EXPECT_TRUE(b.session->InvalidateEntry(1, "name"));
  core::Status inside;
  b.core.before = [&](const char*) { inside = b.session->InvalidateInode(7); };
  b.kernel.Ask(FUSE_MKDIR, 1, std::string(8, '\0') + Name("d"));
  ASSERT_FALSE(inside);
  EXPECT_EQ(inside.error().code, core::ErrorCode::kInvalid);
  EXPECT_THAT(
      b.kernel.Notifications(),
      testing::ElementsAre(wire::kNotifyInvalInode, wire::kNotifyInvalEntry));
}

TEST(Session, EndsWithANamedReason) {
  FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  StopReason reason;
  EXPECT_FALSE(b.session->WaitFor(0, &reason));
  b.kernel.Unmount();
  ASSERT_TRUE(b.session->WaitFor(5'000'000'000, &reason));
  EXPECT_EQ(reason, StopReason::kUnmounted);
}

TEST(Session, StopLeavesUnreadRequestsToASuccessor) {
  FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  b.session->Stop();
  EXPECT_EQ(b.session->Wait(), StopReason::kStopped);
  uint64_t later = b.kernel.Send(FUSE_GETATTR, 1, std::string(16, '\0'));
  EXPECT_FALSE(b.kernel.Wait(later, 50));
  b.kernel.knows_resend = false;  // it is in the queue anyway
  ASSERT_TRUE(b.StartNext());
  EXPECT_TRUE(b.kernel.Wait(later));
}

TEST(Session, AMessageThatIsNoRequestIsAnErrorWithItsName) {
  FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  fuse_in_header lies{};
  lies.len = 4711;
  lies.opcode = FUSE_GETATTR;
  int other_end = -1;
  // The fake sends only well-formed requests, so write past it.
  for (int fd = 0; fd < 1024 && other_end < 0; fd++) {
    int type = 0;
    socklen_t n = sizeof type;
    if (fd != b.kernel.worker_fd() &&
        ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) == 0 &&
        type == SOCK_SEQPACKET)
      other_end = fd;
  }
  ASSERT_GE(other_end, 0);
  ASSERT_EQ(::send(other_end, &lies, sizeof lies, 0), ssize_t{sizeof lies});
  StopReason reason;
  ASSERT_TRUE(b.session->WaitFor(5'000'000'000, &reason));
  EXPECT_EQ(reason, StopReason::kError);
  EXPECT_THAT(b.session->error(), testing::HasSubstr("EPROTO"));
}

// A target that hangs holds many writes; what needs no target is answered.
TEST(Session, StuckWritesDoNotHoldUpReadsAndLookups) {
  FuseBench b;
  std::mutex mu;
  std::condition_variable cv;
  bool stuck = true;
  std::atomic<int> waiting{0};
  ASSERT_TRUE(b.StartFirst({.max_threads = 8}));
  b.Init();
  ASSERT_EQ(
      b.kernel
          .Ask(FUSE_MKNOD, 1,
               fake::Bytes(fuse_mknod_in{S_IFREG | 0644, 0, 0, 0}) + Name("f"))
          .err,
      0);
  const uint64_t id = b.core.IdOf("f");
  b.core.before = [&](const char* op) {
    if (std::string_view(op) != "write")
      return;
    waiting++;
    std::unique_lock lock(mu);
    cv.wait(lock, [&] { return !stuck; });
  };
  std::vector<uint64_t> writes;
  for (int i = 0; i < 30; i++) {
    fuse_write_in in{};
    in.offset = static_cast<uint64_t>(i);
    in.size = 1;
    writes.push_back(b.kernel.Send(FUSE_WRITE, id, fake::Bytes(in) + "x"));
  }
  EXPECT_TRUE(Eventually([&] { return waiting == 4; }));
  fuse_read_in read{};
  read.size = 10;
  for (int i = 0; i < 50; i++) {
    EXPECT_EQ(b.kernel.Ask(FUSE_LOOKUP, 1, Name("f")).err, 0);
    EXPECT_EQ(b.kernel.Ask(FUSE_READ, id, fake::Bytes(read)).err, 0);
  }
  EXPECT_EQ(waiting, 4);
  {
    std::lock_guard lock(mu);
    stuck = false;
  }
  cv.notify_all();
  for (uint64_t unique : writes) {
    auto reply = b.kernel.Wait(unique);
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->err, 0);
  }
  EXPECT_EQ(b.core.Data("f"), std::string(30, 'x'));
}

}  // namespace
}  // namespace livemv::fusefs
