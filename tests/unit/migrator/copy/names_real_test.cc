// The name lane over the real kernel: two directories of one filesystem.
// Needs root for handles and trusted attributes.

#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "tests/support/name_stage.h"

namespace livemv::fake {
namespace {

using fusefs::AttrChange;
using fusefs::Caller;

class RealNames : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0)
      GTEST_SKIP() << "SKIPPED for want of: root (handles, trusted.*)";
    const char* tmp = std::getenv("TMPDIR");
    base_ = std::string(tmp != nullptr ? tmp : "/tmp") + "/livemv-names-XXXXXX";
    ASSERT_NE(mkdtemp(base_.data()), nullptr);
    for (const char* dir : {"/s", "/t", "/j"})
      std::filesystem::create_directory(base_ + dir);
    sys_ = core::MakeRealSyscalls();
    auto probe = Must(sys_->OpenAt(AT_FDCWD, (base_ + "/s").c_str(), O_PATH));
    if (!sys_->NameToHandle(probe.Get(), "") ||
        !sys_->SetXattr(probe.Get(), "trusted.livemv-probe", "1", 0))
      GTEST_SKIP() << base_ << ": no handles or no trusted attributes";
    MustDo(sys_->RemoveXattr(probe.Get(), "trusted.livemv-probe"));
    umask_ = umask(0);
  }
  void TearDown() override {
    worker_.reset();
    umask(umask_);
    if (!base_.empty())
      std::filesystem::remove_all(base_);
  }
  void Start() {
    worker_.reset();
    auto open = [this](const char* dir) {
      return [this, dir] {
        return Must(sys_->OpenAt(AT_FDCWD, (base_ + dir).c_str(),
                                 O_RDONLY | O_DIRECTORY));
      };
    };
    worker_ = std::make_unique<Worker>(
        sys_.get(), StageRoots{open("/s"), open("/t"), open("/j")}, "boot",
        true);
  }
  void ExpectSettles() {
    worker_->Settle();
    EXPECT_EQ(Differences(*worker_), "");
    EXPECT_EQ(NamesIn(sys_.get(), worker_->objects->SlotsFd()),
              std::vector<std::string>{});
  }

  std::string base_;
  mode_t umask_ = 022;
  std::unique_ptr<core::Syscalls> sys_;
  std::unique_ptr<Worker> worker_;
};

TEST_F(RealNames, AFileDeletedWhileItsFormerUserLeavesStaysForItsNextUser) {
  Start();
  fusefs::OverlayFs& fs = *worker_->fs;
  for (int i = 0; i < 400; ++i) {
    auto made = Must(fs.Create(kRootId, "f", O_RDWR | O_EXCL, 0600, {}));
    const FileId id = made.first.id;
    std::atomic<bool> go = false;
    std::thread leaves([&] {
      while (!go)
        continue;
      fs.Release(id, made.second.fh);
    });
    go = true;
    std::atomic<int> spin = i % 300;  // so that they meet in other ways
    while (spin-- > 0)
      continue;
    auto reply = Must(fs.Open(id, O_RDWR));
    MustDo(fs.Unlink(kRootId, "f"));
    leaves.join();
    auto wrote = fs.Write(id, 0, std::string_view("x"), O_RDWR, false);
    ASSERT_TRUE(wrote.has_value()) << i << ": " << wrote.error().ToString();
    fs.Release(id, reply.fh);
  }
}

TEST_F(RealNames, ATreeOfEveryKindBecomesTheSame) {
  const std::string s = base_ + "/s";
  std::filesystem::create_directories(s + "/d/e/f");
  for (int i = 0; i < 700; ++i)  // several pieces of a listing
    std::filesystem::create_symlink("to " + std::to_string(i),
                                    s + "/d/e/link" + std::to_string(i));
  ASSERT_EQ(mknod((s + "/d/pipe").c_str(), S_IFIFO | 0620, 0), 0);
  ASSERT_EQ(mknod((s + "/d/null").c_str(), S_IFCHR | 0666, 0x103), 0);
  auto fd = Must(sys_->OpenAt(AT_FDCWD, (s + "/file").c_str(),
                              O_RDWR | O_CREAT, 0644));
  ASSERT_EQ(link((s + "/file").c_str(), (s + "/d/again").c_str()), 0);
  MustDo(sys_->SetXattr(fd.Get(), "user.colour", "blue", 0));
  MustDo(sys_->SetXattr(fd.Get(), "trusted.other", "t", 0));
  MustDo(sys_->ChOwn(fd.Get(), 1234, 4321));
  MustDo(sys_->ChMod(fd.Get(), 06751));
  const timespec old[2] = {{1000, 1}, {2000, 2}};
  MustDo(sys_->UTimens(fd.Get(), old));
  Start();
  ExpectSettles();
  EXPECT_EQ(worker_->scanner->totals().others, 702u);
  MustDo(worker_->victims->RemovePrivate());
  EXPECT_FALSE(
      std::filesystem::exists(base_ + "/t/" + Worker::kPrivate));
}

TEST_F(RealNames, DefaultAclsAndGroupsOfDirectoriesAreInherited) {
  // A default ACL with rwx for everybody: the caller's umask has no effect.
  struct Acl {
    uint32_t version = 2;
    struct {
      uint16_t tag, perm;
      uint32_t id;
    } entry[3] = {{1, 7, ~0u}, {4, 7, ~0u}, {0x20, 7, ~0u}};
  } acl;
  const std::string d = base_ + "/s/d";
  std::filesystem::create_directory(d);
  if (setxattr(d.c_str(), "system.posix_acl_default", &acl, sizeof acl, 0) != 0)
    GTEST_SKIP() << "no POSIX ACLs at " << base_;
  Start();
  const Caller caller{.uid = 1000, .gid = 1000, .pid = 1, .umask = 077};
  const FileId dir = Must(worker_->fs->Lookup(kRootId, "d")).id;
  auto file = Must(worker_->fs->MkNod(dir, "f", S_IFREG | 0666, 0, caller));
  EXPECT_EQ(file.attr.stx_mode & 07777, 0666);
  EXPECT_EQ(file.attr.stx_uid, 1000u);
  auto sub = Must(worker_->fs->MkDir(dir, "sub", 0755, caller));
  EXPECT_EQ(sub.attr.stx_mode & 07777, 0755);
  auto bare = Must(worker_->fs->MkNod(kRootId, "f", S_IFREG | 0666, 0, caller));
  EXPECT_EQ(bare.attr.stx_mode & 07777, 0600);
  ExpectSettles();
}

TEST_F(RealNames, RandomChangesAreFollowedAcrossRestarts) {
  std::filesystem::create_directories(base_ + "/s/a/b/c");
  std::filesystem::create_directories(base_ + "/s/b/a");
  Start();
  std::mt19937_64 rng(7);
  auto name = [&rng] { return std::string(1, "abc"[rng() % 3]); };
  auto dir = [&] {
    FileId id = kRootId;
    for (uint64_t depth = rng() % 4; depth > 0; --depth) {
      auto next = worker_->fs->Lookup(id, name().c_str());
      if (!next || !S_ISDIR(next->attr.stx_mode))
        break;
      id = next->id;
    }
    return id;
  };
  for (int step = 0; step < 1500; ++step) {
    if (step % 500 == 250)
      Start();
    worker_->applier->Step();
    worker_->scanner->Step();
    fusefs::OverlayFs& fs = *worker_->fs;
    const Caller caller{.uid = 1, .gid = 1, .pid = 1, .umask = 022};
    // Errors are the application's.
    switch (rng() % 9) {
      case 0:
        (void)fs.MkDir(dir(), name().c_str(), 0777, caller);
        break;
      case 1: {
        auto made = fs.Create(dir(), name().c_str(), O_RDWR | O_EXCL, 0666,
                              caller);
        if (made) {
          (void)fs.Write(made->first.id, 0, std::string_view("text"), 0, false);
          fs.Release(made->first.id, made->second.fh);
        }
        break;
      }
      case 2:
        (void)fs.SymLink(dir(), name().c_str(), "x", caller);
        break;
      case 3:
        (void)fs.Unlink(dir(), name().c_str());
        break;
      case 4:
        (void)fs.RmDir(dir(), name().c_str());
        break;
      case 5:
      case 6:
        (void)fs.Rename(dir(), name().c_str(), dir(), name().c_str(),
                        rng() % 4 == 0 ? RENAME_EXCHANGE : 0);
        break;
      case 7: {
        auto what = fs.Lookup(dir(), name().c_str());
        if (what && !S_ISDIR(what->attr.stx_mode))
          (void)fs.Link(what->id, dir(), name().c_str());
        break;
      }
      default: {
        auto what = fs.Lookup(dir(), name().c_str());
        if (!what || S_ISLNK(what->attr.stx_mode))
          break;
        AttrChange change;
        change.mode = static_cast<mode_t>(rng() % 01000);
        change.mtime = timespec{static_cast<time_t>(rng() % 1000000), 3};
        (void)fs.SetAttr(what->id, change, caller);
      }
    }
    // As the kernel does at once for what nobody has open.
    for (FileId id : worker_->source->PinnedIds())
      fs.Forget(id);
  }
  ExpectSettles();
}

TEST_F(RealNames, ManyThreadsAtOnceEndInTheSameTree) {
  for (int i = 0; i < 5; ++i)
    std::filesystem::create_directories(base_ + "/s/" + "abcde"[i] + "/a/b");
  Start();
  std::atomic<bool> stop{false}, done{false};
  std::vector<std::jthread> helpers;
  for (int i = 0; i < 4; ++i)
    helpers.emplace_back([&] { worker_->applier->Run(stop); });
  for (int i = 0; i < 2; ++i)
    helpers.emplace_back([&] { worker_->scanner->Run(stop); });
  helpers.emplace_back([&] {
    while (!stop.load()) {
      MustDo(worker_->barrier->Now());
      Must(worker_->victims->Bury());
      if (done.load())
        return;
    }
  });
  // The kernel holds the locks of the directories in which names are changed
  // until it is answered (fs/namei.c, lock_rename).
  std::array<std::mutex, 16> locks;
  auto locked = [&locks](FileId a, FileId b, auto act) {
    std::mutex& first = locks[std::min(a % 16, b % 16)];
    std::mutex& second = locks[std::max(a % 16, b % 16)];
    std::scoped_lock one(first);
    if (&first == &second)
      return act();
    std::scoped_lock two(second);
    return act();
  };
  {
    std::vector<std::jthread> users;
    for (unsigned user = 0; user < 3; ++user) {
      users.emplace_back([this, user, &locked] {
        std::mt19937_64 rng(user);
        fusefs::OverlayFs& fs = *worker_->fs;
        auto name = [&rng] { return std::string(1, "abcde"[rng() % 5]); };
        auto dir = [&] {
          FileId id = kRootId;
          for (uint64_t depth = rng() % 3; depth > 0; --depth) {
            auto next = fs.Lookup(id, name().c_str());
            if (!next || !S_ISDIR(next->attr.stx_mode))
              break;
            id = next->id;
          }
          return id;
        };
        const Caller caller{.uid = user, .gid = user, .pid = 1, .umask = 022};
        for (int step = 0; step < 700; ++step) {
          // Errors are the application's.
          const auto what = rng() % 6;
          const FileId at = dir(), to = dir();
          const std::string here = name(), there = name();
          switch (what) {
            case 0:
              locked(at, at, [&] {
                (void)fs.MkDir(at, here.c_str(), 0777, caller);
              });
              break;
            case 1: {
              auto made = locked(at, at, [&] {
                return fs.Create(at, here.c_str(), O_RDWR | O_EXCL, 0666,
                                 caller);
              });
              if (!made)
                break;
              (void)fs.Write(made->first.id, 0, std::string_view("text"), 0,
                             false);
              fs.Release(made->first.id, made->second.fh);
              break;
            }
            case 2:
              locked(at, at, [&] { (void)fs.Unlink(at, here.c_str()); });
              break;
            case 3:
              locked(at, at, [&] { (void)fs.RmDir(at, here.c_str()); });
              break;
            default:
              locked(at, to, [&] {
                (void)fs.Rename(at, here.c_str(), to, there.c_str(), 0);
              });
          }
        }
      });
    }
  }
  done = true;
  helpers.back().join();
  stop = true;
  worker_->redo->WakeAll();
  worker_->scanner->WakeAll();
  helpers.clear();
  for (FileId id : worker_->source->PinnedIds())
    worker_->fs->Forget(id);
  ExpectSettles();
}

}  // namespace
}  // namespace livemv::fake
