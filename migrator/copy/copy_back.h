#pragma once

// Abort: brings the bytes that the target alone holds back to the source,
// piece by piece, while applications go on writing. The local end follows
// after a sync of the source and a generation check; what a piece leaves behind
// a shrink that came meanwhile is trimmed. After Finish under the closed gate
// everything below each file's size is the source's.
//
// Thread contract: one thread for Step, Run and Finish; the rest from any.

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/sync.h"
#include "core/unique_fd.h"
#include "fusefs/byte_ledger.h"
#include "migrator/copy/verifier.h"

namespace livemv::copy {

class CopyBack {
 public:
  explicit CopyBack(fusefs::ByteLedger* ledger);

  // What the source lacks: growth past the local ends and remote bytes. Holes
  // count as data, so it is the most that may be needed. Blocks on the target
  // for files not used since a restart.
  struct Lack {
    uint64_t bytes = 0;
    uint64_t files = 0;
  };
  core::Result<Lack> WhatTheSourceLacks();

  // A piece each of some files; false if nothing is left to bring back for now.
  // An error names what could not be brought back and why (ENOSPC on the
  // source, a target that is gone); the piece is tried again by a later call.
  core::Result<bool> Step();
  // Whether every file was looked at, so that Finish has to ask about none of
  // those that are alike on both sides.
  bool Looked() const { return looking_ && to_look_at_.empty(); }
  // Everything that is left, with no operation in flight (gate closed); then
  // makes each source file exactly as long as its size, and syncs the source.
  // kTimeout if that is more than can be done until deadline_ns (MonotonicNs,
  // <0: none); what was brought back by then is.
  core::Status Finish(int64_t deadline_ns);

  // Of files at which a predecessor died: their time and capability. Before
  // anything is served.
  core::Status PutBackAll();

  uint64_t BytesBroughtBack() const { return brought_.load(); }

 private:
  // Once for each file, while applications are served: its size, and that its
  // source is no longer than its local end. Whoever makes one longer from then
  // on tells the table.
  core::Status LookAtSome();
  core::Status LookAt(state::FileId id);
  // For all that is known without asking anybody the source lacks nothing.
  static bool IsEven(const fusefs::FileRecord& r);
  core::Status List();
  // The source has no inode any more that anything could be brought back to
  // (deleted, or its creation went with a power cut).
  core::Result<bool> IsGone(state::FileId id);
  // Null if the table does not know id, or if it is gone.
  core::Result<fusefs::FileRef> FindLiving(state::FileId id);
  // The next bytes past a file's local end, on their way.
  struct Piece {
    fusefs::FileRef file;
    fusefs::ByteRange range;
    core::Status copied;
  };
  // A piece each of the next files, which are synced together: false if none of
  // them has one. A file with one goes to the end of the list, since it may
  // have more.
  core::Result<bool> StepSome();
  // Nothing if r has not grown. Otherwise its writers say so from here to
  // EndPiece if they touch the range.
  core::Result<std::optional<Piece>> BeginPiece(fusefs::FileRef r);
  // The local end rises over the piece if it is durable on the source and
  // nobody has written there meanwhile.
  core::Status EndPiece(Piece& piece);
  core::Status SyncPieces(std::vector<Piece>& pieces);
  core::Status BringRemote(fusefs::FileRecord& r);
  core::Status TrimSource(fusefs::FileRecord& r);
  core::Status CopyRange(fusefs::FileRecord& r, uint64_t begin, uint64_t end,
                         bool skip_holes);
  core::Status SyncSource(fusefs::FileRecord& r);
  // And says of what was put back before that it is. By a descriptor of its
  // own: the kernel tells each one once of an error in writing back, and the
  // barrier's may have been told.
  core::Status SyncWholeSource();
  core::Result<uint64_t> SourceSize(fusefs::FileRecord& r);
  core::Status ResizeSource(fusefs::FileRecord& r, uint64_t size);
  // With write_mu held: writes down the time and capability that the source's
  // file has, and is to have again (unless that is written down already);
  // durable after SyncKept, before anything is written to the file.
  core::Status KeepBeside(fusefs::FileRecord& r);
  core::Status SyncKept();
  static bool IsToPutBack(fusefs::FileRecord& r);
  // With write_mu held, after the writing.
  core::Status PutBack(fusefs::FileRecord& r);

  fusefs::ByteLedger* const ledger_;
  core::Syscalls* const sys_;
  core::UniqueFd source_root_;  // opened before anything is written there
  std::unique_ptr<char[]> buffer_;
  state::Seq kept_seq_ = 0;
  bool looking_ = false;
  std::deque<state::FileId> to_look_at_;
  std::deque<state::FileId> files_;
  std::atomic<uint64_t> brought_{0};
};

}  // namespace livemv::copy
