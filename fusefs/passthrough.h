#pragma once

// Rule 8: files that are wholly remote, which the kernel reads and writes on
// the target by itself (FUSE passthrough): *direct* files.
//
// To the kernel an inode is in one mode at a time (fs/fuse/iomode.c): direct,
// by one backing file, or served by the worker. So a file becomes direct with
// an open only while nobody else has it open, and every later open is direct
// until all are closed. While it is direct the worker sees no read and no write
// of it; names, attributes, truncate, allocate and fsync it sees as ever.
//
// Invariants:
//   - nothing below a local end is direct: the source's bytes would be missed;
//     and no cut is owed, which would come after the kernel's own writes;
//   - the object has the file's size and times meanwhile; the applier leaves
//     its times alone. When it ends, the source gets them;
//   - the fact is in the journal before the open is answered, so that a
//     successor answers the next open alike;
//   - an O_SYNC or O_DSYNC write and an msync are done without the worker, so
//     the file's birth is durable before such an open is answered. An open that
//     creates is served by the worker instead.
//
// A descriptor may be closed while its mapping lives on, and nobody tells: a
// file that could be mapped for writing stays direct.
//
// An abort needs the worker's eyes again. From Close on nothing becomes direct;
// the direct files have a second number to the kernel, with kAliasBit, of an
// inode in the other mode. The descriptors of the first one are opened again
// under the second by the re-anchorer; then LeaveAll.
//
// Thread contract: all methods from any thread. Enter, Step, Run and LeaveAll
// block on source and target, Direct on the source; the rest does not.

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/result.h"
#include "core/state/recovery.h"
#include "core/sync.h"
#include "fusefs/byte_ledger.h"

namespace livemv::fusefs {

// The kernel's numbers for open files that may back inodes of one FUSE
// connection; they live as long as that.
class BackingIds {
 public:
  virtual ~BackingIds() = default;
  // fd: a regular file. EPERM, ENOTTY, EINVAL, ELOOP: not here.
  virtual core::Result<uint32_t> Open(int fd) = 0;
  virtual void Close(uint32_t id) = 0;
};

// fuse_fd: /dev/fuse, borrowed. Linux 6.9 (fs/fuse/backing.c).
std::unique_ptr<BackingIds> MakeBackingIds(int fuse_fd);

class Passthrough {
 public:
  // ids: null if files are never to be direct. resumed: another worker served
  // this mount, and may have opened files that were not counted here.
  Passthrough(ByteLedger* ledger, BackingIds* ids, bool resumed);

  // What the journal says; before any other call.
  core::Status Adopt(const state::RecoveredState& state);

  struct Entered {
    uint32_t backing = 0;  // to answer with; 0: the worker serves it
    // Others write it beside the worker: to be served uncached.
    bool uncached = false;
  };
  // For an open (flags: of open(2)) of a regular file that FileTable has
  // counted. begins: it may become direct; else only what is direct already.
  core::Result<Entered> Enter(FileId id, int flags, bool created, bool begins);
  // The last of an open that was answered with a number.
  void Leave(FileId id);

  // It may be written without that inode's knowing it of the kernel: through a
  // mapping, or under its other number.
  bool IsUnseen(FileId id);
  // Called by Step for what has become so: the kernel may have attributes of
  // before. Before any other call; may be null.
  void SetDropAttrs(std::function<void(FileId)> drop) {
    drop_attrs_ = std::move(drop);
  }
  // Files that have ended being direct so far. Who looked at the source before
  // one did and at the record after it has seen neither's times.
  uint64_t Ended() const { return ended_; }

  // The target is the truth, or not after all: the source's times are nobody's
  // any more, and what is direct stays so.
  void SetFinal(bool final) { final_ = final; }

  // Ends what is over: one file; false if there is none.
  bool Step();
  void Run(const std::atomic<bool>& stop);
  void Wake();

  // --- abort
  // Nothing becomes direct any more.
  void Close();
  // The abort did not begin after all.
  void Reopen();
  // The number under which the kernel is to know id.
  FileId NumberOf(FileId id);
  // Files that are direct still, but for those without a name: what they hold
  // ends with their last user.
  std::vector<FileId> Direct();
  // After Close, when no descriptor of these is left: the worker sees every
  // change from here on. kConflict if one is counted, kTimeout at the deadline
  // (MonotonicNs) with some still to do.
  core::Status LeaveAll(int64_t deadline_ns);

 private:
  bool HasName(FileId id);
  enum class Fit { kNo, kNew, kAlready, kBeside };
  Fit Fits(const FileRecord& r, int flags, bool created, bool begins);
  static bool IsDirect(FileRecord& r);
  core::Result<Entered> EnterSlowly(FileRecord& r, int flags, bool created,
                                    bool begins);
  core::Result<bool> Register(FileRecord& r, int flags, uint32_t backing,
                              bool opened);
  core::Result<uint32_t> OpenBacking(FileRecord& r);
  core::Status MakeBirthDurable(FileRecord& r);
  core::Status TimesToObject(FileRecord& r);
  // Size and times of the object become the file's. With write_mu held.
  core::Status TakeBack(FileRecord& r);
  core::Status Settle(FileId id);
  // It is direct no more, unless somebody has opened it since there were
  // `entered` opens, all of them closed. With write_mu held.
  core::Status End(FileRecord& r, uint64_t entered);
  // No more direct: the backing number goes.
  void Drop(FileId id);

  ByteLedger* const ledger_;
  core::Syscalls* const sys_;
  BackingIds* const ids_;
  const bool resumed_;
  std::atomic<bool> possible_;
  std::atomic<bool> final_{false};
  std::function<void(FileId)> drop_attrs_;
  std::atomic<uint64_t> ended_{0};  // moved with the file's record locked
  std::atomic<int> waiting_{0};  // opens that may wait for the target

  core::Mutex mu_;
  core::CondVar work_;
  std::atomic<bool> closed_{false};       // set with mu_ held
  // Direct files with their backing numbers, those without a record any more
  // (deleted) among them; guarded by mu_.
  std::unordered_map<FileId, uint32_t> direct_;
  std::unordered_set<FileId> aliased_;    // guarded by mu_
  std::deque<FileId> over_;               // guarded by mu_
  std::deque<FileId> unseen_;             // guarded by mu_
  bool woken_ = false;                    // guarded by mu_
};

}  // namespace livemv::fusefs
