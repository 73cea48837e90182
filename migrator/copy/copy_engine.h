#pragma once

// The copier: brings the chunks below local ends to the target, verifies them
// there and claims them (rule 1). It works by FileId, never by path, and never
// over bytes that the target alone holds.
//
//   read the source (holes stay holes) -> write the object -> sync the target
//   -> read it back from the target's storage -> claim
//
// From the write on, applications' writes into the chunk go to both sides, so
// a chunk that is written all the time can be claimed too. Many small files
// share one syncfs; a large one is synced each Options::batch_bytes.
//
// Trouble on the target (full, gone) is not an error of the copier: it keeps
// what it has not claimed in its queue, says so in Progress::reason, and tries
// again with growing pauses.
//
// Thread contract: Step and Run from any number of threads at once (each needs
// about 2 MiB while it works); the rest from any thread, without blocking.

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/compact_map.h"
#include "core/result.h"
#include "core/state/recovery.h"
#include "core/sync.h"
#include "fusefs/byte_ledger.h"
#include "migrator/copy/verifier.h"

namespace livemv::copy {

using state::FileId;

class CopyEngine {
 public:
  struct Options {
    uint64_t batch_bytes = 64ull << 20;  // between two syncs of the target
    size_t batch_files = 512;
    uint64_t bytes_per_second = 0;  // 0: no limit
    bool verify = true;
    int64_t first_backoff_ns = 100'000'000;
    int64_t longest_backoff_ns = 5'000'000'000;
  };

  struct Progress {
    uint64_t bytes_total = 0, bytes_copied = 0;  // below the local ends
    uint64_t files_total = 0, files_copied = 0;  // regular files met
    double bytes_per_second = 0;  // over the last seconds
    uint64_t chunks_verified = 0;
    uint64_t mismatches = 0;  // verification reads that differed
    bool paused = false;
    std::string reason;  // why copying does not go on; empty: it does
  };

  struct VerifyFailure {  // differed twice: not copied again
    FileId id;
    uint64_t chunk;
  };

  explicit CopyEngine(fusefs::ByteLedger* ledger)
      : CopyEngine(ledger, Options()) {}
  CopyEngine(fusefs::ByteLedger* ledger, Options options);

  // id is a bound regular file or is to become one. Files that are wholly
  // copied are no work. urgent: before all others.
  void Enqueue(FileId id, bool urgent = false);
  // Every file that the journal says is bound or pinned and not wholly copied.
  void EnqueueUnfinished(const state::RecoveredState& state);
  void Forget(FileId id);

  // One batch: false if there was nothing to do now. Blocks on both sides.
  bool Step();
  // Batches until stop is true. Call Wake after setting stop.
  void Run(const std::atomic<bool>& stop);
  void Wake();

  // Workers claim what they have copied and stop.
  void Pause();
  void Resume();
  // Bytes per second; 0: no limit.
  void SetLimit(uint64_t bytes_per_second);

  // Nothing queued, nothing in progress, nothing failed.
  bool Idle();
  // No worker is inside a batch.
  bool Quiet();
  Progress GetProgress();
  std::vector<VerifyFailure> VerifyFailures();

 private:
  struct Copied {  // a chunk that waits for the sync
    uint64_t chunk;
    uint64_t since;
    core::Hash128 hash;
  };
  struct Job {
    FileId id = state::kNoFile;
    fusefs::FileRef record;
    fusefs::SharedFd source, object;
    std::vector<Copied> chunks;
    bool wants_more = false;  // to be continued at once
    bool wrote = false;
    bool gone = false;        // the inode does not exist any more
    core::Status source_trouble, target_trouble;
  };
  struct Batch {
    std::vector<Job> jobs;
    uint64_t bytes = 0;
    // One chunk and a margin; for data, then for what the target has of it.
    std::shared_ptr<AlignedBuffer> buffer;
  };
  enum class Where : uint8_t { kQueue, kUrgent, kLater };

  bool TakeJob(FileId* id);
  // Kept from batch to batch: in a process whose memory is locked a new one
  // costs more than copying a small file (mlockall(2), MCL_FUTURE).
  std::shared_ptr<AlignedBuffer> TakeBuffer();
  // Opens both sides and pins the local end. False: there is no work on it.
  bool Prepare(Job& job);
  void CopyFile(Job& job, Batch& batch);
  std::optional<uint64_t> NextChunk(Job& job, uint64_t* cursor);
  void CopyChunk(Job& job, Batch& batch, uint64_t chunk);
  // The source's bytes of [begin, end) into data; holes as zeros, and where
  // they are.
  core::Status ReadSource(Job& job, uint64_t begin, uint64_t end, char* data,
                          std::vector<fusefs::ByteRange>* filled);
  // Writes what of [begin, end) is still the source's; data null: zeros.
  core::Status WriteRange(Job& job, uint64_t begin, uint64_t end,
                          const char* data);
  core::Status ClearRange(Job& job, uint64_t begin, uint64_t end);
  core::Status ZeroPart(Job& job, uint64_t begin, uint64_t end);
  core::Status ReachEnd(Job& job, uint64_t end);
  bool SyncBatch(Batch& batch);
  void FinishJob(Job& job, Batch& batch);
  // False if the chunk's target differs from what was copied.
  core::Result<bool> Verify(Job& job, Verifier::File& file,
                            const Copied& copied);
  void NoteMismatch(Job& job, const Copied& copied);
  // The object's times are the copier's until they are copied again. Journaled
  // before the claim: nobody would come back to a chunk that is claimed.
  void NoteTimes(Job& job);
  void GiveBack(Job& job);
  void PutLocked(FileId id, Where where, int64_t when_ns = 0);
  bool Failed(FileId id, uint64_t chunk);
  void Throttle(uint64_t bytes);
  void NoteTrouble(const std::string& reason, bool target);
  void NoteBytes(uint64_t bytes);
  bool Paused();
  int64_t Now() { return sys_->MonotonicNs(); }

  fusefs::ByteLedger* const ledger_;
  core::Syscalls* const sys_;
  Verifier verifier_;
  const Options options_;

  core::Mutex mu_;  // never held while a record's mutex is taken
  core::CondVar wake_;
  // All below guarded by mu_. A FileId may be in a deque more than once; the
  // entry that counts is the one that queued_ names.
  std::deque<FileId> urgent_, queue_;
  std::multimap<int64_t, FileId> later_;  // by time to try again
  core::CompactMap<Where> queued_;
  std::unordered_map<FileId, bool> active_;  // true: asked for meanwhile
  std::map<std::pair<FileId, uint64_t>, uint32_t> mismatched_;
  std::vector<VerifyFailure> failures_;
  bool paused_ = false;
  bool woken_ = false;
  size_t working_ = 0;
  int64_t backoff_ns_ = 0;
  int64_t not_before_ns_ = 0;  // the target is in trouble until then
  std::string reason_;
  uint64_t limit_ = 0;
  int64_t budget_at_ns_ = 0;  // when what was copied is within the limit
  uint64_t verified_ = 0, mismatches_ = 0;
  std::vector<std::shared_ptr<AlignedBuffer>> spare_;  // at most one a worker
  std::deque<std::pair<int64_t, uint64_t>> recent_;  // time, bytes
};

}  // namespace livemv::copy
