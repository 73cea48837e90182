#pragma once

// One filesystem tree as inodes by number: the seam between TreeOps and the
// source (SourceTree) or, after cutover, the target (TargetTree).
//
// Thread contract: all methods from any thread.

#include <memory>

#include "core/result.h"
#include "core/state/ids.h"
#include "core/sync.h"
#include "core/syscalls.h"
#include "core/unique_fd.h"

namespace livemv::fusefs {

// A descriptor that several requests use at once; closed after the last.
using SharedFd = std::shared_ptr<const core::UniqueFd>;

class Tree {
 public:
  virtual ~Tree() = default;
  // O_PATH: for metadata and names.
  virtual core::Result<SharedFd> Path(state::FileId id) = 0;
  // Regular files: O_RDWR, O_RDONLY where the filesystem refuses that.
  virtual core::Result<SharedFd> Data(state::FileId id) = 0;
  // Directories: O_RDONLY. Its position is shared: hold DirLock over ReadDir.
  virtual core::Result<SharedFd> Dir(state::FileId id) = 0;
  virtual core::Mutex& DirLock(state::FileId id) = 0;
  // The number of what an O_PATH descriptor shows; kept open for later calls.
  virtual core::Result<state::FileId> Meet(core::UniqueFd path_fd,
                                           const core::Stat& stat,
                                           SharedFd* shared) = 0;
  // Keeps the inode alive after its last unlink, until Drop: what is deleted
  // cannot be opened again.
  virtual core::Status Pin(state::FileId id) = 0;
  virtual void Drop(state::FileId id) = 0;  // closes what is kept of it
  // Names in the root directory that belong to livemv, not to the user.
  virtual bool Hidden(state::FileId dir, const char* name) = 0;
  virtual core::Syscalls* sys() const = 0;
};

}  // namespace livemv::fusefs
