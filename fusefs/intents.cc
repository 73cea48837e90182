#include "fusefs/intents.h"

#include <atomic>
#include <cstring>
#include <mutex>
#include <new>
#include <string>

#include "core/log.h"

namespace livemv::fusefs {

using core::ErrorCode;
using core::Fail;

// Stored at the head of the memory; changes with the layout.
struct IntentTable::Header {
  uint64_t magic;
  uint64_t slots;
};

// A slot is valid by its phase alone: the other members are stored before it,
// so that a kill between any two stores leaves the old meaning.
struct IntentTable::Slot {
  std::atomic<Phase> phase;
  uint32_t opcode;
  uint64_t unique;
  uint64_t note;
  uint64_t value;
  int32_t err;
  uint32_t pad;
};

namespace {
constexpr uint64_t kMagic = 0x3174'6e65'746e'696cull;  // "lintent1"
}  // namespace

size_t IntentTable::Bytes() {
  static_assert(std::atomic<Phase>::is_always_lock_free);
  return sizeof(Header) + kSlots * sizeof(Slot);
}

core::Result<std::unique_ptr<IntentTable>> IntentTable::Attach(void* memory,
                                                               size_t bytes) {
  if (memory == nullptr || bytes < Bytes())
    return Fail(ErrorCode::kInvalid, "intent table: " + std::to_string(bytes) +
                                         " bytes of memory are too few");
  auto* header = static_cast<Header*>(memory);
  auto* slots = reinterpret_cast<Slot*>(header + 1);
  if (header->magic == 0) {
    header->slots = kSlots;
    header->magic = kMagic;
  }
  if (header->magic != kMagic || header->slots != kSlots)
    return Fail(ErrorCode::kCorrupt,
                "intent table: the memory holds something else");
  return std::unique_ptr<IntentTable>(new IntentTable(header, slots));
}

IntentTable::IntentTable(Header* header, Slot* slots)
    : header_(header), slots_(slots) {
  for (uint32_t i = kSlots; i-- > 0;) {
    if (slots_[i].phase.load(std::memory_order_acquire) == Phase::kNone)
      free_.push_back(i);
    else
      index_[slots_[i].unique] = Local{i, false};
  }
}

void IntentTable::Clear() {
  core::MutexLock lock(mu_);
  index_.clear();
  free_.clear();
  for (uint32_t i = kSlots; i-- > 0;) {
    slots_[i].phase.store(Phase::kNone, std::memory_order_release);
    free_.push_back(i);
  }
}

IntentTable::Record IntentTable::Find(uint64_t unique) {
  core::MutexLock lock(mu_);
  auto it = index_.find(unique);
  if (it == index_.end())
    return {};
  it->second.ours = true;
  const Slot& slot = slots_[it->second.slot];
  return Record{slot.phase.load(std::memory_order_acquire), slot.opcode,
                slot.note, slot.value, slot.err};
}

bool IntentTable::EvictOldest() {
  auto oldest = index_.end();
  for (auto it = index_.begin(); it != index_.end(); ++it)
    if (!it->second.ours &&
        (oldest == index_.end() || it->first < oldest->first))
      oldest = it;
  if (oldest == index_.end())
    return false;
  uint32_t slot = oldest->second.slot;
  slots_[slot].phase.store(Phase::kNone, std::memory_order_release);
  index_.erase(oldest);
  free_.push_back(slot);
  return true;
}

core::Status IntentTable::Begin(uint64_t unique, uint32_t opcode,
                                uint64_t note) {
  core::MutexLock lock(mu_);
  // A request that was handed out again keeps its record.
  if (auto it = index_.find(unique); it != index_.end()) {
    it->second.ours = true;
    return {};
  }
  if (free_.empty() && !EvictOldest())
    return Fail(
        ErrorCode::kConflict,
        "intent table: " + std::to_string(kSlots) + " requests are in flight");
  uint32_t index = free_.back();
  free_.pop_back();
  Slot& slot = slots_[index];
  slot.opcode = opcode;
  slot.unique = unique;
  slot.note = note;
  slot.value = 0;
  slot.err = 0;
  slot.phase.store(Phase::kBegun, std::memory_order_release);
  index_[unique] = Local{index, true};
  return {};
}

void IntentTable::Complete(uint64_t unique, int err, uint64_t value) {
  core::MutexLock lock(mu_);
  auto it = index_.find(unique);
  CHECK(it != index_.end());
  Slot& slot = slots_[it->second.slot];
  slot.value = value;
  slot.err = err;
  slot.phase.store(Phase::kCompleted, std::memory_order_release);
}

void IntentTable::Drop(uint64_t unique) {
  core::MutexLock lock(mu_);
  auto it = index_.find(unique);
  if (it == index_.end())
    return;
  uint32_t slot = it->second.slot;
  slots_[slot].phase.store(Phase::kNone, std::memory_order_release);
  index_.erase(it);
  free_.push_back(slot);
}

size_t IntentTable::Size() {
  core::MutexLock lock(mu_);
  return index_.size();
}

}  // namespace livemv::fusefs
