#include "fusefs/object_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <cstdlib>
#include <vector>

#include "core/acting.h"
#include "core/fault_points.h"
#include "core/log.h"

namespace livemv::fusefs {
namespace {

constexpr mode_t kFormat = S_IFMT;

bool IsDenied(const core::Status& status) {
  return !status && (status.error().sys_errno == EACCES ||
                     status.error().sys_errno == EPERM);
}

std::string Operand(const char* what, state::FileId id) {
  return fmt::format("{} object {}", what, ObjectStore::SlotName(id));
}

}  // namespace

ObjectStore::ObjectStore(core::Syscalls* sys, core::UniqueFd root,
                         std::string private_name, state::Journal* journal,
                         size_t max_open)
    : sys_(sys), root_(std::move(root)), private_name_(std::move(private_name)),
      journal_(journal), max_open_(max_open) {}

core::Result<core::UniqueFd> ObjectStore::MakeDir(int at, const char* name,
                                                  mode_t mode) {
  auto made = sys_->MkDirAt(at, name, mode);
  if (IsDenied(made)) {
    // The server takes root for nobody, who may not: then as the owner.
    ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(at, ""));
    core::Acting acting(sys_, {st.stx_uid, st.stx_gid, {st.stx_gid}});
    TRY(acting.status());
    made = sys_->MkDirAt(at, name, mode);
  }
  if (!made && made.error().sys_errno != EEXIST)
    return core::Fail(std::move(made).error().With(
        fmt::format("make the target's private directory \"{}\"", name)));
  auto fd = sys_->OpenAt(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!fd)
    return core::Fail(std::move(fd).error().With(
        fmt::format("the target's private directory \"{}\"", name)));
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(fd->Get(), ""));
  if ((st.stx_mode & 07777) != mode)  // the umask, or an older migration
    TRY(sys_->ChMod(fd->Get(), mode));
  return fd;
}

// The private directory is none of the tree: its coming and going must not be
// seen in the root's times, which nobody else would put right once the last
// record is applied.
void ObjectStore::RestoreRootTimes(const core::Stat& before) {
  auto st = sys_->StatAt(root_.Get(), "", STATX_MTIME);
  if (st && st->stx_mtime.tv_sec == before.stx_mtime.tv_sec &&
      st->stx_mtime.tv_nsec == before.stx_mtime.tv_nsec)
    return;
  const timespec times[2] = {
      {0, UTIME_OMIT},
      {static_cast<time_t>(before.stx_mtime.tv_sec),
       static_cast<long>(before.stx_mtime.tv_nsec)}};
  if (auto set = sys_->UTimens(root_.Get(), times); !set)
    LOG_WARN("times of the target's root: {}", set.error().ToString());
}

core::Status ObjectStore::Prepare() {
  core::MutexLock lock(prepare_mu_);
  removed_ = false;
  if (slots_)
    return {};
  ASSIGN_OR_RETURN(core::Stat before, sys_->StatAt(root_.Get(), ""));
  ASSIGN_OR_RETURN(core::UniqueFd dir,
                   MakeDir(root_.Get(), private_name_.c_str(), 0700));
  RestoreRootTimes(before);
  ASSIGN_OR_RETURN(core::UniqueFd slots, MakeDir(dir.Get(), "o", 0777));
  ASSIGN_OR_RETURN(core::UniqueFd victims, MakeDir(dir.Get(), "v", 0777));
  TRY(BindRoot());
  private_ = std::move(dir);
  slots_ = std::move(slots);
  victims_ = std::move(victims);
  return {};
}

core::Status ObjectStore::BindRoot() {
  ASSIGN_OR_RETURN(core::FileHandle handle,
                   sys_->NameToHandle(root_.Get(), ""));
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(root_.Get(), ""));
  Remember(state::kRootId, Object{handle, st.stx_ino, S_IFDIR});
  return {};
}

core::Status ObjectStore::Touch() {
  const timespec now[2] = {{0, UTIME_NOW}, {0, UTIME_NOW}};
  return sys_->UTimens(slots_.Get(), now);
}

core::Status ObjectStore::RemovePrivate() {
  core::MutexLock lock(prepare_mu_);
  removed_ = true;
  slots_.Reset();
  victims_.Reset();
  private_.Reset();
  auto dir = sys_->OpenAt(root_.Get(), private_name_.c_str(),
                          O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!dir && dir.error().sys_errno == ENOENT)
    return {};
  if (!dir)
    return core::Fail(std::move(dir).error());
  for (const char* name : {"o", "v"}) {
    auto removed = sys_->UnlinkAt(dir->Get(), name, AT_REMOVEDIR);
    if (!removed && removed.error().sys_errno != ENOENT)
      return core::Fail(std::move(removed).error().With(
          fmt::format("remove {}/{}", private_name_, name)));
  }
  dir->Reset();
  ASSIGN_OR_RETURN(core::Stat before, sys_->StatAt(root_.Get(), ""));
  auto removed =
      sys_->UnlinkAt(root_.Get(), private_name_.c_str(), AT_REMOVEDIR);
  if (!removed)
    return core::Fail(
        std::move(removed).error().With("remove " + private_name_));
  RestoreRootTimes(before);
  return {};
}

void ObjectStore::Remember(state::FileId id, const Object& object) {
  core::MutexLock lock(mu_);
  objects_.Put(id, object);
}

void ObjectStore::Adopt(state::FileId id, const Object& object) {
  Remember(id, object);
}

std::optional<Object> ObjectStore::Find(state::FileId id) {
  core::MutexLock lock(mu_);
  return objects_.Find(id);
}

size_t ObjectStore::Files() {
  core::MutexLock lock(mu_);
  return objects_.Files();
}

std::optional<state::FileId> ObjectStore::FindByIno(uint64_t target_ino) {
  core::MutexLock lock(mu_);
  std::vector<state::FileId> ids = objects_.FindByIno(target_ino);
  if (ids.empty())
    return std::nullopt;
  return ids.front();
}

std::optional<state::FileId> ObjectStore::FindByHandleLocked(
    const core::FileHandle& handle, uint64_t ino) {
  for (state::FileId id : objects_.FindByIno(ino)) {
    if (objects_.Find(id)->handle == handle)
      return id;
  }
  return std::nullopt;
}

core::Result<std::optional<state::FileId>> ObjectStore::Identify(
    int dirfd, const char* name, const core::Stat& st, bool verify) {
  {
    core::MutexLock lock(mu_);
    std::vector<state::FileId> ids = objects_.FindByIno(st.stx_ino);
    if (ids.empty())
      return std::nullopt;
    if (!verify && ids.size() == 1) {
      if (objects_.Find(ids.front())->type !=
          (st.stx_mode & uint32_t{S_IFMT}))
        return std::nullopt;
      return ids.front();
    }
  }
  ASSIGN_OR_RETURN(core::FileHandle handle, sys_->NameToHandle(dirfd, name));
  core::MutexLock lock(mu_);
  return FindByHandleLocked(handle, st.stx_ino);
}

state::FileId ObjectStore::NumberOf(const Object& object) {
  core::MutexLock lock(mu_);
  if (auto id = FindByHandleLocked(object.handle, object.ino))
    return *id;
  state::FileId id = state::kTargetBit | next_target_++;
  objects_.Put(id, object);
  return id;
}

std::string ObjectStore::SlotName(state::FileId id) {
  char name[17];
  snprintf(name, sizeof name, "%016llx", static_cast<unsigned long long>(id));
  return name;
}

std::optional<state::FileId> ObjectStore::IdOfSlot(const std::string& name) {
  if (name.size() != 16 ||
      name.find_first_not_of("0123456789abcdef") != std::string::npos)
    return std::nullopt;
  return std::strtoull(name.c_str(), nullptr, 16);
}

std::string ObjectStore::NewVictimName() {
  return fmt::format("{:x}-{:x}",
                     static_cast<uint64_t>(sys_->RealtimeNs()),
                     next_victim_.fetch_add(1));
}

core::Status ObjectStore::MakeAsOwner(const std::string& slot,
                                      const core::Stat& source,
                                      const std::string& link_text) {
  {
    core::Acting acting(sys_, {source.stx_uid, source.stx_gid, {}});
    TRY(acting.status());
    core::Status made = MakeInSlot(slot, source, link_text);
    if (!IsDenied(made))
      return made;
  }
  // What only root may make (a device node), or a server that takes everybody
  // for one and the same.
  return MakeInSlot(slot, source, link_text);
}

core::Status ObjectStore::MakeInSlot(const std::string& slot,
                                     const core::Stat& source,
                                     const std::string& link_text) {
  const int at = slots_.Get();
  switch (source.stx_mode & kFormat) {
    case S_IFDIR:
      return sys_->MkDirAt(at, slot.c_str(), 0700);
    case S_IFLNK:
      return sys_->SymLinkAt(link_text.c_str(), at, slot.c_str());
    case S_IFREG: {
      ASSIGN_OR_RETURN(
          core::UniqueFd fd,
          sys_->OpenAt(at, slot.c_str(),
                       O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
      return {};
    }
    default:
      return sys_->MkNodAt(at, slot.c_str(), (source.stx_mode & kFormat) | 0600,
                           makedev(source.stx_rdev_major,
                                   source.stx_rdev_minor));
  }
}

// Bytes in an object without a binding are of a life that the journal lost in
// a power cut: nothing that was promised, and perhaps the file was seen without
// them since.
core::Status ObjectStore::EmptyAdopted(state::FileId id,
                                       const std::string& slot) {
  auto fd = sys_->OpenAt(slots_.Get(), slot.c_str(), O_RDWR | O_NOFOLLOW);
  if (!fd)
    return core::Fail(std::move(fd).error().With(Operand("open", id)));
  TRY(sys_->FTruncate(fd->Get(), 0));
  return sys_->FSync(fd->Get());
}

core::Result<Object> ObjectStore::Make(state::FileId id,
                                       const core::Stat& source,
                                       const std::string& link_text) {
  const std::string slot = SlotName(id);
  const mode_t type = source.stx_mode & kFormat;
  // Not on a target that has just been cleared of what was ours.
  if (removed_)
    return core::Fail(core::ErrorCode::kGone, Operand("no slot for", id));
  TRY(Prepare());
  auto made = MakeAsOwner(slot, source, link_text);
  if (!made && made.error().sys_errno != EEXIST)
    return core::Fail(std::move(made).error().With(Operand("make", id)));
  TRY(core::FaultPoint("objects.made"));
  // EEXIST: made by a predecessor that died before its record. Nobody else
  // uses the name, which is the FileId, so it is the object of id.
  auto fd = sys_->OpenAt(slots_.Get(), slot.c_str(), O_PATH | O_NOFOLLOW);
  if (!fd)
    return core::Fail(std::move(fd).error().With(Operand("open new", id)));
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(fd->Get(), ""));
  if ((st.stx_mode & kFormat) != type)
    return core::Fail(core::ErrorCode::kCorrupt,
                      Operand("the slot holds another type than", id));
  if (!made && type == S_IFREG && st.stx_size != 0)
    TRY(EmptyAdopted(id, slot));
  if (st.stx_uid != source.stx_uid || st.stx_gid != source.stx_gid) {
    auto given = sys_->ChOwn(fd->Get(), source.stx_uid, source.stx_gid);
    // A target that does not let root give files away is told by the applier
    // (attributes set aside), not by whoever writes.
    if (!given && given.error().sys_errno != EPERM &&
        given.error().sys_errno != EINVAL)
      return core::Fail(std::move(given).error().With(Operand("chown", id)));
  }
  ASSIGN_OR_RETURN(core::FileHandle handle, sys_->NameToHandle(fd->Get(), ""));
  Object object{std::move(handle), st.stx_ino, type};
  TRY(journal_->Append(
      state::BoundFact{id, object.handle, object.ino, object.type}));
  Remember(id, object);
  return object;
}

core::Result<Object> ObjectStore::Ensure(state::FileId id,
                                         const core::Stat& source,
                                         const std::string& link_text) {
  for (;;) {
    if (auto object = Find(id))
      return *object;
    core::MutexLock lock(make_mu_);
    if (making_.insert(id).second)
      break;
    made_.Wait(lock);
  }
  core::Result<Object> object = [&]() -> core::Result<Object> {
    // Somebody may have finished between the look and the reservation.
    if (auto found = Find(id))
      return *found;
    return Make(id, source, link_text);
  }();
  core::MutexLock lock(make_mu_);
  making_.erase(id);
  made_.NotifyAll();
  return object;
}

core::Result<SharedFd> ObjectStore::Get(state::FileId id,
                                        SharedFd Cached::*slot, int flags) {
  core::FileHandle handle;
  {
    core::MutexLock lock(mu_);
    if (auto it = cache_.find(id); it != cache_.end()) {
      lru_.splice(lru_.begin(), lru_, it->second.lru);
      if (it->second.*slot != nullptr)
        return it->second.*slot;
    }
    std::optional<Object> object = objects_.Find(id);
    if (!object)
      return core::Fail(core::ErrorCode::kGone, Operand("no", id));
    handle = std::move(object->handle);
  }
  auto fd = sys_->OpenByHandle(root_.Get(), handle, flags);
  if (!fd)
    return core::Fail(std::move(fd).error().With(Operand("open", id)));
  auto fresh = std::make_shared<const core::UniqueFd>(std::move(*fd));
  std::vector<SharedFd> closing;  // after the lock
  core::MutexLock lock(mu_);
  auto [it, added] = cache_.try_emplace(id);
  if (added) {
    lru_.push_front(id);
    it->second.lru = lru_.begin();
  }
  if (it->second.*slot == nullptr)
    it->second.*slot = fresh;
  SharedFd result = it->second.*slot;
  while (lru_.size() > max_open_) {
    auto victim = cache_.find(lru_.back());
    lru_.pop_back();
    closing.push_back(std::move(victim->second.path));
    closing.push_back(std::move(victim->second.data));
    closing.push_back(std::move(victim->second.dir));
    cache_.erase(victim);
  }
  lock.unlock();
  return result;
}

core::Result<SharedFd> ObjectStore::Data(state::FileId id) {
  return Get(id, &Cached::data, O_RDWR | O_NOFOLLOW | O_NONBLOCK);
}
core::Result<SharedFd> ObjectStore::Path(state::FileId id) {
  return Get(id, &Cached::path, O_PATH | O_NOFOLLOW);
}
core::Result<SharedFd> ObjectStore::Dir(state::FileId id) {
  return Get(id, &Cached::dir, O_RDONLY | O_DIRECTORY);
}

void ObjectStore::Drop(state::FileId id) {
  Cached gone;  // closed after the lock
  core::MutexLock lock(mu_);
  auto it = cache_.find(id);
  if (it == cache_.end())
    return;
  lru_.erase(it->second.lru);
  gone = std::move(it->second);
  cache_.erase(it);
  lock.unlock();
}

void ObjectStore::Forget(state::FileId id) {
  Drop(id);
  core::MutexLock lock(mu_);
  objects_.Erase(id);
}

}  // namespace livemv::fusefs
