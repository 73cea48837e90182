#pragma once

// The facts a journal holds, one struct a record type. A record says what is
// true from now on; later records win. doc/JOURNAL.md has the format on disk.
// "Durable" below means: Journal::Sync returned for it.

#include <cstdint>
#include <string>
#include <variant>

#include "core/state/ids.h"
#include "core/syscalls.h"

namespace livemv::state {

// The first record of a journal file.
struct MigrationFact {
  std::string id;
  std::string source;  // absolute path as the user sees it
  std::string target;  // as given, made absolute
  core::FileHandle source_root;
};
// A worker has begun to append. Another boot_id than the record before says
// that the host went down in between.
struct SessionFact {
  std::string boot_id;
  uint32_t pid = 0;
};
// A source handle that does not pack into a FileId.
struct NodeFact {
  FileId id;
  core::FileHandle handle;
};
// Rule 1: durable before the first byte that only the target holds. Only
// shrinks (an abort raises it).
struct LocalEndFact {
  FileId id;
  uint64_t end;  // bytes
};
// Rule 4: the target object of a file, for good.
struct BoundFact {
  FileId id;
  core::FileHandle target;
  uint64_t target_ino;
  uint32_t type;  // S_IFMT bits
};
// Chunks [first, first+count) are on the target, by a target fsync that
// covers them. hot: the source's bytes of them may not be durable yet.
struct CopiedFact {
  FileId id;
  uint64_t first, count;
  bool hot;
};
struct WithdrawnFact {  // no longer claimed as copied; a hot mark stays
  FileId id;
  uint64_t first, count;
};
struct HotFact {  // durable before the first double write into the chunks
  FileId id;
  uint64_t first, count;
};
struct UnhotFact {  // both sides are durable
  FileId id;
  uint64_t first, count;
};
struct RemoteFact {  // bytes below the local end that the target alone owns
  FileId id;
  uint64_t off, len;
};
// A shrink to size: the new local end, and a cut of the object that is owed.
// Durable before the source is truncated.
struct CutFact {
  FileId id;
  uint64_t size;
  uint64_t local_end;
};
struct CutDoneFact {
  FileId id;
};
struct ObjectSizeFact {  // written by the barrier for grown files
  FileId id;
  uint64_t size;
};
// Redo records of the name lane. Begun before the source's change; a clean
// record says that the target shows what the source showed after the change.
struct EntryDirtyFact {
  FileId dir;
  std::string name;
};
struct EntryCleanFact {
  FileId dir;
  std::string name;
};
struct AttrsDirtyFact {
  FileId id;
};
struct AttrsCleanFact {
  FileId id;
};
// Rule 3: a directory whose names, or an object whose attributes, may have
// changed in the source less durably than the journal says. Durable before
// the first change since the last unmarking.
struct MetaHotFact {
  FileId id;
};
struct MetaUnhotFact {
  FileId id;
};
// A comparison of a directory (both ways) or of an object's attributes that
// is owed after a host crash or after a parked destination (rule 3).
struct OwedFact {
  FileId id;
};
struct OwedDoneFact {
  FileId id;
};
// Where a directory's object lies on the target now. dir kNoFile: in its
// slot under the private directory.
struct PlacedFact {
  FileId id;
  FileId dir;
  std::string name;
};
struct DeadFact {  // the inode is gone for good; its object may go too
  FileId id;
};
struct PhaseFact {
  uint8_t state;  // MigrationState
  std::string reason;
};
// Who is the truth: durable as the commit of a cutover (target) or of an
// abort (source).
struct TruthFact {
  bool target;
};
struct OptionFact {  // a setting that must survive the worker
  std::string name, value;
};

using Fact =
    std::variant<MigrationFact, SessionFact, NodeFact, LocalEndFact, BoundFact,
                 CopiedFact, WithdrawnFact, HotFact, UnhotFact, RemoteFact,
                 CutFact, CutDoneFact, ObjectSizeFact, EntryDirtyFact,
                 EntryCleanFact, AttrsDirtyFact, AttrsCleanFact, MetaHotFact,
                 MetaUnhotFact, OwedFact, OwedDoneFact, PlacedFact, DeadFact,
                 PhaseFact, TruthFact, OptionFact>;

}  // namespace livemv::state
