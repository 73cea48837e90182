#pragma once

// The transitions of a file's byte map together with the facts that tell of
// them (rules 1 and 2): what DataPath, Cutter, the copier and the copy-back of
// an abort do to a FileRecord, in one place.
//
// Thread contract: all methods from any thread. "Locked" methods want
// record.mu held; the others take it. Blocking is said where it happens.

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"
#include "core/state/journal.h"
#include "core/syscalls.h"
#include "fusefs/file_table.h"
#include "fusefs/object_store.h"
#include "fusefs/source_tree.h"

namespace livemv::fusefs {

// What the data path tells those who follow it. Implementations are called
// from request threads, often (once a write): they must be cheap, must not
// block on the target, and must not call back into the data path.
class BytesListener {
 public:
  virtual ~BytesListener() = default;
  // Times or mode of id's source inode, or times of its object, are about to
  // change.
  virtual void AttrsTouching(FileId) {}
  // They changed: the object's attributes are to be made equal again. Ends an
  // AttrsTouching; until then they are not equal, however long it takes.
  virtual void AttrsTouched(FileId id) = 0;
  // The migration itself moved the times of id's object.
  virtual void TimesDisturbed(FileId id) { AttrsTouched(id); }
  // Chunks of id are to be copied; urgent: an application wrote into them.
  virtual void CopyWanted(FileId id, bool urgent) = 0;
  // See ByteLedger::SetPredecessorAlive.
  virtual void PredecessorAlive(bool) {}
};

// Safety mechanisms that a simulator can take out, to see that it notices.
// The program never changes them.
struct SafetySwitches {
  bool hot_mark = true;           // before the first double write
  bool hot_durable = true;        // and durably
  bool generation = true;         // claims check the generation
  bool write_end_counted = true;  // the generation counts ends of writes
  bool in_flight_check = true;    // claims check for writes in flight
  bool copies_wait = true;        // what is being written is not copied
  bool withdraw_on_failure = true;
  bool clamp_to_local_end = true;  // the copier stays below it
  bool spare_remote = true;        // the copier never writes remote bytes
  bool claim_after_fsync = true;
  bool writes_wait_for_cut = true;
  bool extends_wait_for_cut = true;
  bool cut_waits_for_copier = true;
  bool cut_waits_for_given_up = true;
  bool cut_durable_first = true;
  bool cut_synced = true;
  bool version_recheck = true;
  bool unmark_rechecks = true;
  bool unmark_after_sync = true;
  bool back_synced = true;
  bool back_generation = true;
  bool shrink_moves_back = true;
  bool fsync_source = true;
  bool fsync_target = true;
  bool fsync_journal = true;
  bool pin_durable = true;
  bool leftovers_cut = true;  // what a pin finds past the local end
  bool remote_after_fsync = true;
  bool failed_fsync_withdraws = true;
  bool failed_fsync_moves = true;
  bool claim_hot_if_dirty = true;
  bool direct_alone = true;    // direct begins while nobody else has it open
  bool direct_uncut = true;    // and with no cut owed
  bool direct_recheck = true;  // its end sees who came and went meanwhile
  bool direct_renumber = true;  // a new mount's numbers are not the old one's
};

class ByteLedger {
 public:
  ByteLedger(FileTable* table, SourceTree* source, ObjectStore* objects,
             state::Journal* journal);

  // Before the first operation.
  void SetListener(BytesListener* listener) { listener_ = listener; }
  BytesListener* listener() const { return listener_; }
  SafetySwitches& switches() { return switches_; }

  // The target's filesystem tells of a write that it could not keep at the
  // latest when the file is closed (NFS: close-to-open, nfs(5)), so an
  // application is told then. Before the first operation.
  void SetTellsAtClose(bool tells) { tells_at_close_ = tells; }
  bool tells_at_close() const { return tells_at_close_; }

  // While true nothing is claimed, cut or made remote, because a dead
  // worker's calls may still land (rule 1). Set before serving starts.
  void SetPredecessorAlive(bool alive);
  bool PredecessorAlive() const { return predecessor_alive_.load(); }

  // Makes size and local end known: asks the source, or for a pinned file the
  // object; blocks on these.
  core::Status Load(FileRecord& r);
  // Makes the object and its binding; blocks on source and target.
  core::Result<Object> EnsureObject(FileRecord& r);
  // Bytes of the object, as the target says; blocks on it.
  core::Result<uint64_t> ObjectSize(FileRecord& r);
  // Makes the local end explicit. The caller holds write_mu, has loaded r,
  // ensured its object and asked for its size since the record was unpinned
  // (ignored if it is pinned). durable: blocks until the journal has it for
  // good, as must be before the first byte that the target alone holds.
  core::Status Pin(FileRecord& r, uint64_t object_size, bool durable);

  // Withdraws claims (also provisional ones) on the chunks and asks for them
  // to be copied again. A hot mark stays.
  core::Status WithdrawLocked(FileRecord& r, uint64_t first, uint64_t count);
  // A target fsync of the file failed, whoever asked for it: withdraws every
  // hot or provisional chunk and moves all generations. keep: err is kept for
  // the application if the target alone has bytes that may be lost.
  core::Status TargetSyncFailed(FileRecord& r, int err, bool keep = true);
  // The same for a syncfs of the target: of all files.
  core::Status TargetSyncFsFailed();
  // syncfs of the target, with the consequences of a failure. Blocks.
  core::Status SyncTarget();
  // fsync of r's object, likewise. Blocks. deliver: the
  // caller tells the application of a failure, so none is kept for it.
  core::Status SyncObject(FileRecord& r, bool deliver);
  // Around any other fsync of the object. False after limit_ns (<0: none).
  bool BeginSync(FileRecord& r, int64_t limit_ns);
  void EndSync(FileRecord& r);

  // The chunk's object equals its source in the page cache since the copy that
  // began at `since`; from now on writes are doubled. False if it moved.
  bool ProvideLocked(FileRecord& r, uint64_t chunk, uint64_t since);
  // Claims those of the chunks that are still provisional; the caller's target
  // fsync began after they became so. Returns how many chunks it claimed.
  core::Result<uint64_t> ClaimLocked(FileRecord& r,
                                     std::span<const uint64_t> chunks);

  // Abort: an application is about to change r itself, so that the time and
  // capability its source had are not to be put back: durably so when this
  // returns, since the change may become durable by itself. In a piece that is
  // brought back the time of the change takes their place, in this life.
  core::Status NothingToPutBack(FileRecord& r);
  // Says what is to be put back from now on. done: the source has it already.
  core::Status ToPutBackLocked(FileRecord& r, state::PutBackFact fact,
                               bool done);
  core::Status PutBackDoneLocked(FileRecord& r);
  // The present time, no capability.
  state::PutBackFact PutBackNow(FileId id);

  // A write to the source has returned.
  void SourceWrittenLocked(FileRecord& r);
  // Around a syncfs of the source: what was written before Begin is durable
  // after End(ok).
  uint32_t BeginSourceSync();
  void EndSourceSync(uint32_t epoch, bool ok);

  // One lazy unmarking of hot chunks: Begin, then sync source and target, then
  // Finish (only if both syncs succeeded). The work of a barrier.
  struct UnmarkRound {
    struct File {
      FileId id;
      uint64_t since;
      std::vector<state::ByteMap::Range> chunks;
    };
    std::vector<File> files;
  };
  UnmarkRound BeginUnmark();
  core::Status FinishUnmark(const UnmarkRound& round);
  // Appends the sizes of files that have grown since the last call.
  core::Status RecordSizes();
  // All of the above with the syncs in between: everything a barrier owes to
  // bytes but the journal's sync. Blocks on both filesystems.
  core::Status Barrier();

  // Appends a fact about r and remembers its number. Facts about a forgotten
  // inode are dropped: nobody can ask for what they promise.
  core::Status AppendLocked(FileRecord& r, const state::Fact& fact);
  // The inode, its object and all its names are gone: records it and drops
  // what is known of its bytes.
  core::Status Forget(FileId id);
  static uint64_t LocalEnd(const FileRecord& r) {
    return r.facts.map.local_end();
  }
  // The chunk gets double writes.
  static bool IsDoubled(const FileRecord& r, uint64_t chunk) {
    return r.facts.map.IsCopied(chunk) || r.provisional.contains(chunk);
  }
  static bool OverlapsAny(const std::vector<ByteRange>& ranges, uint64_t begin,
                          uint64_t end);
  static void RemoveRange(std::vector<ByteRange>& ranges, ByteRange range);

  FileTable* table() const { return table_; }
  SourceTree* source() const { return source_; }
  ObjectStore* objects() const { return objects_; }
  state::Journal* journal() const { return journal_; }
  core::Syscalls* sys() const { return source_->sys(); }

 private:
  FileTable* const table_;
  SourceTree* const source_;
  ObjectStore* const objects_;
  state::Journal* const journal_;
  BytesListener* listener_ = nullptr;
  SafetySwitches switches_;
  bool tells_at_close_ = false;
  std::atomic<bool> predecessor_alive_{false};
  std::atomic<uint32_t> source_epoch_{1};   // of writes that return now
  std::atomic<uint32_t> source_synced_{0};  // epochs below are durable
  core::Mutex syncfs_mu_;  // held over syncfs and its consequences
};

}  // namespace livemv::fusefs
