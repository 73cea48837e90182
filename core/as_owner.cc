#include "core/as_owner.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <utility>

#include "core/acting.h"
#include "core/log.h"
#include "core/sync.h"

namespace livemv::core {
namespace {

constexpr mode_t kAllBits = 07777;
constexpr mode_t kNamesOfDir = S_IWUSR | S_IXUSR;
// Calls are tried again as often: somebody may narrow what was widened.
constexpr int kWidenTries = 5;

template <class R>
bool Denied(const R& result) {
  return !result && (result.error().sys_errno == EACCES ||
                     result.error().sys_errno == EPERM);
}

// What a look at path needs of the directory; "" is the object itself.
mode_t Searched(const char* path) {
  return *path == 0 ? 0 : S_IXUSR;
}

// What the owner needs of the mode to open the object so.
mode_t BitsToOpen(const Stat& st, int flags) {
  if ((flags & O_PATH) != 0)
    return 0;
  if (S_ISDIR(st.stx_mode))
    return S_IRUSR | S_IXUSR;
  switch (flags & O_ACCMODE) {
    case O_RDONLY:
      return S_IRUSR;
    case O_WRONLY:
      return S_IWUSR;
    default:
      return S_IRUSR | S_IWUSR;
  }
}

// The descriptor that a magic link of this process names.
std::optional<int> DescriptorOf(std::string_view path) {
  constexpr std::string_view kMagic = "/proc/self/fd/";
  if (!path.starts_with(kMagic))
    return std::nullopt;
  path.remove_prefix(kMagic.size());
  int fd = -1;
  auto [end, error] = std::from_chars(path.data(), path.data() + path.size(), fd);
  if (error != std::errc() || end != path.data() + path.size())
    return std::nullopt;
  return fd;
}

class AsOwner final : public Syscalls {
 public:
  AsOwner(Syscalls* sys, int root_fd, Widened widened)
      : sys_(sys), root_fd_(root_fd), widened_(std::move(widened)) {}

  Result<UniqueFd> OpenAt(int dirfd, const char* path, int flags,
                          mode_t mode) override;
  Result<UniqueFd> OpenByHandle(int mount_fd, const FileHandle& handle,
                                int flags) override;
  Status RenameAt(int olddir, const char* oldpath, int newdir,
                  const char* newpath, unsigned flags) override;

  // --- names: as the owner of the directory
  Result<FileHandle> NameToHandle(int dirfd, const char* path) override {
    return InDir(dirfd, Searched(path),
                 [&] { return sys_->NameToHandle(dirfd, path); });
  }
  Result<Stat> StatAt(int dirfd, const char* path, unsigned mask) override {
    return InDir(dirfd, Searched(path),
                 [&] { return sys_->StatAt(dirfd, path, mask); });
  }
  Result<std::string> ReadLinkAt(int dirfd, const char* path) override {
    return InDir(dirfd, Searched(path),
                 [&] { return sys_->ReadLinkAt(dirfd, path); });
  }
  Status LinkFd(int fd, int dirfd, const char* path) override {
    return InDir(dirfd, kNamesOfDir,
                 [&] { return sys_->LinkFd(fd, dirfd, path); });
  }
  Status UnlinkAt(int dirfd, const char* path, int flags) override {
    return InDir(dirfd, kNamesOfDir,
                 [&] { return sys_->UnlinkAt(dirfd, path, flags); });
  }

  // --- the object itself: as its owner
  Status FTruncate(int fd, uint64_t len) override {
    return OnObject(fd, [&] { return sys_->FTruncate(fd, len); });
  }
  Status FAllocate(int fd, int mode, uint64_t off, uint64_t len) override {
    return OnObject(fd, [&] { return sys_->FAllocate(fd, mode, off, len); });
  }
  Status ChMod(int fd, mode_t mode) override {
    // On another filesystem, and where root may, nothing is widened, and nobody
    // is to wait for a server here.
    if (Status done = sys_->ChMod(fd, mode); !Denied(done))
      return done;
    // Not between the widening of a mode and the call that it is for.
    MutexLock lock(widen_mu_);
    return OnObject(fd, [&] { return sys_->ChMod(fd, mode); });
  }
  Status ChOwn(int fd, uid_t uid, gid_t gid) override {
    // An owner gives a file to groups that he is in.
    return OnObject(fd, [&] { return sys_->ChOwn(fd, uid, gid); }, gid);
  }
  Status UTimens(int fd, const struct timespec times[2]) override {
    return OnObject(fd, [&] { return sys_->UTimens(fd, times); });
  }
  Result<std::string> GetXattr(int fd, const char* name) override {
    return OnObject(fd, [&] { return sys_->GetXattr(fd, name); });
  }
  Status SetXattr(int fd, const char* name, std::string_view value,
                  int flags) override {
    return OnObject(fd, [&] { return sys_->SetXattr(fd, name, value, flags); });
  }
  Result<std::vector<std::string>> ListXattr(int fd) override {
    return OnObject(fd, [&] { return sys_->ListXattr(fd); });
  }
  Status RemoveXattr(int fd, const char* name) override {
    return OnObject(fd, [&] { return sys_->RemoveXattr(fd, name); });
  }

  // A server looks at the mode each time, whoever opened the directory.
  Result<std::vector<DirEntry>> ReadDir(int fd, int64_t offset,
                                        size_t max_bytes) override {
    return InDir(fd, S_IRUSR | S_IXUSR,
                 [&] { return sys_->ReadDir(fd, offset, max_bytes); });
  }

  // --- with the rights of whoever opened the descriptor, or none needed
  void CloseFd(int fd) noexcept override { sys_->CloseFd(fd); }
  Result<size_t> PRead(int fd, void* buf, size_t len, off_t off) override {
    return sys_->PRead(fd, buf, len, off);
  }
  Result<size_t> PWrite(int fd, const void* buf, size_t len,
                        off_t off) override {
    return sys_->PWrite(fd, buf, len, off);
  }
  Result<size_t> WriteAppend(int fd, const void* buf, size_t len) override {
    return sys_->WriteAppend(fd, buf, len);
  }
  Status FSync(int fd) override { return sys_->FSync(fd); }
  Status FDataSync(int fd) override { return sys_->FDataSync(fd); }
  Status SyncFs(int fd) override { return sys_->SyncFs(fd); }
  Result<off_t> LSeek(int fd, off_t off, int whence) override {
    return sys_->LSeek(fd, off, whence);
  }
  Status FAdvise(int fd, uint64_t off, uint64_t len, int advice) override {
    return sys_->FAdvise(fd, off, len, advice);
  }
  Result<struct statfs> FStatFs(int fd) override { return sys_->FStatFs(fd); }
  Status MkDirAt(int dirfd, const char* path, mode_t mode) override {
    return sys_->MkDirAt(dirfd, path, mode);
  }
  Status MkNodAt(int dirfd, const char* path, mode_t mode, dev_t dev) override {
    return sys_->MkNodAt(dirfd, path, mode, dev);
  }
  Status SymLinkAt(const char* text, int dirfd, const char* path) override {
    return sys_->SymLinkAt(text, dirfd, path);
  }
  Result<Identity> ActAs(const Identity& who) override {
    return sys_->ActAs(who);
  }
  int64_t MonotonicNs() override { return sys_->MonotonicNs(); }
  int64_t RealtimeNs() override { return sys_->RealtimeNs(); }

 private:
  class Widening;

  // The object behind fd, if it is on the filesystem of the root.
  std::optional<Stat> Ours(int fd) {
    auto st = sys_->StatAt(fd, "");
    if (!st)
      return std::nullopt;
    // Asked once: the server may be away when somebody is denied something
    // elsewhere.
    dev_t device = device_.load();
    if (device == 0) {
      auto root = sys_->StatAt(root_fd_, "", 0);
      if (!root)
        return std::nullopt;
      device = makedev(root->stx_dev_major, root->stx_dev_minor);
      device_.store(device);
    }
    if (makedev(st->stx_dev_major, st->stx_dev_minor) != device)
      return std::nullopt;
    return *st;
  }

  template <class Call>
  auto OnObject(int fd, Call call, gid_t also = static_cast<gid_t>(-1))
      -> decltype(call()) {
    auto result = call();
    if (!Denied(result))
      return result;
    auto st = Ours(fd);
    if (!st || st->stx_uid == 0)
      return result;
    Identity who{st->stx_uid, st->stx_gid, {st->stx_gid}};
    if (also != static_cast<gid_t>(-1) && also != st->stx_gid)
      who.groups.push_back(also);
    return As(who, call);
  }
  // bits: what the owner needs of the mode of dirfd.
  template <class Call>
  auto InDir(int dirfd, mode_t bits, Call call) -> decltype(call()) {
    auto result = call();
    if (!Denied(result))
      return result;
    auto st = Ours(dirfd);
    if (!st || st->stx_uid == 0)
      return result;
    return AsOwnerOf(dirfd, *st, bits, call);
  }
  template <class Call>
  auto As(const Identity& who, Call call) -> decltype(call()) {
    Acting acting(sys_, who);
    if (!acting.status())
      return Fail(acting.status().error());
    return call();
  }
  // As the owner of fd, whose mode is widened by bits where it denies them.
  template <class Call>
  auto AsOwnerOf(int fd, const Stat& st, mode_t bits, Call call)
      -> decltype(call());

  Syscalls* const sys_;
  const int root_fd_;
  std::atomic<dev_t> device_{0};
  const Widened widened_;
  Mutex widen_mu_;
};

// Modes widened while it lives, in widen_mu_.
class AsOwner::Widening {
 public:
  explicit Widening(AsOwner* on) : on_(on), lock_(on->widen_mu_) {}
  ~Widening() {
    while (!widened_.empty()) {
      Restore(widened_.back());
      widened_.pop_back();
    }
  }
  Widening(const Widening&) = delete;
  Widening& operator=(const Widening&) = delete;

  // fd must stay open while this lives. mode: what the owner will have it be;
  // false if it is that already.
  Result<bool> Set(int fd, const std::function<mode_t(mode_t)>& mode) {
    // Looked at now that nobody else has widened it.
    ASSIGN_OR_RETURN(Stat st, on_->sys_->StatAt(fd, ""));
    const mode_t wide = mode(st.stx_mode) & kAllBits;
    if (wide == (st.stx_mode & kAllBits))
      return false;
    One one{fd, st, nullptr};
    if (on_->widened_) {
      ASSIGN_OR_RETURN(one.token, on_->widened_(st));
    }
    TRY(ChMod(one, wide));
    widened_.push_back(std::move(one));
    return true;
  }

 private:
  struct One {
    int fd;
    Stat st;
    std::shared_ptr<void> token;
  };
  Status ChMod(const One& one, mode_t mode) {
    Acting acting(on_->sys_,
                  {one.st.stx_uid, one.st.stx_gid, {one.st.stx_gid}});
    TRY(acting.status());
    return on_->sys_->ChMod(one.fd, mode & kAllBits);
  }
  void Restore(const One& one) {
    if (Status restored = ChMod(one, one.st.stx_mode); !restored)
      LOG_WARN("mode {:o} of a target's object is not put back yet: {}",
               one.st.stx_mode & kAllBits, restored.error().ToString());
  }

  AsOwner* const on_;
  MutexLock lock_;
  std::vector<One> widened_;
};

template <class Call>
auto AsOwner::AsOwnerOf(int fd, const Stat& st, mode_t bits, Call call)
    -> decltype(call()) {
  const Identity owner{st.stx_uid, st.stx_gid, {st.stx_gid}};
  auto result = As(owner, call);
  // The applier gives objects their modes meanwhile.
  for (int tries = 0; Denied(result) && tries < kWidenTries; ++tries) {
    Widening widening(this);
    ASSIGN_OR_RETURN(bool widened,
                     widening.Set(fd, [&](mode_t mode) { return mode | bits; }));
    if (!widened && tries > 0)
      return result;
    result = As(owner, call);
  }
  return result;
}

Result<UniqueFd> AsOwner::OpenAt(int dirfd, const char* path, int flags,
                                 mode_t mode) {
  auto fd = sys_->OpenAt(dirfd, path, flags, mode);
  if (!Denied(fd) || (flags & O_CREAT) != 0)
    return fd;
  const std::string_view name = path;
  if (auto magic = DescriptorOf(name)) {
    auto st = Ours(*magic);
    if (!st || st->stx_uid == 0)
      return fd;
    return AsOwnerOf(*magic, *st, BitsToOpen(*st, flags), [&] {
      return sys_->OpenAt(dirfd, path, flags, mode);
    });
  }
  auto dir = Ours(dirfd);
  if (!dir)
    return fd;
  if (name == "." || name == "..") {
    if (dir->stx_uid == 0)
      return fd;
    return AsOwnerOf(
        dirfd, *dir, name == "." ? BitsToOpen(*dir, flags) : mode_t{S_IXUSR},
        [&] { return sys_->OpenAt(dirfd, path, flags, mode); });
  }
  // One component at a time, each as the owner of what it is looked up in.
  if (const size_t slash = name.rfind('/'); slash != std::string_view::npos) {
    auto parent = OpenAt(dirfd, std::string(name.substr(0, slash)).c_str(),
                         O_PATH | O_DIRECTORY | (flags & O_NOFOLLOW), 0);
    if (!parent)
      return fd;
    return OpenAt(parent->Get(), path + slash + 1, flags, mode);
  }
  auto object = InDir(dirfd, S_IXUSR, [&] {
    return sys_->OpenAt(dirfd, path, O_PATH | (flags & O_NOFOLLOW));
  });
  if (!object || (flags & O_PATH) != 0)
    return object;
  // The magic link leads to the very object, whatever its directory denies.
  return OpenAt(AT_FDCWD,
                ("/proc/self/fd/" + std::to_string(object->Get())).c_str(),
                flags & ~O_NOFOLLOW, mode);
}

Result<UniqueFd> AsOwner::OpenByHandle(int mount_fd, const FileHandle& handle,
                                       int flags) {
  auto fd = sys_->OpenByHandle(mount_fd, handle, flags);
  if (!Denied(fd))
    return fd;
  auto path = sys_->OpenByHandle(mount_fd, handle, O_PATH | O_NOFOLLOW);
  if (!path)
    return fd;
  auto st = Ours(path->Get());
  if (!st || st->stx_uid == 0)
    return fd;
  return AsOwnerOf(path->Get(), *st, BitsToOpen(*st, flags), [&] {
    return sys_->OpenByHandle(mount_fd, handle, flags);
  });
}

Status AsOwner::RenameAt(int olddir, const char* oldpath, int newdir,
                         const char* newpath, unsigned flags) {
  auto call = [&] {
    return sys_->RenameAt(olddir, oldpath, newdir, newpath, flags);
  };
  Status moved = call();
  if (!Denied(moved))
    return moved;
  auto from = Ours(olddir), to = Ours(newdir);
  auto object = OpenAt(olddir, oldpath, O_PATH | O_NOFOLLOW, 0);
  if (!object)  // ENOENT: what may be searched as an owner does not have it
    return Fail(std::move(object).error());
  if (!from || !to)
    return moved;
  auto st = Ours(object->Get());
  if (!st)
    return moved;
  // Where everybody may change names, nobody's rights are needed.
  auto is_open = [](const Stat& dir) {
    constexpr mode_t kAll = S_IWGRP | S_IXGRP | S_IWOTH | S_IXOTH;
    return (dir.stx_mode & (kAll | S_ISVTX)) == kAll;
  };
  const Stat& whose = !is_open(*from) ? *from : !is_open(*to) ? *to : *st;
  if (whose.stx_uid == 0)
    return moved;
  const Identity who{whose.stx_uid, whose.stx_gid, {whose.stx_gid}};
  moved = As(who, call);
  for (int tries = 0; Denied(moved) && tries < kWidenTries; ++tries) {
    Widening widening(this);
    bool widened = false;
    auto widen = [&](int fd, const Stat& one,
                     const std::function<mode_t(mode_t)>& mode) -> Status {
      if (one.stx_uid == 0)
        return {};  // nobody acts for root
      ASSIGN_OR_RETURN(bool set, widening.Set(fd, mode));
      widened |= set;
      return {};
    };
    auto names = [](mode_t mode) { return mode | kNamesOfDir; };
    if (from->stx_uid == who.uid)
      TRY(widen(olddir, *from, names));
    if (to->stx_uid == who.uid)
      TRY(widen(newdir, *to, names));
    // Its ".." is to change (rename(2), EACCES).
    if (S_ISDIR(st->stx_mode) && from->stx_ino != to->stx_ino)
      TRY(widen(object->Get(), *st, [&](mode_t mode) {
        return st->stx_uid == who.uid ? mode | S_IWUSR
                                      : (mode & S_IRWXU) | S_IWGRP | S_IWOTH;
      }));
    if (!widened && tries > 0)
      return moved;
    moved = As(who, call);
  }
  return moved;
}

}  // namespace

std::unique_ptr<Syscalls> MakeAsOwner(Syscalls* sys, int root_fd,
                                      Widened widened) {
  return std::make_unique<AsOwner>(sys, root_fd, std::move(widened));
}

}  // namespace livemv::core
