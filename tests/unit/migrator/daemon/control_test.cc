#include "migrator/daemon/control.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "migrator/daemon/channel.h"
#include "migrator/daemon/migration_status.h"
#include "migrator/daemon/small_files.h"

namespace livemv::daemon {
namespace {

TEST(LineSplitter, CutsAcrossAnyBoundary) {
  const std::string stream = "{\"a\":1}\n\n{\"b\":2}\nrest";
  for (size_t cut = 0; cut <= stream.size(); cut++) {
    LineSplitter lines;
    lines.Feed(stream.data(), cut);
    std::vector<std::string> got;
    std::string line;
    while (lines.Next(&line))
      got.push_back(line);
    lines.Feed(stream.data() + cut, stream.size() - cut);
    while (lines.Next(&line))
      got.push_back(line);
    EXPECT_EQ(got, (std::vector<std::string>{"{\"a\":1}", "", "{\"b\":2}"}));
  }
}

TEST(Reply, MakesTheRoundTripAndRefusesGarbage) {
  auto reply = ParseReply(MakeReply(Exit::kBlocked, "not \"now\"\n\xff"));
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->exit, Exit::kBlocked);
  EXPECT_TRUE(reply->message.starts_with("not \"now\"\n"));
  for (const char* text : {"", "{}", "[]", "{\"exit\":\"3\"}", "{\"exit\":"})
    EXPECT_FALSE(ParseReply(text)) << text;
}

class ControlSocketTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/livemv_control_XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    base_ = name;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(base_)); }
  std::string base_;
};

TEST_F(ControlSocketTest, AsksAndIsAnswered) {
  const std::string path = base_ + "/control";
  auto listener = ListenAt(path);
  ASSERT_TRUE(listener) << listener.error().ToString();
  struct stat st{};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
  auto client = ControlClient::Connect(path);
  ASSERT_TRUE(client);
  core::UniqueFd peer(::accept4(listener->Get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(peer);
  ASSERT_TRUE(client->Send("{\"verb\":\"pause\"}"));
  char buf[64];
  ssize_t n = ::recv(peer.Get(), buf, sizeof buf, 0);
  EXPECT_EQ(std::string(buf, n > 0 ? static_cast<size_t>(n) : 0),
            "{\"verb\":\"pause\"}\n");
  const std::string answer = MakeReply(Exit::kDone, "paused") + "\n";
  ASSERT_EQ(::send(peer.Get(), answer.data(), answer.size(), 0),
            static_cast<ssize_t>(answer.size()));
  auto line = client->ReadLine(MonotonicNs() + 5'000'000'000);
  ASSERT_TRUE(line);
  EXPECT_EQ(ParseReply(*line)->message, "paused");
  EXPECT_EQ(client->ReadLine(MonotonicNs()).error().code,
            core::ErrorCode::kTimeout);
  peer.Reset();
  EXPECT_EQ(client->ReadLine(-1).error().code, core::ErrorCode::kGone);
}

TEST_F(ControlSocketTest, NobodyThereIsToldFromOtherErrors) {
  EXPECT_EQ(ControlClient::Connect(base_ + "/none").error().code,
            core::ErrorCode::kGone);
  { auto listener = ListenAt(base_ + "/dead"); }
  EXPECT_EQ(ControlClient::Connect(base_ + "/dead").error().code,
            core::ErrorCode::kGone);
}

MigrationStatus SomeStatus() {
  MigrationStatus s;
  s.id = "abc234";
  s.source = "/srv/a\nb";
  s.target = "nas:/x";
  s.state = "synced";
  s.reason = "waits for pid 7";
  s.verbs = {"cutover", "abort"};
  s.bytes = {1000, 600, 400};
  s.files = {10, 7, 3};
  s.holders = {{7, "tail", "blocks", "maps f", 1, 2, 3}};
  s.pauses = {{"attach", 7, "tail", 1'500'000}};
  s.supervisor_pid = 11;
  s.worker_pid = 12;
  s.rate = 5.5;
  s.eta_s = 3;
  s.auto_cutover = true;
  s.redo_left = 4;
  s.attempts = 2;
  s.max_pause_ns = 200'000'000;
  s.scanned = true;
  return s;
}

TEST(MigrationStatus, JsonMakesTheRoundTrip) {
  MigrationStatus s = SomeStatus();
  auto back = StatusFromJson(StatusToJson(s));
  ASSERT_TRUE(back) << back.error().ToString();
  EXPECT_EQ(*back, s);
  s.eta_s = -1;
  EXPECT_EQ(StatusFromJson(StatusToJson(s))->eta_s, -1);
  EXPECT_FALSE(StatusFromJson("{}"));
  EXPECT_FALSE(StatusFromJson("nonsense"));
}

TEST(MigrationStatus, TextNamesStateReasonVerbsAndWhoIsInTheWay) {
  std::string text = RenderStatus(SomeStatus());
  for (const char* part :
       {"abc234", "/srv/a\\nb -> nas:/x", "SYNCED", "waits for pid 7",
        "cutover abort", "100.0%", "pid 7 tail: blocks, maps f",
        "attach: 1 processes, longest 1.5 ms", "worker 12"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  EXPECT_EQ(RenderProgress(SomeStatus()).find('\n'), std::string::npos);
}

TEST(MigrationStatus, AnAbortShowsWhatWasBroughtBack) {
  MigrationStatus s = SomeStatus();
  s.state = "aborting";
  s.bytes = {1000, 250, 750};
  s.files = {10, 7, 3};
  const std::string text = RenderStatus(s);
  EXPECT_NE(text.find("back     250 B of 1000 B brought back  25.0%"),
            std::string::npos)
      << text;
  EXPECT_EQ(text.find("\ncopy "), std::string::npos);
  EXPECT_NE(RenderListLine(s).find("25.0%"), std::string::npos);
  EXPECT_NE(RenderProgress(s).find("25.0%, 3 files to go"), std::string::npos)
      << RenderProgress(s);
}

}  // namespace
}  // namespace livemv::daemon
