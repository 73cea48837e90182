#pragma once

// What a journal says, as a value: the fold of its facts. The successor of a
// dead worker starts from it, compaction writes it down again.
//
// Thread contract: a plain value; nothing here blocks.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/result.h"
#include "core/state/byte_map.h"
#include "core/state/facts.h"
#include "core/state/ids.h"
#include "core/state/migration_state.h"
#include "core/syscalls.h"

namespace livemv::state {

struct BoundObject {
  core::FileHandle handle;  // on the target
  uint64_t ino = 0;         // on the target
  uint32_t type = 0;        // S_IFMT bits
  bool operator==(const BoundObject&) const = default;
};

struct FileState {
  // Absent map: no local end was recorded (not seen yet, or a new file whose
  // placeholder carries the mark).
  std::optional<ByteMap> map;
  std::optional<BoundObject> bound;
  std::optional<uint64_t> cut;          // size of a cut that is owed
  std::optional<uint64_t> object_size;  // as of some barrier, or cut since
  Direct direct = Direct::kNo;
  uint32_t backing = 0;  // see DirectFact
  std::optional<PutBackFact> put_back;
  bool operator==(const FileState&) const = default;
};

struct Place {
  FileId dir = kNoFile;  // kNoFile: in its slot
  std::string name;
  bool operator==(const Place&) const = default;
};

struct RecoveredState {
  std::optional<MigrationFact> migration;
  std::vector<SessionFact> sessions;  // oldest first
  Phase phase;
  std::string reason;
  bool target_is_truth = false;
  std::map<std::string, std::string> options;

  std::unordered_map<FileId, FileState> files;
  std::unordered_map<FileId, core::FileHandle> nodes;
  std::unordered_map<FileId, std::set<std::string>> dirty_entries;  // by dir
  std::unordered_set<FileId> dirty_attrs;
  std::unordered_set<FileId> meta_hot;
  std::unordered_set<FileId> owed;
  std::unordered_map<FileId, Place> placed;
  // Gone from the source; the object, if bound, may be destroyed.
  std::unordered_set<FileId> dead;

  // Takes one more fact. Claims past a local end that fell meanwhile are
  // clipped; kCorrupt if the fact contradicts what is known (a claim about a
  // file without a local end, an unknown state).
  core::Status Apply(const Fact& fact);

  // A shortest-first list of facts whose fold equals this, in an order that
  // depends on the value alone.
  std::vector<Fact> ToFacts() const;

  bool IsDirtyEntry(FileId dir, std::string_view name) const;
  // The host went down during this migration: some session ran on another
  // boot. Remains true for all later workers.
  bool HostWentDown(std::string_view boot_id) const;

  bool operator==(const RecoveredState&) const = default;
};

// What a worker that starts on state owes to the journal before it serves, in
// this order, synced once after the last: hot chunks withdrawn (rule 1); after
// a host crash an owed comparison for every hot directory or object (rule 3);
// then the session itself. The session comes last, because its boot_id is what
// tells the next successor that these debts are written down.
std::vector<Fact> FactsOfNewSession(const RecoveredState& state,
                                    const std::string& boot_id, uint32_t pid);

}  // namespace livemv::state
