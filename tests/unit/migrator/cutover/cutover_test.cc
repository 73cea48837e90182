#include "migrator/cutover/cutover.h"

#include <gmock/gmock.h>

#include "core/fault_points.h"
#include "tests/unit/migrator/cutover/fake_machine.h"

namespace livemv::cutover {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using state::Event;

class CutoverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    m_.PutOverlayOn();
    request_.dir = "/data";
    request_.target = &m_.target();
    request_.overlay_tree = m_.OverlayTree();
    request_.own = {1000};
  }
  void TearDown() override { ASSERT_TRUE(core::ArmFaults("")); }

  Outcome Run() { return RunCutover(m_.MakeDeps(), request_); }
  dev_t DevOf(pid_t pid, int number) {
    const FakeProcess& p = m_.processes.at(pid);
    return m_.descriptions.at(number < 0 ? p.cwd : p.fds.at(number)).dev;
  }
  void ExpectEverybodyOn(dev_t dev) {
    for (const auto& [pid, p] : m_.processes) {
      EXPECT_FALSE(p.frozen) << pid;
      if (p.cwd >= 0) {
        EXPECT_EQ(DevOf(pid, -1), dev) << pid << " cwd";
      }
      for (auto [number, id] : p.fds)
        EXPECT_EQ(DevOf(pid, number), dev) << pid << " fd " << number;
    }
  }
  // As a cutover that was given up leaves it, whatever is beneath the overlay.
  void ExpectNothingChanged(const std::string& before) {
    EXPECT_EQ(m_.Picture(), before);
    EXPECT_EQ(m_.OpenFakeFds(), 0);
  }

  FakeMachine m_;
  CutoverRequest request_;
};

TEST_F(CutoverTest, MovesEverybodyToTheTargetWhichTakesThePath) {
  m_.Writer(10, kOverlay);
  FakeProcess& p = m_.Writer(11, kOverlay);
  p.fds[4] = m_.processes[10].fds[3];
  p.cloexec.insert(4);
  m_.descriptions[m_.processes[10].fds[3]].pos = 999;
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_TRUE(outcome.committed);
  EXPECT_TRUE(outcome.warnings.empty()) << outcome.warnings.front();
  EXPECT_TRUE(outcome.stragglers.empty());
  EXPECT_EQ(outcome.pauses.size(), 2u);
  ExpectEverybodyOn(kTarget);
  EXPECT_EQ(m_.processes[11].fds[4], m_.processes[10].fds[3]) << "shared";
  EXPECT_TRUE(m_.processes[11].cloexec.contains(4));
  EXPECT_EQ(m_.descriptions[m_.processes[10].fds[3]].pos, 999);
  EXPECT_EQ(m_.Shown(), kTarget);
  EXPECT_EQ(m_.MountsAt(kOwnNs, "/data"), 1u);
  EXPECT_EQ(m_.truth, kTarget);
  EXPECT_FALSE(m_.gate_closed);
  EXPECT_THAT(m_.events, ElementsAre(Event::kCutover, Event::kCommitted));
  EXPECT_EQ(m_.open_on_target_in_freeze, 0)
      << "nothing in the freeze may wait for the target";
  EXPECT_EQ(m_.OpenFakeFds(), 0);
}

// Our overlay has ended, what has its number is another's.
TEST_F(CutoverTest, ADrainLeavesTheNextOwnerOfTheNumberAlone) {
  m_.Writer(10, kOverlay);
  request_.overlay_tree.lives = [] { return false; };
  std::string before = m_.Picture();
  Outcome outcome = RunDrain(m_.MakeDeps(), request_);
  EXPECT_TRUE(outcome.status);
  EXPECT_EQ(m_.Acts("DetachTop"), 0);
  EXPECT_EQ(m_.Acts("AttachAt"), 0);
  ExpectNothingChanged(before);
  request_.overlay_tree.lives = nullptr;
  EXPECT_TRUE(RunDrain(m_.MakeDeps(), request_).status);
  ExpectEverybodyOn(kTarget);
}

TEST_F(CutoverTest, TheTruthIsDurableBeforeTheFirstThawAndThePathSwitched) {
  m_.Writer(10, kOverlay);
  ASSERT_TRUE(Run().status);
  std::vector<std::string> order;
  for (const std::string& act : m_.acts)
    if (act == "Freeze" || act == "DrainAndGate" || act == "Swap" ||
        act == "Verify" || act == "SlideBeneath" || act == "CommitTarget" ||
        act == "Commit" || act == "DetachTop" || act == "Thaw" ||
        act == "OpenGate")
      if (order.empty() || order.back() != act)
        order.push_back(act);
  EXPECT_THAT(order,
              ElementsAre("Freeze", "DrainAndGate", "Swap", "Verify",
                          "SlideBeneath", "CommitTarget", "Commit",
                          "DetachTop", "Thaw", "OpenGate"));
}

TEST_F(CutoverTest, AStragglerInTheWayEndsItWithNothingTouched) {
  m_.Writer(10, kOverlay);
  m_.Writer(11, kOverlay).tracer = 77;
  std::string before = m_.Picture();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code, ErrorCode::kConflict);
  EXPECT_FALSE(outcome.froze);
  ASSERT_EQ(outcome.stragglers.size(), 1u);
  EXPECT_EQ(outcome.stragglers[0].pid, 11);
  EXPECT_THAT(outcome.stragglers[0].reason, HasSubstr("traced by process 77"));
  EXPECT_TRUE(m_.events.empty());
  ExpectNothingChanged(before);
  auto found = FindStragglers(m_.MakeDeps(), request_);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->size(), 1u);
  m_.processes[11].tracer = 0;
  EXPECT_TRUE(Run().status);
  ExpectEverybodyOn(kTarget);
}

TEST_F(CutoverTest, AnAcceptedStragglerStaysWithWhatItShares) {
  m_.Writer(10, kOverlay);
  FakeProcess& kept = m_.Writer(11, kOverlay);
  kept.locked = true;
  m_.processes[10].fds[9] = kept.fds[3];
  request_.accepted = {11};
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(DevOf(10, 3), kTarget);
  EXPECT_EQ(DevOf(10, -1), kTarget);
  EXPECT_EQ(DevOf(11, 3), kOverlay);
  EXPECT_EQ(DevOf(11, -1), kOverlay);
  EXPECT_EQ(DevOf(10, 9), kOverlay) << "else the two would part";
  EXPECT_EQ(m_.Shown(), kTarget);
  ASSERT_GE(outcome.stragglers.size(), 2u);
  EXPECT_TRUE(outcome.stragglers[0].accepted);
  EXPECT_THAT(outcome.stragglers[1].reason, HasSubstr("shared with process 11"));
  EXPECT_EQ(m_.Acts("Undo"), 0);

  m_.processes.erase(11);
  Outcome drained = RunDrain(m_.MakeDeps(), request_);
  ASSERT_TRUE(drained.status);
  EXPECT_EQ(DevOf(10, 9), kTarget);
  EXPECT_TRUE(RunDrain(m_.MakeDeps(), request_).stragglers.empty());
}

TEST_F(CutoverTest, WhatIsOpenedTooLateStaysOnTheOverlayAndFollowsSoon) {
  m_.Writer(10, kOverlay);
  m_.then["Freeze"] = [this] {
    m_.processes[10].fds[6] = m_.Open("late", O_WRONLY, 5, kOverlay);
  };
  m_.then["Thaw"] = [this] {
    EXPECT_EQ(DevOf(10, 3), kTarget);
    EXPECT_EQ(DevOf(10, 6), kOverlay);
  };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status);
  EXPECT_EQ(outcome.rounds, 2);
  ExpectEverybodyOn(kTarget);
  EXPECT_EQ(m_.descriptions[m_.processes[10].fds[6]].pos, 5);
  EXPECT_EQ(m_.open_on_target_in_freeze, 0);
}

TEST_F(CutoverTest, AProcessThatAppearsInBetweenFollowsSoon) {
  m_.Writer(10, kOverlay);
  m_.then["Swap"] = [this] { m_.Writer(20, kOverlay); };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status);
  ExpectEverybodyOn(kTarget);
  EXPECT_TRUE(outcome.stragglers.empty());
}

TEST_F(CutoverTest, AFileThatIsNotOnTheTargetKeepsItsHolderOnTheOverlay) {
  m_.Writer(10, kOverlay);
  m_.not_on_target = {"f10"};
  request_.leftover_ns = 50'000'000;
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status);
  EXPECT_EQ(DevOf(10, 3), kOverlay);
  EXPECT_EQ(DevOf(10, -1), kTarget);
  ASSERT_EQ(outcome.stragglers.size(), 1u);
  EXPECT_THAT(outcome.stragglers[0].reason, HasSubstr("not on the target"));
}

// A server may be asked for a lock: not while processes stand still.
TEST_F(CutoverTest, ALockThatIsTakenInTheLastMomentIsLeftToAQuieterOne) {
  m_.Writer(10, kOverlay);
  FakeDescription& held = m_.descriptions[m_.processes[10].fds[3]];
  m_.then["Frozen"] = [&] { held.locks = Flock(); };
  const std::string before = m_.Picture();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code, ErrorCode::kConflict);
  EXPECT_THAT(outcome.status.error().what, HasSubstr("locked or let go of"));
  EXPECT_EQ(m_.Picture(), before);
  outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_TRUE(
      SameLocks(m_.descriptions.at(m_.processes[10].fds[3]).locks, Flock()));
}

TEST_F(CutoverTest, ALockOnWhatWasOpenedInTheMeantimeIsNotLeftBehind) {
  m_.Writer(10, kOverlay);
  m_.then["Frozen"] = [&] {
    const int late = m_.Open("late", O_RDWR, 0, kOverlay);
    m_.descriptions[late].locks = Flock();
    m_.processes[10].fds[9] = late;
  };
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code, ErrorCode::kConflict);
  EXPECT_THAT(outcome.status.error().what, HasSubstr("descriptor 9"));
  outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
}

// --- POSIX locks

TEST_F(CutoverTest, APosixLockIsTakenAgainBehindTheGate) {
  m_.Writer(10, kOverlay).posix[3] = Posix();
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  ExpectEverybodyOn(kTarget);
  EXPECT_TRUE(SameLocks(m_.processes[10].posix[3], Posix()));
}

TEST_F(CutoverTest, WhoOpensAFileBeforeTheGateIsClosedCouldGetTheLock) {
  m_.Writer(10, kOverlay).posix[3] = Posix();
  m_.then["DrainAndGate"] = [this] { m_.Writer(20, kOverlay); };
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code, ErrorCode::kConflict);
  EXPECT_THAT(outcome.status.error().what, HasSubstr("process 20 (writer)"));
  EXPECT_EQ(m_.Acts("Swap"), 0);
  ExpectEverybodyOn(kOverlay);
  ASSERT_TRUE(Run().status);
  ExpectEverybodyOn(kTarget);
}

TEST_F(CutoverTest, WhoIsInTheMiddleOfAnOpenIsLookedForAfterIt) {
  m_.Writer(10, kOverlay).posix[3] = Posix();
  m_.then["LetOpensPass"] = [this] { m_.Writer(20, kOverlay); };
  EXPECT_THAT(Run().status.error().what, HasSubstr("process 20 (writer)"));
  EXPECT_EQ(m_.Acts("Swap"), 0);
}

TEST_F(CutoverTest, ADescriptorThatIsLeftKeepsItsFilesLockWhereItIs) {
  m_.truth = kTarget;
  FakeProcess& p = m_.Writer(10, kOverlay);
  m_.then["Frozen"] = [&] {
    p.fds[9] = m_.Open("f10", O_RDWR, 0, kOverlay);
    p.posix[9] = Posix();
  };
  Outcome drained = RunDrain(m_.MakeDeps(), request_);
  EXPECT_EQ(DevOf(10, 3), kOverlay) << "its replacement drops the lock";
  EXPECT_TRUE(SameLocks(p.posix[9], Posix()));
  drained = RunDrain(m_.MakeDeps(), request_);
  ASSERT_TRUE(drained.status) << drained.status.error().ToString();
  ExpectEverybodyOn(kTarget);
  EXPECT_TRUE(SameLocks(p.posix[9], Posix()));
}

TEST_F(CutoverTest, ALockWhereADescriptorIsToGoIsNotDropped) {
  m_.truth = kTarget;
  FakeProcess& p = m_.Writer(10, kOverlay);
  p.fds[9] = m_.Open("f10", O_RDWR, 0, kTarget);
  p.posix[9] = Posix();
  Outcome drained = RunDrain(m_.MakeDeps(), request_);
  ASSERT_TRUE(drained.status);
  ASSERT_EQ(drained.stragglers.size(), 1u);
  EXPECT_EQ(DevOf(10, 3), kOverlay);
  EXPECT_EQ(DevOf(10, -1), kTarget);
  p.posix.clear();
  drained = RunDrain(m_.MakeDeps(), request_);
  ASSERT_TRUE(drained.status);
  ExpectEverybodyOn(kTarget);
}

TEST_F(CutoverTest, FlushesInRoundsUntilOneIsShort) {
  m_.flush_reports = {{900'000'000, 5, 0}, {200'000'000, 2, 0},
                      {10'000'000, 0, 0}, {1, 0, 0}};
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.Acts("FlushRound"), 3);
}

TEST_F(CutoverTest, RoundsThatGetNoShorterAreNotGoneOnWith) {
  m_.flush_reports.assign(50, {300'000'000, 5, 0});
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.Acts("FlushRound"), 4);
}

TEST_F(CutoverTest, BytesThatAreNotOnTheTargetYetAreNotCutOver) {
  m_.Writer(10, kOverlay);
  m_.flush_reports = {{1, 0, 4096}};
  std::string before = m_.Picture();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_THAT(m_.events, ElementsAre(Event::kCutover, Event::kCutoverGivenUp));
  EXPECT_FALSE(outcome.froze);
  ExpectNothingChanged(before);
}

// Nobody holds anything, so nobody is frozen; the gate has its limit still.
TEST_F(CutoverTest, ASlowDrainIsNotATargetThatIsAway) {
  m_.fail["DrainAndGate"] = Broken(ErrorCode::kTimeout);
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_FALSE(outcome.froze);
  EXPECT_FALSE(outcome.unreachable);
  m_.fail["FlushRound"] = Broken(ErrorCode::kTimeout);
  EXPECT_TRUE(Run().unreachable);
  EXPECT_TRUE(Run().status);
}

TEST_F(CutoverTest, ATargetThatIsIncompleteAfterTheDrainPutsAllBack) {
  m_.Writer(10, kOverlay);
  m_.drain_report.redo_left = 1;
  std::string before = m_.Picture();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_TRUE(outcome.froze);
  ExpectNothingChanged(before);
}

TEST_F(CutoverTest, APauseThatGetsTooLongPutsAllBack) {
  m_.Writer(10, kOverlay);
  m_.then["Verify"] = [this] { m_.now += 201'000'000; };
  std::string before = m_.Picture();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code, ErrorCode::kTimeout);
  EXPECT_EQ(m_.Acts("CommitTarget"), 0);
  EXPECT_EQ(m_.Acts("SlideBeneath"), 0);
  EXPECT_THAT(m_.events, ElementsAre(Event::kCutover, Event::kCutoverGivenUp));
  ExpectNothingChanged(before);
}

TEST_F(CutoverTest, ACommitThatIsNotConfirmedIsRevokedWhileNobodyStandsStill) {
  m_.Writer(10, kOverlay);
  std::string before = m_.Picture();
  m_.fail["CommitTarget"] = Broken(ErrorCode::kTimeout);
  m_.then["RevokeTarget"] = [this] {
    EXPECT_FALSE(m_.processes[10].frozen);
    EXPECT_TRUE(m_.gate_closed) << "nobody may write while it is unknown who "
                                   "is the truth";
  };
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(m_.Acts("RevokeTarget"), 1);
  ExpectNothingChanged(before);

  // The target lies beneath the overlay by now: the next attempt finds it.
  EXPECT_EQ(m_.MountsAt(kOwnNs, "/data"), 2u);
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.Acts("SlideBeneath"), 1);
  EXPECT_EQ(m_.MountsAt(kOwnNs, "/data"), 1u);
  ExpectEverybodyOn(kTarget);
}

TEST_F(CutoverTest, WithoutMountBeneathThePathIsSwitchedWhileAllStandStill) {
  m_.Writer(10, kOverlay);
  m_.has_beneath = false;
  m_.then["DetachTop"] = [this] { EXPECT_TRUE(m_.processes[10].frozen); };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status);
  EXPECT_TRUE(outcome.warnings.empty()) << outcome.warnings.front();
  EXPECT_EQ(m_.Acts("SlideBeneath"), 0);
  EXPECT_EQ(m_.Shown(), kTarget);
  EXPECT_EQ(m_.MountsAt(kOwnNs, "/data"), 1u);
}

TEST_F(CutoverTest, WhatFailsAfterTheCommitIsToldAndFinishedByTheDrain) {
  m_.Writer(10, kOverlay);
  m_.fail["DetachTop"] = Broken();
  m_.fail_always.insert("DetachTop");
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status);
  EXPECT_TRUE(outcome.committed);
  EXPECT_FALSE(outcome.warnings.empty());
  EXPECT_EQ(m_.Shown(), kOverlay) << "which serves the target alone";
  ExpectEverybodyOn(kTarget);
  m_.fail.clear();
  Outcome drained = RunDrain(m_.MakeDeps(), request_);
  ASSERT_TRUE(drained.status);
  EXPECT_EQ(m_.Shown(), kTarget);
}

TEST_F(CutoverTest, TheDrainFinishesWhatADeadReanchorerLeft) {
  m_.Writer(10, kOverlay);
  m_.truth = kTarget;
  Outcome drained = RunDrain(m_.MakeDeps(), request_);
  ASSERT_TRUE(drained.status) << drained.status.error().ToString();
  EXPECT_EQ(m_.Shown(), kTarget);
  ExpectEverybodyOn(kTarget);
  EXPECT_EQ(m_.Acts("DrainAndGate"), 0);
}

TEST_F(CutoverTest, AnotherNamespaceIsSwitchedAndItsDirectoriesFollow) {
  m_.processes.clear();
  m_.AddNamespace(200, false);
  m_.Writer(12, kOverlay).ns = 200;
  mount::MountNamespace ns(UniqueFd(), UniqueFd(), 200, 12);
  auto copy = m_.CloneTree(m_.overlay().Get(), "");
  ASSERT_TRUE(copy);
  ASSERT_TRUE(m_.AttachAt(*copy, {&ns, "/data"}));
  m_.Writer(10, kOverlay);
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_TRUE(outcome.warnings.empty()) << outcome.warnings.front();
  EXPECT_EQ(m_.Shown(200), kTarget);
  EXPECT_EQ(m_.MountsAt(200, "/data"), 1u);
  ExpectEverybodyOn(kTarget);
  EXPECT_EQ(m_.descriptions[m_.processes[12].cwd].ns, 200u);
}

TEST_F(CutoverTest, ANamespaceThatFollowsOursIsSwitchedOnce) {
  FakeMachine m;
  m.AddNamespace(200, true);
  m.Writer(12, kOverlay).ns = 200;
  m.PutOverlayOn();
  request_.target = &m.target();
  Outcome outcome = RunCutover(m.MakeDeps(), request_);
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_TRUE(outcome.warnings.empty()) << outcome.warnings.front();
  EXPECT_EQ(m.Shown(200), kTarget);
  EXPECT_EQ(m.MountsAt(200, "/data"), 1u);
  EXPECT_EQ(m.Acts("SlideBeneath"), 1);
  request_.target = &m_.target();
}

class CutoverFailsTest : public CutoverTest,
                         public ::testing::WithParamInterface<const char*> {};

TEST_P(CutoverFailsTest, AndLeavesThingsAsBefore) {
  m_.Writer(10, kOverlay);
  FakeProcess& p = m_.Writer(11, kOverlay);
  p.fds[3] = m_.processes[10].fds[3];
  std::string before = m_.Picture();
  std::string step = GetParam();
  m_.fail[step] = Broken();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_FALSE(outcome.committed);
  EXPECT_EQ(m_.truth, kSource);
  if (!m_.events.empty()) {
    EXPECT_EQ(m_.events.back(), Event::kCutoverGivenUp);
  }
  ExpectNothingChanged(before);
  // And the next attempt succeeds.
  m_.fail.clear();
  EXPECT_TRUE(Run().status);
  ExpectEverybodyOn(kTarget);
  EXPECT_EQ(m_.Shown(), kTarget);
}

INSTANTIATE_TEST_SUITE_P(Step, CutoverFailsTest,
                         ::testing::Values("Capture", "Advance", "FlushRound",
                                           "MakeFrozenSet", "OpenOnTarget",
                                           "Freeze", "Identify",
                                           "DrainAndGate", "SetPosition",
                                           "Swap", "Verify", "SlideBeneath",
                                           "CommitTarget"),
                         [](const auto& p) { return std::string(p.param); });

class CutoverFaultTest : public CutoverTest,
                         public ::testing::WithParamInterface<const char*> {};

TEST_P(CutoverFaultTest, LeavesThingsAsBefore) {
  m_.Writer(10, kOverlay);
  std::string before = m_.Picture();
  ASSERT_TRUE(core::ArmFaults(std::string(GetParam()) + "=error:5@1"));
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status) << "the fault point was not passed";
  EXPECT_FALSE(outcome.committed);
  ExpectNothingChanged(before);
}

INSTANTIATE_TEST_SUITE_P(Point, CutoverFaultTest,
                         ::testing::Values("cutover.flushed", "cutover.frozen",
                                           "cutover.gated", "cutover.swapped",
                                           "cutover.mounted"),
                         [](const auto& p) {
                           std::string name = p.param;
                           name[name.find('.')] = '_';
                           return name;
                         });

TEST_F(CutoverTest, AFaultAfterTheCommitTakesNothingBack) {
  m_.Writer(10, kOverlay);
  ASSERT_TRUE(core::ArmFaults("cutover.committed=error:5@1"));
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status);
  EXPECT_FALSE(outcome.warnings.empty());
  EXPECT_EQ(m_.Shown(), kTarget);
  ExpectEverybodyOn(kTarget);
}

}  // namespace
}  // namespace livemv::cutover
