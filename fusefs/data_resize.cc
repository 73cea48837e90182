// Truncate and fallocate (rule 1).

#include <fcntl.h>
#include <linux/falloc.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/log.h"
#include "fusefs/data_change.h"
#include "fusefs/data_path.h"

namespace livemv::fusefs {

using core::MutexLock;
using core::Result;
using core::Status;
using state::ByteMap;

Status DataPath::Truncate(FileId id, uint64_t size, bool kill_suidgid) {
  if (!IsSplit(id)) {
    ASSIGN_OR_RETURN(SharedFd fd, AloneFd(id));
    if (kill_suidgid)
      TRY(KillSuidGid(fd));
    return sys_->FTruncate(fd->Get(), size);
  }
  ASSIGN_OR_RETURN(FileRef r, Loaded(id));
  Touching touching(this, id);
  MutexLock writes(r->write_mu);
  TRY(BeforeChange(*r));
  if (kill_suidgid) {
    ASSIGN_OR_RETURN(SharedFd fd, source_->Path(id));
    TRY(KillSuidGid(fd));
  }
  if (IsDirect(*r))
    return ResizeDirect(*r, size);
  uint64_t old_size;
  {
    MutexLock lock(r->mu);
    old_size = r->facts.size;
  }
  // A shorter size is kept by its cut, which waits by itself.
  if (size >= old_size) {
    TRY(AwaitPredecessor(*r));
    MutexLock lock(r->mu);
    old_size = r->facts.size;
  }
  Status status;
  if (size < old_size)
    status = Shrink(*r, size);
  else if (size > old_size)
    status = Extend(*r, size);
  else
    status = TouchTimes(*r);
  return status;
}

// No cut may be owed that would come after the kernel's own writes, and none is
// needed: the local end is 0 already, and like any truncate this one is durable
// by the next fsync. The kernel lets no write in meanwhile (fs/fuse/dir.c and
// passthrough.c take the inode's lock).
Status DataPath::ResizeDirect(FileRecord& r, uint64_t size) {
  TRY(AwaitPredecessor(r));
  ASSIGN_OR_RETURN(SharedFd fd, objects_->Data(r.id));
  if (Status resized = sys_->FTruncate(fd->Get(), size); !resized)
    return core::Fail(std::move(resized).error().With("target"));
  MutexLock lock(r.mu);
  r.facts.size = size;
  r.facts.alone_dirty.Dirty();
  return {};
}

Status DataPath::ShrinkImplicit(FileRecord& r, uint64_t size) {
  ASSIGN_OR_RETURN(SharedFd fd, source_->Data(r.id));
  std::optional<Change> change;
  {
    MutexLock lock(r.mu);
    change.emplace(ledger_, r, size, r.facts.size);
  }
  TRY(sys_->FTruncate(fd->Get(), size));
  MutexLock lock(r.mu);
  r.facts.map = ByteMap(size);
  r.facts.size = size;
  r.version++;
  ledger_->SourceWrittenLocked(r);
  lock.unlock();
  change.reset();
  return {};
}

Status DataPath::Shrink(FileRecord& r, uint64_t size) {
  std::optional<Change> change;
  uint64_t old_end;
  state::Seq seq;
  {
    MutexLock lock(r.mu);
    if (!r.facts.pinned) {
      lock.unlock();
      return ShrinkImplicit(r, size);
    }
    old_end = r.facts.map.local_end();
    uint64_t new_end = std::min(old_end, size);
    uint64_t cut = std::min(size, r.cut.value_or(size));
    TRY(ledger_->AppendLocked(r, state::CutFact{r.id, cut, new_end}));
    seq = r.facts.last_seq;
    change.emplace(ledger_, r, size, std::max(r.facts.size, old_end),
                   ledger_->switches().shrink_moves_back);
    r.facts.map.ShrinkTo(new_end);
    r.provisional.erase(r.provisional.lower_bound(r.facts.map.Chunks()),
                        r.provisional.end());
    r.urgent.erase(r.urgent.lower_bound(r.facts.map.Chunks()), r.urgent.end());
    r.cut = cut;
    r.facts.size = size;
    r.facts.size_known = true;  // whatever the object says is cut
    r.version++;
    table_->Account(&r);
  }
  if (old_end > size)
    table_->SetUntrimmed(r.id, true);
  Status status;
  // The record first, durably: a source that came back shorter than its local
  // end would be read as zeros.
  if (ledger_->switches().cut_durable_first)
    status = ledger_->journal()->Sync(seq);
  if (status && old_end > size) {
    auto fd = source_->Data(r.id);
    Status cut = fd ? sys_->FTruncate((*fd)->Get(), size)
                    : core::Fail(std::move(fd).error());
    // The file is shorter by the journal's word; nobody reads what the source
    // keeps behind its local end, and a copy-back trims it.
    if (cut)
      table_->SetUntrimmed(r.id, false);
    else
      LOG_WARN("file {:#x}: truncating the source: {}", r.id,
               cut.error().ToString());
  } else if (status) {
    status = TouchTimes(r);
  }
  {
    MutexLock lock(r.mu);
    ledger_->SourceWrittenLocked(r);
    r.facts.alone_dirty.Dirty();
  }
  change.reset();
  table_->SetCutOwed(r.id, true);
  return status;
}

Status DataPath::Extend(FileRecord& r, uint64_t size) {
  TRY(PrepareTargetAlone(r));
  std::optional<Change> change;
  {
    MutexLock lock(r.mu);
    while (r.cut && ledger_->switches().extends_wait_for_cut)
      r.changed.Wait(lock);
    WaitForStrays(r, lock, r.facts.map.local_end(), size);
    change.emplace(ledger_, r, r.facts.size, size);
  }
  ASSIGN_OR_RETURN(SharedFd fd, objects_->Data(r.id));
  // A size that is too much for the target has changed nothing, times neither.
  if (Status grown = sys_->FTruncate(fd->Get(), size); !grown)
    return core::Fail(std::move(grown).error().With("target"));
  MutexLock lock(r.mu);
  r.facts.size = size;
  r.facts.alone_dirty.Dirty();
  if (!std::exchange(r.facts.grown, true))
    table_->SetGrown(r.id);
  lock.unlock();
  change.reset();
  return TouchTimes(r);
}

Status DataPath::FAllocate(FileId id, int mode, uint64_t off, uint64_t len) {
  int what = mode & ~FALLOC_FL_KEEP_SIZE;
  if (what != 0 && what != FALLOC_FL_PUNCH_HOLE &&
      what != FALLOC_FL_ZERO_RANGE)
    return core::FailSys(EOPNOTSUPP,
                         "fallocate: shifting or unsharing a file's bytes is "
                         "not possible while they are split");
  if (len == 0)
    return core::FailSys(EINVAL, "fallocate of nothing");
  if (!IsSplit(id)) {
    ASSIGN_OR_RETURN(SharedFd fd, AloneFd(id));
    return sys_->FAllocate(fd->Get(), mode, off, len);
  }
  ASSIGN_OR_RETURN(FileRef r, Loaded(id));
  Touching touching(this, id);
  MutexLock writes(r->write_mu);
  TRY(BeforeChange(*r));
  return AllocateSplit(*r, mode, off, len);
}

Status DataPath::AllocateSplit(FileRecord& r, int mode, uint64_t off,
                               uint64_t len) {
  uint64_t end = off + len;
  bool clears = (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0;
  bool keep_size = (mode & FALLOC_FL_KEEP_SIZE) != 0;
  bool alone;
  {
    MutexLock lock(r.mu);
    alone = end > r.facts.map.local_end() || r.facts.map.RemoteBytes() != 0;
  }
  if (alone)
    TRY(AwaitPredecessor(r));
  {
    MutexLock lock(r.mu);
    if (clears && keep_size) {  // past the size there is nothing to clear
      end = std::min(end, r.facts.size);
      if (off >= end) {
        lock.unlock();
        return TouchTimes(r);
      }
    }
    alone = end > r.facts.map.local_end();
  }
  if (alone)
    TRY(PrepareTargetAlone(r));
  std::optional<Change> change;
  std::vector<ByteMap::Segment> segments;
  {
    MutexLock lock(r.mu);
    WaitForCut(r, lock, end);
    change.emplace(ledger_, r, off, end);
    segments = r.facts.map.Split(off, end - off);
  }
  ASSIGN_OR_RETURN(std::vector<uint64_t> doubled, DoubledChunks(r, off, end));
  // The target's part first: it is the one that may not know how, and then
  // nothing has been done.
  bool remote = false;
  for (const ByteMap::Segment& segment : segments) {
    if (segment.owner == ByteMap::Owner::kSource)
      continue;
    uint64_t seg_end = segment.off + segment.len;
    remote = remote || segment.off < r.facts.map.local_end();
    {
      MutexLock lock(r.mu);
      WaitForStrays(r, lock, segment.off, seg_end);
    }
    TRY(TouchTimes(r));
    ASSIGN_OR_RETURN(SharedFd fd, objects_->Data(r.id));
    Status done = sys_->FAllocate(fd->Get(), mode, segment.off, segment.len);
    if (!done)
      return core::Fail(std::move(done).error().With("target"));
    MutexLock lock(r.mu);
    r.facts.alone_dirty.Dirty();
    r.remote_back = false;
    if (!keep_size && seg_end > r.facts.size) {
      r.facts.size = seg_end;
      if (!std::exchange(r.facts.grown, true))
        table_->SetGrown(r.id);
    }
  }
  for (const ByteMap::Segment& segment : segments) {
    if (segment.owner == ByteMap::Owner::kTarget)
      continue;
    ASSIGN_OR_RETURN(SharedFd fd, source_->Data(r.id));
    // Nothing below the local end changes the size.
    Status done = sys_->FAllocate(fd->Get(), mode | FALLOC_FL_KEEP_SIZE,
                                  segment.off, segment.len);
    MutexLock lock(r.mu);
    ledger_->SourceWrittenLocked(r);
    if (clears) {
      // The object still has the old bytes: the copier brings the hole.
      ByteMap::Range chunks =
          r.facts.map.ChunksIn(segment.off, segment.len);
      TRY(ledger_->WithdrawLocked(r, chunks.first, chunks.count));
    }
    if (!done)
      return core::Fail(std::move(done).error().With("source"));
  }
  change.reset();
  if (clears)
    WantCopies(r, off, end, {});
  return {};
}

}  // namespace livemv::fusefs
