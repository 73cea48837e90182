#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "migrator/daemon/channel.h"
#include "migrator/daemon/handoff.h"
#include "migrator/daemon/overlay_channel.h"

namespace livemv::daemon {
namespace {

using core::ErrorCode;
using core::Result;
using core::Status;
using core::UniqueFd;

uint64_t InodeOf(int fd) {
  struct stat st{};
  EXPECT_EQ(::fstat(fd, &st), 0);
  return st.st_ino;
}

int64_t In(int64_t ms) { return MonotonicNs() + ms * 1'000'000; }

TEST(Channel, CarriesTextAndDescriptors) {
  auto pair = Channel::Pair();
  ASSERT_TRUE(pair);
  UniqueFd a(::open("/", O_PATH | O_CLOEXEC)), b(::open("/tmp", O_PATH | O_CLOEXEC));
  ASSERT_TRUE(pair->first.Send("hello", {a.Get(), b.Get()}));
  auto got = pair->second.Receive(In(5000));
  ASSERT_TRUE(got);
  EXPECT_EQ(got->text, "hello");
  ASSERT_EQ(got->fds.size(), 2u);
  EXPECT_EQ(InodeOf(got->fds[1].Get()), InodeOf(b.Get()));
  EXPECT_NE(::fcntl(got->fds[0].Get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(Channel, ALargeMessageArrivesWhole) {
  auto pair = Channel::Pair();
  ASSERT_TRUE(pair);
  std::string text(Channel::kMaxText, 'x');
  ASSERT_TRUE(pair->first.Send(text, {}, In(5000)));
  EXPECT_EQ(pair->second.Receive(In(5000))->text, text);
  EXPECT_EQ(pair->first.Send(text + "x").error().code, ErrorCode::kInvalid);
}

TEST(Channel, KeepsItsDeadlineAndTellsADeadPeer) {
  auto pair = Channel::Pair();
  ASSERT_TRUE(pair);
  EXPECT_EQ(pair->second.Receive(In(10)).error().code, ErrorCode::kTimeout);
  EXPECT_EQ(pair->second.Receive(0).error().code, ErrorCode::kTimeout);
  pair->first.Close();
  EXPECT_EQ(pair->second.Receive(In(5000)).error().code, ErrorCode::kGone);
  EXPECT_EQ(pair->second.Send("x").error().code, ErrorCode::kGone);
}

Settings SomeSettings() {
  Settings s;
  s.id = "abc234";
  s.dir = "/srv/a b\nc";
  s.target = "nas:/x";
  s.state_dir = "/var/lib/livemv/abc234";
  s.registry = "/run/livemv";
  s.mount_options = "nconnect=4";
  s.auto_cutover = false;
  s.max_pause_ns = 123;
  s.reserve_bytes = 456;
  s.faults = "a=kill";
  return s;
}

TEST(Handoff, SettingsAndNamedDescriptorsMakeTheRoundTrip) {
  auto pair = Channel::Pair();
  ASSERT_TRUE(pair);
  UniqueFd fd(::open("/tmp", O_PATH | O_CLOEXEC));
  Settings settings = SomeSettings();
  ASSERT_TRUE(SendHandoff(pair->first, {"worker", &settings, "{\"resume\":1}",
                                        {{fd_name::kFuse, fd.Get()}}}));
  auto got = ReceiveHandoff(pair->second, In(5000));
  ASSERT_TRUE(got) << got.error().ToString();
  EXPECT_EQ(got->role, "worker");
  EXPECT_EQ(got->extra, "{\"resume\":1}");
  EXPECT_EQ(got->settings.dir, settings.dir);
  EXPECT_EQ(SettingsToJson(got->settings), SettingsToJson(settings));
  auto taken = got->Take(fd_name::kFuse);
  ASSERT_TRUE(taken);
  EXPECT_EQ(InodeOf(taken->Get()), InodeOf(fd.Get()));
  EXPECT_FALSE(got->Take(fd_name::kFuse));
  EXPECT_FALSE(got->Take(fd_name::kOverlay));
}

TEST(Handoff, AnotherVersionIsRefused) {
  auto pair = Channel::Pair();
  ASSERT_TRUE(pair);
  ASSERT_TRUE(pair->first.Send("{\"version\":999}"));
  EXPECT_EQ(ReceiveHandoff(pair->second, In(5000)).error().code,
            ErrorCode::kUnsupported);
  ASSERT_TRUE(pair->first.Send("garbage"));
  EXPECT_EQ(ReceiveHandoff(pair->second, In(5000)).error().code,
            ErrorCode::kCorrupt);
}

TEST(Handoff, NamesWithoutDescriptorsAreRefused) {
  auto pair = Channel::Pair();
  ASSERT_TRUE(pair);
  ASSERT_TRUE(pair->first.Send(
      R"({"version":1,"role":"worker","extra":"","fds":["fuse"],"settings":)" +
      SettingsToJson(SomeSettings()) + "}"));
  EXPECT_EQ(ReceiveHandoff(pair->second, In(5000)).error().code,
            ErrorCode::kCorrupt);
}

// Answers as told and remembers what it was asked.
class FakeOverlay final : public cutover::OverlayControl {
 public:
  Status Advance(state::Event event, const std::string& reason) override {
    last_event = event;
    last_reason = reason;
    return answer;
  }
  Status StartRedirect(int64_t deadline) override {
    last_deadline = deadline;
    return answer;
  }
  Result<std::vector<UniqueFd>> OpenOnTarget(
      const std::vector<cutover::OpenAsk>& asks, int64_t) override {
    std::vector<UniqueFd> out;
    for (const auto& ask : asks) {
      hints.push_back(ask.path_hint);
      ids.push_back(ask.id);
      out.emplace_back(ask.path_hint == "gone"
                           ? -1
                           : ::open("/tmp", O_PATH | O_CLOEXEC));
    }
    return out;
  }
  Result<std::vector<bool>> AreDirect(const std::vector<state::FileId>& nodes,
                                      int64_t) override {
    std::vector<bool> out;
    for (state::FileId node : nodes)
      out.push_back(node % 7 == 0);
    return out;
  }
  Status LeaveDirect(int64_t) override {
    return core::Fail(ErrorCode::kConflict, "one is open");
  }
  Result<std::vector<core::FileHandle>> SourceHandles(
      const std::vector<state::FileId>& asked, int64_t) override {
    std::vector<core::FileHandle> out;
    for (state::FileId id : asked)
      out.push_back(id % 3 == 0
                        ? core::FileHandle{}
                        : core::FileHandle{static_cast<int32_t>(id % 256),
                                           std::string("\0\xff\n", 3) +
                                               std::to_string(id)});
    return out;
  }
  Result<cutover::FlushReport> FlushRound(int64_t) override {
    return cutover::FlushReport{1, 2, 3};
  }
  Result<cutover::FlushReport> DrainAndGate(int64_t) override {
    return core::FailSys(ENOSPC, "fsync the target");
  }
  Status GiveUpAttach() override { return {}; }
  Status GateOpens(int64_t) override { return answer; }
  Status RefuseOpens() override { return answer; }
  Status OpenGate() override { return answer; }
  Status CommitTarget(int64_t) override { return answer; }
  Status RevokeTarget(int64_t) override { return answer; }
  Status CommitSource(int64_t) override { return answer; }

  Status answer;
  state::Event last_event{};
  std::string last_reason;
  int64_t last_deadline = 0;
  std::vector<std::string> hints;
  std::vector<state::FileId> ids;
};

class OverlayChannelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pair = Channel::Pair();
    ASSERT_TRUE(pair);
    client_ = std::make_unique<OverlayClient>(std::move(pair->first));
    server_ = std::thread([this, end = std::move(pair->second)]() mutable {
      served_ = ServeOverlayControl(end, fake_);
    });
  }
  void TearDown() override {
    client_.reset();
    server_.join();
    EXPECT_TRUE(served_);
  }
  FakeOverlay fake_;
  std::unique_ptr<OverlayClient> client_;
  std::thread server_;
  Status served_;
};

TEST_F(OverlayChannelTest, CallsAndErrorsCrossUnchanged) {
  ASSERT_TRUE(client_->Advance(state::Event::kCutover, "by \"hand\"\n"));
  EXPECT_EQ(fake_.last_event, state::Event::kCutover);
  EXPECT_EQ(fake_.last_reason, "by \"hand\"\n");
  int64_t deadline = In(5000);
  ASSERT_TRUE(client_->StartRedirect(deadline));
  EXPECT_EQ(fake_.last_deadline, deadline);
  auto report = client_->FlushRound(deadline);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->took_ns, 1);
  EXPECT_EQ(report->redo_left, 2u);
  EXPECT_EQ(report->bytes_left, 3u);
  auto failed = client_->DrainAndGate(deadline);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().sys_errno, ENOSPC);
  EXPECT_EQ(failed.error().what, "fsync the target");
}

TEST_F(OverlayChannelTest, ManyDescriptorsComeInOrderWithTheirPathBytes) {
  std::vector<cutover::OpenAsk> asks;
  for (int i = 0; i < 350; i++)
    asks.push_back({state::FileId(1'000'000'000'000ull + i), O_RDWR,
                    i == 7    ? std::string("caf\xe9/\xff\n")
                    : i == 99 ? std::string("gone")
                              : std::string("f")});
  auto got = client_->OpenOnTarget(asks, In(10000));
  ASSERT_TRUE(got) << got.error().ToString();
  ASSERT_EQ(got->size(), 350u);
  EXPECT_FALSE((*got)[99]);
  EXPECT_TRUE((*got)[98]);
  EXPECT_TRUE((*got)[349]);
  ASSERT_EQ(fake_.ids.size(), 350u);
  EXPECT_EQ(fake_.ids[349], 1'000'000'000'349ull);
  EXPECT_EQ(fake_.hints[7], "caf\xe9/\xff\n");
}

TEST_F(OverlayChannelTest, HandlesOfTheSourceByTheHundred) {
  std::vector<state::FileId> ids;
  for (uint64_t i = 0; i < 250; i++)
    ids.push_back(1'000'000'000'000ull + i);
  auto got = client_->SourceHandles(ids, In(5000));
  ASSERT_TRUE(got) << got.error().ToString();
  EXPECT_EQ(*got, *fake_.SourceHandles(ids, 0));
  EXPECT_EQ(*client_->AreDirect(ids, In(5000)), *fake_.AreDirect(ids, 0));
  EXPECT_EQ(client_->LeaveDirect(In(5000)).error().code, ErrorCode::kConflict);
}

TEST(OverlayClient, AnAnswerThatComesTooLateIsNotTakenForTheNext) {
  auto pair = Channel::Pair();
  ASSERT_TRUE(pair);
  Channel worker = std::move(pair->second);
  OverlayClient client(std::move(pair->first));
  EXPECT_EQ(client.StartRedirect(In(5)).error().code, ErrorCode::kTimeout);
  ASSERT_TRUE(worker.Send(R"({"n":1,"ok":true})"));
  ASSERT_TRUE(worker.Send(R"({"n":2,"ok":false,"code":5,"what":"no"})"));
  Status second = client.OpenGate();
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().what, "no");
}

}  // namespace
}  // namespace livemv::daemon
