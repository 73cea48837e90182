#pragma once

// The journal in a file: append, group commit, room made ahead, compaction.
//
// Room: the file is allocated ahead of its end, so that a disk that fills up
// does not stop the journal. When the room is used up and the disk gives no
// more, Append refuses that record with ENOSPC; nothing was written, and later
// calls may succeed. A failed write or fdatasync is final (journal.h).
//
// Compaction rewrites the journal as the facts that its fold still holds,
// beside the old file, and takes its name at the end. A kill or power cut at
// any point leaves one whole journal under the name. Appends go on meanwhile
// and wait only for the last step (one fdatasync, a rename, a directory
// fsync).
//
// Thread contract: all methods from any thread; one JournalFile a journal in
// the whole system (the worker's).

#include <cstdint>
#include <memory>
#include <string>

#include "core/result.h"
#include "core/state/journal.h"
#include "core/state/journal_format.h"
#include "core/state/journal_reader.h"
#include "core/state/recovery.h"
#include "core/sync.h"
#include "core/syscalls.h"
#include "core/unique_fd.h"

namespace livemv::state {

struct JournalOptions {
  // Room kept allocated past the end, bytes, and what is asked for at once.
  uint64_t reserve_bytes = 16u << 20;
  uint64_t step_bytes = 4u << 20;
  // CompactIfUseful acts on a file of at least compact_bytes that is
  // compact_factor times as large as what it says.
  uint64_t compact_bytes = 64u << 20;
  uint64_t compact_factor = 3;
  // The boot this worker runs on. If the journal's last session ran on it too,
  // no power cut came between, and whole records behind a tear are damage.
  std::string boot_id;
};

class JournalFile final : public Journal {
 public:
  // Makes dirfd/name durably, with first as its first record and the reserve
  // allocated. kConflict (EEXIST) if there is one. dirfd is duplicated by
  // opening "."; sys must outlive this.
  static core::Result<std::unique_ptr<JournalFile>> Create(
      core::Syscalls* sys, int dirfd, const std::string& name,
      const MigrationFact& first, const JournalOptions& options = {});

  struct Opened;
  // Reads an existing journal, cuts off a torn tail, makes the rest durable
  // (rule 2: recovery makes the journal durable before it acts on it) and goes
  // on after it. kCorrupt if a durable record is missing or cannot be read:
  // the file is then left as it is.
  static core::Result<Opened> Open(core::Syscalls* sys, int dirfd,
                                   const std::string& name,
                                   const JournalOptions& options = {});

  core::Result<Seq> Append(const Fact& fact) override;
  core::Status Sync(Seq seq) override;
  core::Status SyncAll() override;

  // Rewrites the journal. An error that is not final leaves the old journal
  // in use. kConflict if a compaction is already running. Blocks for a read
  // of the whole journal and a write of its fold.
  core::Status Compact();
  // Cheap to ask often, for example at every barrier.
  bool CompactIsUseful();

  uint64_t FileBytes();  // used, without the room ahead
  uint64_t RoomBytes();  // allocated past the end

 private:
  JournalFile(core::Syscalls* sys, core::UniqueFd dir, std::string name,
              const JournalOptions& options)
      : sys_(sys),
        dir_(std::move(dir)),
        name_(std::move(name)),
        options_(options) {}

  class Rewrite;  // a new journal file while it is written
  core::Status CompactNow();
  // The last step of a compaction, with lock held throughout.
  core::Status SwitchTo(Rewrite* rewrite, JournalReader* reader,
                        core::MutexLock& lock, core::UniqueFd* old);
  core::Status MakeRoom(uint64_t need);
  std::unexpected<core::Error> SetFailed(core::Error error);

  core::Syscalls* const sys_;
  const core::UniqueFd dir_;
  const std::string name_;
  const JournalOptions options_;

  core::Mutex mu_;
  core::CondVar synced_;
  // All below guarded by mu_; fd_ is changed only while no sync is in flight.
  core::UniqueFd fd_;
  JournalHeader header_;
  uint64_t end_ = 0;              // of the last record, bytes
  uint64_t allocated_ = 0;        // end of the room, bytes
  int64_t next_room_try_ns_ = 0;  // monotonic
  Seq last_seq_ = 0;
  Seq durable_seq_ = 0;
  bool syncing_ = false;
  bool compacting_ = false;
  uint64_t live_bytes_ = 0;  // size of the fold when last written; 0: unknown
  core::Status failed_;
};

struct JournalFile::Opened {
  std::unique_ptr<JournalFile> journal;
  RecoveredState state;
  JournalTail tail;  // as found, before it was cut off
};

}  // namespace livemv::state
