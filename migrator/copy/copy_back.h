#pragma once

// Abort: brings the bytes that the target alone holds back to the source,
// piece by piece, while applications go on writing. The local end follows
// after a source fsync and a generation check; a shrink waits for the piece
// in flight. After Finish under the closed gate everything below each file's
// size is the source's.
//
// Thread contract: one thread for Step, Run and Finish; the rest from any.

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "core/result.h"
#include "core/sync.h"
#include "fusefs/byte_ledger.h"
#include "migrator/copy/verifier.h"

namespace livemv::copy {

class CopyBack {
 public:
  explicit CopyBack(fusefs::ByteLedger* ledger);

  // Bytes that the source lacks: growth past the local ends and remote bytes.
  // Holes count as data, so it is the most that may be needed. Blocks on the
  // target for files not used since a restart.
  core::Result<uint64_t> BytesToBringBack();

  // One piece of one file; false if nothing is left to bring back for now.
  // An error names what could not be brought back and why (ENOSPC on the
  // source, a target that is gone); the piece is tried again by a later call.
  core::Result<bool> Step();
  // Everything that is left, with no operation in flight (gate closed); then
  // makes each source file exactly as long as its size, and syncs the source.
  core::Status Finish();

  uint64_t BytesBroughtBack() const { return brought_.load(); }

 private:
  core::Status List();
  // The source has no inode any more that anything could be brought back to
  // (deleted, or its creation went with a power cut).
  core::Result<bool> IsGone(state::FileId id);
  core::Result<bool> StepFile(state::FileId id);
  // The local end rises over the next piece.
  core::Result<bool> BringGrowth(fusefs::FileRecord& r, bool* moved);
  core::Status BringRemote(fusefs::FileRecord& r);
  core::Status TrimSource(fusefs::FileRecord& r);
  core::Status CopyRange(fusefs::FileRecord& r, uint64_t begin, uint64_t end,
                         bool skip_holes);
  core::Status SyncSource(fusefs::FileRecord& r);
  // What writing to the source's file changes beside its bytes.
  struct Beside {
    core::Stat stat{};
    std::optional<std::string> capability;
  };
  core::Result<Beside> LookAtSource(fusefs::FileRecord& r);
  core::Status ResizeSource(fusefs::FileRecord& r, uint64_t size);
  core::Status Restore(fusefs::FileRecord& r, const Beside& before,
                       uint64_t since);

  fusefs::ByteLedger* const ledger_;
  core::Syscalls* const sys_;
  std::unique_ptr<char[]> buffer_;
  std::deque<state::FileId> files_;
  std::atomic<uint64_t> brought_{0};
};

}  // namespace livemv::copy
