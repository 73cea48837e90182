// The names rule's counterexamples (N1 to N7) and the hazards of names, each
// as one short story.

#include <algorithm>
#include <random>

#include "migrator/copy/mark_sweep.h"
#include "tests/support/fake_syscalls.h"
#include "tests/support/name_stage.h"

namespace livemv::fake {
namespace {

using fusefs::AttrChange;
using fusefs::Caller;
using fusefs::Serving;

class Names : public testing::Test {
 protected:
  Names() {
    source_ = sys_.AddFs(FakeSyscalls::Kind::kLocal);
    target_ = sys_.AddFs(FakeSyscalls::Kind::kNfs);
    journal_ = sys_.AddFs(FakeSyscalls::Kind::kOrdered);
  }
  ~Names() override {
    sys_.on_call = nullptr;
    worker_.reset();
  }

  void Start() {
    worker_.reset();
    worker_ = std::make_unique<Worker>(
        &sys_,
        StageRoots{[this] { return sys_.OpenRoot(source_); },
                   [this] { return sys_.OpenRoot(target_); },
                   [this] { return sys_.OpenRoot(journal_); }, holds_},
        "boot " + std::to_string(boots_), true);
  }
  void PowerCut(uint64_t seed) {
    std::mt19937_64 rng(seed);
    worker_.reset();
    sys_.PowerCut(rng);
    boots_++;
    Start();
  }
  // Before the migration.
  void PlantDir(const std::string& path) {
    core::UniqueFd root = sys_.OpenRoot(source_);
    MustDo(sys_.MkDirAt(root.Get(), path.c_str(), 0755));
    sys_.MakeAllDurable(source_);
  }
  void PlantFile(const std::string& path) {
    core::UniqueFd root = sys_.OpenRoot(source_);
    auto fd = Must(sys_.OpenAt(root.Get(), path.c_str(), O_RDWR | O_CREAT,
                               0644));
    Must(sys_.PWrite(fd.Get(), path.data(), path.size(), 0));
    sys_.MakeAllDurable(source_);
  }
  FileId Id(const std::string& path) {
    FileId id = kRootId;
    for (size_t at = 0; at < path.size();) {
      size_t end = std::min(path.find('/', at), path.size());
      id = Must(fs().Lookup(id, path.substr(at, end - at).c_str())).id;
      at = end + 1;
    }
    return id;
  }
  fusefs::OverlayFs& fs() { return *worker_->fs; }
  void ExpectSettles() {
    worker_->Settle();
    EXPECT_EQ(Differences(*worker_), "");
    EXPECT_EQ(NamesIn(&sys_, worker_->objects->SlotsFd()),
              std::vector<std::string>{});
  }
  FileId CreateFile(FileId dir, const char* name, std::string_view text) {
    auto made = Must(fs().Create(dir, name, O_RDWR | O_EXCL, 0644, {}));
    if (!text.empty()) {
      EXPECT_EQ(Must(fs().Write(made.first.id, 0, text, 0, false)),
                text.size());
    }
    fs().Release(made.first.id, made.second.fh);
    return made.first.id;
  }
  // An application removes the directory just before its names are read for
  // the first time.
  void RemoveWhenRead(const char* name, bool* removed) {
    const uint64_t ino = *sys_.InoOf(source_, name);
    sys_.on_call = [this, ino, name, removed](const FakeSyscalls::Call& call) {
      if (!*removed && call.fs == source_ && call.ino == ino &&
          call.name == std::string("ReadDir")) {
        *removed = true;
        MustDo(fs().RmDir(kRootId, name));
      }
      return 0;
    };
  }
  // Names on the source of files that carry our mark.
  std::vector<std::string> Marked() {
    std::map<std::string, Seen> seen;
    WalkInto(&sys_, worker_->source->RootFd(), "", "", &seen);
    std::vector<std::string> names;
    core::Syscalls* sys = &sys_;
    for (const auto& [path, s] : seen) {
      auto fd = Must(sys->OpenAt(worker_->source->RootFd(), path.c_str(),
                                 O_PATH | O_NOFOLLOW));
      if (sys->GetXattr(fd.Get(), fusefs::kMarkXattr))
        names.push_back(path);
    }
    return names;
  }
  int ModeOnTarget(const char* name) {
    core::Syscalls* sys = &sys_;
    return Must(sys->StatAt(worker_->objects->RootFd(), name)).stx_mode & 07777;
  }
  std::string OnTarget(const std::string& path) {
    auto ino = sys_.InoOf(target_, path);
    return ino ? sys_.Content(target_, *ino) : "(missing)";
  }

  FakeSyscalls sys_;
  FakeSyscalls::FsId source_, target_, journal_;
  fusefs::TargetHolds holds_;
  std::unique_ptr<Worker> worker_;
  int boots_ = 0;
};

TEST_F(Names, N1ANameThatTheSourceLostInAPowerCutLeavesTheTarget) {
  bool met = false;
  for (uint64_t seed = 1; seed < 60 && !met; ++seed) {
    Start();
    worker_->Settle();
    const std::string name = "n" + std::to_string(seed);
    Must(fs().MkDir(kRootId, name.c_str(), 0755, {}));
    while (worker_->applier->Step()) {
    }
    ASSERT_TRUE(sys_.InoOf(target_, name).has_value());
    MustDo(worker_->journal->SyncAll());  // its clean record too
    PowerCut(seed);
    met = !sys_.InoOf(source_, name).has_value();
    ExpectSettles();
    if (met) {
      EXPECT_FALSE(sys_.InoOf(target_, name).has_value());
    }
  }
  EXPECT_TRUE(met) << "no power cut took the source's change";
}

TEST_F(Names, N2AChangeThatOutranTheJournalIsFoundAfterAPowerCut) {
  PlantFile("f");
  Start();
  ExpectSettles();
  AttrChange change;
  change.mode = 0600;
  Must(fs().SetAttr(Id("f"), change, {}));
  sys_.MakeAllDurable(source_);  // the source's commit comes by itself
  PowerCut(1);                   // the records after the hot mark may be lost
  ExpectSettles();
  EXPECT_EQ(ModeOnTarget("f"), 0600);
}

TEST_F(Names, N3AnOwedComparisonSurvivesAKillAfterThePowerCut) {
  PlantDir("d");
  Start();
  ExpectSettles();
  Must(fs().MkDir(Id("d"), "new", 0755, {}));
  sys_.MakeAllDurable(source_);
  PowerCut(3);
  EXPECT_NE(worker_->redo->Count().owed, 0u);
  Start();  // killed before anything was compared
  EXPECT_NE(worker_->redo->Count().owed, 0u);
  ExpectSettles();
  EXPECT_EQ(worker_->redo->Count().owed, 0u);
  EXPECT_TRUE(sys_.InoOf(target_, "d/new").has_value());
}

TEST_F(Names, N4ADestinationInsideTheDirectoryItselfIsParked) {
  for (const char* dir : {"x", "x/w", "x/w/z", "x/w/z/y", "q"})
    PlantDir(dir);
  Start();
  ExpectSettles();
  const FileId root = kRootId, w = Id("x/w"), q = Id("q"),
               y = Id("x/w/z/y");
  MustDo(fs().Rename(w, "z", q, "z", 0));
  MustDo(fs().Rename(root, "x", y, "x", 0));
  // The second one first: on the target y still lies inside x.
  Must(worker_->applier->SyncEntry(y, "x"));
  EXPECT_NE(worker_->redo->Count().owed, 0u);
  ExpectSettles();
  EXPECT_TRUE(sys_.InoOf(target_, "q/z/y/x/w").has_value());
}

TEST_F(Names, N4AMoveThatTheSourceLostDoesNotBlockItsReverse) {
  bool met = false;
  for (uint64_t seed = 1; seed < 60 && !met; ++seed) {
    const std::string a = "a" + std::to_string(seed);
    const std::string b = "b" + std::to_string(seed);
    PlantDir(a);
    PlantDir(b);
    Start();
    ExpectSettles();
    MustDo(fs().Rename(kRootId, a.c_str(), Id(b), "c", 0));
    while (worker_->applier->Step()) {
    }
    MustDo(worker_->journal->SyncAll());
    PowerCut(seed);
    met = sys_.InoOf(source_, a).has_value();
    if (met)
      MustDo(fs().Rename(kRootId, b.c_str(), Id(a), "c", 0));
    ExpectSettles();
  }
  EXPECT_TRUE(met) << "no power cut took the source's rename";
}

TEST_F(Names, N5ALookTakenDuringAChangeDoesNotBecomeTheLastWord) {
  PlantFile("x");
  Start();
  // The scan looks x up; before it acts the application renames it.
  bool once = true;
  sys_.on_call = [&](const FakeSyscalls::Call& call) {
    if (once && call.fs == target_ && call.name == std::string("RenameAt")) {
      once = false;
      MustDo(fs().Rename(kRootId, "x", kRootId, "y", 0));
    }
    return 0;
  };
  while (worker_->scanner->Step()) {
  }
  EXPECT_FALSE(once);
  ExpectSettles();
  EXPECT_FALSE(sys_.InoOf(target_, "x").has_value());
  EXPECT_TRUE(sys_.InoOf(target_, "y").has_value());
}

TEST_F(Names, N6AFileMovedFromAnUnreadToAReadDirectoryIsPlacedAndCopied) {
  PlantDir("read");
  PlantDir("unread");
  Start();
  ExpectSettles();
  // Behind the scan: a directory that no scan will meet again.
  PlantFile("unread/f");
  const FileId f = Id("unread/f");
  EXPECT_FALSE(worker_->objects->Find(f).has_value());
  worker_->copy_wanted.clear();
  MustDo(fs().Rename(Id("unread"), "f", Id("read"), "f", 0));
  while (worker_->applier->Step()) {
  }
  EXPECT_TRUE(sys_.InoOf(target_, "read/f").has_value());
  EXPECT_TRUE(worker_->copy_wanted.contains(f));
}

TEST_F(Names, N7AnUnfinishedCreationIsFinishedByItsRepetition) {
  Start();
  bool made = false, once = true;
  sys_.on_call = [&](const FakeSyscalls::Call& call) {
    if (once && made) {
      once = false;
      throw Ending{};
    }
    made |= call.fs == source_ && call.name == std::string("MkDirAt");
    return 0;
  };
  const Caller caller{.uid = 1000, .gid = 100, .pid = 1, .umask = 027};
  EXPECT_THROW((void)fs().MkDir(kRootId, "d", 0777, caller), Ending);
  Start();
  // Made as the caller: nobody else's for a moment.
  EXPECT_EQ(Must(fs().Lookup(kRootId, "d")).attr.stx_uid, 1000u);
  for (int twice = 0; twice < 2; ++twice) {
    auto entry = Must(fs().FinishMake(kRootId, "d", S_IFDIR | 0777, caller));
    EXPECT_EQ(entry.attr.stx_uid, 1000u);
    EXPECT_EQ(entry.attr.stx_gid, 100u);
    EXPECT_EQ(entry.attr.stx_mode & 07777, 0750);
  }
  ExpectSettles();
}

TEST_F(Names, WhoOpensAFileWhileItIsDeletedHasItAfterAKillToo) {
  class Keeper final : public fusefs::OrphanKeeper {
   public:
    core::Status Keep(FileId id, int) override {
      kept.insert(id);
      return {};
    }
    void LetGo(FileId id) override { kept.erase(id); }
    std::set<FileId> kept;
  } keeper;
  PlantFile("f");
  Start();
  worker_->source->SetKeeper(&keeper);
  const FileId f = Id("f");
  bool fails = true, reopened = false;
  sys_.on_call = [&](const FakeSyscalls::Call& call) {
    if (call.fs != source_ || call.name != std::string("UnlinkAt") || reopened)
      return 0;
    reopened = true;
    Must(fs().Open(f, O_RDWR));
    EXPECT_TRUE(keeper.kept.contains(f)) << "a kill right after this call";
    return fails ? EIO : 0;
  };
  EXPECT_FALSE(fs().Unlink(kRootId, "f"));
  EXPECT_TRUE(reopened);
  EXPECT_FALSE(keeper.kept.contains(f)) << "it is not deleted";
  fs().Release(f, 0);
  fails = reopened = false;
  MustDo(fs().Unlink(kRootId, "f"));
  EXPECT_TRUE(keeper.kept.contains(f));
  fs().Release(f, 0);
  EXPECT_FALSE(keeper.kept.contains(f));
  // Nobody is deleting it any more.
  const FileId g = CreateFile(kRootId, "g", "g");
  Must(fs().Open(g, O_RDWR));
  EXPECT_TRUE(keeper.kept.empty());
}

TEST_F(Names, H2AnObjectLivesUntilTheSourcesChangeIsDurable) {
  Start();
  CreateFile(kRootId, "f", "precious");
  ExpectSettles();
  CreateFile(kRootId, "tmp", "newer");
  MustDo(fs().Rename(kRootId, "tmp", kRootId, "f", 0));
  while (worker_->applier->Step()) {
  }
  EXPECT_EQ(OnTarget("f"), "newer");
  // The old object waits in its slot; only a barrier's sync lets it go.
  EXPECT_EQ(NamesIn(&sys_, worker_->objects->SlotsFd()).size(), 1u);
  uint64_t syncs = sys_.CallsOf("SyncFs");
  Must(worker_->victims->Bury());
  EXPECT_GT(sys_.CallsOf("SyncFs"), syncs);
  EXPECT_EQ(NamesIn(&sys_, worker_->objects->SlotsFd()).size(), 0u);
  ExpectSettles();
}

TEST_F(Names, H10RenamingOverAHardLinkedFileLeavesTheOtherLinkAlone) {
  Start();
  const FileId b = CreateFile(kRootId, "b", "the old bytes of b");
  Must(fs().Link(b, kRootId, "c"));
  ExpectSettles();
  CreateFile(kRootId, "a", "a");
  MustDo(fs().Rename(kRootId, "a", kRootId, "b", 0));
  ExpectSettles();
  EXPECT_EQ(OnTarget("b"), "a");
  EXPECT_EQ(OnTarget("c"), "the old bytes of b");
}

TEST_F(Names, H11ASubtreeMovedBehindTheWalkIsCopiedWhole) {
  for (const char* dir : {"walked", "zz", "zz/sub", "zz/sub/deep"})
    PlantDir(dir);
  PlantFile("zz/sub/deep/f");
  Start();
  // The walk is newest first: give it the root and stop at once.
  for (int i = 0; i < 4; ++i)
    worker_->scanner->Step();
  MustDo(fs().Rename(Id("zz"), "sub", Id("walked"), "sub", 0));
  ExpectSettles();
  EXPECT_TRUE(sys_.InoOf(target_, "walked/sub/deep/f").has_value());
  EXPECT_FALSE(sys_.InoOf(target_, "zz/sub").has_value());
}

TEST_F(Names, H12AChmodDuringTheCopyOfAttributesWins) {
  PlantFile("secret");
  Start();
  while (worker_->scanner->Step()) {
  }
  const FileId id = Id("secret");
  bool once = true;
  sys_.on_call = [&](const FakeSyscalls::Call& call) {
    if (once && call.fs == target_ && call.name == std::string("ChMod")) {
      once = false;
      AttrChange change;
      change.mode = 0600;
      Must(fs().SetAttr(id, change, {}));
    }
    return 0;
  };
  ExpectSettles();
  EXPECT_FALSE(once);
  EXPECT_EQ(ModeOnTarget("secret"), 0600);
}

TEST_F(Names, H27AReusedInodeNumberIsAnotherFile) {
  Start();
  const FileId first = CreateFile(kRootId, "f", "one");
  const uint64_t ino = Must(fs().GetAttr(first)).stx_ino;
  ExpectSettles();
  MustDo(fs().Unlink(kRootId, "f"));
  FileId second = state::kNoFile;
  for (int i = 0; i < 64 && second == state::kNoFile; ++i) {
    const std::string name = "g" + std::to_string(i);
    FileId id = CreateFile(kRootId, name.c_str(), "two");
    if (Must(fs().GetAttr(id)).stx_ino == ino)
      second = id;
  }
  ASSERT_NE(second, state::kNoFile) << "the number never came back";
  EXPECT_NE(second, first);
  ExpectSettles();
  EXPECT_FALSE(worker_->objects->Find(first).has_value());
}

TEST_F(Names, ADeletedFileKeepsItsBytesWhileItIsOpen) {
  Start();
  auto made = Must(fs().Create(kRootId, "f", O_RDWR, 0644, {}));
  const FileId id = made.first.id;
  Must(fs().Write(id, 0, std::string_view("still here"), 0, false));
  ExpectSettles();
  MustDo(fs().Unlink(kRootId, "f"));
  worker_->Settle();
  std::string buf(32, '\0');
  EXPECT_EQ(Must(fs().Read(id, 0, buf)), 10u);
  EXPECT_EQ(buf.substr(0, 10), "still here");
  EXPECT_EQ(Must(fs().GetAttr(id)).stx_nlink, 0u);
  EXPECT_TRUE(worker_->objects->Find(id).has_value());
  fs().Release(id, 0);
  ExpectSettles();
  EXPECT_FALSE(worker_->objects->Find(id).has_value());
}

// The copier may hold a file's record while the file is buried; what it says of
// it then must not follow "forgotten" in the journal, which a successor would
// have to call damaged.
TEST_F(Names, AForgottenFileTakesNoMoreFacts) {
  Start();
  const FileId id = CreateFile(kRootId, "f", "x");
  fusefs::FileRef held = worker_->table->Get(id);
  MustDo(fs().Unlink(kRootId, "f"));
  fs().Forget(id);
  ExpectSettles();
  ASSERT_FALSE(worker_->objects->Find(id).has_value());
  {
    core::MutexLock lock(held->mu);
    MustDo(worker_->ledger->AppendLocked(
        *held, state::RemoteFact{id, 0, 1}));
    worker_->table->Account(&*held);
  }
  EXPECT_EQ(worker_->table->GetTotals().bytes_below_end, 0u);
  // Somebody who comes later begins anew.
  EXPECT_FALSE(worker_->table->Get(id)->facts.pinned);
  held.Reset();
  EXPECT_FALSE(worker_->table->Find(id));
  MustDo(worker_->journal->SyncAll());
  Start();
  ExpectSettles();
}

TEST_F(Names, ADeletedDirectoryCanBeLookedAtUntilItIsForgotten) {
  PlantDir("d");
  Start();
  ExpectSettles();
  const FileId d = Id("d");
  MustDo(fs().RmDir(kRootId, "d"));
  EXPECT_TRUE(fs().GetAttr(d).has_value());
  ExpectSettles();
  // Its object is not needed, the inode is: somebody may stand in it.
  EXPECT_FALSE(worker_->objects->Find(d).has_value());
  EXPECT_TRUE(fs().GetAttr(d).has_value());
  fs().Forget(d);
  EXPECT_FALSE(worker_->source->IsPinned(d));
}

// The descriptor of a removed directory stays good, reading it does not
// (ENOENT): nothing more is to come of it, however often it is tried.
TEST_F(Names, ADirectoryRemovedBeforeItIsReadIsNotWaitedFor) {
  PlantDir("d");
  Start();
  const FileId d = Id("d");
  Must(worker_->source->Dir(d));
  bool removed = false;
  RemoveWhenRead("d", &removed);
  ExpectSettles();
  EXPECT_TRUE(removed);
  EXPECT_TRUE(worker_->scanner->Done());
}

TEST_F(Names, ANameThatTheTargetRefusesIsSetAsideAndTriedAgain) {
  Start();
  ExpectSettles();
  CreateFile(kRootId, "f", "x");
  sys_.FailNext("RenameAt", target_, EILSEQ);
  while (worker_->applier->Step()) {
  }
  auto aside = worker_->redo->SetAsides(10);
  ASSERT_EQ(aside.size(), 1u);
  EXPECT_NE(aside[0].reason.find("EILSEQ"), std::string::npos)
      << aside[0].reason;
  MustDo(worker_->barrier->Now());
  auto why =
      worker_->Proof().WhyNotSynced();
  ASSERT_TRUE(why.has_value());
  EXPECT_NE(why->find("set aside"), std::string::npos);
  // A new change of the entry is reason enough to try.
  MustDo(fs().Rename(kRootId, "f", kRootId, "g", 0));
  ExpectSettles();
  EXPECT_EQ(OnTarget("g"), "x");
}

// The copier's write moves the times of a file that was made equal before; that
// is put off while nobody waits, and was once committed without.
// A successor's scan meets a directory that has its object already, and the
// target fails once: what is below is read all the same.
TEST_F(Names, ADirectoryWhoseComparisonFailedOnceIsReadAllTheSame) {
  PlantDir("d");
  PlantFile("d/f");
  Start();
  while (!sys_.InoOf(target_, "d"))
    ASSERT_TRUE(worker_->scanner->Step());
  ASSERT_FALSE(sys_.InoOf(target_, "d/f"));
  Start();
  bool once = true;
  sys_.on_call = [&](const FakeSyscalls::Call& call) {
    if (!once || call.fs != target_ || call.name != std::string("StatAt"))
      return 0;
    once = false;
    return EIO;
  };
  while (once)
    ASSERT_TRUE(worker_->scanner->Step());
  sys_.on_call = nullptr;
  ExpectSettles();
  EXPECT_TRUE(sys_.InoOf(target_, "d/f").has_value());
}

TEST_F(Names, TimesThatAreDueLaterKeepTheTargetFromBeingComplete) {
  Start();
  const FileId f = CreateFile(kRootId, "f", "x");
  ExpectSettles();
  sys_.AdvanceClock(1'000'000);
  MustDo(worker_->applier->Drain(INT64_MAX, true));
  EXPECT_EQ(worker_->Proof().WhyNotComplete(), std::nullopt);
  MustDo(worker_->redo->BeginWrite(f));
  MustDo(worker_->redo->EndWrite(f));
  EXPECT_EQ(worker_->redo->Count().pending, 0u);
  EXPECT_NE(worker_->Proof().WhyNotComplete(), std::nullopt);
  sys_.AdvanceClock(1'000'000);
  MustDo(worker_->applier->Drain(INT64_MAX, true));
  EXPECT_EQ(worker_->Proof().WhyNotComplete(), std::nullopt);
}

TEST_F(Names, ATargetThatFailsForAWhileIsTriedAgain) {
  Start();
  ExpectSettles();
  CreateFile(kRootId, "f", "x");
  sys_.FailNext("RenameAt", target_, EIO, 2);
  EXPECT_TRUE(worker_->applier->Step());
  EXPECT_FALSE(worker_->redo->Count().last_error.empty());
  EXPECT_EQ(worker_->redo->Count().set_aside, 0u);
  ExpectSettles();
}

TEST_F(Names, AStrangersObjectOnTheTargetIsNeverTouched) {
  Start();
  ExpectSettles();
  core::UniqueFd root = sys_.OpenRoot(target_);
  MustDo(sys_.MkDirAt(root.Get(), "mine", 0700));
  Must(fs().MkDir(kRootId, "mine", 0755, {}));
  while (worker_->applier->Step()) {
  }
  auto aside = worker_->redo->SetAsides(10);
  ASSERT_EQ(aside.size(), 1u);
  EXPECT_NE(aside[0].reason.find("not made by this migration"),
            std::string::npos);
  EXPECT_EQ(ModeOnTarget("mine"), 0700);
}

TEST_F(Names, AnAttributeThatTheTargetCannotHoldDoesNotKeepTheModeFromIt) {
  PlantFile("f");
  {
    core::UniqueFd root = sys_.OpenRoot(source_);
    auto fd = Must(sys_.OpenAt(root.Get(), "f", O_PATH, 0));
    MustDo(sys_.SetXattr(fd.Get(), "user.x", "1", 0));
    MustDo(sys_.ChMod(fd.Get(), 0640));
  }
  Start();
  while (worker_->scanner->Step()) {
  }
  sys_.FailNext("SetXattr", target_, EOPNOTSUPP);
  while (worker_->applier->Step()) {
  }
  auto aside = worker_->redo->SetAsides(10);
  ASSERT_EQ(aside.size(), 1u);
  EXPECT_NE(aside[0].reason.find("user.x"), std::string::npos);
  EXPECT_EQ(ModeOnTarget("f"), 0640);
  // Accepted by the operator.
  worker_->lane.losses.xattrs = true;
  sys_.FailNext("SetXattr", target_, EOPNOTSUPP);
  worker_->redo->RetryAll(false);
  while (worker_->applier->Step()) {
  }
  EXPECT_EQ(worker_->redo->Count().pending, 0u);
}

TEST_F(Names, AnAttributeThatTheTargetDoesNotStoreIsNotSet) {
  holds_.user_xattrs = false;
  Start();
  const FileId id = CreateFile(kRootId, "f", "x");
  auto set = fs().SetXattr(id, "user.x", "1", 0);
  ASSERT_FALSE(set.has_value());
  EXPECT_EQ(set.error().Errno(), EOPNOTSUPP);
  EXPECT_TRUE(fs().SetXattr(id, "trusted.x", "1", 0).has_value());
  EXPECT_EQ(Must(fs().ListXattr(id)), std::vector<std::string>{"trusted.x"});
  // Abort brings back what is on the source, which stores all of them.
  MustDo(fs().SetServing(fusefs::Serving::kAborting));
  EXPECT_TRUE(fs().SetXattr(id, "user.x", "1", 0).has_value());
}

// They wait for as long as the target is away, and with them everybody would.
TEST_F(Names, AnAbortDoesNotWaitForBytesOnTheirWayToTheTarget) {
  Start();
  const FileId id = CreateFile(kRootId, "f", "x");
  core::Status begun = core::Fail(core::ErrorCode::kGone, "not tried");
  bool commits = false;
  sys_.on_call = [&](const FakeSyscalls::Call& call) {
    if (call.fs == target_ && call.name == std::string("PWrite")) {
      sys_.on_call = nullptr;
      begun = fs().SetServing(Serving::kAborting, 0, [&]() -> core::Status {
        commits = true;
        return {};
      });
    }
    return 0;
  };
  EXPECT_EQ(Must(fs().Write(id, 1, std::string_view("yz"), 0, false)), 2u);
  EXPECT_TRUE(begun.has_value()) << begun.error().ToString();
  EXPECT_TRUE(commits);
  EXPECT_EQ(fs().serving(), Serving::kAborting);
  char all[3];
  EXPECT_EQ(Must(fs().Read(id, 0, all)), 3u);
  EXPECT_EQ(std::string(all, 3), "xyz");
}

TEST_F(Names, NothingOfOursIsMadeOnATargetThatWasCleared) {
  Start();
  ExpectSettles();
  MustDo(worker_->victims->RemovePrivate());
  core::Stat file{};
  file.stx_mode = S_IFREG | 0644;
  EXPECT_FALSE(worker_->objects->Ensure(4711, file).has_value());
  EXPECT_FALSE(sys_.InoOf(target_, Worker::kPrivate).has_value());
  MustDo(worker_->objects->Prepare());
  EXPECT_TRUE(worker_->objects->Ensure(4711, file).has_value());
}

TEST_F(Names, ALabelIsSetOnTheSourceEvenIfTheTargetStoresNone) {
  holds_.system_xattrs = false;
  Start();
  const FileId id = CreateFile(kRootId, "f", "x");
  EXPECT_TRUE(fs().SetXattr(id, "security.selinux", "l", 0).has_value());
  EXPECT_FALSE(fs().SetXattr(id, "security.other", "1", 0).has_value());
}

TEST_F(Names, AnOwnerThatTheTargetRefusesCanBeGivenUp) {
  PlantFile("f");
  core::UniqueFd root = sys_.OpenRoot(source_);
  auto fd = Must(sys_.OpenAt(root.Get(), "f", O_PATH, 0));
  MustDo(sys_.ChOwn(fd.Get(), 1000, 1000));
  Start();
  ExpectSettles();
  worker_->lane.losses.owners = true;
  AttrChange given;
  given.uid = 2000;
  given.mode = 04755;
  Must(fs().SetAttr(Id("f"), given, {}));
  sys_.FailNext("ChOwn", target_, EPERM, 9);
  while (worker_->scanner->Step()) {
  }
  while (worker_->applier->Step()) {
  }
  EXPECT_EQ(worker_->redo->Count().pending, 0u);
  EXPECT_TRUE(worker_->redo->SetAsides(10).empty());
  EXPECT_EQ(ModeOnTarget("f"), 0755) << "no set-id bit for another owner";
}

TEST_F(Names, TheMarkOfAPlaceholderIsHiddenAndNotCopied) {
  Start();
  const FileId id = CreateFile(kRootId, "f", "x");
  EXPECT_EQ(Must(fs().ListXattr(id)), std::vector<std::string>{});
  auto got = fs().GetXattr(id, "trusted.livemv");
  ASSERT_FALSE(got.has_value());
  EXPECT_EQ(got.error().sys_errno, ENODATA);
  EXPECT_FALSE(fs().SetXattr(id, "trusted.livemv", "2", 0).has_value());
  ExpectSettles();
  auto fd = Must(worker_->objects->Path(id));
  EXPECT_EQ(Must(sys_.ListXattr(fd->Get())), std::vector<std::string>{});
}

TEST_F(Names, AnAbortTakesAllMarksOffThePlaceholders) {
  PlantDir("d");
  PlantFile("old");
  Start();
  for (int i = 0; i < 200; i++)
    CreateFile(kRootId, ("f" + std::to_string(i)).c_str(), "x");
  CreateFile(Id("d"), "deep", "");
  Must(fs().Link(Id("f1"), Id("d"), "f1 too"));
  MustDo(fs().Unlink(kRootId, "f2"));
  MustDo(fs().SetXattr(Id("f3"), "user.own", "stays", 0));
  MustDo(fs().SetServing(Serving::kAborting));
  const size_t marked = Marked().size();
  EXPECT_EQ(marked, 201u);  // 200 - 1, deep, and a second name
  CreateFile(kRootId, "while aborting", "x");
  EXPECT_EQ(Marked().size(), marked);
  copy::MarkSweep sweep(worker_->source.get(), worker_->table->KnownFiles(),
                        false);
  while (Must(sweep.Step())) {
  }
  EXPECT_EQ(Marked(), std::vector<std::string>{});
  EXPECT_EQ(sweep.Swept(), 200u);
  EXPECT_EQ(Must(fs().GetXattr(Id("f3"), "user.own")), "stays");
}

TEST_F(Names, TheSweepPassesADirectoryThatIsRemovedUnderIt) {
  PlantDir("d");
  Start();
  ExpectSettles();
  bool removed = false;
  RemoveWhenRead("d", &removed);
  copy::MarkSweep sweep(worker_->source.get(), {}, true);
  while (Must(sweep.Step())) {
  }
  EXPECT_TRUE(removed);
}

TEST_F(Names, AnAbortFindsTheMarksThatNoRecordKnows) {
  PlantDir("d");
  Start();
  CreateFile(Id("d"), "f", "x");
  ASSERT_EQ(Marked(), std::vector<std::string>{"d/f"});
  copy::MarkSweep sweep(worker_->source.get(), {}, true);
  while (Must(sweep.Step())) {
  }
  EXPECT_EQ(Marked(), std::vector<std::string>{});
}

TEST_F(Names, AMarkThatCouldNotBeTakenOffIsTriedAgain) {
  Start();
  const FileId id = CreateFile(kRootId, "f", "x");
  copy::MarkSweep sweep(worker_->source.get(), {id}, false);
  sys_.FailNext("RemoveXattr", source_, EIO);
  EXPECT_FALSE(sweep.Step().has_value());
  while (Must(sweep.Step())) {
  }
  EXPECT_EQ(Marked(), std::vector<std::string>{});
}

TEST_F(Names, AFileOpenedAndDeletedWhileItsEndIsJudgedKeepsItsObject) {
  PlantFile("f");
  Start();
  const FileId id = Id("f");
  Must(fs().Write(id, 1, std::string_view("grown"), 0, false));
  ExpectSettles();
  worker_->graveyard.Add(id);  // it passed through its slot
  bool met = false;
  sys_.on_call = [&](const FakeSyscalls::Call& call) {
    if (std::string(call.name) == "StatAt" && call.fs == source_ &&
        !std::exchange(met, true)) {
      Must(fs().Open(id, O_RDWR));
      MustDo(fs().Unlink(kRootId, "f"));
      Must(worker_->applier->SyncEntry(kRootId, "f"));
    }
    return 0;
  };
  Must(worker_->victims->Bury());
  sys_.on_call = nullptr;
  ASSERT_TRUE(met);
  char got[8] = {};
  auto n = fs().Read(id, 0, got);
  ASSERT_TRUE(n.has_value()) << n.error().ToString();
  EXPECT_EQ(std::string(got, *n), "fgrown");
  fs().Release(id, 0);
  worker_->Settle();
  EXPECT_FALSE(worker_->objects->Find(id).has_value());
}

TEST_F(Names, TheFirstChangeOfADirectoryMarksItHotDurably) {
  PlantDir("d");
  Start();
  ExpectSettles();
  const FileId d = Id("d");
  EXPECT_FALSE(worker_->redo->IsHot(d));
  uint64_t syncs = sys_.CallsOf("FDataSync");
  Must(fs().MkDir(d, "one", 0755, {}));
  EXPECT_EQ(sys_.CallsOf("FDataSync"), syncs + 1);
  EXPECT_TRUE(worker_->redo->IsHot(d));
  Must(fs().MkDir(d, "two", 0755, {}));
  EXPECT_EQ(sys_.CallsOf("FDataSync"), syncs + 1);
  // Not while a record is unapplied.
  MustDo(worker_->barrier->Now());
  EXPECT_TRUE(worker_->redo->IsHot(d));
  ExpectSettles();
  EXPECT_FALSE(worker_->redo->IsHot(d));
}

TEST_F(Names, NewFilesBelongToTheCaller) {
  PlantDir("shared");
  {
    core::UniqueFd root = sys_.OpenRoot(source_);
    auto fd = Must(sys_.OpenAt(root.Get(), "shared", O_PATH, 0));
    MustDo(sys_.ChOwn(fd.Get(), 7, 70));
    MustDo(sys_.ChMod(fd.Get(), 02775));
  }
  Start();
  const Caller caller{.uid = 1000, .gid = 100, .pid = 1, .umask = 022};
  auto plain = Must(fs().MkNod(kRootId, "p", S_IFREG | 0666, 0, caller));
  EXPECT_EQ(plain.attr.stx_uid, 1000u);
  EXPECT_EQ(plain.attr.stx_gid, 100u);
  EXPECT_EQ(plain.attr.stx_mode & 07777, 0644);
  auto suid = Must(fs().MkNod(kRootId, "s", S_IFREG | 04755, 0, caller));
  EXPECT_EQ(suid.attr.stx_mode & 07777, 04755);
  auto dir = Must(fs().MkDir(Id("shared"), "d", 0777, caller));
  EXPECT_EQ(dir.attr.stx_gid, 70u);
  EXPECT_EQ(dir.attr.stx_mode & 07777, 02755);
  auto file = Must(fs().MkNod(Id("shared"), "f", S_IFREG | 0666, 0, caller));
  EXPECT_EQ(file.attr.stx_gid, 70u);
  ExpectSettles();
}

TEST_F(Names, WhileAttachingNothingReachesTheTarget) {
  PlantFile("f");
  Start();
  MustDo(fs().SetServing(Serving::kSourceOnly));
  EXPECT_EQ(fs().CacheSeconds(), 0);
  CreateFile(kRootId, "g", "bytes");
  MustDo(fs().Rename(kRootId, "f", kRootId, "h", 0));
  EXPECT_EQ(worker_->redo->Count().pending, 0u);
  EXPECT_EQ(sys_.Content(source_, *sys_.InoOf(source_, "g")), "bytes");
  auto open = Must(fs().Open(Id("h"), O_RDONLY));
  EXPECT_TRUE(open.direct_io);
  fs().Release(Id("h"), open.fh);
}

TEST_F(Names, TheKernelKeepsForLongWhatCanBeTakenBackFromIt) {
  PlantFile("f");
  PlantDir("d");
  Start();
  auto listing = [&] {
    auto open = Must(fs().Open(Id("d"), O_RDONLY | O_DIRECTORY));
    fs().Release(Id("d"), open.fh);
    return open.cache_dir;
  };
  EXPECT_EQ(fs().CacheSeconds(), 1);
  EXPECT_FALSE(listing());
  fs().SetCanDropCaches([] { return true; });
  EXPECT_EQ(fs().CacheSeconds(), 30);
  EXPECT_TRUE(listing());
  core::Stat st = Must(fs().GetAttr(Id("f")));
  EXPECT_EQ(fs().AttrSeconds(Id("f"), st), 30);
  st.stx_mode |= S_ISGID;
  EXPECT_EQ(fs().AttrSeconds(Id("f"), st), 1) << "a write changes its mode";
  MustDo(fs().SetServing(Serving::kAborting));
  EXPECT_EQ(fs().CacheSeconds(), 1);
  MustDo(fs().SetServing(Serving::kSourceOnly));
  EXPECT_EQ(fs().CacheSeconds(), 0);
  EXPECT_FALSE(listing());
}

TEST_F(Names, AfterCutoverTheTargetAloneIsServed) {
  PlantDir("d");
  Start();
  const FileId f = CreateFile(Id("d"), "f", "bytes");
  const FileId d = Id("d");
  ExpectSettles();
  MustDo(worker_->victims->RemovePrivate());
  EXPECT_FALSE(sys_.InoOf(target_, Worker::kPrivate).has_value());
  EXPECT_EQ(Must(worker_->victims->Bury()), 0u);
  MustDo(fs().SetServing(Serving::kTargetOnly));
  // Numbers that stragglers hold go on meaning the same objects.
  EXPECT_EQ(Id("d"), d);
  EXPECT_EQ(Id("d/f"), f);
  std::string buf(5, '\0');
  EXPECT_EQ(Must(fs().Read(f, 0, buf)), 5u);
  EXPECT_EQ(buf, "bytes");
  auto made = Must(fs().Create(d, "new", O_RDWR, 0644, {}));
  EXPECT_NE(made.first.id & state::kTargetBit, 0u);
  Must(fs().Write(made.first.id, 0, std::string_view("more"), 0, false));
  fs().Release(made.first.id, made.second.fh);
  EXPECT_EQ(OnTarget("d/new"), "more");
  EXPECT_FALSE(sys_.InoOf(source_, "d/new").has_value());
  MustDo(fs().Rename(d, "new", kRootId, "moved", 0));
  EXPECT_EQ(OnTarget("moved"), "more");
  MustDo(fs().Unlink(kRootId, "moved"));
  EXPECT_EQ(worker_->redo->Count().pending, 0u);
}

TEST_F(Names, ThePrivateDirectoryIsNotSeenInTheRootsTimes) {
  PlantFile("f");
  Start();
  ExpectSettles();
  auto mtime = [&](int root) {
    const core::Stat st = Must(static_cast<core::Syscalls&>(sys_).StatAt(
        root, "", STATX_MTIME));
    return std::pair(st.stx_mtime.tv_sec, st.stx_mtime.tv_nsec);
  };
  const auto want = mtime(worker_->source->RootFd());
  const int target = worker_->objects->RootFd();
  EXPECT_EQ(mtime(target), want);
  MustDo(worker_->victims->RemovePrivate());
  EXPECT_EQ(mtime(target), want);
  // A cutover that was given up makes it again.
  MustDo(worker_->objects->Prepare());
  EXPECT_EQ(mtime(target), want);
}

TEST_F(Names, BytesOfALifeThatTheJournalLostAreNotAdopted) {
  PlantFile("f");
  {
    core::UniqueFd root = sys_.OpenRoot(source_);
    auto fd = Must(sys_.OpenAt(root.Get(), "f", O_RDWR, 0));
    MustDo(sys_.FTruncate(fd.Get(), 0));
  }
  Start();
  const std::string slot = fusefs::ObjectStore::SlotName(Id("f"));
  auto fd = Must(sys_.OpenAt(worker_->objects->SlotsFd(), slot.c_str(),
                             O_RDWR | O_CREAT, 0600));
  Must(sys_.PWrite(fd.Get(), "lost", 4, 0));
  ExpectSettles();
  EXPECT_EQ(OnTarget("f"), "");
}

TEST_F(Names, AnObjectThatAWeakTargetLostInAPowerCutIsMadeAgain) {
  target_ = sys_.AddFs(FakeSyscalls::Kind::kLocal);
  bool met = false;
  for (uint64_t seed = 1; seed < 60 && !met; ++seed) {
    Start();
    worker_->Settle();
    const std::string name = "n" + std::to_string(seed);
    Must(fs().MkDir(kRootId, name.c_str(), 0755, {}));
    sys_.MakeAllDurable(source_);
    while (worker_->applier->Step()) {
    }
    MustDo(worker_->journal->SyncAll());
    const FileId id = Id(name);
    const core::FileHandle handle = worker_->objects->Find(id)->handle;
    std::mt19937_64 rng(seed);
    worker_.reset();
    sys_.PowerCut(rng);
    core::UniqueFd root = sys_.OpenRoot(target_);
    met = !sys_.OpenByHandle(root.Get(), handle, O_PATH).has_value();
    root.Reset();
    boots_++;
    Start();
    ExpectSettles();
    EXPECT_TRUE(sys_.InoOf(target_, name).has_value());
  }
  EXPECT_TRUE(met) << "no power cut took the object";
}

TEST_F(Names, AnObjectWhoseNamesAreTakenAtOnceIsNotDestroyed) {
  PlantFile("x");
  Start();
  const FileId f = Id("x");
  Must(fs().Link(f, kRootId, "y"));
  Must(fs().Write(f, 1, std::string_view("grown"), 0, false));
  ExpectSettles();
  PowerCut(1);  // from now on objects are told by their handles
  ExpectSettles();
  ASSERT_TRUE(sys_.InoOf(source_, "x") && sys_.InoOf(source_, "y"));
  MustDo(fs().Rename(kRootId, "x", kRootId, "z", 0));
  MustDo(fs().Unlink(kRootId, "y"));
  // Between the look at one name and the act on it the other one goes.
  bool met = false;
  sys_.on_call = [&](const FakeSyscalls::Call& call) {
    if (std::string(call.name) == "NameToHandle" && call.fs == target_ &&
        !std::exchange(met, true))
      Must(worker_->applier->SyncEntry(kRootId, "y"));
    return 0;
  };
  Must(worker_->applier->SyncEntry(kRootId, "x"));
  sys_.on_call = nullptr;
  EXPECT_TRUE(met);
  ExpectSettles();
  EXPECT_EQ(OnTarget("z").substr(1), "grown");
}

TEST_F(Names, TheLastNameOfALivingObjectAmongTheVictimsGoesToItsSlot) {
  PlantFile("f");
  Start();
  ExpectSettles();
  // Killed between the two steps of taking one of two names away, and the
  // other one was taken by the successor.
  MustDo(sys_.RenameAt(worker_->objects->RootFd(), "f",
                       worker_->objects->VictimsFd(), "1-1", 0));
  Must(worker_->victims->Bury());
  Must(worker_->applier->SyncEntry(kRootId, "f"));
  ExpectSettles();
  EXPECT_TRUE(sys_.InoOf(target_, "f").has_value());
}

TEST_F(Names, AnObjectInItsSlotAndInItsPlaceKeepsItsPlace) {
  PlantFile("f");
  Start();
  ExpectSettles();
  const FileId f = Id("f");
  auto fd = Must(worker_->objects->Path(f));
  MustDo(sys_.LinkFd(fd->Get(), worker_->objects->SlotsFd(),
                     fusefs::ObjectStore::SlotName(f).c_str()));
  fd.reset();
  MustDo(worker_->victims->Survey());
  MustDo(worker_->victims->RemovePrivate());
  EXPECT_TRUE(sys_.InoOf(target_, "f").has_value());
}

TEST_F(Names, AFileThatGotANameKeepsItOverAPowerCutAfterItsFsync) {
  PlantFile("f");
  PlantFile("g");
  for (uint64_t seed = 1; seed < 20; ++seed) {
    Start();
    worker_->Settle();
    const std::string link = "l" + std::to_string(seed);
    const std::string moved = "m" + std::to_string(seed);
    const std::string from = seed == 1 ? "g" : "m" + std::to_string(seed - 1);
    // Both files are known to the data path, and clean.
    const FileId f = Id("f"), g = Id(from);
    Must(fs().Write(f, 0, std::string_view("x"), 0, false));
    Must(fs().Write(g, 0, std::string_view("x"), 0, false));
    MustDo(fs().FSync(f, false));
    MustDo(fs().FSync(g, false));
    Must(fs().Link(f, kRootId, link.c_str()));
    MustDo(fs().FSync(f, false));
    MustDo(fs().Rename(kRootId, from.c_str(), kRootId, moved.c_str(), 0));
    MustDo(fs().FSync(g, false));
    PowerCut(seed);
    EXPECT_TRUE(sys_.InoOf(source_, link).has_value()) << seed;
    EXPECT_TRUE(sys_.InoOf(source_, moved).has_value()) << seed;
  }
}

TEST_F(Names, ADirectoryThatIsNotEmptyOnTheTargetYetGoesWithItsContents) {
  PlantDir("d");
  PlantDir("d/e");
  PlantFile("d/e/f");
  Start();
  ExpectSettles();
  const FileId e = Id("d/e"), d = Id("d");
  MustDo(fs().Unlink(e, "f"));
  MustDo(fs().RmDir(d, "e"));
  MustDo(fs().RmDir(kRootId, "d"));
  // Only the topmost record is applied: what lies below goes with it.
  Must(worker_->applier->SyncEntry(kRootId, "d"));
  EXPECT_EQ(Must(worker_->victims->Bury()), 3u);
  ExpectSettles();
}

// Moved away and back while one applier acts on the first half: the other one
// finds the directory still where it now belongs again, and calls that clean.
TEST_F(Names, ADirectoryThatIsTakenFromItsPlaceOnAnOldLookComesBack) {
  PlantDir("p");
  PlantDir("p/d");
  PlantDir("q");
  PlantFile("p/d/f");
  Start();
  ExpectSettles();
  const FileId p = Id("p"), q = Id("q");
  MustDo(fs().Rename(p, "d", q, "e", 0));
  auto from = worker_->redo->Take();
  auto to = worker_->redo->Take();
  ASSERT_TRUE(from && from->place.name == "d" && to && to->place.name == "e");
  bool met = false;
  sys_.on_call = [&](const FakeSyscalls::Call& call) {
    if (call.name != std::string("RenameAt") || call.fs != target_ ||
        std::exchange(met, true))
      return 0;
    MustDo(fs().Rename(q, "e", p, "d", 0));
    MustDo(worker_->redo->Done(*from));  // changed meanwhile: due again
    EXPECT_TRUE(worker_->applier->Step());
    return 0;
  };
  Must(worker_->applier->SyncEntry(q, "e"));
  sys_.on_call = nullptr;
  MustDo(worker_->redo->Done(*to));
  EXPECT_TRUE(met);
  ExpectSettles();
}

TEST_F(Names, WhatLivesAndHasNoPlaceIsToldBeforeItIsLeftBehind) {
  PlantDir("p");
  PlantDir("p/d");
  PlantFile("p/d/f");
  PlantFile("g");
  Start();
  ExpectSettles();
  auto lost = [this] { return Must(worker_->victims->WithoutPlace()); };
  EXPECT_EQ(lost(), std::nullopt);
  // A file that was deleted while it is open may lie there.
  const FileId g = Id("g"), d = Id("p/d");
  Must(fs().Open(g, O_RDWR));
  MustDo(fs().Unlink(kRootId, "g"));
  worker_->Settle();
  EXPECT_EQ(worker_->victims->RemovePrivate().error().sys_errno, ENOTEMPTY);
  EXPECT_EQ(lost(), std::nullopt);
  // What must not be: no record names p/d.
  auto at = Must(worker_->objects->Path(Id("p")));
  MustDo(sys_.RenameAt(at->Get(), "d", worker_->objects->SlotsFd(),
                       fusefs::ObjectStore::SlotName(d).c_str(), 0));
  EXPECT_EQ(lost(), d);
  fs().Release(g, 0);
  ExpectSettles();
}

// NFS keeps a file that is open under a name of its own in the directory that
// it was deleted from.
TEST_F(Names, ASillyNameAmongTheVictimsIsNothingThatLivesWithoutAPlace) {
  PlantFile("f");
  Start();
  ExpectSettles();
  MustDo(sys_.MkDirAt(worker_->objects->VictimsFd(),
                      ".nfs0123456789abcdef01234567", 0700));
  EXPECT_EQ(worker_->victims->RemovePrivate().error().sys_errno, ENOTEMPTY);
  EXPECT_EQ(Must(worker_->victims->WithoutPlace()), std::nullopt);
}

TEST_F(Names, WhatIsLeftInTheSlotsKeepsThePrivateDirectory) {
  Start();
  CreateFile(kRootId, "f", "x");  // has an object and no place yet
  auto removed = worker_->victims->RemovePrivate();
  ASSERT_FALSE(removed.has_value());
  EXPECT_EQ(removed.error().sys_errno, ENOTEMPTY);
  ExpectSettles();
  MustDo(worker_->victims->RemovePrivate());
}

}  // namespace
}  // namespace livemv::fake
