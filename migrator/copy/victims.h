#pragma once

// The end of objects whose inode is gone from the source (rule 3): nothing is
// destroyed before the source's change is durable by a sync begun after it,
// nor while somebody may have it open. Emptying loops until nothing is left.
//
// Thread contract: one thread at a time. Blocks as long as the target blocks.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "migrator/copy/applier.h"
#include "migrator/copy/name_lane.h"

namespace livemv::copy {

class Victims {
 public:
  struct Hooks {
    std::function<bool(FileId)> in_use;    // somebody may have it open
    // The journal is told that the inode is gone, and its bytes' records go.
    std::function<core::Status(FileId)> forget;
    // Durable: what the source showed before the call.
    std::function<core::Status()> sync_source;
  };
  Victims(const NameLane* lane, Applier* applier, Hooks hooks);

  // Looks into the private directory for what a predecessor left, so that it
  // is considered; once, before the first Bury.
  core::Status Survey();
  // Destroys what can be; returns how many objects went. Calls sync_source
  // once if there is anything to destroy.
  core::Result<uint64_t> Bury();
  // The same when the target is the truth already: the source's durability
  // does not matter any more. Then removes the private directory. ENOTEMPTY,
  // naming what is left, if an object is in use or unknown; everything stays
  // usable then (ObjectStore::Prepare).
  core::Status RemovePrivate();
  // With nothing dirty, and nobody who changes anything: an object that lives
  // on the source and has no place on the target, which must not be. If it is a
  // directory its place is sought.
  core::Result<std::optional<FileId>> WithoutPlace();

 private:
  core::Result<bool> IsDead(FileId id);
  // OK with *gone false: it has content that must go first.
  core::Status Destroy(FileId id, bool* gone);
  core::Status EmptyVictims(uint64_t* count);
  core::Result<uint64_t> BuryOnce(bool sync);
  core::Result<std::vector<core::DirEntry>> List(int dirfd);

  const NameLane* const lane_;
  Applier* const applier_;
  const Hooks hooks_;
  core::Syscalls* const sys_;
};

}  // namespace livemv::copy
