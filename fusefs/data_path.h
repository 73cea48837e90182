#pragma once

// The bytes of regular files, as applications see them, while they are split
// between source and target (rules 1 and 2). Owns no descriptors and no
// records: it acts on what FileTable, SourceTree and ObjectStore hold.
//
// data_path.cc: who calls what and reading; data_write.cc: writes;
// data_resize.cc: truncate and fallocate; data_sync.cc: fsync.
//
// Thread contract: all methods from any thread; see SetServing. Reads,
// overwrites and fsync of local bytes block on the source only (double writes
// at most for the limit); bytes that the target alone holds block as long as
// the target does. Errors carry the errno for the application.

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/result.h"
#include "core/syscalls.h"
#include "fusefs/byte_ledger.h"
#include "fusefs/file_table.h"
#include "fusefs/serving.h"
#include "fusefs/target_writer.h"

namespace livemv::fusefs {

class DataPath {
 public:
  struct Options {
    // How long an application waits for the target where the source alone is
    // enough (ns).
    int64_t double_write_limit_ns = 2'000'000'000;
  };

  // Both must outlive this.
  DataPath(ByteLedger* ledger, TargetWriter* writer, Options options);
  DataPath(ByteLedger* ledger, TargetWriter* writer)
      : DataPath(ledger, writer, Options()) {}

  // Under the gate: no call in progress, but from kRedirect to kAborting, which
  // treat bytes alike.
  void SetServing(Serving mode) { serving_ = mode; }
  Serving serving() const { return serving_; }

  // Bytes read; fewer than asked only at the end of the file.
  core::Result<size_t> Read(FileId id, uint64_t off, std::span<char> buf);
  // open_flags: with O_APPEND it goes to the end: of the source or target
  // alone, where others append beside the overlay, by the filesystem's own
  // doing; else to the end of the file or off, whichever is later.
  // kill_suidgid: clears
  // setuid, setgid and capabilities first. A short count if only the first
  // part could be written.
  core::Result<size_t> Write(FileId id, uint64_t off,
                             std::span<const char> data, int open_flags,
                             bool kill_suidgid);
  core::Status Truncate(FileId id, uint64_t size, bool kill_suidgid);
  // mode: fallocate(2). COLLAPSE, INSERT and UNSHARE are EOPNOTSUPP.
  core::Status FAllocate(FileId id, int mode, uint64_t off, uint64_t len);
  // SEEK_DATA and SEEK_HOLE only. ENXIO past the last data.
  core::Result<off_t> LSeek(FileId id, off_t off, int whence);
  // Rule 2. Also delivers, once, an error of the target met meanwhile. Names
  // and placeholders of others are the caller's, but the file's own inode is
  // synced if it is a placeholder made by this worker.
  core::Status FSync(FileId id, bool data_only);
  // At a close, of a target that tells at close; else nothing: sends it what it
  // alone was given, which blocks as long as it does, and delivers its errors,
  // each once.
  core::Status Flush(FileId id);

  // The size as applications see it.
  core::Result<uint64_t> SizeOf(FileId id);
  // stat holds what the source says of id; fills in size and blocks. Times
  // need nothing: the source's inode has them (every change that goes to the
  // target alone touches them first), but for a direct file (passthrough.h),
  // of which the object is asked, and the time that is to be put back while an
  // abort brings bytes back. Does nothing but in kRedirect and kAborting.
  // Blocks on the target only for such files, and for a pinned file not used
  // since a restart.
  core::Status Complete(FileId id, core::Stat* stat);

  // Size and times are the target's to say.
  bool IsDirect(FileId id);
  // on_source gives the source's inode other attributes. A direct file's object
  // gets the times too. What is changed so outlives a piece that is brought
  // back just now: the modification time and the capability.
  struct AttrsChange {
    const struct timespec* times = nullptr;  // two, as for utimensat(2)
    // Empty: none any more (also by a new owner).
    std::optional<std::string> capability = std::nullopt;
  };
  core::Status ChangeAttrs(FileId id, const AttrsChange& change,
                           const std::function<core::Status()>& on_source);

  // A file was created on the source as a placeholder: its local end is 0.
  // Before anybody can open it. Appends, does not sync.
  core::Status NewFile(FileId id);

  void Opened(FileId id) { table_->Opened(id); }
  void Closed(FileId id) { table_->Closed(id); }
  bool IsOpen(FileId id) { return table_->IsOpen(id); }

  ByteLedger* ledger() const { return ledger_; }
  FileTable* table() const { return table_; }

 private:
  // What is to be put back becomes in part what an application wants; with r's
  // write_mu held.
  core::Status KeepChanged(FileRecord& r, const AttrsChange& change);
  // The old capability is not to come back, whatever becomes of the change.
  core::Status ForgetCapability(FileRecord& r);
  // With write_mu held, before an application's change of bytes or size.
  core::Status BeforeChange(FileRecord& r);
  class Change;  // brackets a change of bytes for the generations

  bool Split() const {
    const Serving now = serving_;
    return now == Serving::kRedirect || now == Serving::kAborting;
  }
  // Also of a deleted file that the kernel goes on writing after an abort.
  bool IsSplit(FileId id) {
    return Split() || (serving_ == Serving::kSourceOnly && IsDirect(id));
  }
  core::Result<SharedFd> AloneFd(FileId id);  // kSourceOnly, kTargetOnly
  core::Status KillSuidGid(const SharedFd& fd);
  static bool IsDirect(FileRecord& r);
  core::Status TouchTimes(FileRecord& r);
  core::Status CompleteDirect(FileRecord& r, core::Stat* stat);
  core::Status ResizeDirect(FileRecord& r, uint64_t size);
  // A record with its size known.
  core::Result<FileRef> Loaded(FileId id);
  // Times of id's source, or of its object, are being moved as long as it
  // lives.
  class Touching {
   public:
    Touching(DataPath* path, FileId id);
    ~Touching();
    Touching(const Touching&) = delete;
    Touching& operator=(const Touching&) = delete;

   private:
    BytesListener* const listener_;
    const FileId id_;
  };

  // One of the threads that ask a target, which may be away, for what every
  // listing of a directory wants to know. The others must stay free for what
  // the source answers: who finds no place within the limit goes without.
  class Asking {
   public:
    explicit Asking(DataPath* path);
    ~Asking();
    Asking(const Asking&) = delete;
    Asking& operator=(const Asking&) = delete;
    bool may() const { return may_; }

   private:
    DataPath* const path_;
    bool may_ = false;
  };
  static constexpr int kMostAsking = 8;

  // The ones below hold r.write_mu.
  // Waits until no owed cut reaches below end.
  void WaitForCut(FileRecord& r, core::MutexLock& lock, uint64_t end);
  // Waits until neither the copier nor a double write that was given up is in
  // flight over [begin, end).
  void WaitForStrays(FileRecord& r, core::MutexLock& lock, uint64_t begin,
                     uint64_t end);
  // Before a change of what the target alone holds: an old write of a dead
  // worker must not land over a newer one, nor past a size that was looked at
  // before. Blocks until the predecessor is gone, unless nothing of it can
  // concern r.
  core::Status AwaitPredecessor(FileRecord& r);
  // Object and durable local end, before the target alone gets bytes.
  core::Status PrepareTargetAlone(FileRecord& r);
  core::Result<size_t> WriteSplit(FileRecord& r, uint64_t off,
                                  std::span<const char> data);
  // The chunks of [begin, end) that get double writes, hot durably.
  core::Result<std::vector<uint64_t>> DoubledChunks(FileRecord& r,
                                                    uint64_t begin,
                                                    uint64_t end);
  core::Result<size_t> WriteSegment(FileRecord& r, uint64_t off,
                                    std::span<const char> data, bool alone,
                                    const std::vector<uint64_t>& doubled);
  // Bytes written to the source before it refused (errno in *refused, 0 if it
  // did not).
  core::Result<size_t> WriteSource(FileRecord& r, uint64_t off,
                                   std::span<const char> data, int* refused);
  void DoubleWrite(FileRecord& r, uint64_t off, std::span<const char> data,
                   const std::vector<uint64_t>& doubled);
  void DoubleRun(FileRecord& r, uint64_t off, std::span<const char> data);
  // Bytes below the local end that the source refused become remote.
  core::Status WriteRefused(FileRecord& r, uint64_t off,
                            std::span<const char> data);
  core::Result<size_t> WriteTargetAlone(FileRecord& r, uint64_t off,
                                        std::span<const char> data);
  // Chunks of [begin, end) that are not doubled go to the copier's head.
  void WantCopies(FileRecord& r, uint64_t begin, uint64_t end,
                  const std::vector<uint64_t>& doubled);
  core::Status Shrink(FileRecord& r, uint64_t size);
  core::Status ShrinkImplicit(FileRecord& r, uint64_t size);
  core::Status Extend(FileRecord& r, uint64_t size);
  core::Status AllocateSplit(FileRecord& r, int mode, uint64_t off,
                             uint64_t len);

  static bool OwesAlone(const FileRecord& r);
  // The object, whose failure is told to whoever called. The marks: as they
  // were before.
  core::Status SyncAlone(FileRecord& r, uint32_t alone_mark,
                         uint32_t double_mark);
  core::Status SyncDoubles(FileRecord& r);
  core::Status SyncSplit(FileRecord& r, bool data_only);
  core::Result<size_t> ReadRecord(FileRecord& r, uint64_t off,
                                  std::span<char> buf);
  core::Result<size_t> ReadFull(const SharedFd& fd, uint64_t off,
                                std::span<char> buf);
  core::Result<off_t> SeekSplit(FileRecord& r, uint64_t off, int whence);

  ByteLedger* const ledger_;
  FileTable* const table_;
  SourceTree* const source_;
  ObjectStore* const objects_;
  core::Syscalls* const sys_;
  TargetWriter* const writer_;
  const Options options_;
  std::atomic<Serving> serving_ = Serving::kSourceOnly;
  core::Mutex asking_mu_;
  core::CondVar asked_;
  int asking_ = 0;  // guarded by asking_mu_
};

}  // namespace livemv::fusefs
