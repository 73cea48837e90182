#include "migrator/cutover/reopen.h"

#include <gmock/gmock.h>

#include "tests/unit/migrator/cutover/fake_machine.h"

namespace livemv::cutover {
namespace {

using ::testing::HasSubstr;

class ReopenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    m_.PutOverlayOn();
    root_ = m_.DirectoryIn(Anybody(), "/data").value();
    request_.overlay_root_fd = root_.Get();
    request_.overlay_tree = m_.OverlayTree();
    request_.own = {1000};
  }
  pid_t Anybody() {
    m_.Writer(10, kOverlay);
    return 10;
  }
  // The file of pid's descriptor is one that the kernel writes by itself; it is
  // not any more once it was opened again.
  void MakeDirect(pid_t pid, int number = 3) {
    const uint64_t ino =
        m_.files.at(m_.descriptions.at(m_.processes.at(pid).fds.at(number)).path);
    m_.direct.insert(ino);
  }
  Outcome Run() { return RunReopen(m_.MakeDeps(), request_); }

  FakeMachine m_;
  UniqueFd root_;
  ReopenRequest request_;
};

TEST_F(ReopenTest, NobodyIsStoppedForNothing) {
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_TRUE(outcome.committed);
  EXPECT_EQ(outcome.rounds, 0);
  EXPECT_EQ(m_.Acts("LeaveDirect"), 1);
}

TEST_F(ReopenTest, WhatIsDirectIsOpenedAgainAndTheRestStays) {
  m_.Writer(11, kOverlay).fds[5] = m_.processes[10].fds[3];  // shared
  MakeDirect(10);
  const int cwd = m_.processes[10].cwd, old = m_.processes[10].fds[3],
            other = m_.processes[11].fds[3];
  m_.then["Thaw"] = [this] { m_.direct.clear(); };  // all by the other number
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(outcome.rounds, 1);
  const int fresh = m_.processes[10].fds[3];
  EXPECT_NE(fresh, old);
  EXPECT_EQ(m_.processes[11].fds[5], fresh) << "shared as before";
  EXPECT_EQ(m_.descriptions[fresh].dev, kOverlay);
  EXPECT_EQ(m_.descriptions[fresh].pos, m_.descriptions[old].pos);
  EXPECT_EQ(m_.descriptions[fresh].flags, m_.descriptions[old].flags);
  EXPECT_EQ(m_.processes[10].cwd, cwd);
  EXPECT_EQ(m_.processes[11].fds[3], other);
  EXPECT_FALSE(m_.gate_closed);
  EXPECT_EQ(m_.Acts("DrainAndGate"), 0) << "it is served all the while";
  EXPECT_EQ(m_.Shown(), kOverlay);
}

TEST_F(ReopenTest, ALockIsWaitedForAndNamed) {
  m_.processes[10].locked = true;
  MakeDirect(10);
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_FALSE(outcome.froze);
  ASSERT_EQ(outcome.stragglers.size(), 1u);
  EXPECT_EQ(outcome.stragglers[0].pid, 10);
  EXPECT_EQ(m_.Acts("LeaveDirect"), 0);
}

TEST_F(ReopenTest, WhoIsForkedMeanwhileIsFoundByTheNextScan) {
  MakeDirect(10);
  m_.then["Thaw"] = [this] {
    m_.Writer(20, kOverlay);
    MakeDirect(20);
    m_.then["Thaw"] = [this] { m_.direct.clear(); };
  };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(outcome.rounds, 2);
}

TEST_F(ReopenTest, ACloseThatTheWorkerHasNotSeenYetIsWaitedFor) {
  m_.fail["LeaveDirect"] = Error::Of(ErrorCode::kConflict, "one is open");
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(m_.Acts("LeaveDirect"), 2);
}

TEST_F(ReopenTest, ARoundThatFailsIsTriedAgain) {
  MakeDirect(10);
  m_.fail["Swap"] = Error::Of(ErrorCode::kTimeout, "too late");
  m_.then["Thaw"] = [this] {
    m_.then["Thaw"] = [this] { m_.direct.clear(); };
  };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(outcome.rounds, 2);
  EXPECT_FALSE(m_.processes[10].frozen);
}

}  // namespace
}  // namespace livemv::cutover
