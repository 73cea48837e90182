#pragma once

// The source filesystem as inodes by number. Owns the descriptor of the
// source's root (on a private clone of its mount, so that it stays reachable
// under the overlay) and a bounded cache of open descriptors.
//
// Identity is rule 4: name -> kernel handle -> FileId, and back by
// open_by_handle_at. Nothing here remembers a path.
//
// Thread contract: all methods from any thread.

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/result.h"
#include "core/state/ids.h"
#include "core/state/node_table.h"
#include "core/sync.h"
#include "core/syscalls.h"
#include "fusefs/tree.h"

namespace livemv::fusefs {

// Descriptors of deleted inodes that must outlive this process: what is
// deleted while open has no handle and no name to be opened by again. The
// supervisor keeps them; a worker hands them over before it unlinks.
class OrphanKeeper {
 public:
  virtual ~OrphanKeeper() = default;
  // fd is borrowed; the keeper has a reference of its own when this returns,
  // even if this process dies at once. Must not wait for anybody.
  virtual core::Status Keep(state::FileId id, int fd) = 0;
  virtual void LetGo(state::FileId id) = 0;
};

class SourceTree final : public Tree {
 public:
  // root: a directory, O_RDONLY, on a mount that the overlay does not cover.
  // nodes must outlive this. max_open: inodes kept open, at most (pinned ones
  // come on top).
  SourceTree(core::Syscalls* sys, core::UniqueFd root, state::NodeTable* nodes,
             size_t max_open = 4096);

  // Before the first Pin. keeper may be null: then a pinned inode dies with
  // this process.
  void SetKeeper(OrphanKeeper* keeper) { keeper_ = keeper; }
  // What a predecessor pinned; before serving.
  void AdoptOrphan(state::FileId id, core::UniqueFd fd);

  // O_PATH: for metadata and names.
  core::Result<SharedFd> Path(state::FileId id) override;
  // Regular files: O_RDWR, never O_APPEND. Falls back to O_RDONLY where the
  // source refuses (immutable); writes then fail with EBADF -> caller EPERM.
  core::Result<SharedFd> Data(state::FileId id) override;
  // Directories: O_RDONLY for ReadDir; callers pass offsets, and hold
  // DirLock while reading, since the position is shared.
  core::Result<SharedFd> Dir(state::FileId id) override;
  core::Mutex& DirLock(state::FileId id) override {
    return dir_locks_[id % dir_locks_.size()];
  }

  // The FileId of dirfd/name (name "": of dirfd itself).
  core::Result<state::FileId> IdOf(int dirfd, const char* name);
  core::Result<state::FileId> Meet(core::UniqueFd path_fd,
                                   const core::Stat& stat,
                                   SharedFd* shared) override;

  // Keeps the inode alive after its last unlink, until Drop: the descriptors
  // of a deleted file cannot be opened again. Before the unlink.
  core::Status Pin(state::FileId id) override;
  void Drop(state::FileId id) override;  // closes what is cached of it
  bool IsPinned(state::FileId id);
  std::vector<state::FileId> PinnedIds();
  // The inode is unlinked for good: its handle is stale, or no name is left.
  // An error if the source does not tell.
  core::Result<bool> IsDead(state::FileId id);
  // Drop, and the number's handle is forgotten.
  void Forget(state::FileId id);
  bool Hidden(state::FileId dir, const char* name) override;
  // A name of the root directory that applications do not see.
  void Hide(std::string name) { hidden_ = std::move(name); }
  // dir/name is the source filesystem's own lost+found: not part of the tree.
  bool IsLostFound(state::FileId dir, const char* name, const core::Stat& st);

  int RootFd() const { return root_.Get(); }
  core::Syscalls* sys() const override { return sys_; }

 private:
  struct Cached {
    SharedFd path, data, dir;
    bool pinned = false;
    bool listed = false;  // in lru_
    std::list<state::FileId>::iterator lru;
  };
  core::Result<SharedFd> Get(state::FileId id, SharedFd Cached::*slot,
                             int flags);
  // Puts fd into the cache, unless another one is there; returns what is.
  SharedFd Put(state::FileId id, SharedFd Cached::*slot, core::UniqueFd fd);
  void Touch(state::FileId id, Cached* entry);
  core::Result<core::UniqueFd> Open(state::FileId id, int flags);

  core::Syscalls* const sys_;
  const core::UniqueFd root_;
  state::NodeTable* const nodes_;
  const size_t max_open_;
  OrphanKeeper* keeper_ = nullptr;
  std::string hidden_;
  uint64_t root_ino_ = 0;
  std::array<core::Mutex, 64> dir_locks_;
  core::Mutex mu_;
  std::unordered_map<state::FileId, Cached> cache_;  // guarded by mu_
  std::list<state::FileId> lru_;                     // guarded by mu_
};

}  // namespace livemv::fusefs
