// Writes (rule 1). Every piece of a write goes where its bytes live; the
// pieces are written in the order of their offsets, so that a short count says
// truly how much was written.

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "core/log.h"
#include "fusefs/data_change.h"
#include "fusefs/data_path.h"

namespace livemv::fusefs {

using core::MutexLock;
using core::Result;
using core::Status;
using state::ByteMap;

namespace {

constexpr int64_t kPredecessorPollNs = 20'000'000;

bool Contains(const std::vector<uint64_t>& sorted, uint64_t chunk) {
  return std::binary_search(sorted.begin(), sorted.end(), chunk);
}

bool HasRemote(const FileRecord& r, uint64_t begin, uint64_t end) {
  if (r.facts.map.RemoteBytes() == 0)
    return false;
  std::vector<ByteMap::Segment> all = r.facts.map.Split(begin, end - begin);
  return std::any_of(all.begin(), all.end(), [](const ByteMap::Segment& s) {
    return s.owner == ByteMap::Owner::kTarget;
  });
}

// What a source says when it has no room for, or no way to, a byte.
bool IsRefusal(int err) {
  return err == ENOSPC || err == EDQUOT || err == EIO;
}

}  // namespace

Result<size_t> DataPath::Write(FileId id, uint64_t off,
                               std::span<const char> data, int open_flags,
                               bool kill_suidgid) {
  if (!Split()) {
    ASSIGN_OR_RETURN(SharedFd fd, AloneFd(id));
    if (kill_suidgid)
      TRY(KillSuidGid(fd));
    if ((open_flags & O_APPEND) != 0)
      return sys_->WriteAppend(fd->Get(), data.data(), data.size());
    return sys_->PWrite(fd->Get(), data.data(), data.size(),
                        static_cast<off_t>(off));
  }
  if (data.empty())
    return size_t{0};
  ASSIGN_OR_RETURN(FileRef r, Loaded(id));
  Touching touching(this, id);
  MutexLock writes(r->write_mu);
  TRY(BeforeChange(*r));
  if (kill_suidgid) {
    ASSIGN_OR_RETURN(SharedFd fd, source_->Path(id));
    TRY(KillSuidGid(fd));
  }
  if ((open_flags & O_APPEND) != 0 && IsDirect(*r)) {
    ASSIGN_OR_RETURN(SharedFd fd, objects_->Data(id));
    return sys_->WriteAppend(fd->Get(), data.data(), data.size());
  }
  if ((open_flags & O_APPEND) != 0) {
    TRY(AwaitPredecessor(*r));  // it may still make the file longer
    MutexLock lock(r->mu);
    off = std::max(off, r->facts.size);
  }
  return WriteSplit(*r, off, data);
}

void DataPath::WaitForCut(FileRecord& r, MutexLock& lock, uint64_t end) {
  while (r.cut && end > *r.cut && ledger_->switches().writes_wait_for_cut)
    r.changed.Wait(lock);
}

void DataPath::WaitForStrays(FileRecord& r, MutexLock& lock, uint64_t begin,
                             uint64_t end) {
  while (ByteLedger::OverlapsAny(r.copier_writes, begin, end) ||
         ByteLedger::OverlapsAny(r.given_up, begin, end))
    r.changed.Wait(lock);
}

Status DataPath::AwaitPredecessor(FileRecord& r) {
  {
    MutexLock lock(r.mu);
    if (!r.facts.pinned || r.facts.fresh)
      return {};
    while (ledger_->PredecessorAlive())
      r.changed.WaitFor(lock, kPredecessorPollNs);
  }
  return ledger_->Load(r);
}

Status DataPath::PrepareTargetAlone(FileRecord& r) {
  TRY(AwaitPredecessor(r));
  bool pinned;
  {
    MutexLock lock(r.mu);
    pinned = r.facts.pinned;
  }
  TRY(ledger_->EnsureObject(r));
  uint64_t object_size = 0;
  if (!pinned) {
    ASSIGN_OR_RETURN(object_size, ledger_->ObjectSize(r));
  }
  return ledger_->Pin(r, object_size, true);
}

Result<size_t> DataPath::WriteSplit(FileRecord& r, uint64_t off,
                                    std::span<const char> data) {
  uint64_t end = off + data.size();
  bool alone;
  {
    MutexLock lock(r.mu);
    alone = end > r.facts.map.local_end() || HasRemote(r, off, end);
  }
  // write_mu is held, so the local end stays where it is.
  if (alone)
    TRY(PrepareTargetAlone(r));
  std::optional<Change> change;
  std::vector<ByteMap::Segment> segments;
  {
    MutexLock lock(r.mu);
    WaitForCut(r, lock, end);
    change.emplace(ledger_, r, off, end);
    segments = r.facts.map.Split(off, data.size());
  }
  ASSIGN_OR_RETURN(std::vector<uint64_t> doubled, DoubledChunks(r, off, end));
  size_t done = 0;
  Status trouble;
  for (const ByteMap::Segment& segment : segments) {
    Result<size_t> n =
        WriteSegment(r, segment.off, data.subspan(done, segment.len),
                     segment.owner == ByteMap::Owner::kTarget, doubled);
    if (!n) {
      trouble = core::Fail(std::move(n).error());
      break;
    }
    done += *n;
    if (*n < segment.len)
      break;
  }
  change.reset();
  WantCopies(r, off, off + done, doubled);
  if (done == 0 && !trouble)
    return core::Fail(std::move(trouble).error());
  return done;
}

Result<std::vector<uint64_t>> DataPath::DoubledChunks(FileRecord& r,
                                                      uint64_t begin,
                                                      uint64_t end) {
  std::vector<uint64_t> doubled;
  state::Seq seq = 0;
  {
    MutexLock lock(r.mu);
    ByteMap::Range chunks = r.facts.map.ChunksIn(begin, end - begin);
    for (uint64_t c = chunks.first; c < chunks.first + chunks.count; c++) {
      if (!ByteLedger::IsDoubled(r, c))
        continue;
      doubled.push_back(c);
      // A provisional chunk that is written is claimed hot.
      if (!r.facts.map.IsCopied(c) || r.facts.map.IsHot(c) ||
          !ledger_->switches().hot_mark)
        continue;
      TRY(ledger_->AppendLocked(r, state::HotFact{r.id, c, 1}));
      r.facts.map.MarkHot(c, 1);
      table_->SetHot(r.id, true);
      seq = r.facts.last_seq;
    }
  }
  if (seq != 0 && ledger_->switches().hot_durable)
    TRY(ledger_->journal()->Sync(seq));
  return doubled;
}

Result<size_t> DataPath::WriteSegment(FileRecord& r, uint64_t off,
                                      std::span<const char> data, bool alone,
                                      const std::vector<uint64_t>& doubled) {
  if (alone)
    return WriteTargetAlone(r, off, data);
  int refused = 0;
  ASSIGN_OR_RETURN(size_t n, WriteSource(r, off, data, &refused));
  DoubleWrite(r, off, data.first(n), doubled);
  if (refused == 0)
    return n;
  Status remote = WriteRefused(r, off + n, data.subspan(n));
  if (remote)
    return data.size();
  LOG_WARN("file {:#x}: neither source ({}) nor target takes {} bytes: {}",
           r.id, core::ErrnoName(refused), data.size() - n,
           remote.error().ToString());
  if (n != 0)
    return n;
  return core::FailSys(refused, "pwrite to the source");
}

Result<size_t> DataPath::WriteSource(FileRecord& r, uint64_t off,
                                     std::span<const char> data,
                                     int* refused) {
  ASSIGN_OR_RETURN(SharedFd fd, source_->Data(r.id));
  size_t done = 0;
  Status trouble;
  while (done < data.size()) {
    auto n = sys_->PWrite(fd->Get(), data.data() + done, data.size() - done,
                          static_cast<off_t>(off + done));
    if (n && *n != 0) {
      done += *n;
      continue;
    }
    int err = n ? EIO : n.error().sys_errno;
    if (IsRefusal(err)) {
      *refused = err;
    } else if (done == 0) {
      // The source file could be opened for reading only.
      trouble = err == EBADF
                    ? core::FailSys(EPERM, "pwrite: the source is immutable")
                    : core::Fail(std::move(n).error().With("source"));
    }
    break;
  }
  MutexLock lock(r.mu);
  ledger_->SourceWrittenLocked(r);
  if (!trouble)
    return core::Fail(std::move(trouble).error());
  return done;
}

void DataPath::DoubleWrite(FileRecord& r, uint64_t off,
                           std::span<const char> data,
                           const std::vector<uint64_t>& doubled) {
  uint64_t end = off + data.size();
  while (off < end) {
    bool both = Contains(doubled, ByteMap::ChunkOf(off));
    uint64_t stop = off;
    while (stop < end && Contains(doubled, ByteMap::ChunkOf(stop)) == both)
      stop = std::min(end, (ByteMap::ChunkOf(stop) + 1) * state::kChunkBytes);
    if (both)
      DoubleRun(r, off, data.first(stop - off));
    data = data.subspan(stop - off);
    off = stop;
  }
}

void DataPath::DoubleRun(FileRecord& r, uint64_t off,
                         std::span<const char> data) {
  // late may be called before this thread learns that it gave up.
  struct GivenUp {
    FileRef record;
    bool returned = false, noted = false;  // guarded by the record's mu
    ByteRange range;
    ByteMap::Range chunks;
  };
  auto given_up = std::make_shared<GivenUp>();
  given_up->record = table_->Get(r.id);
  given_up->range = {off, off + data.size()};
  ByteLedger* ledger = ledger_;
  auto late = [given_up, ledger](Status) {
    FileRecord& file = *given_up->record;
    {
      MutexLock lock(file.mu);
      given_up->returned = true;
      if (!given_up->noted)
        return;
      ByteLedger::RemoveRange(file.given_up, given_up->range);
      file.gens.End(given_up->chunks.first, given_up->chunks.count);
      file.changed.NotifyAll();
    }
    if (ledger->listener() != nullptr)
      ledger->listener()->CopyWanted(file.id, true);
  };
  TargetWriter::Outcome outcome = writer_->Write(
      r.id, data, off, options_.double_write_limit_ns, std::move(late));
  MutexLock lock(r.mu);
  if (outcome.status) {
    r.facts.double_dirty.Dirty();
    return;
  }
  ByteMap::Range chunks = r.facts.map.ChunksIn(off, data.size());
  if (outcome.in_flight && !given_up->returned) {
    given_up->noted = true;
    given_up->chunks = chunks;
    r.given_up.push_back(given_up->range);
    r.gens.Begin(chunks.first, chunks.count);
  }
  LOG_WARN("file {:#x}: double write given up: {}", r.id,
           outcome.status.error().ToString());
  if (!ledger_->switches().withdraw_on_failure)
    return;
  Status withdrawn = ledger_->WithdrawLocked(r, chunks.first, chunks.count);
  // A journal that takes no record fails every later call too, so nothing can
  // be acknowledged as durable any more.
  if (!withdrawn)
    LOG_ERROR("file {:#x}: withdrawing: {}", r.id,
              withdrawn.error().ToString());
}

Status DataPath::WriteRefused(FileRecord& r, uint64_t off,
                              std::span<const char> data) {
  ByteRange range{off, off + data.size()};
  TRY(PrepareTargetAlone(r));
  {
    MutexLock lock(r.mu);
    // A pin may have found bytes of a lost life, which are cut first.
    while (r.cut)
      r.changed.Wait(lock);
    // Rule 1: a dead worker's double write may still land here.
    while (ledger_->PredecessorAlive())
      r.changed.WaitFor(lock, kPredecessorPollNs);
    r.becoming_remote.push_back(range);
    ByteMap::Range chunks = r.facts.map.ChunksIn(off, data.size());
    for (uint64_t c = chunks.first; c < chunks.first + chunks.count; c++)
      r.stale.insert(c);
    WaitForStrays(r, lock, range.begin, range.end);
  }
  auto act = [&]() -> Status {
    TRY(TouchTimes(r));
    ASSIGN_OR_RETURN(SharedFd fd, objects_->Data(r.id));
    TRY(PWriteAll(sys_, fd->Get(), data, off));
    if (ledger_->switches().remote_after_fsync)
      TRY(ledger_->SyncObject(r, true));
    return {};
  };
  Status status = act();
  MutexLock lock(r.mu);
  ByteLedger::RemoveRange(r.becoming_remote, range);
  if (!status)
    return status;
  TRY(ledger_->AppendLocked(r, state::RemoteFact{r.id, off, data.size()}));
  r.facts.map.MakeRemote(off, data.size());
  r.facts.alone_dirty.Dirty();
  r.remote_back = false;
  r.version++;
  table_->Account(&r);
  return {};
}

Result<size_t> DataPath::WriteTargetAlone(FileRecord& r, uint64_t off,
                                          std::span<const char> data) {
  // The source's times speak for both, and must not be the older ones.
  TRY(TouchTimes(r));
  uint64_t local_end;
  {
    MutexLock lock(r.mu);
    WaitForStrays(r, lock, off, off + data.size());
    local_end = r.facts.map.local_end();
  }
  ASSIGN_OR_RETURN(SharedFd fd, objects_->Data(r.id));
  size_t done = 0;
  Status trouble;
  while (done < data.size()) {
    auto n = sys_->PWrite(fd->Get(), data.data() + done, data.size() - done,
                          static_cast<off_t>(off + done));
    if (!n || *n == 0) {
      trouble = n ? core::FailSys(EIO, "pwrite to the target wrote nothing")
                  : core::Fail(std::move(n).error().With("target"));
      break;
    }
    done += *n;
  }
  // Remote bytes that an abort has brought back live on both sides.
  bool back_failed = false;
  if (off < local_end && done != 0) {
    bool back;
    {
      MutexLock lock(r.mu);
      back = r.remote_back;
    }
    if (back) {
      // The source never reaches past its local end.
      const size_t below = std::min<uint64_t>(done, local_end - off);
      int refused = 0;
      auto n = WriteSource(r, off, data.first(below), &refused);
      back_failed = !n || *n < below;
    }
  }
  MutexLock lock(r.mu);
  if (back_failed)
    r.remote_back = false;
  r.facts.alone_dirty.Dirty();
  if (off + done > r.facts.size && done != 0) {
    r.facts.size = off + done;
    if (!std::exchange(r.facts.grown, true))
      table_->SetGrown(r.id);
  }
  if (done == 0 && !trouble)
    return core::Fail(std::move(trouble).error());
  return done;
}

void DataPath::WantCopies(FileRecord& r, uint64_t begin, uint64_t end,
                          const std::vector<uint64_t>& doubled) {
  if (begin >= end || serving_ != Serving::kRedirect)
    return;
  bool any = false;
  {
    MutexLock lock(r.mu);
    ByteMap::Range chunks = r.facts.map.ChunksIn(begin, end - begin);
    for (uint64_t c = chunks.first; c < chunks.first + chunks.count; c++) {
      if (Contains(doubled, c) || !r.facts.map.WantsCopy(c))
        continue;
      r.urgent.insert(c);
      any = true;
    }
  }
  if (any && ledger_->listener() != nullptr)
    ledger_->listener()->CopyWanted(r.id, true);
}

}  // namespace livemv::fusefs
