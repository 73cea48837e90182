#pragma once

// Which requests that must not run twice are being answered, in memory that
// outlives the worker (a memfd of the supervisor). After kill -9 the kernel
// hands every unanswered request to the successor again; this table says how
// far the predecessor came:
//   no record   it never began                  -> run it
//   kBegun      it may or may not have run      -> run it and repair
//   kCompleted  it ran, with this result        -> answer from the record
// A record is begun before the first act, completed after the last, dropped
// once the kernel accepted the reply. Not to be confused with the journal's
// redo records: this dies with the host, as the requests do (hazard H28).
//
// Keyed by the request's `unique` without the resent bit; the kernel never
// uses one twice in a mount.
//
// A record whose reply was accepted just before a kill is never asked for
// again. Such leftovers (at most one a thread and kill) go when room is short,
// oldest first.
//
// Thread contract: all methods from any thread; at most one process uses the
// memory at a time.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/result.h"
#include "core/sync.h"

namespace livemv::fusefs {

class IntentTable {
 public:
  static constexpr size_t kSlots = 4096;
  static size_t Bytes();  // of shared memory that Attach needs

  enum class Phase : uint32_t { kNone = 0, kBegun = 1, kCompleted = 2 };
  struct Record {
    Phase phase = Phase::kNone;
    uint32_t opcode = 0;
    uint64_t note = 0;   // what the opcode's repair needs from before the act
    uint64_t value = 0;  // result besides the errno (bytes written)
    int err = 0;         // 0 or an errno
  };

  // memory: Bytes() bytes, shared, 8-aligned, zeroed or left by a
  // predecessor; it must outlive the table. kInvalid if too small, kCorrupt
  // if it holds something else.
  static core::Result<std::unique_ptr<IntentTable>> Attach(void* memory,
                                                           size_t bytes);

  // Forgets everything: for a new mount, whose uniques start again.
  void Clear();

  Record Find(uint64_t unique);
  // kConflict if there is no room (kSlots requests in flight).
  core::Status Begin(uint64_t unique, uint32_t opcode, uint64_t note);
  void Complete(uint64_t unique, int err, uint64_t value);
  void Drop(uint64_t unique);
  size_t Size();

 private:
  struct Slot;
  struct Header;
  struct Local {
    uint32_t slot = 0;
    bool ours = false;  // begun or found in this life: never evicted
  };
  IntentTable(Header* header, Slot* slots);
  bool EvictOldest();  // with mu_ held

  Header* const header_;
  Slot* const slots_;
  core::Mutex mu_;
  std::unordered_map<uint64_t, Local> index_;  // guarded by mu_
  std::vector<uint32_t> free_;                 // guarded by mu_
};

}  // namespace livemv::fusefs
