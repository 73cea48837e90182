#pragma once

// The source filesystem as inodes by number. Owns the descriptor of the
// source's root (on a private clone of its mount, so that it stays reachable
// under the overlay) and a bounded cache of open descriptors.
//
// Identity is rule 4: name -> kernel handle -> FileId, and back by
// open_by_handle_at. Nothing here remembers a path.
//
// Thread contract: all methods from any thread.

#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>

#include "core/result.h"
#include "core/state/ids.h"
#include "core/state/node_table.h"
#include "core/sync.h"
#include "core/syscalls.h"

namespace livemv::fusefs {

// A descriptor that several requests use at once; closed after the last.
using SharedFd = std::shared_ptr<const core::UniqueFd>;

class SourceTree {
 public:
  // root: a directory, O_RDONLY, on a mount that the overlay does not cover.
  // nodes must outlive this. max_open: descriptors kept, at most.
  SourceTree(core::Syscalls* sys, core::UniqueFd root, state::NodeTable* nodes,
             size_t max_open = 4096);

  // O_PATH: for metadata and names.
  core::Result<SharedFd> Path(state::FileId id);
  // Regular files: O_RDWR, never O_APPEND. Falls back to O_RDONLY where the
  // source refuses (immutable); writes then fail with EBADF -> caller EPERM.
  core::Result<SharedFd> Data(state::FileId id);
  // Directories: O_RDONLY for ReadDir; callers pass offsets, and hold
  // DirLock while reading, since the position is shared.
  core::Result<SharedFd> Dir(state::FileId id);

  // The FileId of dirfd/name (name "": of dirfd itself).
  core::Result<state::FileId> IdOf(int dirfd, const char* name);

  // Keeps the inode alive after its last unlink, until Drop: the descriptors
  // of a deleted file cannot be opened again.
  void Pin(state::FileId id, SharedFd fd);
  void Drop(state::FileId id);  // closes what is cached of it

  int RootFd() const { return root_.Get(); }
  core::Syscalls* sys() const { return sys_; }

 private:
  struct Cached {
    SharedFd path, data, dir;
    bool pinned = false;
    std::list<state::FileId>::iterator lru;
  };
  core::Result<SharedFd> Get(state::FileId id, SharedFd Cached::*slot,
                             int flags);

  core::Syscalls* const sys_;
  const core::UniqueFd root_;
  state::NodeTable* const nodes_;
  const size_t max_open_;
  core::Mutex mu_;
  std::unordered_map<state::FileId, Cached> cache_;  // guarded by mu_
  std::list<state::FileId> lru_;                     // guarded by mu_
};

}  // namespace livemv::fusefs
