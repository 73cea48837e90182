#pragma once

// Which places of the target may differ from the source, and the debts around
// them (rule 3). A place is an entry (directory, name) or the attributes of an
// inode. A place is *dirty* from before a change of the source begins until
// the applier has made the target equal to a look that began after the change
// had ended; it is journaled when it becomes dirty and when it becomes clean.
// Nothing is said about what the change was: the applier looks.
//
// A directory or inode is *hot* from before its first change, durably, until a
// barrier's source sync that began after its last change; after a host crash
// whatever is hot is compared with the source.
//
// Life of a dirty place:
//   in flight (a Change names it) -> settling -> ready -> taken -> clean
//                                      ^                    |  changed meanwhile
//                                      +--------------------+
//                         delayed (the target failed) or set aside (the target
//                         will not have it; the reason is kept and shown)
//
// A place settles for a moment before it is due: a file that was just made is
// about to get its owner, mode and times, and a directory its next name.
//
// A file that was made in a directory that is hot needs no durable mark of its
// own: the comparison of that directory would find it. So its own mark, at the
// first change of its attributes, is journaled without waiting: the directory's
// unmarking comes after it in the journal. That holds until a name in the
// directory is taken away or given another place.
//
// Appliers that are slower than the applications would never catch up. So while
// they are behind by a whole barrier interval, each change waits for as many
// places to become clean as it will cost twice over, for a limited time. It
// waits for appliers that get on, never for a target that does not answer.
//
// Thread contract: all methods from any thread. Begin blocks for one journal
// sync at the first change of a directory or inode since its last unmarking,
// and where appliers are behind.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/result.h"
#include "core/state/ids.h"
#include "core/state/journal.h"
#include "core/state/recovery.h"
#include "core/sync.h"
#include "core/syscalls.h"

namespace livemv::fusefs {

using state::FileId;

// An entry, or (name empty) the attributes of id.
struct Place {
  FileId id = state::kNoFile;  // the directory of an entry
  std::string name;
  bool IsEntry() const { return !name.empty(); }
  bool operator==(const Place&) const = default;
};

class Redo {
 public:
  struct Options {
    // A change waits for appliers that are behind, at most. As long as the
    // kernel holds a writer back who makes pages dirty faster than a disk takes
    // them (mm/page-writeback.c, MAX_PAUSE). 0 where one thread is both the
    // applications and the applier.
    int64_t longest_hold_ns = 200'000'000;
    int64_t settle_ns = 30'000'000;  // from a change until it is due
  };

  // sys and journal must outlive this.
  Redo(core::Syscalls* sys, state::Journal* journal, const Options& options);
  Redo(const Redo&) = delete;
  Redo& operator=(const Redo&) = delete;

  // Takes over dirty places, hot marks and owed comparisons; before any other
  // call.
  void Adopt(const state::RecoveredState& state);

  // While it lives the places it names are in flight: no applier calls them
  // clean. The end wakes the applier.
  class Change {
   public:
    Change() = default;
    Change(Change&& o) noexcept
        : redo_(std::exchange(o.redo_, nullptr)),
          places_(std::move(o.places_)) {}
    Change& operator=(Change&& o) noexcept;
    Change(const Change&) = delete;
    Change& operator=(const Change&) = delete;
    ~Change() { End(); }
    void End();

   private:
    friend class Redo;
    Redo* redo_ = nullptr;
    std::vector<Place> places_;
  };

  // Before a change of the source: journals the places as dirty, and the ids
  // as hot, durably where they were not. On an error nothing may be changed.
  core::Result<Change> Begin(std::vector<Place> places);
  // Begin for a change that gives one more name and takes none away.
  core::Result<Change> BeginAdding(Place place);
  // That change made id in that directory, under its first name. Before its end.
  void Born(FileId id, FileId dir);
  // Before an act on the target that disturbs something else (the times of a
  // directory, of a file that was copied): dirty, not hot.
  core::Result<Change> Touch(std::vector<Place> places);
  // Touch for an act that is already over.
  core::Status Mark(Place place);
  // The times of id are being moved by writes: dirty, but due only when the
  // writes pause for kLazyNs or Ripen is called. Such a place does not count
  // as pending: the target's times are never the older ones.
  core::Status MarkLazily(FileId id);
  // MarkLazily around a write: while it lasts the place does not become clean.
  // A write that hangs and lands after its worker's death moves the times of
  // an object that nobody would look at again.
  core::Status BeginWrite(FileId id);
  core::Status EndWrite(FileId id);
  // The last descriptor was closed: what was marked lazily is due.
  void Ripen(FileId id);
  static constexpr int64_t kLazyNs = 3'000'000'000;
  // Appliers that finished nothing for so long are waiting for the target.
  static constexpr int64_t kStuckNs = 1'000'000'000;

  // --- the applier's side
  struct Job {
    Place place;
    uint64_t generation = 0;
    int64_t taken_ns = 0;
  };
  // The next place that is due: entries before attributes (a directory's times
  // once instead of after each name), but what was changed a barrier earlier
  // first. Each Take is followed by one of Done, Retry, SetAside.
  std::optional<Job> Take();
  // The target equals what the source showed after Take: clean, unless the
  // place changed meanwhile (then it is due again).
  core::Status Done(const Job& job);
  // Due again after a pause that grows with each failure in a row.
  void Retry(const Job& job, const core::Error& why);
  void SetAside(const Job& job, std::string reason);
  // Everything delayed or set aside is due again at once; lazy: also what
  // MarkLazily put off.
  void RetryAll(bool lazy);
  // While held, attributes stay dirty: a dead worker's write may still move the
  // times of its object after they were made equal.
  void HoldAttributes(bool hold);
  // Until something is due or the timeout (ns) has passed.
  void WaitForWork(int64_t timeout_ns);
  void WakeAll();
  // While one lives nothing settles and no change is held back: what is dirty
  // is due.
  class Rush {
   public:
    explicit Rush(Redo* redo);
    ~Rush();
    Rush(const Rush&) = delete;
    Rush& operator=(const Rush&) = delete;

   private:
    Redo* const redo_;
  };

  struct Counters {
    uint64_t pending = 0;      // dirty places, those set aside included
    uint64_t dirty = 0;        // the same with those put off by MarkLazily
    uint64_t made = 0;         // times that a place or a debt became dirty, ever
    uint64_t set_aside = 0;
    uint64_t older_than_barrier = 0;  // pending since before the last barrier
    int64_t oldest_ns = 0;     // age of the oldest pending place
    uint64_t taken = 0;        // by appliers, lazy ones included
    uint64_t owed = 0;         // comparisons
    uint64_t held_back = 0;    // changes that waited for appliers, ever
    bool behind = false;       // changes wait for appliers now
    std::string last_error;    // of the target, empty when all goes well
  };
  Counters Count();
  struct Aside {
    Place place;
    std::string reason;
  };
  std::vector<Aside> SetAsides(size_t at_most);
  bool IsHot(FileId id);

  // --- owed comparisons
  core::Status Owe(FileId id);  // durable when it returns
  std::vector<std::pair<FileId, uint64_t>> Owed();  // id, generation
  // The comparison that began with this generation is finished.
  core::Status PaidOwed(FileId id, uint64_t generation);

  // --- the barrier's side
  // What may be unmarked by a source sync that begins after this call. Also
  // begins a new age for older_than_barrier.
  std::vector<std::pair<FileId, uint64_t>> BeginBarrier();
  // After the sync: unmarks those that did not change since.
  core::Status EndBarrier(const std::vector<std::pair<FileId, uint64_t>>& hot);

 private:
  enum class Where : uint8_t {
    kInFlight, kSettling, kReady, kTaken, kDelayed, kAside, kLazy
  };
  struct Record {
    uint64_t generation = 0;  // counts starts and ends of changes
    uint64_t age = 0;         // barrier age of the change; 0: lazy
    uint32_t in_flight = 0;
    uint32_t failures = 0;
    uint32_t writes = 0;  // between BeginWrite and EndWrite
    Where where = Where::kInFlight;
    bool lazy = false;      // only MarkLazily made it dirty
    int64_t due_ns = 0;     // its key in delayed_: settling, delayed and lazy
    int64_t touched_ns = 0;  // last MarkLazily
    std::string reason;
  };
  struct Hot {
    uint64_t changes = 0;
    state::Seq seq = 0;  // of its MetaHot record
    bool durable = false;
    std::vector<FileId> born;  // in it, and still there
  };
  struct PlaceHash {
    size_t operator()(const Place& p) const {
      return std::hash<std::string>()(p.name) ^
             (std::hash<uint64_t>()(p.id) * 0x9e3779b97f4a7c15ull);
    }
  };
  using Records = std::unordered_map<Place, Record, PlaceHash>;

  enum class Kind : uint8_t { kChange, kAddsName, kTouch };
  core::Result<Change> Start(std::vector<Place> places, Kind kind);
  void EndPlaces(const std::vector<Place>& places);
  // All below with mu_ held. Dirty journals the place if it was clean.
  core::Result<Records::iterator> Dirty(const Place& place);
  core::Result<Records::iterator> DirtyLazily(FileId id);
  void MakeReady(Records::iterator it);
  void Settle(Records::iterator it);
  void ForgetBorn(Hot* dir);
  uint64_t FrontAge(const std::deque<const Place*>& queue);
  bool Behind();
  // May let go of the lock meanwhile.
  void HoldBack(core::MutexLock& lock, uint64_t places);
  bool AnyReady() const {
    return !ready_entries_.empty() || (!ready_attrs_.empty() && !hold_attrs_);
  }
  void Delay(Records::iterator it, Where where, int64_t due_ns);
  void Undelay(Records::iterator it);
  void SetAge(Record* record, uint64_t age);  // 0: not counted
  void LeaveAside(Record* record);
  void PromoteDelayed(int64_t now);
  void Erase(Records::iterator it);

  core::Syscalls* const sys_;
  state::Journal* const journal_;
  const Options options_;
  core::Mutex mu_;
  core::CondVar work_;
  core::CondVar cleaned_;  // waited for in HoldBack
  // All below guarded by mu_. Pointers to keys of records_ are stable.
  Records records_;
  std::deque<const Place*> ready_entries_, ready_attrs_;
  std::multimap<int64_t, const Place*> delayed_;  // by MonotonicNs
  std::unordered_map<FileId, uint32_t> unapplied_;  // dirty places by id
  std::unordered_map<FileId, Hot> hot_;
  std::unordered_map<FileId, FileId> born_;  // to the directory, which is hot
  std::unordered_map<FileId, uint64_t> owed_;
  uint64_t owed_generation_ = 0;
  struct Age {
    int64_t began_ns = 0;
    uint64_t count = 0;
  };
  std::map<uint64_t, Age> ages_;  // pending places by barrier age
  uint64_t age_ = 1;
  uint64_t set_aside_ = 0;
  uint64_t taken_ = 0;
  uint64_t made_ = 0;
  uint64_t clean_ = 0;         // places that became clean, ever
  int64_t last_clean_ns_ = 0;
  uint64_t promised_ = 0;      // clean_ that the last change waited for
  uint64_t holding_ = 0, held_back_ = 0;
  int rushing_ = 0;
  bool hold_attrs_ = false;
  std::string last_error_;
};

}  // namespace livemv::fusefs
