#include "migrator/cutover/attach.h"

#include <gmock/gmock.h>

#include "core/fault_points.h"
#include "tests/unit/migrator/cutover/fake_machine.h"

namespace livemv::cutover {
namespace {

using ::testing::HasSubstr;

class AttachTest : public ::testing::Test {
 protected:
  void TearDown() override { ASSERT_TRUE(core::ArmFaults("")); }

  Outcome Run() {
    AttachRequest request;
    request.dir = "/data";
    request.overlay = &m_.overlay();
    request.source_dir_fd = kSourceDirFd;
    request.source = m_.SourceTree();
    request.overlay_tree = m_.OverlayTree();
    request.own = {1000};
    Deps deps = m_.MakeDeps();
    deps.cancelled = [this] { return cancelled_; };
    return RunAttach(deps, request);
  }

  // All on dev, nobody stopped.
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

  // Processes 10 and 11, each with a description of its own.
  std::pair<FakeDescription&, FakeDescription&> TwoOfOneFile() {
    m_.Writer(10);
    m_.Writer(11);
    FakeDescription& ten = m_.descriptions[m_.processes[10].fds[3]];
    FakeDescription& eleven = m_.descriptions[m_.processes[11].fds[3]];
    eleven.path = ten.path;
    return {ten, eleven};
  }

  FakeMachine m_;
  bool cancelled_ = false;
};

// Between the scan and the look at what the number stands for, the process
// closes the file and opens another under the same number.
TEST_F(AttachTest, ANumberThatIsAnotherFilesByNowGetsThatFile) {
  m_.Writer(10).cwd = -1;
  const int other = m_.Open("g", O_WRONLY | O_APPEND, 5);
  m_.then["ObjectAt"] = [&] { m_.processes[10].fds[3] = other; };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  ExpectEverybodyOn(kOverlay);
  const FakeDescription& is = m_.descriptions.at(m_.processes[10].fds[3]);
  EXPECT_EQ(is.path, "g");
  EXPECT_EQ(is.pos, 5);
}

// --- locks of descriptions

TEST_F(AttachTest, ALockIsTakenOnTheOverlayBeforeAnybodyIsFrozen) {
  m_.Writer(10);
  const int old = m_.processes[10].fds[3];
  m_.descriptions[old].locks = Flock();
  bool kept = false;
  m_.then["StartRedirect"] = [&] { kept = m_.IsShared(old); };
  {
    Outcome outcome = Run();
    ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
    ExpectEverybodyOn(kOverlay);
    EXPECT_TRUE(
        SameLocks(m_.descriptions.at(m_.processes[10].fds[3]).locks, Flock()));
    const auto at = [&](const char* act) {
      return std::find(m_.acts.begin(), m_.acts.end(), act) - m_.acts.begin();
    };
    EXPECT_LT(at("SetLocks"), at("Freeze"));
    EXPECT_EQ(m_.Acts("SetLocks"), 1);
  }
  // Who is on the source yet, and waits for it, must not get it.
  EXPECT_TRUE(kept);
  EXPECT_FALSE(m_.IsShared(old));
}

TEST_F(AttachTest, ALockThatCameOrWentInTheMeantimeIsSeenInTheFreeze) {
  auto two = TwoOfOneFile();
  FakeDescription& ten = two.first;
  FakeDescription& eleven = two.second;
  ten.locks = Flock();
  m_.then["Frozen"] = [&] {
    ten.locks.clear();
    eleven.locks = Flock();
  };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(outcome.rounds, 1);
  EXPECT_TRUE(m_.descriptions.at(m_.processes[10].fds[3]).locks.empty());
  EXPECT_TRUE(
      SameLocks(m_.descriptions.at(m_.processes[11].fds[3]).locks, Flock()));
}

TEST_F(AttachTest, TakenBackAHolderGetsTheDescriptionThatKeptItsLock) {
  m_.Writer(10);
  const int old = m_.processes[10].fds[3];
  m_.descriptions[old].locks = Flock();
  m_.fail["StartRedirect"] = Broken();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  ExpectEverybodyOn(kSource);
  EXPECT_EQ(m_.Shown(), kSource);
  EXPECT_EQ(m_.processes[10].fds[3], old);
  EXPECT_TRUE(SameLocks(m_.descriptions.at(old).locks, Flock()));
  // Both there before others can get at the file by its name.
  const auto last = [&](const char* act) {
    return std::find(m_.acts.rbegin(), m_.acts.rend(), act) - m_.acts.rbegin();
  };
  EXPECT_GT(last("Swap"), last("DetachTop"));
}

TEST_F(AttachTest, TakenBackTwoDescriptionsWithTheSameLocksStayTwo) {
  FakeProcess& p = m_.Writer(10);
  const int first = p.fds[3];
  p.fds[4] = m_.Open(m_.descriptions[first].path, m_.descriptions[first].flags);
  const int second = p.fds[4];
  m_.descriptions[first].locks = m_.descriptions[second].locks = Flock(false);
  m_.fail["StartRedirect"] = Broken();
  EXPECT_FALSE(Run().status);
  ExpectEverybodyOn(kSource);
  const auto& fds = m_.processes[10].fds;
  EXPECT_THAT((std::set{fds.at(3), fds.at(4)}),
              ::testing::UnorderedElementsAre(first, second));
}

// Seen with one holder and with the next: the look in the freeze decides.
TEST_F(AttachTest, ALockThatWasSeenTwiceIsItsLastHolders) {
  auto two = TwoOfOneFile();
  FakeDescription& ten = two.first;
  FakeDescription& eleven = two.second;
  ten.locks = eleven.locks = Flock();
  m_.then["Frozen"] = [&] { ten.locks.clear(); };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(outcome.rounds, 1);
  EXPECT_TRUE(m_.descriptions.at(m_.processes[10].fds[3]).locks.empty());
  EXPECT_TRUE(
      SameLocks(m_.descriptions.at(m_.processes[11].fds[3]).locks, Flock()));
}

TEST_F(AttachTest, TwoDescriptionsOfAFileGetTheirOwnLocks) {
  FakeProcess& p = m_.Writer(10);
  FakeDescription& first = m_.descriptions[p.fds[3]];
  p.fds[4] = m_.Open(first.path, first.flags, 5);
  p.fds[5] = m_.Open(first.path, first.flags, 6);
  m_.descriptions[p.fds[4]].locks = Flock();
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_TRUE(m_.descriptions.at(p.fds[3]).locks.empty());
  EXPECT_TRUE(SameLocks(m_.descriptions.at(p.fds[4]).locks, Flock()));
  EXPECT_TRUE(m_.descriptions.at(p.fds[5]).locks.empty());
  EXPECT_EQ(m_.descriptions.at(p.fds[4]).pos, 5);
}

TEST_F(AttachTest, ALockThatCannotBeTakenPutsAllBack) {
  m_.Writer(10);
  m_.descriptions[m_.processes[10].fds[3]].locks = Flock();
  m_.fail["SetLocks"] = Broken();
  const std::string before = m_.Picture();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_THAT(outcome.status.error().ToString(),
              HasSubstr("which process 10 has locked"));
  EXPECT_EQ(m_.Picture(), before);
}

// --- POSIX locks

TEST_F(AttachTest, APosixLockIsTakenAgainBehindShutDoors) {
  m_.Writer(10).posix[3] = Posix();
  m_.Writer(11);
  dev_t shown_at_swap = 0;
  bool shut_at_swap = false;
  m_.then["Swap"] = [&] {
    shown_at_swap = m_.Shown();
    shut_at_swap = m_.opens_closed;
  };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  ExpectEverybodyOn(kOverlay);
  EXPECT_TRUE(SameLocks(m_.processes[10].posix[3], Posix()));
  EXPECT_EQ(shown_at_swap, kOverlay) << "the source could still be reached";
  EXPECT_TRUE(shut_at_swap) << "the overlay could be opened";
  EXPECT_EQ(m_.Acts("AttachAt"), 1);
  EXPECT_FALSE(m_.opens_closed);
}

// Who is on the source yet, or comes to it by an open that has begun before.
TEST_F(AttachTest, WhereItWasAPosixLockIsHeldUntilNobodyIsLeftThere) {
  m_.Writer(10).posix[3] = Posix();
  const int old = m_.processes[10].fds[3];
  bool held_at_thaw = false, held_at_the_end = false;
  m_.then["Thaw"] = [&] { held_at_thaw = m_.SharedLocks(old); };
  m_.then["StartRedirect"] = [&] { held_at_the_end = m_.SharedLocks(old); };
  {
    Outcome outcome = Run();
    ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  }
  EXPECT_TRUE(held_at_thaw);
  EXPECT_TRUE(held_at_the_end);
  EXPECT_FALSE(m_.IsShared(old));
}

TEST_F(AttachTest, WithoutPosixLocksNobodyIsShutOut) {
  m_.Writer(10);
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.Acts("GateOpens"), 0);
}

TEST_F(AttachTest, WhoIsSeenInTheFreezeIsFrozenToo) {
  m_.Writer(10).posix[3] = Posix();
  m_.then["Frozen"] = [this] { m_.Writer(20); };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(outcome.rounds, 1);
  ExpectEverybodyOn(kOverlay);
}

TEST_F(AttachTest, WhoOpensAFileWhileTheDoorsAreShutCouldGetTheLock) {
  m_.Writer(10).posix[3] = Posix();
  m_.then["AttachAt"] = [this] { m_.Writer(20); };
  bool swapped_beside_it = false;
  m_.then["Swap"] = [&] { swapped_beside_it = !m_.processes[20].frozen; };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(outcome.rounds, 2);
  EXPECT_FALSE(swapped_beside_it);
  EXPECT_THAT(outcome.warnings.front(), HasSubstr("process 20 (writer)"));
  ExpectEverybodyOn(kOverlay);
  EXPECT_TRUE(SameLocks(m_.processes[10].posix[3], Posix()));
}

TEST_F(AttachTest, TakenBackTheOverlayIsGatedForTheSakeOfALock) {
  m_.Writer(10).posix[3] = Posix();
  m_.fail["StartRedirect"] = Broken();
  const std::string before = m_.Picture();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(m_.Picture(), before);
  EXPECT_EQ(m_.Acts("DrainAndGate"), 1);
}

class AttachFailsWithLocksTest
    : public AttachTest,
      public ::testing::WithParamInterface<const char*> {};

TEST_P(AttachFailsWithLocksTest, AndLeavesThingsAsBefore) {
  m_.Writer(10).posix[3] = Posix();
  m_.AddNamespace(200, false);
  m_.Writer(12).ns = 200;
  const std::string before = m_.Picture();
  m_.fail[GetParam()] = Broken();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().Errno(), EIO);
  EXPECT_EQ(m_.Picture(), before);
  EXPECT_EQ(m_.OpenFakeFds(), 0);
}

INSTANTIATE_TEST_SUITE_P(Step, AttachFailsWithLocksTest,
                         ::testing::Values("GateOpens", "AttachAt", "Swap",
                                           "Verify", "CloneTree",
                                           "StartRedirect"),
                         [](const auto& p) { return std::string(p.param); });

TEST_F(AttachTest, MovesEveryHolderKeepsWhatItSeesAndStartsTheRedirect) {
  m_.Writer(10);
  FakeProcess& p = m_.Writer(11);
  p.fds[7] = m_.Open("g", O_RDWR | O_SYNC, 12345);
  p.cloexec.insert(7);
  p.fds[8] = m_.Open("sub", O_RDONLY | O_DIRECTORY);
  p.fds[9] = m_.Open("h", O_PATH);
  std::string before = m_.Picture();

  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_TRUE(m_.redirect);
  EXPECT_EQ(m_.Shown(), kOverlay);
  ExpectEverybodyOn(kOverlay);
  EXPECT_EQ(outcome.rounds, 1);
  EXPECT_EQ(outcome.processes_moved, 2u);
  EXPECT_EQ(outcome.seats_moved, 7u);
  EXPECT_EQ(outcome.pauses.size(), 2u);
  EXPECT_TRUE(outcome.warnings.empty()) << outcome.warnings.front();
  // Offsets, flags and close-on-exec are as they were, only the tree is not.
  std::string after = m_.Picture();
  for (std::string* s : {&before, &after})
    for (size_t at; (at = s->find(s == &before ? "=1:" : "=2:")) !=
                    std::string::npos;)
      s->replace(at, 3, "=T:");
  EXPECT_EQ(before.substr(0, before.find("ns ")),
            after.substr(0, after.find("ns ")));
  EXPECT_EQ(m_.OpenFakeFds(), 0) << "all of ours are closed again";
}

TEST_F(AttachTest, ADescriptionSharedByProcessesIsOpenedOnceAndStaysShared) {
  FakeProcess& p = m_.Writer(10);
  FakeProcess& child = m_.Writer(11);
  child.fds[3] = p.fds[3];
  child.fds[4] = p.fds[3];
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.processes[11].fds[3], m_.processes[10].fds[3]);
  EXPECT_EQ(m_.processes[11].fds[4], m_.processes[10].fds[3]);
  ExpectEverybodyOn(kOverlay);
  EXPECT_EQ(m_.Acts("OpenBeneath"), 2) << "one file, one directory";
}

TEST_F(AttachTest, WithoutHoldersTheOverlayStillGoesOn) {
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status);
  EXPECT_FALSE(outcome.froze);
  EXPECT_EQ(m_.Acts("MakeFrozenSet"), 0);
  EXPECT_EQ(m_.Shown(), kOverlay);
  EXPECT_TRUE(m_.redirect);
}

TEST_F(AttachTest, AHolderThatBlocksEndsItWithNothingTouched) {
  m_.Writer(10);
  m_.Writer(11).locked = true;
  std::string before = m_.Picture();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_THAT(outcome.status.error().what, HasSubstr("process 11 (writer)"));
  ASSERT_EQ(outcome.stragglers.size(), 1u);
  EXPECT_EQ(outcome.stragglers[0].pid, 11);
  EXPECT_FALSE(outcome.froze);
  EXPECT_FALSE(outcome.committed);
  EXPECT_EQ(m_.Picture(), before);
  EXPECT_EQ(m_.Acts("MakeFrozenSet") + m_.Acts("AttachAt"), 0);
}

TEST_F(AttachTest, AHolderThatBlocksForAnInstantIsWaitedFor) {
  m_.Writer(10).locked = true;
  m_.then["Capture"] = [this] {
    m_.then["Capture"] = [this] { m_.processes[10].locked = false; };
  };
  ASSERT_TRUE(Run().status);
  ExpectEverybodyOn(kOverlay);
}

TEST_F(AttachTest, OurOwnProcessesAndTheirChildrenAreLeftAlone) {
  m_.Writer(1000);
  m_.Writer(1001).ppid = 1000;
  m_.Writer(10);
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.descriptions[m_.processes[1000].cwd].dev, kSource);
  EXPECT_EQ(m_.descriptions[m_.processes[1001].cwd].dev, kSource);
  EXPECT_EQ(m_.descriptions[m_.processes[10].cwd].dev, kOverlay);
}

TEST_F(AttachTest, OurOwnProcessesAreLeftAloneAlsoAsChildrenOfAHolder) {
  m_.Writer(10);
  m_.Writer(1000).ppid = 10;
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.descriptions[m_.processes[1000].cwd].dev, kSource);
  EXPECT_EQ(m_.descriptions[m_.processes[10].cwd].dev, kOverlay);
}

TEST_F(AttachTest, AProgramOfTheTreeMayStayAndIsNamed) {
  FakeProcess& p = m_.processes[10];
  p.text_only = true;
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  ASSERT_EQ(outcome.stragglers.size(), 1u);
  EXPECT_TRUE(outcome.stragglers[0].may_stay);
  EXPECT_FALSE(outcome.froze);
}

TEST_F(AttachTest, AProgramOfTheTreeHasItsDirectoryMovedAllTheSame) {
  m_.Writer(10).text_only = true;
  ASSERT_TRUE(Run().status);
  ExpectEverybodyOn(kOverlay);
}

TEST_F(AttachTest, AChildForkedBeforeTheFreezeIsMovedInTheSameFreeze) {
  m_.Writer(10);
  m_.then["Freeze"] = [this] {
    m_.processes[11] = m_.processes[10];
    m_.processes[11].ppid = 10;
  };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(outcome.rounds, 1);
  EXPECT_EQ(m_.processes[11].fds[3], m_.processes[10].fds[3]) << "still shared";
  ExpectEverybodyOn(kOverlay);
}

TEST_F(AttachTest, WhatIsOpenedBeforeTheFreezeIsOpenedInIt) {
  m_.Writer(10);
  m_.then["Freeze"] = [this] {
    m_.processes[10].fds[5] = m_.Open("late", O_RDWR, 77);
    m_.descriptions[m_.processes[10].fds[3]].pos = 4242;
  };
  ASSERT_TRUE(Run().status);
  ExpectEverybodyOn(kOverlay);
  EXPECT_EQ(m_.descriptions[m_.processes[10].fds[5]].pos, 77);
  EXPECT_EQ(m_.descriptions[m_.processes[10].fds[3]].pos, 4242)
      << "the position of the freeze, not of the scan";
}

TEST_F(AttachTest, WhatIsRenamedBeforeTheFreezeIsOpenedByItsNewName) {
  m_.Writer(10);
  m_.then["Freeze"] = [this] {
    m_.files["renamed"] = m_.files.at("f10");
    m_.descriptions[m_.processes[10].fds[3]].path = "renamed";
  };
  ASSERT_TRUE(Run().status);
  ExpectEverybodyOn(kOverlay);
  EXPECT_EQ(m_.descriptions[m_.processes[10].fds[3]].path, "renamed");
  EXPECT_EQ(m_.OpenFakeFds(), 0);
}

TEST_F(AttachTest, AnInodeNumberThatWasGivenToAnotherFileIsNotTakenForIt) {
  m_.Writer(10);
  // Closed, removed, and a new file at the same number with other flags.
  m_.then["Freeze"] = [this] {
    m_.processes[10].fds.erase(3);
    m_.processes[10].fds[4] = m_.Open("f10", O_RDWR, 5);
  };
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.descriptions[m_.processes[10].fds[4]].flags, O_RDWR);
  EXPECT_FALSE(m_.processes[10].fds.contains(3));
}

TEST_F(AttachTest, AProcessThatAppearsLaterIsMovedBeforeTheRedirect) {
  m_.Writer(10);
  m_.then["Thaw"] = [this] { m_.Writer(20); };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status);
  EXPECT_EQ(outcome.rounds, 2);
  ExpectEverybodyOn(kOverlay);
}

TEST_F(AttachTest, TheRedirectWaitsForTwoScansInARowThatFindNobody) {
  m_.Writer(10);
  m_.then["Thaw"] = [this] { m_.acts.clear(); };
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.Acts("Capture"), 2);
  EXPECT_EQ(m_.acts.back(), "Redirected");
}

TEST_F(AttachTest, SignalOwnersAreKept) {
  m_.Writer(10);
  m_.owners = true;
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.Acts("CopyOwner"), 1);
}

TEST_F(AttachTest, AFreezeThatFindsNoQuietMomentIsTriedAgain) {
  m_.Writer(10);
  m_.fail["Freeze"] = Broken(ErrorCode::kTimeout);
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(outcome.rounds, 2);
  ASSERT_EQ(outcome.warnings.size(), 1u);
  EXPECT_THAT(outcome.warnings[0], HasSubstr("in a long fsync"));
}

TEST_F(AttachTest, AFreezeThatNeverFindsAQuietMomentIsGivenUp) {
  m_.Writer(10);
  m_.fail["Freeze"] = Broken(ErrorCode::kTimeout);
  m_.fail_always.insert("Freeze");
  std::string before = m_.Picture();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.rounds, 5);
  EXPECT_EQ(m_.Picture(), before);
}

TEST_F(AttachTest, AHolderThatBecomesUnmovableInTheFreezePutsAllBack) {
  m_.Writer(10);
  m_.Writer(11);
  m_.then["Frozen"] = [this] { m_.processes[11].locked = true; };
  m_.then["Thaw"] = [this] { m_.processes[11].locked = false; };
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(outcome.rounds, 2);
  EXPECT_THAT(outcome.warnings[0], HasSubstr("cannot be moved any more"));
}

TEST_F(AttachTest, AHolderThatBlocksAfterTheFirstThawSendsAllBack) {
  m_.Writer(10);
  m_.then["Thaw"] = [this] { m_.Writer(20).locked = true; };
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code, ErrorCode::kTimeout);
  EXPECT_THAT(outcome.status.error().what, HasSubstr("process 20"));
  EXPECT_FALSE(outcome.committed);
  EXPECT_EQ(m_.Shown(), kSource);
  ExpectEverybodyOn(kSource);
  EXPECT_FALSE(m_.redirect);
}

TEST_F(AttachTest, StoppedByTheOperatorItPutsAllBack) {
  m_.Writer(10);
  m_.then["Thaw"] = [this] {
    cancelled_ = true;
    m_.Writer(20);
  };
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().code, ErrorCode::kAborted);
  EXPECT_FALSE(outcome.committed);
  EXPECT_EQ(m_.Shown(), kSource);
  ExpectEverybodyOn(kSource);
}

TEST_F(AttachTest, APrivateNamespaceGetsTheOverlayAndItsHoldersLieOnIt) {
  m_.AddNamespace(200, false);
  m_.Writer(10).ns = 200;
  m_.Writer(11);
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(m_.Shown(200), kOverlay);
  ExpectEverybodyOn(kOverlay);
  EXPECT_EQ(m_.descriptions[m_.processes[10].cwd].ns, 200u)
      << "a directory on our mount would lead out of its namespace";
  EXPECT_EQ(m_.descriptions[m_.processes[11].cwd].ns, kOwnNs);
}

TEST_F(AttachTest, ANamespaceThatFollowsOursGetsItOnce) {
  m_.AddNamespace(200, true);
  m_.Writer(10).ns = 200;
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.MountsAt(200, "/data"), 1u);
  ExpectEverybodyOn(kOverlay);
}

TEST_F(AttachTest, ANamespaceThatAppearsLaterIsCovered) {
  m_.Writer(10);
  m_.then["Thaw"] = [this] {
    m_.AddNamespace(300, false);
    m_.Writer(30).ns = 300;
  };
  ASSERT_TRUE(Run().status);
  EXPECT_EQ(m_.Shown(300), kOverlay);
  ExpectEverybodyOn(kOverlay);
}

TEST_F(AttachTest, TakenOffOnceTheOverlayIsTriedAgainAsACopy) {
  m_.AddNamespace(200, false);
  m_.Writer(10).ns = 200;
  m_.Writer(11);
  m_.fail["CloneTree"] = Broken(ErrorCode::kConflict);
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_EQ(m_.Acts("DetachTop"), 1);
  EXPECT_EQ(m_.Shown(), kOverlay);
  EXPECT_EQ(m_.Shown(200), kOverlay);
  ExpectEverybodyOn(kOverlay);
}

// The journal has it, and bytes may be on the target alone.
TEST_F(AttachTest, ARedirectThatHasBegunIsNotTakenBack) {
  m_.Writer(10);
  m_.fail["Redirected"] = Broken(ErrorCode::kTimeout);
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status) << outcome.status.error().ToString();
  EXPECT_TRUE(outcome.committed);
  ExpectEverybodyOn(kOverlay);
  EXPECT_EQ(m_.Shown(), kOverlay);
  EXPECT_EQ(m_.Acts("DetachTop"), 0);
}

TEST_F(AttachTest, NothingIsTakenOffUnlessTheWorkerSaysThatItMay) {
  m_.Writer(10);
  m_.fail["StartRedirect"] = Broken(ErrorCode::kGone);
  m_.fail["GiveUpAttach"] = Broken(ErrorCode::kGone);
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_TRUE(outcome.committed) << "it is to be tried again";
  ExpectEverybodyOn(kOverlay);
  EXPECT_EQ(m_.Shown(), kOverlay);
}

// Each failure, wherever it strikes: everything is as it was before.
class AttachFailsTest : public AttachTest,
                        public ::testing::WithParamInterface<const char*> {};

TEST_P(AttachFailsTest, AndLeavesThingsAsBefore) {
  m_.Writer(10);
  FakeProcess& p = m_.Writer(11);
  p.fds[3] = m_.processes[10].fds[3];
  p.cloexec.insert(3);
  m_.AddNamespace(200, false);
  m_.Writer(12).ns = 200;
  std::string before = m_.Picture();
  m_.fail[GetParam()] = Broken();
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status);
  EXPECT_EQ(outcome.status.error().Errno(), EIO);
  EXPECT_FALSE(outcome.committed);
  EXPECT_FALSE(m_.redirect);
  EXPECT_EQ(m_.Picture(), before);
  EXPECT_EQ(m_.OpenFakeFds(), 0);
}

INSTANTIATE_TEST_SUITE_P(Step, AttachFailsTest,
                         ::testing::Values("Capture", "MakeFrozenSet",
                                           "Freeze", "Identify", "SetPosition",
                                           "Swap", "Verify", "AttachAt",
                                           "CloneTree", "StartRedirect"),
                         [](const auto& p) { return std::string(p.param); });

class AttachFaultTest : public AttachTest,
                        public ::testing::WithParamInterface<const char*> {};

TEST_P(AttachFaultTest, LeavesThingsAsBefore) {
  m_.Writer(10);
  m_.AddNamespace(200, true);
  m_.Writer(12).ns = 200;
  std::string before = m_.Picture();
  ASSERT_TRUE(core::ArmFaults(std::string(GetParam()) + "=error:5@1"));
  Outcome outcome = Run();
  ASSERT_FALSE(outcome.status) << "the fault point was not passed";
  EXPECT_FALSE(outcome.committed);
  EXPECT_EQ(m_.Picture(), before);
}

INSTANTIATE_TEST_SUITE_P(Point, AttachFaultTest,
                         ::testing::Values("attach.scanned", "attach.frozen",
                                           "attach.swapped", "attach.mounted",
                                           "attach.rescanned",
                                           "attach.redirect"),
                         [](const auto& p) {
                           std::string name = p.param;
                           name[name.find('.')] = '_';
                           return name;
                         });

TEST_F(AttachTest, AFaultAfterTheCommitIsToldAndTakesNothingBack) {
  m_.Writer(10);
  ASSERT_TRUE(core::ArmFaults("attach.committed=error:5@1"));
  Outcome outcome = Run();
  ASSERT_TRUE(outcome.status);
  EXPECT_EQ(outcome.warnings.size(), 1u);
  ExpectEverybodyOn(kOverlay);
}

}  // namespace
}  // namespace livemv::cutover
