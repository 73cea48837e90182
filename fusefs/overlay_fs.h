#pragma once

// FsCore over source and target: what applications see at DIR in each Serving
// mode.
//   kSourceOnly          the source alone
//   kRedirect, kAborting names and attributes from the source, with redo
//                        records begun before each change (rule 3); bytes by
//                        DataPath
//   kTargetOnly          the target alone (rule 7)
//
// Deleted inodes that somebody may have open are pinned until the kernel lets
// go of them (Release of the last descriptor, or Forget).
//
// Thread contract: as FsCore. SetServing waits for operations in progress.

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/result.h"
#include "core/sync.h"
#include "fusefs/data_path.h"
#include "fusefs/fs_core.h"
#include "fusefs/graveyard.h"
#include "fusefs/object_store.h"
#include "fusefs/passthrough.h"
#include "fusefs/redo.h"
#include "fusefs/serving.h"
#include "fusefs/source_tree.h"
#include "fusefs/target_holds.h"
#include "fusefs/target_tree.h"
#include "fusefs/tree_ops.h"

namespace livemv::fusefs {

class OverlayFs final : public FsCore {
 public:
  struct Parts {  // all must outlive the OverlayFs
    SourceTree* source = nullptr;
    ObjectStore* objects = nullptr;
    Redo* redo = nullptr;
    DataPath* data = nullptr;
    Passthrough* passthrough = nullptr;  // may be null
    Graveyard* graveyard = nullptr;
    state::Journal* journal = nullptr;
    // Another worker served this mount before: applications may hold
    // descriptors that were not counted here.
    bool resumed = false;
    TargetHolds holds;
  };
  OverlayFs(const Parts& parts, Serving mode);

  // Waits until no operation is in progress, holding new ones back, and
  // switches here and in DataPath. kTimeout at the deadline (MonotonicNs; <0:
  // none), with nothing changed. commit runs in between; its error is
  // returned, and nothing is switched.
  core::Status SetServing(Serving mode, int64_t deadline_ns = -1,
                          const std::function<core::Status()>& commit = {});
  Serving serving();
  // Somebody may have the inode open, so nothing of it may be destroyed.
  bool InUse(FileId id);

  core::Result<Entry> Lookup(FileId dir, const char* name) override;
  core::Result<core::Stat> GetAttr(FileId id) override;
  core::Result<core::Stat> SetAttr(FileId id, const AttrChange& change,
                                   const Caller& caller) override;
  core::Result<std::string> ReadLink(FileId id) override;
  core::Result<Entry> MkNod(FileId dir, const char* name, mode_t mode,
                            dev_t dev, const Caller& caller) override;
  core::Result<Entry> MkDir(FileId dir, const char* name, mode_t mode,
                            const Caller& caller) override;
  core::Result<Entry> SymLink(FileId dir, const char* name, const char* text,
                              const Caller& caller) override;
  core::Result<Entry> FinishMake(FileId dir, const char* name, mode_t mode,
                                 const Caller& caller) override;
  core::Result<Entry> Link(FileId id, FileId dir, const char* name) override;
  core::Result<std::pair<Entry, OpenReply>> TmpFile(
      FileId dir, int flags, mode_t mode, const Caller& caller) override;
  core::Status Unlink(FileId dir, const char* name) override;
  core::Status RmDir(FileId dir, const char* name) override;
  core::Status Rename(FileId dir, const char* name, FileId new_dir,
                      const char* new_name, unsigned flags) override;

  core::Result<OpenReply> Open(FileId id, int flags) override;
  core::Result<std::pair<Entry, OpenReply>> Create(FileId dir, const char* name,
                                                   int flags, mode_t mode,
                                                   const Caller& caller)
      override;
  void Release(FileId id, uint64_t fh) override;
  void Forget(FileId id) override;

  core::Result<size_t> Read(FileId id, uint64_t off,
                            std::span<char> buf) override;
  core::Result<size_t> Write(FileId id, uint64_t off,
                             std::span<const char> data, int open_flags,
                             bool kill_suidgid) override;
  core::Result<uint64_t> SizeOf(FileId id) override;
  core::Status Flush(FileId id) override;
  core::Status FSync(FileId id, bool data_only) override;
  core::Status FAllocate(FileId id, int mode, uint64_t off,
                         uint64_t len) override;
  core::Result<off_t> LSeek(FileId id, off_t off, int whence) override;

  core::Result<std::vector<DirItem>> ReadDir(FileId dir, int64_t offset,
                                             size_t max_bytes,
                                             bool plus) override;
  core::Result<std::string> GetXattr(FileId id, const char* name) override;
  core::Status SetXattr(FileId id, const char* name, std::string_view value,
                        int flags) override;
  core::Result<std::vector<std::string>> ListXattr(FileId id) override;
  core::Status RemoveXattr(FileId id, const char* name) override;
  core::Result<struct statfs> StatFs() override;
  FileId KernelNumber(FileId id) override;
  bool IsWrittenBeside(FileId id) override;
  double CacheSeconds() override;
  double AttrSeconds(FileId id, const core::Stat& attr) override;
  // Says whether what the kernel caches can be taken back from it at once, so
  // that it may keep it for long. Before any request; null: no.
  void SetCanDropCaches(std::function<bool()> can) {
    can_drop_ = std::move(can);
  }

 private:
  // Held by each operation; the mode cannot change meanwhile.
  class Pass {
   public:
    // Bytes: of an open file, and what else may wait for the target (the size
    // and times of a direct one) as long as that is away.
    enum class Kind { kAny, kBytes };
    explicit Pass(OverlayFs* fs, Kind kind = Kind::kAny);
    ~Pass();
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;
    Serving mode() const { return mode_; }
    bool Split() const {
      return mode_ == Serving::kRedirect || mode_ == Serving::kAborting;
    }
    TreeOps& ops() const {
      return mode_ == Serving::kTargetOnly ? fs_->target_ops_
                                           : fs_->source_ops_;
    }

   private:
    OverlayFs* const fs_;
    const Kind kind_;
    Serving mode_;
  };
  // What an operation is about to take a name from.
  struct Victim {
    FileId id = state::kNoFile;
    bool last_name = false;
    bool directory = false;
  };

  // The redo change of an operation, nothing outside kRedirect and kAborting.
  core::Result<Redo::Change> Begin(const Pass& pass, std::vector<Place> places);
  core::Result<Redo::Change> BeginAdding(const Pass& pass, FileId dir,
                                         const char* name);
  core::Result<Entry> Completed(core::Result<Entry> entry);
  // Direct files that have ended being so: if it moves during a look, that may
  // have the source's times of before and a record of after.
  uint64_t Ended() const {
    return parts_.passthrough != nullptr ? parts_.passthrough->Ended() : 0;
  }
  template <class Look>
  auto LookAgain(const Look& look) {
    constexpr int kMost = 8;
    for (int n = 1;; n++) {
      const uint64_t before = Ended();
      auto seen = look();
      if (before == Ended() || n == kMost)
        return seen;
    }
  }
  core::Result<Entry> MakeNode(const Pass& pass, FileId dir, const char* name,
                               mode_t mode, dev_t dev, const char* text,
                               const Caller& caller);
  core::Status BecomePlaceholder(const Pass& pass, const Entry& entry);
  core::Status DropPrivileges(const Pass& pass, FileId id);
  core::Result<core::Stat> GetAttrIn(const Pass& pass, FileId id);
  // Of a change to kSameOwner.
  core::Result<bool> OnlyAnnounces(const Pass& pass, FileId id,
                                   const Caller& caller);
  core::Result<Victim> BeforeLosingName(const Pass& pass, FileId dir,
                                        const char* name);
  void AfterLosingName(const Pass& pass, const Victim& victim, bool happened);
  // id got a name, which its next fsync makes durable. TakeNamed: there is such
  // a name; the caller syncs.
  void NameChanged(FileId id);
  bool TakeNamed(FileId id);
  core::Status NamesMoved(const Pass& pass, FileId dir, const char* name,
                          FileId new_dir, const char* new_name,
                          unsigned flags);
  // Counts a descriptor of id, which Release or FinishOpen takes back.
  core::Status Count(const Pass& pass, FileId id);
  // The rest of an open, which may wait for the target. With no Pass held.
  core::Result<OpenReply> FinishOpen(FileId id, int flags, bool created);
  OpenReply ReplyFor(const Pass& pass, int flags) const;
  void LastUseGone(FileId id);
  // It has been given a name (again): its last descriptor is not its end.
  void NoOrphanAnyMore(const Pass& pass, FileId id);
  core::Status RefuseGiving(const Pass& pass, FileId id,
                            const AttrChange& change);
  core::Status RefusePrivate(const char* xattr, int err) const;

  const Parts parts_;
  TargetTree target_;
  TreeOps source_ops_, target_ops_;

  bool CanDropCaches() const { return can_drop_ && can_drop_(); }
  std::function<bool()> can_drop_;

  core::Mutex gate_mu_;
  core::CondVar gate_;
  Serving mode_;           // guarded by gate_mu_
  // Operations in progress, and those of them that are about bytes; guarded by
  // gate_mu_.
  uint64_t inside_ = 0, inside_bytes_ = 0;
  bool closing_ = false;   // guarded by gate_mu_

  static constexpr size_t kMostNamed = 4096;
  core::Mutex named_mu_;
  std::unordered_set<FileId> named_;  // guarded by named_mu_
  bool all_named_ = false;  // there were too many; guarded by named_mu_

  core::Mutex orphans_mu_;
  // Whose last name is being taken right now: whoever opens one meanwhile pins
  // it, unless it is pinned. Guarded by orphans_mu_.
  std::unordered_set<FileId> losing_;
  // Unlinked for good and pinned; guarded by orphans_mu_.
  std::unordered_set<FileId> orphans_;
  // Of these, directories deleted by this worker; guarded by orphans_mu_.
  std::deque<FileId> uncounted_;
};

}  // namespace livemv::fusefs
