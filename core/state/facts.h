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
  bool operator==(const MigrationFact&) const = default;
};
// A worker has begun to append. Another boot_id than the record before says
// that the host went down in between.
struct SessionFact {
  std::string boot_id;
  uint32_t pid = 0;
  bool operator==(const SessionFact&) const = default;
};
// A source handle that does not pack into a FileId.
struct NodeFact {
  FileId id;
  core::FileHandle handle;
  bool operator==(const NodeFact&) const = default;
};
// Rule 1: durable before the first byte that only the target holds. Only
// shrinks (an abort raises it).
struct LocalEndFact {
  FileId id;
  uint64_t end;  // bytes
  bool operator==(const LocalEndFact&) const = default;
};
// Rule 4: the target object of a file, for good.
struct BoundFact {
  FileId id;
  core::FileHandle target;
  uint64_t target_ino;
  uint32_t type;  // S_IFMT bits
  bool operator==(const BoundFact&) const = default;
};
// Chunks [first, first+count) are on the target, by a target fsync that
// covers them. hot: the source's bytes of them may not be durable yet.
struct CopiedFact {
  FileId id;
  uint64_t first, count;
  bool hot;
  bool operator==(const CopiedFact&) const = default;
};
struct WithdrawnFact {  // no longer claimed as copied; a hot mark stays
  FileId id;
  uint64_t first, count;
  bool operator==(const WithdrawnFact&) const = default;
};
struct HotFact {  // durable before the first double write into the chunks
  FileId id;
  uint64_t first, count;
  bool operator==(const HotFact&) const = default;
};
struct UnhotFact {  // both sides are durable
  FileId id;
  uint64_t first, count;
  bool operator==(const UnhotFact&) const = default;
};
struct RemoteFact {  // bytes below the local end that the target alone owns
  FileId id;
  uint64_t off, len;
  bool operator==(const RemoteFact&) const = default;
};
// A shrink to size: the new local end, and a cut of the object that is owed.
// Durable before the source is truncated.
struct CutFact {
  FileId id;
  uint64_t size;
  uint64_t local_end;
  bool operator==(const CutFact&) const = default;
};
struct CutDoneFact {
  FileId id;
  bool operator==(const CutDoneFact&) const = default;
};
struct ObjectSizeFact {  // written by the barrier for grown files
  FileId id;
  uint64_t size;
  bool operator==(const ObjectSizeFact&) const = default;
};
// Redo records of the name lane. Begun before the source's change; a clean
// record says that the target shows what the source showed after the change.
struct EntryDirtyFact {
  FileId dir;
  std::string name;
  bool operator==(const EntryDirtyFact&) const = default;
};
struct EntryCleanFact {
  FileId dir;
  std::string name;
  bool operator==(const EntryCleanFact&) const = default;
};
struct AttrsDirtyFact {
  FileId id;
  bool operator==(const AttrsDirtyFact&) const = default;
};
struct AttrsCleanFact {
  FileId id;
  bool operator==(const AttrsCleanFact&) const = default;
};
// Rule 3: a directory whose names, or an object whose attributes, may have
// changed in the source less durably than the journal says. Durable before
// the first change since the last unmarking.
struct MetaHotFact {
  FileId id;
  bool operator==(const MetaHotFact&) const = default;
};
struct MetaUnhotFact {
  FileId id;
  bool operator==(const MetaUnhotFact&) const = default;
};
// A comparison of a directory (both ways) or of an object's attributes that
// is owed after a host crash or after a parked destination (rule 3).
struct OwedFact {
  FileId id;
  bool operator==(const OwedFact&) const = default;
};
struct OwedDoneFact {
  FileId id;
  bool operator==(const OwedDoneFact&) const = default;
};
// Where a directory's object lies on the target now. dir kNoFile: in its
// slot under the private directory.
struct PlacedFact {
  FileId id;
  FileId dir;
  std::string name;
  bool operator==(const PlacedFact&) const = default;
};
// The inode is gone for good: nothing is owed for it any more, and its object
// may go too.
struct DeadFact {
  FileId id;
  bool operator==(const DeadFact&) const = default;
};
struct PhaseFact {
  uint8_t state;  // MigrationState
  std::string reason;
  bool operator==(const PhaseFact&) const = default;
};
// Who is the truth: durable as the commit of a cutover (target) or of an
// abort (source).
struct TruthFact {
  bool target;
  bool operator==(const TruthFact&) const = default;
};
struct OptionFact {  // a setting that must survive the worker
  std::string name, value;
  bool operator==(const OptionFact&) const = default;
};
// The object of a dead inode has been destroyed, or there was none: nothing is
// left to be remembered.
struct ForgottenFact {
  FileId id;
  bool operator==(const ForgottenFact&) const = default;
};
// Rule 8: the kernel reads and writes the file's object by itself, without the
// worker. Appended before the open is answered. The object has the file's size
// and times meanwhile.
struct DirectFact {
  FileId id;
  uint32_t how;      // Direct
  uint32_t backing;  // the kernel's number for the object; 0: it has none open
  bool operator==(const DirectFact&) const = default;
};
enum class Direct : uint32_t {
  kNo = 0,
  kYes = 1,
  // No more, but to the kernel it is the inode with kAliasBit: the one without
  // cannot leave that mode while a descriptor is open (an abort's).
  kAliased = 2,
};

// Abort: bytes are being brought back to the file's source inode, which moves
// its modification time and takes its capability away; these are to be put
// back. Durable before the first such byte.
struct PutBackFact {
  FileId id;
  uint64_t mtime_sec;  // of int64_t
  uint32_t mtime_nsec;
  std::string capability;  // as the attribute's value; empty: none
  bool operator==(const PutBackFact&) const = default;
};
// That was done, durably, or an application has moved them itself.
struct PutBackDoneFact {
  FileId id;
  bool operator==(const PutBackDoneFact&) const = default;
};

using Fact =
    std::variant<MigrationFact, SessionFact, NodeFact, LocalEndFact, BoundFact,
                 CopiedFact, WithdrawnFact, HotFact, UnhotFact, RemoteFact,
                 CutFact, CutDoneFact, ObjectSizeFact, EntryDirtyFact,
                 EntryCleanFact, AttrsDirtyFact, AttrsCleanFact, MetaHotFact,
                 MetaUnhotFact, OwedFact, OwedDoneFact, PlacedFact, DeadFact,
                 PhaseFact, TruthFact, OptionFact, ForgottenFact, DirectFact,
                 PutBackFact, PutBackDoneFact>;

}  // namespace livemv::state
