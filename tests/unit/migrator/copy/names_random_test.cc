// Random changes of a small tree through the overlay, with applier, scanner
// and barrier in between, kills at any system call and power cuts. At rest the
// target equals the source and nothing is left in the private directory.

#include <algorithm>
#include <exception>
#include <random>

#include "core/acting.h"
#include "core/as_owner.h"
#include "tests/support/fake_syscalls.h"
#include "tests/support/name_stage.h"

namespace livemv::fake {
namespace {

using fusefs::AttrChange;
using fusefs::Caller;

struct Mishaps {
  unsigned kills = 0;  // of 10,000 system calls
  unsigned cuts = 0;   // of 10,000 steps
  FakeSyscalls::Kind target = FakeSyscalls::Kind::kNfs;
  bool squash = false;  // a server that takes root for nobody
};

class Play {
 public:
  Play(uint64_t seed, const Mishaps& mishaps) : rng_(seed), mishaps_(mishaps) {
    source_ = sys_.AddFs(FakeSyscalls::Kind::kLocal);
    target_ = sys_.AddFs(mishaps.target);
    journal_ = sys_.AddFs(FakeSyscalls::Kind::kOrdered);
    roots_ = {[this] { return sys_.OpenRoot(source_); },
              [this] { return sys_.OpenRoot(target_); },
              [this] { return sys_.OpenRoot(journal_); }};
    if (mishaps_.squash) {
      roots_.holds.gives_owners = false;
      MustDo(sys_.ChOwn(roots_.target().Get(), 1, 1));
      MustDo(sys_.ChOwn(roots_.source().Get(), 1, 1));
      sys_.SetSquash(target_, true);
    }
    Plant();
    sys_.on_call = [this](const FakeSyscalls::Call& call) {
      // Who is dead does nothing more. A mode is put back in a destructor,
      // where the end cannot be thrown: at the next call, then.
      const bool chmod = call.name == std::string("ChMod");
      if (std::uncaught_exceptions() > 0 || (dying_ && chmod))
        return EIO;
      if (armed_ && (dying_ || Draw(10000) < mishaps_.kills)) {
        dying_ = chmod;
        if (chmod)
          return EIO;
        throw Ending{};
      }
      return 0;
    };
    Start();
  }
  ~Play() {
    armed_ = false;
    worker_.reset();
  }

  void Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      if (Draw(10000) < mishaps_.cuts) {
        PowerCut();
        continue;
      }
      Killable([this] { OneStep(); });
      sys_.AdvanceClock(1'000'000);
    }
  }

  void Rest() {
    if (dying_) {
      worker_.reset();
      Start();
    }
    armed_ = false;
    ForgetDeleted();
    worker_->Settle();
    auto why = worker_->Proof().WhyNotSynced();
    EXPECT_FALSE(why.has_value()) << *why;
    EXPECT_EQ(NamesIn(&sys_, worker_->objects->SlotsFd()),
              std::vector<std::string>{});
    EXPECT_EQ(NamesIn(&sys_, worker_->objects->VictimsFd()),
              std::vector<std::string>{});
    CheckBytes();
    sys_.SetSquash(target_, false);
    EXPECT_EQ(Differences(*worker_), "");
    sys_.SetSquash(target_, mishaps_.squash);
    MustDo(worker_->victims->RemovePrivate());
    MustDo(worker_->objects->Prepare());
  }
  unsigned lives() const { return lives_; }

 private:
  uint64_t Draw(uint64_t below) { return rng_() % below; }
  std::string Name() { return std::string(1, "abc"[Draw(3)]); }

  uint32_t SomeId() {
    return static_cast<uint32_t>(mishaps_.squash ? 1 + Draw(3) : Draw(3));
  }

  void Plant() {
    core::Acting acting(&sys_, {SomeId(), SomeId(), {}});
    core::UniqueFd root = sys_.OpenRoot(source_);
    for (const char* dir : {"a", "b", "b/c", "b/c/a"})
      MustDo(sys_.MkDirAt(root.Get(), dir, 0755));
    for (const char* file : {"c", "a/a", "b/c/b"}) {
      auto fd = Must(sys_.OpenAt(root.Get(), file, O_RDWR | O_CREAT, 0644));
      Must(sys_.PWrite(fd.Get(), "old", 3, 0));
    }
    auto fd = Must(sys_.OpenAt(root.Get(), "a/a", O_PATH, 0));
    MustDo(sys_.LinkFd(fd.Get(), root.Get(), "b/b"));
    sys_.MakeAllDurable(source_);
  }

  void Start() {
    armed_ = dying_ = false;
    root_ = sys_.OpenRoot(target_);  // closed by a power cut
    as_owner_ = core::MakeAsOwner(
        &sys_, root_.Get(),
        [this](const core::Stat& object)
            -> core::Result<std::shared_ptr<void>> {
          auto id = worker_ ? worker_->objects->FindByIno(object.stx_ino)
                            : std::nullopt;
          if (!id)
            return nullptr;
          ASSIGN_OR_RETURN(fusefs::Redo::Change change,
                           worker_->redo->Touch({{*id, {}}}));
          return std::make_shared<fusefs::Redo::Change>(std::move(change));
        });
    worker_ = std::make_unique<Worker>(
        as_owner_.get(), roots_, "boot " + std::to_string(boots_),
        mishaps_.target == FakeSyscalls::Kind::kNfs);
    lives_++;
    armed_ = true;
  }
  void Killable(const std::function<void()>& act) {
    try {
      act();
    } catch (const Ending&) {
      armed_ = false;
      worker_.reset();
      Start();
    }
  }
  void PowerCut() {
    armed_ = false;
    worker_.reset();
    sys_.PowerCut(rng_);
    boots_++;
    written_.clear();  // nothing was fsynced
    Start();
  }

  // A directory by a random walk from the root.
  FileId RandomDir() {
    FileId dir = kRootId;
    for (uint64_t depth = Draw(4); depth > 0; --depth) {
      auto entry = worker_->fs->Lookup(dir, Name().c_str());
      if (!entry || !S_ISDIR(entry->attr.stx_mode))
        break;
      dir = entry->id;
    }
    return dir;
  }

  void OneStep() {
    switch (Draw(8)) {
      case 0:
      case 1:
        worker_->applier->Step();
        return;
      case 2:
      case 3:
        worker_->scanner->Step();
        return;
      case 4:
        if (Draw(4) == 0)
          MustDo(worker_->barrier->Now());
        else if (Draw(2) == 0)
          Must(worker_->victims->Bury());
        else
          worker_->redo->RetryAll(true);
        return;
      default:
        Change();
        ForgetDeleted();
    }
  }

  // As the kernel does at once for what nobody has open.
  void ForgetDeleted() {
    for (FileId id : worker_->source->PinnedIds())
      worker_->fs->Forget(id);
  }

  // Errors are the application's: EEXIST, ENOTEMPTY and the like.
  void Change() {
    fusefs::OverlayFs& fs = *worker_->fs;
    const FileId dir = RandomDir();
    const std::string name = Name();
    const Caller caller{.uid = SomeId(),
                        .gid = SomeId(),
                        .pid = 1,
                        .umask = 022};
    switch (Draw(13)) {
      case 0:
        Ignore(fs.MkDir(dir, name.c_str(), 0777, caller));
        return;
      case 1:
      case 2: {
        auto made = fs.Create(dir, name.c_str(), O_RDWR | O_EXCL, 0666, caller);
        if (!made)
          return;
        const FileId id = made->first.id;
        const std::string text = "file " + std::to_string(++texts_);
        auto wrote = fs.Write(id, 0, text, 0, false);
        if (wrote)
          written_[id] = text;
        fs.Release(id, made->second.fh);
        return;
      }
      case 3:
        Ignore(fs.SymLink(dir, name.c_str(), "somewhere", caller));
        return;
      case 4:
        Ignore(fs.MkNod(dir, name.c_str(), S_IFIFO | 0600, 0, caller));
        return;
      case 5:
        Ignore(fs.Unlink(dir, name.c_str()));
        return;
      case 6:
        Ignore(fs.RmDir(dir, name.c_str()));
        return;
      case 7:
      case 8:
      case 9: {
        const unsigned flags[] = {0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE};
        Ignore(fs.Rename(dir, name.c_str(), RandomDir(), Name().c_str(),
                         flags[Draw(5)]));
        return;
      }
      case 10: {
        auto entry = fs.Lookup(RandomDir(), Name().c_str());
        if (entry && !S_ISDIR(entry->attr.stx_mode))
          Ignore(fs.Link(entry->id, dir, name.c_str()));
        return;
      }
      case 11: {
        auto entry = fs.Lookup(dir, name.c_str());
        if (!entry)
          return;
        AttrChange change;
        if (Draw(2) == 0 && !S_ISLNK(entry->attr.stx_mode))
          change.mode = static_cast<mode_t>(Draw(01000));
        if (Draw(2) == 0)
          change.uid = static_cast<uid_t>(Draw(5));
        if (Draw(2) == 0)
          change.mtime = timespec{static_cast<time_t>(Draw(1000000)), 5};
        Ignore(fs.SetAttr(entry->id, change, caller));
        return;
      }
      default: {
        auto entry = fs.Lookup(dir, name.c_str());
        if (!entry)
          return;
        if (Draw(3) == 0)
          Ignore(fs.RemoveXattr(entry->id, "user.x"));
        else
          Ignore(fs.SetXattr(entry->id, "user.x",
                             std::to_string(Draw(100)), 0));
      }
    }
  }
  template <class T>
  void Ignore(const T&) {}

  // What was written through the overlay is what the target has under the
  // same names: an object never got somebody else's bytes.
  void CheckBytes() {
    std::map<std::string, Seen> seen;
    WalkInto(&sys_, worker_->source->RootFd(), "", "", &seen);
    for (const auto& [path, s] : seen) {
      if (!S_ISREG(s.st.stx_mode))
        continue;
      FileId id = Must(worker_->source->IdOf(worker_->source->RootFd(),
                                             path.c_str()));
      auto text = written_.find(id);
      if (text == written_.end())
        continue;
      auto ino = sys_.InoOf(target_, path);
      ASSERT_TRUE(ino.has_value()) << path;
      EXPECT_EQ(sys_.Content(target_, *ino), text->second) << path;
    }
  }

  FakeSyscalls sys_;
  std::mt19937_64 rng_;
  const Mishaps mishaps_;
  FakeSyscalls::FsId source_, target_, journal_;
  StageRoots roots_;
  core::UniqueFd root_;  // of the target
  std::unique_ptr<core::Syscalls> as_owner_;
  std::unique_ptr<Worker> worker_;
  bool armed_ = false;
  bool dying_ = false;
  unsigned lives_ = 0;
  int boots_ = 0;
  int texts_ = 0;
  std::map<FileId, std::string> written_;
};

int Rounds(int usual) {
  const char* asked = std::getenv("LIVEMV_NAME_ROUNDS");
  return asked != nullptr ? std::atoi(asked) : usual;
}

void RunMany(int rounds, int steps, const Mishaps& mishaps) {
  const char* only = std::getenv("LIVEMV_NAME_SEED");
  unsigned lives = 0;
  for (int seed = 1; seed <= rounds; ++seed) {
    if (only != nullptr && seed != std::atoi(only))
      continue;
    SCOPED_TRACE("seed " + std::to_string(seed));
    Play play(static_cast<uint64_t>(seed), mishaps);
    play.Run(steps);
    play.Rest();
    lives += play.lives();
    if (testing::Test::HasFailure())
      return;
  }
  testing::Test::RecordProperty("lives", static_cast<int>(lives));
}

TEST(NamesRandom, TheTargetFollowsEveryChange) {
  RunMany(Rounds(150), 300, {});
}
TEST(NamesRandom, KillsAtAnyCallLoseNothing) {
  RunMany(Rounds(150), 300, {.kills = 20});
}
TEST(NamesRandom, KillsWithALocalTargetLoseNothing) {
  RunMany(Rounds(50), 300,
          {.kills = 20, .target = FakeSyscalls::Kind::kLocal});
}
TEST(NamesRandom, ASquashedRootFollowsEveryChange) {
  RunMany(Rounds(150), 300, {.squash = true});
}
TEST(NamesRandom, KillsUnderASquashedRootLoseNothing) {
  RunMany(Rounds(150), 300, {.kills = 20, .squash = true});
}
TEST(NamesRandom, PowerCutsUnderASquashedRootLoseNothing) {
  RunMany(Rounds(100), 300, {.kills = 10, .cuts = 100, .squash = true});
}
TEST(NamesRandom, PowerCutsLeaveTheTargetEqualToTheSource) {
  RunMany(Rounds(150), 300, {.kills = 10, .cuts = 100});
}

}  // namespace
}  // namespace livemv::fake
