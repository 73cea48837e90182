#include "fusefs/file_table.h"

#include <memory>
#include <utility>

#include "core/log.h"

namespace livemv::fusefs {

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
    Slot& slot = ShardOf(id).slots[id];
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
    if (!file.cut) {
      slot.packed = std::move(facts);
      continue;
    }
    slot.packed = std::move(facts);
    FileRecord* record = Unpack(slot, id);
    record->cut = *file.cut;
    cuts_.insert(id);
  }
}

FileRecord* FileTable::Unpack(Slot& slot, FileId id) {
  if (slot.live == nullptr) {
    auto record = std::make_unique<FileRecord>(id);
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
  FileRecord* record = Unpack(shard.slots[id], id);
  record->users++;
  return FileRef(this, record);
}

FileRef FileTable::Find(FileId id) {
  Shard& shard = ShardOf(id);
  core::MutexLock lock(shard.mu);
  auto it = shard.slots.find(id);
  if (it == shard.slots.end() ||
      (it->second.live == nullptr && !it->second.packed))
    return FileRef();
  FileRecord* record = Unpack(it->second, id);
  record->users++;
  return FileRef(this, record);
}

bool FileTable::Packable(const FileRecord& r) {
  return !r.cut && !r.gens.AnyInFlight() && r.provisional.empty() &&
         r.urgent.empty() && r.copier_writes.empty() && r.given_up.empty() &&
         r.becoming_remote.empty() && !r.back_range && !r.remote_back &&
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
    slot.packed = std::move(facts);
  } else if (slot.open == 0) {
    shard.slots.erase(it);
  }
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

std::vector<FileId> FileTable::HotFiles() {
  core::MutexLock lock(mu_);
  return {hot_.begin(), hot_.end()};
}

std::vector<FileId> FileTable::CutsOwed() {
  core::MutexLock lock(mu_);
  return {cuts_.begin(), cuts_.end()};
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

template <class Wanted>
std::vector<FileId> FileTable::IdsOf(const Wanted& wanted) {
  std::vector<FileId> out;
  for (Shard& shard : shards_) {
    core::MutexLock lock(shard.mu);
    for (const auto& [id, slot] : shard.slots)
      if (wanted(slot))
        out.push_back(id);
  }
  return out;
}

std::vector<FileId> FileTable::KnownFiles() {
  return IdsOf([](const Slot& s) { return s.live != nullptr || s.packed; });
}

std::vector<FileId> FileTable::OpenIds() {
  return IdsOf([](const Slot& s) { return s.open != 0; });
}

std::vector<FileId> FileTable::LiveFiles() {
  return IdsOf([](const Slot& s) { return s.live != nullptr; });
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

size_t FileTable::KnownCount() {
  size_t n = 0;
  for (Shard& shard : shards_) {
    core::MutexLock lock(shard.mu);
    n += shard.slots.size();
  }
  return n;
}

}  // namespace livemv::fusefs
