#include "migrator/cutover/return_to_source.h"

#include <gmock/gmock.h>

#include "core/fault_points.h"
#include "tests/unit/migrator/cutover/fake_machine.h"

namespace livemv::cutover {
namespace {

using ::testing::HasSubstr;

class ReturnTest : public ::testing::Test {
 protected:
  void SetUp() override {
    m_.PutOverlayOn();
    request_.dir = "/data";
    request_.source_dir_fd = kSourceDirFd;
    request_.source = m_.SourceTree();
    request_.overlay_tree = m_.OverlayTree();
    request_.target = &m_.target();
    request_.own = {1000};
  }
  void TearDown() override { ASSERT_TRUE(core::ArmFaults("")); }
  Outcome Run() { return RunReturn(m_.MakeDeps(), request_); }
  void ExpectEverybodyOn(dev_t dev) {
    for (const auto& [pid, p] : m_.processes) {
      EXPECT_FALSE(p.frozen) << pid;
      if (p.cwd >= 0) {
        EXPECT_EQ(m_.descriptions.at(p.cwd).dev, dev) << pid << " cwd";
      }
      for (auto [number, id] : p.fds)
        EXPECT_EQ(m_.descriptions.at(id).dev, dev) << pid << " fd " << number;
    }
  }

  FakeMachine m_;
  ReturnRequest request_;
};

TEST_F(ReturnTest, BringsEverybodyBackAndTakesTheOverlayOff) {
  m_.Writer(10, kOverlay);
  m_.Writer(11, kOverlay).fds[4] = m_.processes[10].fds[3];
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_TRUE(outcome.committed);
  ExpectEverybodyOn(kSource);
  EXPECT_EQ(m_.processes[11].fds[4], m_.processes[10].fds[3]);
  EXPECT_EQ(m_.descriptions[m_.processes[10].fds[3]].pos, 10);
  EXPECT_EQ(m_.Shown(), kSource);
  EXPECT_FALSE(m_.gate_closed);
  EXPECT_EQ(m_.Acts("CommitSource"), 1);
}

TEST_F(ReturnTest, TheSourceIsTheTruthBeforeAnybodyIsMovedToIt) {
  m_.Writer(10, kOverlay);
  m_.then["Swap"] = [this] { EXPECT_EQ(m_.Acts("CommitSource"), 1); };
  m_.then["CommitSource"] = [this] {
    EXPECT_TRUE(m_.processes[10].frozen);
    EXPECT_TRUE(m_.gate_closed);
  };
  ASSERT_TRUE(Run().status);
}

TEST_F(ReturnTest, ATargetBeneathTheOverlayIsTakenOffWithIt) {
  m_.Writer(10, kOverlay);
  ASSERT_TRUE(m_.SlideBeneath(m_.target(), {nullptr, "/data"}));
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.Shown(), kSource);
  EXPECT_EQ(m_.MountsAt(kOwnNs, "/data"), 0u);
}

TEST_F(ReturnTest, WhoAppearsInBetweenIsBroughtBackToo) {
  m_.Writer(10, kOverlay);
  m_.then["Thaw"] = [this] { m_.Writer(20, kOverlay); };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status);
  EXPECT_EQ(outcome.rounds, 2);
  ExpectEverybodyOn(kSource);
}

TEST_F(ReturnTest, AFileIsOpenedThatIsNotAtTheNameItWasOpenedBy) {
  m_.Writer(10, kOverlay);
  m_.descriptions[m_.processes[10].fds[3]].shown = "its/old/name";
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.Acts("OpenObject"), 1);
  ExpectEverybodyOn(kSource);
}

TEST_F(ReturnTest, AHandleThatWasNotToldIsAskedForAgain) {
  m_.Writer(10, kOverlay);
  m_.descriptions[m_.processes[10].fds[3]].shown = "its/old/name";
  m_.fail["SourceHandles"] = Broken();
  ASSERT_TRUE(Run().status);
  EXPECT_GE(m_.Acts("SourceHandles"), 2);
  ExpectEverybodyOn(kSource);
}

TEST_F(ReturnTest, AHolderThatCannotBeMovedIsWaitedForWithTheOverlayOn) {
  m_.Writer(10, kOverlay);
  m_.Writer(11, kOverlay).locked = true;
  std::string before = m_.Picture();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_FALSE(outcome.committed);
  ASSERT_EQ(outcome.stragglers.size(), 1u);
  EXPECT_EQ(outcome.stragglers[0].pid, 11);
  EXPECT_EQ(m_.Acts("Freeze"), 0);
  EXPECT_LT(m_.Acts("Capture"), 100) << "waiting costs little";
  EXPECT_EQ(m_.Picture(), before);
  m_.processes[11].locked = false;
  outcome = Run();
  ASSERT_TRUE(outcome.status);
  EXPECT_TRUE(outcome.stragglers.empty());
  ExpectEverybodyOn(kSource);
}

TEST_F(ReturnTest, WhoTakesALockJustBeforeTheFreezeIsWaitedForToo) {
  m_.Writer(10, kOverlay);
  m_.Writer(11, kOverlay);
  m_.then["Freeze"] = [this] { m_.processes[11].locked = true; };
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_FALSE(outcome.committed);
  EXPECT_EQ(m_.Shown(), kOverlay);
  EXPECT_FALSE(m_.gate_closed);
  ExpectEverybodyOn(kOverlay);
}

TEST_F(ReturnTest, OnceTheSourceIsShownALockKeepsNobodyElseOnTheOverlay) {
  m_.Writer(10, kOverlay);
  m_.then["Thaw"] = [this] { m_.Writer(11, kOverlay).locked = true; };
  ASSERT_FALSE(Run().status);
  EXPECT_EQ(m_.Shown(), kSource);
  m_.then.clear();
  m_.Writer(12, kOverlay);
  Outcome outcome = Run();
  EXPECT_TRUE(outcome.committed);
  EXPECT_EQ(m_.descriptions[m_.processes[12].fds[3]].dev, kSource);
  ASSERT_EQ(outcome.stragglers.size(), 1u);
  EXPECT_EQ(outcome.stragglers[0].pid, 11);
}

TEST_F(ReturnTest, WhatNoNameLeadsToStaysAndTheRestOfItsHolderIsMoved) {
  m_.Writer(10, kOverlay);
  m_.Writer(11, kOverlay);
  int gone = m_.processes[11].fds[3];
  m_.descriptions[gone].deleted = true;
  m_.processes[11].fds[5] = m_.processes[10].fds[3];
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_TRUE(outcome.committed);
  EXPECT_EQ(m_.Shown(), kSource);
  EXPECT_EQ(m_.descriptions[gone].dev, kOverlay);
  EXPECT_EQ(m_.descriptions[m_.processes[11].cwd].dev, kSource);
  EXPECT_EQ(m_.descriptions[m_.processes[11].fds[5]].dev, kSource);
  EXPECT_EQ(m_.processes[11].fds[5], m_.processes[10].fds[3]);
  ASSERT_EQ(outcome.stragglers.size(), 1u);
  EXPECT_EQ(outcome.stragglers[0].pid, 11);
  EXPECT_EQ(outcome.rounds, 1) << "nobody is frozen for nothing";
  m_.processes[11].fds.erase(3);
  ASSERT_TRUE(Run().status);
  ExpectEverybodyOn(kSource);
}

TEST_F(ReturnTest, WhereRedirectNeverBeganNeitherGateNorCommitIsNeeded) {
  m_.Writer(10, kOverlay);
  request_.commit_source = false;
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.Acts("DrainAndGate") + m_.Acts("CommitSource"), 0);
  ExpectEverybodyOn(kSource);
  EXPECT_EQ(m_.Shown(), kSource);
}

TEST_F(ReturnTest, AnOverlayThatCannotBeTakenOffIsToldWithItsReason) {
  m_.Writer(10, kOverlay);
  request_.commit_source = false;
  m_.fail["DetachTop"] = Broken();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_FALSE(outcome.committed);
  EXPECT_THAT(outcome.status.error().what, HasSubstr("broken on purpose"));
}

class ReturnFailsTest : public ReturnTest,
                        public ::testing::WithParamInterface<const char*> {};

TEST_P(ReturnFailsTest, AndLeavesEverybodyOnTheOverlay) {
  m_.Writer(10, kOverlay);
  std::string before = m_.Picture();
  m_.fail[GetParam()] = Broken();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_FALSE(outcome.committed);
  EXPECT_EQ(m_.Picture(), before);
  EXPECT_EQ(m_.OpenFakeFds(), 0);
  ASSERT_TRUE(Run().status) << "the next attempt succeeds";
  ExpectEverybodyOn(kSource);
}

INSTANTIATE_TEST_SUITE_P(Step, ReturnFailsTest,
                         ::testing::Values("Capture", "MakeFrozenSet",
                                           "Freeze", "Identify",
                                           "DrainAndGate", "CommitSource",
                                           "Swap", "Verify"),
                         [](const auto& p) { return std::string(p.param); });

class ReturnFaultTest : public ReturnTest,
                        public ::testing::WithParamInterface<const char*> {};

TEST_P(ReturnFaultTest, LeavesEverybodyOnTheOverlay) {
  m_.Writer(10, kOverlay);
  std::string before = m_.Picture();
  ASSERT_TRUE(core::ArmFaults(std::string(GetParam()) + "=error:5@1"));
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status) << "the fault point was not passed";
  EXPECT_EQ(m_.Picture(), before);
}

INSTANTIATE_TEST_SUITE_P(Point, ReturnFaultTest,
                         ::testing::Values("abort.opened", "abort.frozen",
                                           "abort.gated",
                                           "abort.committed_source",
                                           "abort.swapped"),
                         [](const auto& p) {
                           std::string name = p.param;
                           name[name.find('.')] = '_';
                           return name;
                         });

}  // namespace
}  // namespace livemv::cutover
