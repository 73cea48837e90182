#pragma once

// The target as a Tree, for serving after the cutover (rule 7): objects bound
// during the migration keep their FileId, so that stragglers' nodeids stay
// valid; everything else gets a number with kTargetBit, in memory.
//
// Thread contract: as Tree. Every method may block as long as the target does.

#include <array>
#include <unordered_map>

#include "fusefs/object_store.h"
#include "fusefs/tree.h"

namespace livemv::fusefs {

class TargetTree final : public Tree {
 public:
  explicit TargetTree(ObjectStore* objects) : objects_(objects) {}

  core::Result<SharedFd> Path(state::FileId id) override;
  core::Result<SharedFd> Data(state::FileId id) override;
  core::Result<SharedFd> Dir(state::FileId id) override;
  core::Mutex& DirLock(state::FileId id) override {
    return dir_locks_[id % dir_locks_.size()];
  }
  core::Result<state::FileId> Meet(core::UniqueFd path_fd,
                                   const core::Stat& stat,
                                   SharedFd* shared) override;
  core::Status Pin(state::FileId id) override;
  void Drop(state::FileId id) override;
  bool Hidden(state::FileId dir, const char* name) override;
  core::Syscalls* sys() const override { return objects_->sys(); }

 private:
  ObjectStore* const objects_;
  std::array<core::Mutex, 64> dir_locks_;
  core::Mutex mu_;
  std::unordered_map<state::FileId, SharedFd> pinned_;  // guarded by mu_
};

}  // namespace livemv::fusefs
