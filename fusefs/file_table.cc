#include "fusefs/file_table.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "core/log.h"

namespace livemv::fusefs {

namespace {

// A settled file: its local end and these.
constexpr uint64_t kSizeKnown = 1ull << 63;  // it is the local end
constexpr uint64_t kDirty = 1ull << 62;      // both sides
constexpr uint64_t kPinDurable = 1ull << 61;
constexpr uint64_t kSyncAll = 1ull << 60;
constexpr uint64_t kLocalEnd = kSyncAll - 1;

// What is left out is not needed (that the object is fresh spares work when a
// chunk is copied again), or the table keeps a bound of it.
std::optional<uint64_t> Settle(const FileFacts& f) {
  const uint64_t end = f.map.local_end();
  const bool dirty = f.source_dirty.IsDirty();
  if (!f.pinned || f.born || f.grown || f.source_epoch != 0 ||
      end > kLocalEnd || (f.size_known && f.size != end) ||
      f.alone_dirty.IsDirty() != dirty || f.double_dirty.IsDirty() != dirty ||
      f.map.AnyHot() || f.map.CopiedBytes() != end)
    return std::nullopt;
  return end | (f.size_known ? kSizeKnown : 0) | (dirty ? kDirty : 0) |
         (f.pin_durable ? kPinDurable : 0) | (f.sync_all ? kSyncAll : 0);
}

FileFacts Unsettle(uint64_t settled, state::Seq seq, uint64_t clock) {
  FileFacts f;
  const uint64_t end = settled & kLocalEnd;
  f.map = state::ByteMap(end);
  f.map.MarkCopied(0, f.map.Chunks(), false);
  f.size = end;
  f.size_known = (settled & kSizeKnown) != 0;
  f.last_seq = f.pin_seq = seq;
  f.clock = clock;
  f.source_dirty = f.alone_dirty = f.double_dirty =
      DirtyMark((settled & kDirty) != 0);
  f.pinned = true;
  f.pin_durable = (settled & kPinDurable) != 0;
  f.sync_all = (settled & kSyncAll) != 0;
  return f;
}

}  // namespace

// ----------------------------------------------------------- generations

void Generations::Begin(uint64_t first, uint64_t count) {
  clock_++;
  in_flight_++;
  if (count > kManyChunks) {
    all_moved_ = clock_;
    whole_in_flight_++;
    return;
  }
  for (uint64_t c = first; c < first + count; c++) {
    Chunk& chunk = chunks_[c];
    chunk.moved = clock_;
    chunk.in_flight++;
  }
}

void Generations::End(uint64_t first, uint64_t count, bool counted) {
  clock_++;
  in_flight_--;
  if (count > kManyChunks) {
    whole_in_flight_--;
    if (counted)
      all_moved_ = clock_;
    return;
  }
  for (uint64_t c = first; c < first + count; c++) {
    Chunk& chunk = chunks_[c];
    chunk.in_flight--;
    if (counted)
      chunk.moved = clock_;
  }
}

void Generations::Move(uint64_t first, uint64_t count) {
  clock_++;
  if (count > kManyChunks) {
    all_moved_ = clock_;
    return;
  }
  for (uint64_t c = first; c < first + count; c++)
    chunks_[c].moved = clock_;
}

bool Generations::Moved(uint64_t chunk, uint64_t since) const {
  if (all_moved_ > since)
    return true;
  auto it = chunks_.find(chunk);
  return it != chunks_.end() && it->second.moved > since;
}

bool Generations::InFlight(uint64_t chunk) const {
  if (whole_in_flight_ != 0)
    return true;
  auto it = chunks_.find(chunk);
  return it != chunks_.end() && it->second.in_flight != 0;
}

bool IsWhollyRemote(FileRecord& r) {
  core::MutexLock lock(r.mu);
  return r.facts.pinned && r.facts.map.local_end() == 0;
}

// ------------------------------------------------------------- references

FileRef::FileRef(FileRef&& o) noexcept
    : table_(o.table_), record_(std::exchange(o.record_, nullptr)) {}

FileRef& FileRef::operator=(FileRef&& o) noexcept {
  if (this != &o) {
    Reset();
    table_ = o.table_;
    record_ = std::exchange(o.record_, nullptr);
  }
  return *this;
}

void FileRef::Reset() {
  if (record_ != nullptr)
    table_->Release(std::exchange(record_, nullptr));
}

// ------------------------------------------------------------------ table

FileTable::~FileTable() {
  for (Shard& shard : shards_)
    for (auto& [id, slot] : shard.slots)
      delete slot.live;
}

void FileTable::Adopt(const state::RecoveredState& state) {
  for (const auto& [id, file] : state.files) {
    if (!file.map)
      continue;
    Shard& shard = ShardOf(id);
    Slot& slot = shard.slots[id];
    FileFacts facts;
    facts.map = *file.map;
    facts.pinned = facts.pin_durable = true;
    // What the last worker left in the page caches is not known.
    facts.source_dirty = facts.alone_dirty = facts.double_dirty =
        DirtyMark(true);
    facts.sync_all = true;
    totals_.bytes_below_end += facts.map.local_end();
    totals_.bytes_copied += facts.map.CopiedBytes() + facts.map.RemoteBytes();
    if (facts.map.AnyHot())
      hot_.insert(id);
    Pack(shard, slot, id, std::move(facts));
    if (file.cut) {
      Unpack(shard, slot, id)->cut = *file.cut;
      cuts_.insert(id);
    }
    if (file.put_back) {
      FileRecord* record = Unpack(shard, slot, id);
      record->put_back = file.put_back;
      record->put_back_journaled = true;
      to_put_back_.insert(id);
    }
    if (slot.live == nullptr && !slot.packed)
      shard.slots.erase(id);
  }
}

void FileTable::Pack(Shard& shard, Slot& slot, FileId id, FileFacts facts) {
  std::optional<uint64_t> settled = Settle(facts);
  if (!settled) {
    slot.packed = std::move(facts);
    return;
  }
  shard.settled.Put(id, *settled);
  shard.settled_seq = std::max(shard.settled_seq, facts.last_seq);
  shard.settled_clock = std::max(shard.settled_clock, facts.clock);
}

FileRecord* FileTable::Unpack(Shard& shard, Slot& slot, FileId id) {
  if (slot.live == nullptr) {
    auto record = std::make_unique<FileRecord>(id);
    if (const uint64_t* settled = shard.settled.Find(id)) {
      slot.packed =
          Unsettle(*settled, shard.settled_seq, shard.settled_clock);
      shard.settled.Erase(id);
    }
    if (slot.packed) {
      record->facts = std::move(*slot.packed);
      slot.packed.reset();
      record->gens = Generations(record->facts.clock);
      if (record->facts.pinned) {
        const state::ByteMap& map = record->facts.map;
        record->counted_total = map.local_end();
        record->counted_copied = map.CopiedBytes() + map.RemoteBytes();
      }
    }
    slot.live = record.release();
  }
  return slot.live;
}

FileRef FileTable::Get(FileId id) {
  Shard& shard = ShardOf(id);
  core::MutexLock lock(shard.mu);
  FileRecord* record = Unpack(shard, shard.slots[id], id);
  record->users++;
  return FileRef(this, record);
}

FileRef FileTable::Find(FileId id) {
  Shard& shard = ShardOf(id);
  core::MutexLock lock(shard.mu);
  auto it = shard.slots.find(id);
  const bool has_slot = it != shard.slots.end() &&
                        (it->second.live != nullptr || it->second.packed);
  if (!has_slot && !shard.settled.Contains(id))
    return FileRef();
  FileRecord* record = Unpack(shard, shard.slots[id], id);
  record->users++;
  return FileRef(this, record);
}

bool FileTable::Packable(const FileRecord& r) {
  return !r.cut && !r.gens.AnyInFlight() && r.provisional.empty() &&
         r.urgent.empty() && r.copier_writes.empty() && r.given_up.empty() &&
         r.becoming_remote.empty() && !r.back_range && !r.put_back &&
         !r.remote_back &&
         r.fsync_error == 0 && r.flush_error == 0 && r.late_syncs == 0 &&
         !r.direct;
}

void FileTable::Release(FileRecord* record) {
  FileId id = record->id;
  std::unique_ptr<FileRecord> gone;
  Shard& shard = ShardOf(id);
  core::MutexLock lock(shard.mu);
  if (--record->users != 0)
    return;
  if (record->forgotten) {
    gone.reset(record);
    return;
  }
  auto it = shard.slots.find(id);
  Slot& slot = it->second;
  // Nobody else can get at the record while the shard is locked, so its own
  // mutex is not needed.
  if (!Packable(*record))
    return;
  gone.reset(slot.live);
  slot.live = nullptr;
  FileFacts& facts = record->facts;
  if (facts.pinned || facts.source_epoch != 0) {
    if (!record->stale.empty())
      facts.fresh = false;
    facts.clock = record->gens.Now();
    Pack(shard, slot, id, std::move(facts));
  }
  if (!slot.packed && slot.open == 0)
    shard.slots.erase(it);
}

void FileTable::Forget(FileRecord* record) {
  Shard& shard = ShardOf(record->id);
  {
    core::MutexLock lock(shard.mu);
    if (record->forgotten)
      return;
    record->forgotten = true;
    auto it = shard.slots.find(record->id);
    it->second.live = nullptr;  // whoever has a reference keeps it
    if (it->second.open == 0)
      shard.slots.erase(it);
  }
  {
    core::MutexLock lock(mu_);
    totals_.bytes_below_end -= std::exchange(record->counted_total, 0);
    totals_.bytes_copied -= std::exchange(record->counted_copied, 0);
  }
  DropSets(record->id);
}

void FileTable::DropSets(FileId id) {
  core::MutexLock lock(mu_);
  hot_.erase(id);
  cuts_.erase(id);
  grown_.erase(id);
  untrimmed_.erase(id);
  to_put_back_.erase(id);
}

void FileTable::Opened(FileId id) {
  Shard& shard = ShardOf(id);
  core::MutexLock lock(shard.mu);
  shard.slots[id].open++;
}

void FileTable::Closed(FileId id) {
  Shard& shard = ShardOf(id);
  core::MutexLock lock(shard.mu);
  auto it = shard.slots.find(id);
  // A successor may meet the close of a descriptor opened before it lived.
  if (it == shard.slots.end() || it->second.open == 0)
    return;
  Slot& slot = it->second;
  if (--slot.open == 0 && slot.live == nullptr && !slot.packed)
    shard.slots.erase(it);
}

uint32_t FileTable::OpenCount(FileId id) {
  Shard& shard = ShardOf(id);
  core::MutexLock lock(shard.mu);
  auto it = shard.slots.find(id);
  return it != shard.slots.end() ? it->second.open : 0;
}

// ------------------------------------------------------------------- sets

void FileTable::SetHot(FileId id, bool hot) {
  core::MutexLock lock(mu_);
  if (hot)
    hot_.insert(id);
  else
    hot_.erase(id);
}

void FileTable::SetCutOwed(FileId id, bool owed) {
  core::MutexLock lock(mu_);
  if (owed) {
    cuts_.insert(id);
    cutter_woken_ = true;
    cut_owed_.NotifyAll();
  } else {
    cuts_.erase(id);
  }
}

void FileTable::SetGrown(FileId id) {
  core::MutexLock lock(mu_);
  grown_.insert(id);
}

void FileTable::SetUntrimmed(FileId id, bool untrimmed) {
  core::MutexLock lock(mu_);
  if (untrimmed)
    untrimmed_.insert(id);
  else
    untrimmed_.erase(id);
}

void FileTable::SetToPutBack(FileId id, bool put_back) {
  core::MutexLock lock(mu_);
  if (put_back)
    to_put_back_.insert(id);
  else
    to_put_back_.erase(id);
}

std::vector<FileId> FileTable::HotFiles() {
  core::MutexLock lock(mu_);
  return {hot_.begin(), hot_.end()};
}

std::vector<FileId> FileTable::CutsOwed() {
  core::MutexLock lock(mu_);
  return {cuts_.begin(), cuts_.end()};
}

std::vector<FileId> FileTable::Untrimmed() {
  core::MutexLock lock(mu_);
  return {untrimmed_.begin(), untrimmed_.end()};
}

std::vector<FileId> FileTable::ToPutBack() {
  core::MutexLock lock(mu_);
  return {to_put_back_.begin(), to_put_back_.end()};
}

std::vector<FileId> FileTable::TakeGrown() {
  core::MutexLock lock(mu_);
  std::vector<FileId> out(grown_.begin(), grown_.end());
  grown_.clear();
  return out;
}

void FileTable::WaitForCuts(int64_t timeout_ns) {
  core::MutexLock lock(mu_);
  if (!cutter_woken_)
    cut_owed_.WaitFor(lock, timeout_ns);
  cutter_woken_ = false;
}

void FileTable::WakeCutter() {
  core::MutexLock lock(mu_);
  cutter_woken_ = true;
  cut_owed_.NotifyAll();
}

template <class WantedSlot, class WantedSettled>
std::vector<FileId> FileTable::IdsOf(const WantedSlot& slot_wanted,
                                     const WantedSettled& settled_wanted) {
  std::vector<FileId> out;
  for (Shard& shard : shards_) {
    // Both at once: a file goes from one to the other at any time.
    core::MutexLock lock(shard.mu);
    for (const auto& [id, slot] : shard.slots)
      if (slot_wanted(slot))
        out.push_back(id);
    shard.settled.ForEach([&](FileId id, uint64_t settled) {
      if (settled_wanted(settled))
        out.push_back(id);
    });
  }
  return out;
}

std::vector<FileId> FileTable::KnownFiles() {
  return IdsOf([](const Slot& s) { return s.live != nullptr || s.packed; },
               [](uint64_t) { return true; });
}

std::vector<FileId> FileTable::UnsettledFiles() {
  return IdsOf([](const Slot& s) { return s.live != nullptr || s.packed; },
               [](uint64_t) { return false; });
}

std::vector<FileId> FileTable::FilesThatMayBeAhead() {
  return IdsOf(
      [](const Slot& s) {
        return s.live != nullptr ||
               (s.packed && (!s.packed->size_known ||
                             s.packed->size != s.packed->map.local_end() ||
                             s.packed->map.RemoteBytes() != 0));
      },
      [](uint64_t settled) { return (settled & kSizeKnown) == 0; });
}

std::vector<FileId> FileTable::OpenIds() {
  return IdsOf([](const Slot& s) { return s.open != 0; },
               [](uint64_t) { return false; });
}

std::vector<FileId> FileTable::LiveFiles() {
  return IdsOf([](const Slot& s) { return s.live != nullptr; },
               [](uint64_t) { return false; });
}

void FileTable::Account(FileRecord* r) {
  if (r->forgotten)
    return;
  uint64_t total = 0, copied = 0;
  if (r->facts.pinned) {
    total = r->facts.map.local_end();
    copied = r->facts.map.CopiedBytes() + r->facts.map.RemoteBytes();
  }
  core::MutexLock lock(mu_);
  totals_.bytes_below_end += total - r->counted_total;
  totals_.bytes_copied += copied - r->counted_copied;
  r->counted_total = total;
  r->counted_copied = copied;
}

FileTable::Totals FileTable::GetTotals() {
  core::MutexLock lock(mu_);
  return totals_;
}

}  // namespace livemv::fusefs
