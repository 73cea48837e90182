#pragma once

// Makes places of the target equal to what the source shows (rule 3). There is
// one act for a dirty entry, for a name met by the scan and for an owed
// comparison: SyncEntry. It looks at the source now, looks at the target now,
// and moves objects; it never destroys one. An object that leaves a name goes
// back to its slot unless it has other names.
//
// Why order does not matter: a place stays dirty until one pass began its look
// after the last change of it had ended (Redo), and two passes over one place
// or one object exclude each other (PlaceLocks). So the last act on a place
// follows the newest look. Directories are filled while they lie in their
// slots, so parents need not come first.
//
// Thread contract: all methods from any thread; Step and Run from as many
// threads as there shall be appliers. All block as long as the target blocks.

#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "core/result.h"
#include "core/sync.h"
#include "migrator/copy/name_lane.h"
#include "migrator/copy/place_locks.h"

namespace livemv::copy {

class Applier {
 public:
  // lane must outlive this.
  explicit Applier(const NameLane* lane);

  // Where the directories were placed by a predecessor; before any other call.
  void Adopt(const state::RecoveredState& state);
  // scan_wanted: a directory has its object, so its names are to be compared
  // once.
  // owed: Redo has a new owed comparison. Both before Step.
  void SetScanner(std::function<void(FileId)> scan_wanted,
                  std::function<void()> owed) {
    scan_wanted_ = std::move(scan_wanted);
    owed_ = std::move(owed);
  }

  // Applies one due record; false if none is due.
  bool Step();
  // Applies records as they come until stop is true; WakeAll of Redo wakes it.
  void Run(const std::atomic<bool>& stop);
  // Applies until nothing is due any more, or the deadline (MonotonicNs) has
  // passed (kTimeout). What is set aside or in flight stays. lazy: also the
  // times of files that are being written.
  core::Status Drain(int64_t deadline_ns, bool lazy);

  // What the source had at the name.
  struct Seen {
    FileId id = state::kNoFile;  // kNoFile: nothing
    core::Stat st{};
    bool placed = false;  // the target's entry was changed
  };
  // Makes (dir, name) on the target equal to the source. Nothing is done while
  // dir has no object: it will be scanned when it gets one.
  core::Result<Seen> SyncEntry(FileId dir, const std::string& name);
  // Makes owner, mode, extended attributes and times of id's object equal to
  // the source's. OK if there is no object or no inode any more.
  core::Status SyncAttrs(FileId id);
  // Takes an object from a name of the target into its slot. id: what is
  // there, kNoFile if unknown. The caller's hold has the entry and the object.
  core::Status Detach(FileId dir, const std::string& name, FileId id,
                      const core::Stat& st);
  // Removes a name, not of a directory, from the victims. The last name of
  // what is bound goes to its slot: it may be alive.
  core::Status DropVictim(const std::string& name);
  // id lives. If its slot is but one of its names on the target, the slot goes:
  // emptying a lost directory can put an object there that was just placed.
  core::Status TidySlot(FileId id);
  // For a living directory that lies in its slot though no record names its
  // place: the comparison that is owed then finds it.
  core::Status SeekPlace(FileId dir);
  // Moves everything that the target's directory holds into slots.
  core::Status EmptyDir(FileId dir);
  // For a directory whose object cannot be opened: it was deleted and
  // destroyed, perhaps by a predecessor whose last records are lost.
  core::Result<bool> IsDeadWithObject(FileId dir);
  // A directory's object was destroyed.
  void ForgetPlace(FileId id);

  // An error that will not go away by trying again: the name or attribute is
  // not for this target.
  static bool IsRefusal(const core::Error& error);
  // Names that the NFS client makes for files that were deleted while open.
  static bool IsSillyName(const std::string& name);

 private:
  struct TargetEntry {
    bool there = false;
    FileId id = state::kNoFile;
    core::Stat st{};
  };
  struct SourceEntry {
    FileId id = state::kNoFile;
    core::Stat st{};
    std::string link_text;
  };
  struct Spot {
    FileId dir = state::kNoFile;  // kNoFile: in its slot
    std::string name;
  };
  core::Result<SourceEntry> LookAtSource(FileId dir, const std::string& name);
  core::Result<TargetEntry> LookAtTarget(int dirfd, const std::string& name);
  static bool IsTargetsOwn(FileId dir, const std::string& name,
                           const TargetEntry& target);
  // false: a lock was not to be had; begin again.
  core::Result<bool> TrySyncEntry(FileId dir, const std::string& name,
                                  Seen* seen);
  core::Result<bool> Place(PlaceLocks::Hold* hold, FileId dir,
                           const std::string& name, int dirfd,
                           const SourceEntry& source);
  core::Result<bool> PlaceDir(PlaceLocks::Hold* hold, FileId dir,
                              const std::string& name, int dirfd, FileId id);
  // The directory's place in the source is owed a comparison, durably. Nothing
  // if it has none any more.
  core::Status OwePlace(FileId dir);
  core::Result<bool> Park(PlaceLocks::Hold* hold, FileId dir);
  core::Status MoveToSlot(int from, const std::string& name, FileId dir);
  core::Result<Spot> FindSpot(FileId dir);
  core::Status SetSpot(FileId dir, Spot spot);
  // After a host crash a target that is no server may have lost objects that
  // the journal still binds: they are to be made again.
  void DropLostObjects(const state::RecoveredState& state);
  core::Status CopyXattrs(int source_fd, int target_fd);
  core::Status CopyTimes(FileId id, int target_fd, const core::Stat& want,
                         const core::Stat& have);
  void Finish(const fusefs::Redo::Job& job, const core::Status& status);

  const NameLane* const lane_;
  core::Syscalls* const sys_;
  std::function<void(FileId)> scan_wanted_;
  std::function<void()> owed_;
  PlaceLocks locks_;
  core::Mutex mu_;
  std::unordered_map<FileId, Spot> spots_;  // of directories; guarded by mu_
};

}  // namespace livemv::copy
