#pragma once

// Source handles as numbers, both ways (rule 4). Most handles of ext4 pack
// into their FileId; every other one is kept here and in the journal.
//
// The FileId of a kept handle is derived from the handle's bytes, so the same
// inode has the same FileId even if a power cut took the record: an object in
// the target's slot of that number can be nobody else's.
//
// Thread contract: all methods from any thread. IdFor may block in
// Journal::Append, which it calls with the table locked, so that nobody sees a
// number that is not in the journal.

#include <cstddef>
#include <optional>
#include <unordered_map>

#include "core/result.h"
#include "core/state/facts.h"
#include "core/state/ids.h"
#include "core/state/journal.h"
#include "core/sync.h"
#include "core/syscalls.h"

namespace livemv::state {

class NodeTable {
 public:
  // journal must outlive this.
  explicit NodeTable(Journal* journal) : journal_(journal) {}
  NodeTable(const NodeTable&) = delete;
  NodeTable& operator=(const NodeTable&) = delete;

  // The handle of the tree's root: its FileId is kRootId. Before other calls.
  void SetRoot(const core::FileHandle& handle);
  // Takes over what the journal says; before other calls. kCorrupt if the
  // number is taken by another handle.
  core::Status Adopt(const NodeFact& fact);

  // The number of handle; a new one is appended to the journal (not synced:
  // a lost record gives the same number again). kInvalid for an empty handle.
  core::Result<FileId> IdFor(const core::FileHandle& handle);
  // kGone (ESTALE to an application) if no such number was given.
  core::Result<core::FileHandle> HandleOf(FileId id);
  // The inode is gone for good and its number will not be asked for again.
  void Forget(FileId id);

  // Handles kept in memory.
  size_t KeptHandles();

  // The FileId that the handle packs into without a table, if it does.
  static std::optional<FileId> Pack(const core::FileHandle& handle);

 private:
  Journal* const journal_;
  core::Mutex mu_;
  std::optional<core::FileHandle> root_;                // guarded by mu_
  std::unordered_map<FileId, core::FileHandle> by_id_;  // guarded by mu_
};

}  // namespace livemv::state
