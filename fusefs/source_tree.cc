#include "fusefs/source_tree.h"

#include <fcntl.h>

#include <cerrno>

#include "core/log.h"

namespace livemv::fusefs {
namespace {

std::string Operand(const char* what, state::FileId id) {
  return fmt::format("{} of source inode {:x}", what, id);
}

}  // namespace

SourceTree::SourceTree(core::Syscalls* sys, core::UniqueFd root,
                       state::NodeTable* nodes, size_t max_open)
    : sys_(sys), root_(std::move(root)), nodes_(nodes), max_open_(max_open) {
  if (auto st = sys_->StatAt(root_.Get(), ""); st)
    root_ino_ = st->stx_ino;
}

void SourceTree::AdoptOrphan(state::FileId id, core::UniqueFd fd) {
  auto shared = std::make_shared<const core::UniqueFd>(std::move(fd));
  bool is_dir = false;
  if (auto st = sys_->StatAt(shared->Get(), ""); st)
    is_dir = S_ISDIR(st->stx_mode);
  core::MutexLock lock(mu_);
  Cached& entry = cache_[id];
  entry.path = shared;
  (is_dir ? entry.dir : entry.data) = shared;
  entry.pinned = true;
}

core::Result<core::UniqueFd> SourceTree::Open(state::FileId id, int flags) {
  if (id == state::kRootId) {
    auto fd = sys_->OpenAt(root_.Get(), ".", flags);
    if (!fd)
      return core::Fail(std::move(fd).error().With(Operand("open", id)));
    return fd;
  }
  ASSIGN_OR_RETURN(core::FileHandle handle, nodes_->HandleOf(id));
  auto fd = sys_->OpenByHandle(root_.Get(), handle, flags);
  if (!fd)
    return core::Fail(std::move(fd).error().With(Operand("open", id)));
  return fd;
}

void SourceTree::Touch(state::FileId id, Cached* entry) {
  if (entry->listed) {
    lru_.splice(lru_.begin(), lru_, entry->lru);
    return;
  }
  if (entry->pinned)
    return;
  lru_.push_front(id);
  entry->lru = lru_.begin();
  entry->listed = true;
}

SharedFd SourceTree::Put(state::FileId id, SharedFd Cached::*slot,
                         core::UniqueFd fd) {
  // Descriptors are closed after the lock is released.
  std::vector<SharedFd> closing;
  auto fresh = std::make_shared<const core::UniqueFd>(std::move(fd));
  core::MutexLock lock(mu_);
  Cached& entry = cache_[id];
  if (entry.*slot == nullptr)
    entry.*slot = fresh;
  SharedFd result = entry.*slot;
  Touch(id, &entry);
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

core::Result<SharedFd> SourceTree::Get(state::FileId id, SharedFd Cached::*slot,
                                       int flags) {
  {
    core::MutexLock lock(mu_);
    if (auto it = cache_.find(id);
        it != cache_.end() && it->second.*slot != nullptr) {
      Touch(id, &it->second);
      return it->second.*slot;
    }
  }
  ASSIGN_OR_RETURN(core::UniqueFd fd, Open(id, flags));
  return Put(id, slot, std::move(fd));
}

core::Result<SharedFd> SourceTree::Path(state::FileId id) {
  return Get(id, &Cached::path, O_PATH | O_NOFOLLOW);
}

core::Result<SharedFd> SourceTree::Dir(state::FileId id) {
  return Get(id, &Cached::dir, O_RDONLY | O_DIRECTORY);
}

core::Result<SharedFd> SourceTree::Data(state::FileId id) {
  // O_NONBLOCK: a lease or a pipe must not hold the worker.
  auto fd = Get(id, &Cached::data, O_RDWR | O_NOFOLLOW | O_NONBLOCK);
  if (fd)
    return fd;
  switch (fd.error().sys_errno) {
    case EPERM:    // immutable, append-only
    case EACCES:
    case EROFS:
    case ETXTBSY: {  // being executed from the bare source
      // Not kept: the refusal may end.
      ASSIGN_OR_RETURN(core::UniqueFd read_only,
                       Open(id, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
      return std::make_shared<const core::UniqueFd>(std::move(read_only));
    }
    default:
      return fd;
  }
}

core::Result<state::FileId> SourceTree::IdOf(int dirfd, const char* name) {
  ASSIGN_OR_RETURN(core::FileHandle handle, sys_->NameToHandle(dirfd, name));
  return nodes_->IdFor(handle);
}

core::Result<state::FileId> SourceTree::Meet(core::UniqueFd path_fd,
                                             const core::Stat&,
                                             SharedFd* shared) {
  ASSIGN_OR_RETURN(state::FileId id, IdOf(path_fd.Get(), ""));
  SharedFd kept = Put(id, &Cached::path, std::move(path_fd));
  if (shared != nullptr)
    *shared = std::move(kept);
  return id;
}

core::Status SourceTree::Pin(state::FileId id) {
  ASSIGN_OR_RETURN(SharedFd path, Path(id));
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(path->Get(), ""));
  SharedFd keep = path;
  SharedFd Cached::*slot = &Cached::path;
  if (S_ISREG(st.stx_mode)) {
    ASSIGN_OR_RETURN(keep, Data(id));
    slot = &Cached::data;
  } else if (S_ISDIR(st.stx_mode)) {
    ASSIGN_OR_RETURN(keep, Dir(id));
    slot = &Cached::dir;
  }
  {
    core::MutexLock lock(mu_);
    Cached& entry = cache_[id];
    entry.path = path;
    entry.*slot = keep;
    entry.pinned = true;
    if (entry.listed) {
      lru_.erase(entry.lru);
      entry.listed = false;
    }
  }
  if (keeper_ != nullptr)
    TRY(keeper_->Keep(id, keep->Get()));
  return {};
}

void SourceTree::Drop(state::FileId id) {
  SharedFd path, data, dir;
  bool pinned = false;
  {
    core::MutexLock lock(mu_);
    auto it = cache_.find(id);
    if (it == cache_.end())
      return;
    path = std::move(it->second.path);
    data = std::move(it->second.data);
    dir = std::move(it->second.dir);
    pinned = it->second.pinned;
    if (it->second.listed)
      lru_.erase(it->second.lru);
    cache_.erase(it);
  }
  if (pinned && keeper_ != nullptr)
    keeper_->LetGo(id);
}

bool SourceTree::IsPinned(state::FileId id) {
  core::MutexLock lock(mu_);
  auto it = cache_.find(id);
  return it != cache_.end() && it->second.pinned;
}

std::vector<state::FileId> SourceTree::PinnedIds() {
  core::MutexLock lock(mu_);
  std::vector<state::FileId> ids;
  for (const auto& [id, entry] : cache_) {
    if (entry.pinned)
      ids.push_back(id);
  }
  return ids;
}

core::Result<bool> SourceTree::IsDead(state::FileId id) {
  if (id == state::kRootId)
    return false;
  auto fd = Path(id);
  if (!fd) {
    // ESTALE: the kernel knows no such inode of that generation. kGone: its
    // number was forgotten, which happens to dead ones only.
    if (fd.error().sys_errno == ESTALE || fd.error().sys_errno == ENOENT ||
        fd.error().code == core::ErrorCode::kGone)
      return true;
    return core::Fail(std::move(fd).error());
  }
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt((*fd)->Get(), ""));
  return st.stx_nlink == 0;
}

void SourceTree::Forget(state::FileId id) {
  Drop(id);
  nodes_->Forget(id);
}

bool SourceTree::Hidden(state::FileId dir, const char* name) {
  return dir == state::kRootId && !hidden_.empty() && hidden_ == name;
}

bool SourceTree::IsLostFound(state::FileId dir, const char* name,
                             const core::Stat& st) {
  // Only the root of an ext filesystem has inode 2 and a lost+found that mkfs
  // made; anything else of that name is the user's.
  return dir == state::kRootId && root_ino_ == 2 &&
         std::string_view(name) == "lost+found" && S_ISDIR(st.stx_mode) &&
         st.stx_uid == 0;
}

}  // namespace livemv::fusefs
