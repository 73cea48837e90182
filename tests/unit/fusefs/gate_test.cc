#include "fusefs/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/fuse.h>

#include <ctime>

#include "tests/support/fuse_bench.h"

namespace livemv::fusefs {
namespace {

using fake::Bytes;
using fake::Eventually;
using fake::FuseBench;
using fake::Name;

int64_t NowNs() {
  struct timespec ts;
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1'000'000'000ll + ts.tv_nsec;
}
int64_t In(int ms) {
  return NowNs() + ms * 1'000'000ll;
}

TEST(GateToOpens, OpensWaitAndMayBeToldToWalkAgain) {
  Gate gate;
  fuse_in_header open{};
  open.opcode = FUSE_OPEN;
  fuse_in_header create{};
  create.opcode = FUSE_CREATE;
  auto bytes = [](const fuse_in_header& header) {
    return std::string_view(reinterpret_cast<const char*>(&header),
                            sizeof header);
  };
  gate.CloseToOpens();
  for (const auto* header : {&open, &create}) {
    gate.Enter();
    EXPECT_EQ(gate.Admit(header->opcode, bytes(*header)),
              Gate::Admission::kKept);
    gate.Leave();
  }
  gate.Enter();
  EXPECT_EQ(gate.Admit(FUSE_LOOKUP, bytes(open)), Gate::Admission::kRun);
  gate.Leave();
  const std::vector<RawRequest> kept = gate.Open(true);
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_TRUE(kept[0].stale);
  EXPECT_TRUE(kept[1].stale);
  gate.Enter();
  EXPECT_EQ(gate.Admit(FUSE_OPEN, bytes(open)), Gate::Admission::kRun);
}

TEST(Gate, ClosedItKeepsRequestsAndAnswersFlushAndRelease) {
  Gate gate;
  gate.Close();
  gate.Enter();
  EXPECT_EQ(gate.Admit(FUSE_LOOKUP, "lookup"), Gate::Admission::kKept);
  EXPECT_EQ(gate.Admit(FUSE_FLUSH, "flush"), Gate::Admission::kAnswer);
  EXPECT_EQ(gate.Admit(FUSE_RELEASE, "release"), Gate::Admission::kAnswer);
  EXPECT_EQ(gate.Admit(FUSE_RELEASEDIR, "dir"), Gate::Admission::kAnswer);
  gate.Leave();
  EXPECT_EQ(gate.kept(), 3u);
  auto back = gate.Open();
  ASSERT_EQ(back.size(), 3u);
  EXPECT_EQ(back[0].bytes, "lookup");
  EXPECT_FALSE(back[0].answered);
  EXPECT_TRUE(back[1].answered);
  EXPECT_EQ(gate.in_flight(), 3u);  // handed back, each counted
  EXPECT_FALSE(gate.closed());
}

TEST(Gate, InTheFreezeFlushIsAnsweredThoughOpen) {
  Gate gate;
  EXPECT_EQ(gate.Admit(FUSE_FLUSH, ""), Gate::Admission::kRun);
  gate.SetInFreeze(true);
  EXPECT_EQ(gate.Admit(FUSE_FLUSH, ""), Gate::Admission::kAnswer);
  EXPECT_EQ(gate.Admit(FUSE_WRITE, ""), Gate::Admission::kRun);
  gate.SetInFreeze(false);
  EXPECT_EQ(gate.Admit(FUSE_FLUSH, ""), Gate::Admission::kRun);
}

TEST(Gate, DrainLooksAtTheDeviceUntilItWasEmptyTwice) {
  Gate gate;
  std::vector<bool> empty = {true, false, true, true};
  size_t looks = 0;
  EXPECT_TRUE(
      gate.DrainAndClose(In(5000), NowNs, [&] { return empty.at(looks++); }));
  EXPECT_EQ(looks, 4u);
  EXPECT_TRUE(gate.closed());
}

TEST(Gate, DrainGivesUpAtItsDeadlineAndStaysOpen) {
  Gate gate;
  gate.Enter();  // never leaves
  auto status = gate.DrainAndClose(In(20), NowNs, [] { return true; });
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, core::ErrorCode::kTimeout);
  EXPECT_THAT(status.error().what, testing::HasSubstr("1 requests"));
  EXPECT_FALSE(gate.closed());
  EXPECT_EQ(gate.Admit(FUSE_LOOKUP, ""), Gate::Admission::kRun);
}

TEST(Gate, DrainWaitsForTheRequestInFlight) {
  FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  std::mutex mu;
  std::condition_variable cv;
  bool held = true, inside = false;
  b.core.before = [&](const char*) {
    std::unique_lock lock(mu);
    inside = true;
    cv.notify_all();
    cv.wait(lock, [&] { return !held; });
  };
  uint64_t mkdir =
      b.kernel.Send(FUSE_MKDIR, 1, Bytes(fuse_mkdir_in{}) + Name("d"));
  {
    std::unique_lock lock(mu);
    cv.wait(lock, [&] { return inside; });
  }
  auto late = b.session->DrainAndClose(In(20));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, core::ErrorCode::kTimeout);
  {
    std::lock_guard lock(mu);
    held = false;
  }
  cv.notify_all();
  ASSERT_TRUE(b.session->DrainAndClose(In(5000)));
  EXPECT_TRUE(b.core.Has("d"));
  auto reply = b.kernel.Wait(mkdir, 0);
  EXPECT_TRUE(reply);  // answered before the drain said so
}

TEST(Gate, RequestsWaitForTheGateAndCloseDoesNot) {
  FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  ASSERT_EQ(b.kernel
                .Ask(FUSE_MKNOD, 1,
                     Bytes(fuse_mknod_in{S_IFREG | 0644, 0, 0, 0}) + Name("f"))
                .err,
            0);
  uint64_t id = b.core.IdOf("f");
  ASSERT_TRUE(b.session->DrainAndClose(In(5000)));
  const int calls = b.core.calls;

  // Many more than there are threads.
  std::vector<uint64_t> waiting;
  for (int i = 0; i < 100; i++)
    waiting.push_back(b.kernel.Send(FUSE_LOOKUP, 1, Name("f")));
  EXPECT_EQ(b.kernel.Ask(FUSE_FLUSH, id, Bytes(fuse_flush_in{})).err, 0);
  fuse_release_in release{};
  release.fh = 9;
  EXPECT_EQ(b.kernel.Ask(FUSE_RELEASE, id, Bytes(release)).err, 0);
  b.kernel.Send(FUSE_FORGET, id, Bytes(fuse_forget_in{1}));
  ASSERT_TRUE(Eventually([&] { return b.session->gate().kept() == 101; }));
  EXPECT_EQ(b.core.calls, calls);
  EXPECT_EQ(b.core.flushes, 0);
  EXPECT_EQ(b.core.releases, 0);
  EXPECT_FALSE(b.kernel.Wait(waiting[0], 20));

  b.session->OpenGate();
  for (uint64_t unique : waiting) {
    auto reply = b.kernel.Wait(unique);
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->err, 0);
  }
  EXPECT_TRUE(Eventually([&] { return b.core.releases == 1; }));
  EXPECT_EQ(b.core.flushes, 0);
  EXPECT_TRUE(Eventually([&] { return b.session->gate().in_flight() == 0; }));
}

TEST(Gate, AWorkerThatDiesWithAClosedGateLosesNothing) {
  FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  ASSERT_TRUE(b.session->DrainAndClose(In(5000)));
  uint64_t kept = b.kernel.Send(FUSE_GETATTR, 1, std::string(16, '\0'));
  ASSERT_TRUE(Eventually([&] { return b.session->gate().kept() == 1; }));
  b.session->Stop();
  b.session->Wait();
  ASSERT_TRUE(b.StartNext());
  auto reply = b.kernel.Wait(kept);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->err, 0);
}

}  // namespace
}  // namespace livemv::fusefs
