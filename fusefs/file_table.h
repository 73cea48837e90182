#pragma once

// What is known of each regular file's bytes while this worker lives: one
// FileRecord a file in use, its facts alone when nobody uses it. A file is
// settled if its facts are so plain that a number tells them: wholly copied,
// and nothing written to it in this life. That is most files of a large tree.
//
// A file that the table does not know is the source's alone: its local end is
// the source's size, implicitly. It becomes explicit (pinned) when the target
// gets its first byte of the file.
//
// Thread contract: all methods from any thread; none blocks on I/O. A record's
// members say which mutex guards them. Lock order: FileRecord::write_mu, then
// FileRecord::mu, then the table's own (inside its methods).

#include <sys/stat.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/compact_map.h"
#include "core/result.h"
#include "core/state/byte_map.h"
#include "core/state/ids.h"
#include "core/state/journal.h"
#include "core/state/recovery.h"
#include "core/sync.h"

namespace livemv::fusefs {

using state::FileId;

// Half-open bytes.
struct ByteRange {
  uint64_t begin = 0, end = 0;
  bool Overlaps(uint64_t b, uint64_t e) const { return begin < e && b < end; }
  bool operator==(const ByteRange&) const = default;
};

// Counts starts and ends of changes, so that work that read a chunk can tell
// whether anybody touched it since (rule 1's generation).
class Generations {
 public:
  // last: Now() of the same file's generations before they were packed.
  explicit Generations(uint64_t last = 1) : clock_(last), all_moved_(last) {}
  // A point in time to compare with later.
  uint64_t Now() const { return clock_; }
  void Begin(uint64_t first, uint64_t count);
  // Same arguments as its Begin.
  void End(uint64_t first, uint64_t count, bool counted = true);
  void Move(uint64_t first, uint64_t count);
  void MoveAll() { all_moved_ = ++clock_; }
  bool Moved(uint64_t chunk, uint64_t since) const;
  bool InFlight(uint64_t chunk) const;
  bool AnyInFlight() const { return in_flight_ != 0; }

 private:
  struct Chunk {
    uint64_t moved = 0;
    uint32_t in_flight = 0;
  };
  // More chunks than this in one change count as the whole file.
  static constexpr uint64_t kManyChunks = 4096;
  uint64_t clock_;
  uint64_t all_moved_;
  uint64_t in_flight_ = 0;        // changes begun and not ended
  uint64_t whole_in_flight_ = 0;  // of these, changes of the whole file
  std::unordered_map<uint64_t, Chunk> chunks_;
};

// A counter of dirtiness: Dirty() after the bytes are handed to the kernel,
// Mark() before an fsync, Cleaned(mark) after it succeeded.
class DirtyMark {
 public:
  explicit DirtyMark(bool dirty = false) : written_(dirty ? 1 : 0) {}
  void Dirty() { written_++; }
  uint32_t Mark() const { return written_; }
  void Cleaned(uint32_t mark) { clean_ = mark; }
  bool IsDirty() const { return written_ != clean_; }

 private:
  uint32_t written_, clean_ = 0;
};

// The part that stays in memory for every pinned file.
struct FileFacts {
  state::ByteMap map;
  uint64_t size = 0;         // bytes; meaningful if size_known
  state::Seq last_seq = 0;   // of the newest fact about this file
  state::Seq pin_seq = 0;    // of the record of the local end
  uint64_t clock = 1;        // Generations::Now, while packed
  uint32_t source_epoch = 0;  // of source syncs, at the last write to it
  DirtyMark source_dirty, alone_dirty, double_dirty;
  bool pinned = false;       // the local end is in the journal
  bool pin_durable = false;  // and durably so
  bool size_known = false;
  bool sync_all = false;  // facts of others (a binding) matter to fsync too
  bool fresh = false;     // nothing but this worker ever wrote the object
  bool born = false;      // in this worker's life, which so knows all opens
  bool grown = false;     // size to be recorded by the next barrier
};

struct FileRecord {
  explicit FileRecord(FileId i) : id(i) {}

  const FileId id;

  // Serializes changes of the file's bytes (writes, truncates); held over I/O
  // on both sides, so the two see them in one order. Readers, the copier's
  // copying and fsync do not take it.
  core::Mutex write_mu;

  // Guards everything below. Held over nothing but Journal::Append, so that
  // the journal has one file's facts in the order in which they became true.
  core::Mutex mu;
  core::CondVar changed;  // cut done, a copier or given-up write returned, ...

  FileFacts facts;
  // Moves whenever the owner of some byte, or a cut, changes.
  uint64_t version = 1;
  std::optional<uint64_t> cut;  // owed: the object is to be cut to this size
  Generations gens;
  // Chunks that equal the source in the target's page cache and get double
  // writes, but are not claimed yet; with the time of the copy.
  std::map<uint64_t, uint64_t> provisional;
  // Chunks of which the object may hold something else than zeros although
  // they are not copied; matters while facts.fresh.
  std::set<uint64_t> stale;
  std::set<uint64_t> urgent;              // the copier takes these first
  std::vector<ByteRange> copier_writes;   // in flight to the object
  std::vector<ByteRange> given_up;        // double writes that never returned
  std::vector<ByteRange> becoming_remote;
  // Abort: the piece that is being brought back, and whether it was written.
  std::optional<ByteRange> back_range;
  bool back_moved = false;
  // What the source is to have again, and is said to have, although bytes are
  // being brought back to it; until that is so durably (put_back_done and a
  // sync) or an application changes it. In the table's set likewise.
  std::optional<state::PutBackFact> put_back;
  bool put_back_done = false;
  bool put_back_journaled = false;  // a successor is to do it, too
  bool remote_back = false;  // remote bytes were brought back and still are
  // One fsync of the object at a time: the kernel tells an error once, and
  // its consequences must be drawn before anybody else's fsync succeeds.
  bool syncing = false;
  uint32_t late_syncs = 0;  // fsyncs given up that have not returned
  // Errors of the target that an application has yet to be told (errno).
  int fsync_error = 0, flush_error = 0;

  uint64_t counted_total = 0, counted_copied = 0;  // in the table's totals
  // The inode is gone: no fact about it goes into the journal any more. Set
  // with the table's mutex held too.
  bool forgotten = false;

  // The kernel reads and writes the object by itself (passthrough.h). Size and
  // times are the object's meanwhile, to be asked each time.
  struct Direct {
    uint32_t opens = 0;        // descriptors in that mode that were counted
    uint64_t entered = 0;      // and how many there have been
    bool others_open = false;  // and some that a predecessor has counted
    bool may_be_mapped = false;  // by somebody who has closed it, too
    uint32_t backing = 0;  // the kernel's number for the object; 0: none
  };
  std::optional<Direct> direct;

  uint32_t users = 0;  // guarded by the table
};

// All of its bytes are the target's. It does not end while the migration goes
// forward, and begins with write_mu held.
bool IsWhollyRemote(FileRecord& r);

class FileTable;

// Keeps a record in memory. Movable, null after a move.
class FileRef {
 public:
  FileRef() = default;
  FileRef(FileRef&& o) noexcept;
  FileRef& operator=(FileRef&& o) noexcept;
  ~FileRef() { Reset(); }
  FileRef(const FileRef&) = delete;
  FileRef& operator=(const FileRef&) = delete;

  FileRecord* operator->() const { return record_; }
  FileRecord& operator*() const { return *record_; }
  explicit operator bool() const { return record_ != nullptr; }
  void Reset();

 private:
  friend class FileTable;
  FileRef(FileTable* table, FileRecord* record)
      : table_(table), record_(record) {}
  FileTable* table_ = nullptr;
  FileRecord* record_ = nullptr;
};

class FileTable {
 public:
  struct Totals {
    uint64_t bytes_below_end = 0;  // local ends of all known files
    uint64_t bytes_copied = 0;     // of these, claimed or remote
  };

  FileTable() = default;
  ~FileTable();
  FileTable(const FileTable&) = delete;
  FileTable& operator=(const FileTable&) = delete;

  // Takes over what the journal says, after the facts of the new session were
  // applied to it; before any other call.
  void Adopt(const state::RecoveredState& state);

  // The record of id, made (unpinned, size unknown) if there is none.
  FileRef Get(FileId id);
  // Null if nothing is known of id, so that it is the source's alone.
  FileRef Find(FileId id);
  // The inode is gone for good: the record is nobody's but its users' from
  // here on, and who asks for the id begins anew. With record->mu held.
  void Forget(FileRecord* record);

  // Descriptors that applications hold through the overlay.
  void Opened(FileId id);
  void Closed(FileId id);
  bool IsOpen(FileId id) { return OpenCount(id) != 0; }
  uint32_t OpenCount(FileId id);

  // Files that owe something; the sets are hints kept by ByteLedger.
  void SetHot(FileId id, bool hot);
  void SetCutOwed(FileId id, bool owed);
  void SetGrown(FileId id);
  // The source may be longer than the local end: nobody reads that, but an
  // abort must not show it.
  void SetUntrimmed(FileId id, bool untrimmed);
  void SetToPutBack(FileId id, bool put_back);
  std::vector<FileId> HotFiles();
  std::vector<FileId> CutsOwed();
  std::vector<FileId> Untrimmed();
  std::vector<FileId> ToPutBack();
  // Returns when a cut became owed or Wake was called since the last call, or
  // after timeout_ns (<0: never).
  void WaitForCuts(int64_t timeout_ns);
  void WakeCutter();
  std::vector<FileId> TakeGrown();
  std::vector<FileId> KnownFiles();
  std::vector<FileId> UnsettledFiles();
  // Without those whose size is known to be the local end and that have no
  // remote bytes below it. As fast as it can be, for the pause of an abort.
  std::vector<FileId> FilesThatMayBeAhead();
  // Directories among them; of this worker's life.
  std::vector<FileId> OpenIds();
  // Of these, those whose record is not packed: among them all that somebody
  // works on.
  std::vector<FileId> LiveFiles();

  // Bytes, for progress. Call with record->mu held after a change of its map.
  void Account(FileRecord* record);
  Totals GetTotals();

 private:
  friend class FileRef;
  struct Slot {
    FileRecord* live = nullptr;  // owned
    std::optional<FileFacts> packed;
    uint32_t open = 0;
  };
  struct Shard {
    core::Mutex mu;
    // All guarded by mu. A settled file has a slot only while it is open.
    std::unordered_map<FileId, Slot> slots;
    core::CompactMap<uint64_t, 2> settled;
    // At least those of every settled file.
    state::Seq settled_seq = 0;
    uint64_t settled_clock = 1;
  };
  static constexpr size_t kShards = 64;
  // Of the slots and of the settled files that are wanted.
  template <class WantedSlot, class WantedSettled>
  std::vector<FileId> IdsOf(const WantedSlot& slot_wanted,
                            const WantedSettled& settled_wanted);
  Shard& ShardOf(FileId id) {
    return shards_[(id * 0x9E3779B97F4A7C15ull) >> 58];
  }
  void Release(FileRecord* record);
  static bool Packable(const FileRecord& record);
  // Keeps facts in the slot or, if they can be, as a number. With the shard's
  // mutex held, as the next one.
  static void Pack(Shard& shard, Slot& slot, FileId id, FileFacts facts);
  // The slot's record, made from what is packed.
  static FileRecord* Unpack(Shard& shard, Slot& slot, FileId id);
  void DropSets(FileId id);

  std::array<Shard, kShards> shards_;
  core::Mutex mu_;                          // the sets and totals
  std::unordered_set<FileId> hot_;          // guarded by mu_
  std::unordered_set<FileId> cuts_;         // guarded by mu_
  std::unordered_set<FileId> grown_;        // guarded by mu_
  std::unordered_set<FileId> untrimmed_;    // guarded by mu_
  std::unordered_set<FileId> to_put_back_;  // guarded by mu_
  Totals totals_;                           // guarded by mu_
  core::CondVar cut_owed_;
  bool cutter_woken_ = false;  // guarded by mu_
};

}  // namespace livemv::fusefs
