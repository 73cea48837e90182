#pragma once

// Walks the source from its root and has every name compared with the target
// (Applier::SyncEntry), both ways. Directories are known by FileId, so that a
// rename under the walker changes nothing; what changes while it is read is
// dirty (Redo) and followed up there. Directories that get an object by a redo
// record are queued whole.
//
// Memory: a number for each directory of the tree, and one piece of a listing
// for each thread.
//
// Thread contract: all methods from any thread; Step and Run from as many
// threads as there shall be scanners. They block as long as the target blocks.

#include <atomic>
#include <cstdint>
#include <deque>
#include <list>
#include <string>
#include <unordered_set>
#include <vector>

#include "core/result.h"
#include "core/sync.h"
#include "migrator/copy/applier.h"

namespace livemv::copy {

class TreeScanner {
 public:
  struct Totals {  // what was met so far; final once Done
    uint64_t directories = 0;
    uint64_t files = 0;   // regular
    uint64_t others = 0;  // links, pipes, sockets, devices
    uint64_t bytes = 0;   // sizes on the source
  };

  // thorough: attributes of everything are compared too (after a host crash).
  TreeScanner(const NameLane* lane, Applier* applier, bool thorough);

  // Queues the root and the comparisons that are owed; before Step. whole
  // false: only these, as if all had been read (a simulator sees what that
  // costs).
  void Start(bool whole = true);
  // Queues a directory unless it was queued before.
  void Want(FileId dir);
  // Queues what is owed now, although it was read before.
  void WantOwed();

  // One name or one piece of a listing; false if there is nothing to do.
  bool Step();
  void Run(const std::atomic<bool>& stop);
  void WakeAll();

  // Every directory that was queued has been read to its end, and every name
  // in it was compared or is dirty.
  bool Done();
  Totals totals();
  size_t QueuedDirs();

 private:
  struct DirJob {
    FileId id = state::kNoFile;
    uint64_t owed = 0;  // generation of the owed comparison, 0: none
    int64_t next = 0;   // cookie of the listing
    enum class Part : uint8_t { kSource, kTarget, kListed } part = Part::kSource;
    bool reading = false;
    bool failed = false;
    uint32_t outstanding = 0;  // names being compared
    uint32_t failures = 0;
    int64_t not_before_ns = 0;
  };
  using Jobs = std::list<DirJob>;
  struct Name {
    Jobs::iterator job;
    std::string name;
  };

  void Compare(const Name& name);
  void ReadPiece(Jobs::iterator job);
  core::Result<std::vector<std::string>> ReadSource(DirJob* job, bool* end);
  core::Result<std::vector<std::string>> ReadTarget(DirJob* job, bool* end);
  void FinishIfDone(Jobs::iterator job, core::MutexLock& lock);
  void Count(const Applier::Seen& seen);

  const NameLane* const lane_;
  Applier* const applier_;
  const bool thorough_;
  core::Syscalls* const sys_;
  core::Mutex mu_;
  core::CondVar work_;
  // All below guarded by mu_.
  std::vector<std::pair<FileId, uint64_t>> queue_;  // newest first: id, owed
  Jobs jobs_;                                       // being read
  std::deque<Name> names_;                          // to be compared
  std::unordered_set<FileId> wanted_;               // ever queued
  std::unordered_set<uint64_t> owed_queued_;        // by generation
  uint64_t comparing_ = 0;
  Totals totals_;
  bool started_ = false;
};

}  // namespace livemv::copy
