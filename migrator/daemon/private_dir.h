#pragma once

// What a crash has left in the target's private directory, .livemv-ID, of which
// no worker is there to take care: objects in their slots (o) and victims (v).
//
// Invariant: an object with no other name on the target is the only copy of
// what it holds, if the target is the truth. After a power cut one may be here
// whose place was durable in the journal and not on the target. So nothing is
// removed but what is dead, names of what has others, and empty directories.
//
// Thread contract: one thread. Blocks as the target does.

#include <string>
#include <vector>

#include "core/result.h"
#include "core/state/recovery.h"
#include "core/syscalls.h"
#include "core/unique_fd.h"

namespace livemv::daemon {

struct StrandedObject {
  std::string path;    // below the target's root
  std::string source;  // a path of it on the source; empty: not known
};

class PrivateDir {
 public:
  // All borrowed. source_root_fd: a directory, readable; -1: nothing is known
  // but what the journal says.
  PrivateDir(core::Syscalls* target_sys, int target_root_fd,
             core::Syscalls* source_sys, int source_root_fd,
             const state::RecoveredState& state, const std::string& id);

  // What must not be removed. Changes nothing. Walks the source if there is any.
  core::Result<std::vector<StrandedObject>> Stranded();
  // The rest goes, and the directory. kConflict, with nothing changed, if
  // something is stranded.
  core::Status Remove();

 private:
  struct Entry {
    std::string dir, name;  // "o" or "v", and the name in it
    core::Stat st;
    bool stranded = false;
    state::FileId id = state::kNoFile;
  };
  core::Result<std::vector<Entry>> Look();
  core::Result<std::vector<Entry>> LookIn(const core::UniqueFd& dir);
  core::Result<bool> IsDead(state::FileId id);
  state::FileId IdOf(int dirfd, const Entry& entry);

  core::Syscalls* const target_;
  const int target_root_;
  core::Syscalls* const source_;
  const int source_root_;
  const state::RecoveredState& state_;
  const std::string name_;
};

// In the journal: the file handle of the target's root, as HandleText has it.
inline constexpr char kTargetRootOption[] = "target_root";
std::string HandleText(const core::FileHandle& handle);

// The handle that packs into id, of a number without kTableBit or kTargetBit.
core::FileHandle PackedHandle(state::FileId id);

}  // namespace livemv::daemon
