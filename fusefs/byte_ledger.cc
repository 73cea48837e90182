#include "fusefs/byte_ledger.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/log.h"

namespace livemv::fusefs {

using core::MutexLock;
using core::Result;
using core::Status;
using state::ByteMap;

ByteLedger::ByteLedger(FileTable* table, SourceTree* source,
                       ObjectStore* objects, state::Journal* journal)
    : table_(table), source_(source), objects_(objects), journal_(journal) {}

void ByteLedger::SetPredecessorAlive(bool alive) {
  predecessor_alive_.store(alive);
  if (listener_ != nullptr)
    listener_->PredecessorAlive(alive);
  if (!alive)
    table_->WakeCutter();
}

Status ByteLedger::AppendLocked(FileRecord& r, const state::Fact& fact) {
  if (r.forgotten)
    return {};
  ASSIGN_OR_RETURN(r.facts.last_seq, journal_->Append(fact));
  return {};
}

// Under the record's mutex, so that its other facts are all before this one.
Status ByteLedger::Forget(FileId id) {
  FileRef r = table_->Get(id);
  MutexLock lock(r->mu);
  TRY(AppendLocked(*r, state::ForgottenFact{id}));
  table_->Forget(&*r);
  return {};
}

Status ByteLedger::NothingToPutBack(FileRecord& r) {
  state::Seq seq = 0;
  {
    MutexLock lock(r.mu);
    if (r.put_back) {
      const bool journaled = r.put_back_journaled;
      TRY(PutBackDoneLocked(r));
      if (journaled)
        seq = r.facts.last_seq;
    }
    if (r.back_range && !r.forgotten) {
      r.put_back = PutBackNow(r.id);
      table_->SetToPutBack(r.id, true);
    }
  }
  return seq == 0 ? Status{} : journal_->Sync(seq);
}

state::PutBackFact ByteLedger::PutBackNow(FileId id) {
  const int64_t now = sys()->RealtimeNs();
  return {id, static_cast<uint64_t>(now / 1'000'000'000),
          static_cast<uint32_t>(now % 1'000'000'000), {}};
}

Status ByteLedger::ToPutBackLocked(FileRecord& r, state::PutBackFact fact,
                                   bool done) {
  if (r.forgotten)
    return {};
  TRY(AppendLocked(r, fact));
  r.put_back = std::move(fact);
  r.put_back_journaled = true;
  r.put_back_done = done;
  table_->SetToPutBack(r.id, true);
  return {};
}

Status ByteLedger::PutBackDoneLocked(FileRecord& r) {
  if (r.put_back_journaled)
    TRY(AppendLocked(r, state::PutBackDoneFact{r.id}));
  r.put_back.reset();
  r.put_back_journaled = r.put_back_done = false;
  table_->SetToPutBack(r.id, false);
  return {};
}

bool ByteLedger::OverlapsAny(const std::vector<ByteRange>& ranges,
                             uint64_t begin, uint64_t end) {
  return std::any_of(ranges.begin(), ranges.end(), [&](const ByteRange& r) {
    return r.Overlaps(begin, end);
  });
}

void ByteLedger::RemoveRange(std::vector<ByteRange>& ranges, ByteRange range) {
  auto it = std::find(ranges.begin(), ranges.end(), range);
  if (it != ranges.end())
    ranges.erase(it);
}

// ------------------------------------------------------- size and local end

Status ByteLedger::Load(FileRecord& r) {
  bool pinned;
  std::optional<uint64_t> cut;
  {
    MutexLock lock(r.mu);
    if (r.facts.size_known && !r.direct)
      return {};
    pinned = r.facts.pinned;
    cut = r.cut;
  }
  uint64_t size = 0;
  // A dead worker's write may still make the object longer, so that what the
  // object says now is good for this once.
  bool final = !pinned || !predecessor_alive_.load();
  if (!pinned) {
    ASSIGN_OR_RETURN(SharedFd fd, source_->Path(r.id));
    ASSIGN_OR_RETURN(core::Stat st, sys()->StatAt(fd->Get(), "", STATX_SIZE));
    size = st.stx_size;
  } else if (objects_->Find(r.id)) {
    // An object that a power cut took, and the size with it, is not found.
    if (cut) {
      size = *cut;
      final = true;
    } else {
      ASSIGN_OR_RETURN(size, ObjectSize(r));
    }
  }
  MutexLock lock(r.mu);
  if (r.direct) {
    r.facts.size = size;
    return {};
  }
  if (r.facts.size_known)
    return {};
  if (r.facts.pinned) {
    // The map was pinned between: whoever did that knew the size.
    CHECK(pinned);
    r.facts.size = std::max(r.facts.map.local_end(), size);
  } else {
    r.facts.map = ByteMap(size);
    r.facts.size = size;
  }
  r.facts.size_known = final;
  return {};
}

Result<Object> ByteLedger::EnsureObject(FileRecord& r) {
  if (std::optional<Object> object = objects_->Find(r.id))
    return *object;
  ASSIGN_OR_RETURN(SharedFd fd, source_->Path(r.id));
  ASSIGN_OR_RETURN(core::Stat st, sys()->StatAt(fd->Get(), ""));
  ASSIGN_OR_RETURN(Object object, objects_->Ensure(r.id, st));
  MutexLock lock(r.mu);
  r.facts.sync_all = true;
  return object;
}

Result<uint64_t> ByteLedger::ObjectSize(FileRecord& r) {
  ASSIGN_OR_RETURN(SharedFd fd, objects_->Path(r.id));
  ASSIGN_OR_RETURN(core::Stat st, sys()->StatAt(fd->Get(), "", STATX_SIZE));
  return uint64_t{st.stx_size};
}

Status ByteLedger::Pin(FileRecord& r, uint64_t object_size, bool durable) {
  {
    MutexLock lock(r.mu);
    if (!r.facts.pinned) {
      CHECK(r.facts.size_known);
      // After a power cut the object may hold bytes of a life that the journal
      // has lost, past what is now the local end: they are cut.
      uint64_t size = r.facts.size;
      const bool cut = object_size > 0 && switches_.leftovers_cut;
      if (cut)
        TRY(AppendLocked(r, state::CutFact{r.id, size, size}));
      else
        TRY(AppendLocked(r, state::LocalEndFact{r.id, size}));
      r.facts.pinned = true;
      r.facts.pin_durable = false;
      r.facts.pin_seq = r.facts.last_seq;
      r.facts.fresh = object_size == 0;
      r.version++;
      if (cut) {
        r.cut = size;
        table_->SetCutOwed(r.id, true);
      }
      table_->Account(&r);
    }
  }
  if (!durable)
    return {};
  state::Seq seq;
  {
    MutexLock lock(r.mu);
    if (r.facts.pin_durable)
      return {};
    seq = r.facts.pin_seq;
  }
  if (switches_.pin_durable)
    TRY(journal_->Sync(seq));
  MutexLock lock(r.mu);
  r.facts.pin_durable = true;
  return {};
}

// --------------------------------------------------------- claims, failures

Status ByteLedger::WithdrawLocked(FileRecord& r, uint64_t first,
                                  uint64_t count) {
  uint64_t end = std::min(first + count, r.facts.map.Chunks());
  bool any = false;
  for (uint64_t c = first; c < end; c++) {
    if (IsDoubled(r, c)) {
      any = true;
      r.stale.insert(c);
    }
    if (!r.facts.map.IsCopied(c))
      continue;
    uint64_t run = c;
    while (run < end && r.facts.map.IsCopied(run))
      r.stale.insert(run++);
    TRY(AppendLocked(r, state::WithdrawnFact{r.id, c, run - c}));
    r.facts.map.Withdraw(c, run - c);
    c = run - 1;
  }
  auto it = r.provisional.lower_bound(first);
  while (it != r.provisional.end() && it->first < end)
    it = r.provisional.erase(it);
  if (any) {
    table_->Account(&r);
    if (listener_ != nullptr)
      listener_->CopyWanted(r.id, true);
  }
  return {};
}

Status ByteLedger::TargetSyncFailed(FileRecord& r, int err, bool keep) {
  MutexLock lock(r.mu);
  if (switches_.failed_fsync_moves)
    r.gens.MoveAll();
  bool alone = r.facts.size > r.facts.map.local_end() ||
               r.facts.map.RemoteBytes() != 0 || r.direct;
  if (keep && alone && r.facts.size_known) {
    r.fsync_error = err;
    if (tells_at_close_)
      r.flush_error = err;
  }
  if (!switches_.failed_fsync_withdraws)
    return {};
  for (const ByteMap::Range& range : r.facts.map.HotRanges())
    TRY(WithdrawLocked(r, range.first, range.count));
  while (!r.provisional.empty())
    TRY(WithdrawLocked(r, r.provisional.begin()->first, 1));
  return {};
}

Status ByteLedger::TargetSyncFsFailed() {
  // Each file's own error is still to be told by an fsync of that file, so
  // none is kept here. A chunk that is being copied is in no set yet.
  for (const auto& files : {table_->HotFiles(), table_->LiveFiles()})
    for (FileId id : files)
      if (FileRef r = table_->Find(id))
        TRY(TargetSyncFailed(*r, EIO, false));
  return {};
}

Status ByteLedger::SyncTarget() {
  // One at a time: a second syncfs that succeeds because the first one was
  // told the error must come after the first one's consequences.
  MutexLock lock(syncfs_mu_);
  Status status = sys()->SyncFs(objects_->RootFd());
  if (status)
    return status;
  TRY(TargetSyncFsFailed());
  return core::Fail(std::move(status).error().With("target"));
}

bool ByteLedger::BeginSync(FileRecord& r, int64_t limit_ns) {
  int64_t deadline = limit_ns < 0 ? -1 : sys()->MonotonicNs() + limit_ns;
  MutexLock lock(r.mu);
  while (r.syncing) {
    int64_t left = deadline < 0 ? -1 : deadline - sys()->MonotonicNs();
    if (deadline >= 0 && left <= 0)
      return false;
    r.changed.WaitFor(lock, left);
  }
  r.syncing = true;
  return true;
}

void ByteLedger::EndSync(FileRecord& r) {
  MutexLock lock(r.mu);
  r.syncing = false;
  r.changed.NotifyAll();
}

Status ByteLedger::SyncObject(FileRecord& r, bool deliver) {
  ASSIGN_OR_RETURN(SharedFd fd, objects_->Data(r.id));
  BeginSync(r, -1);
  Status status = sys()->FSync(fd->Get());
  Status after;
  if (!status)
    after = TargetSyncFailed(r, status.error().Errno(), !deliver);
  EndSync(r);
  TRY(after);
  if (!status)
    return core::Fail(std::move(status).error().With("target object"));
  return {};
}

bool ByteLedger::ProvideLocked(FileRecord& r, uint64_t chunk, uint64_t since) {
  if (predecessor_alive_.load() || chunk >= r.facts.map.Chunks())
    return false;
  if (switches_.generation && r.gens.Moved(chunk, since))
    return false;
  if (switches_.in_flight_check && r.gens.InFlight(chunk))
    return false;
  r.provisional[chunk] = r.gens.Now();
  r.urgent.erase(chunk);
  table_->SetHot(r.id, true);
  return true;
}

Result<uint64_t> ByteLedger::ClaimLocked(FileRecord& r,
                                         std::span<const uint64_t> chunks) {
  if (predecessor_alive_.load() || r.late_syncs != 0)
    return uint64_t{0};
  bool dirty = r.facts.source_epoch >= source_synced_.load();
  uint64_t claimed = 0;
  state::CopiedFact run{r.id, 0, 0, false};
  auto flush = [&]() -> Status {
    if (run.count == 0)
      return {};
    TRY(AppendLocked(r, run));
    r.facts.map.MarkCopied(run.first, run.count, run.hot);
    claimed += run.count;
    run.count = 0;
    return {};
  };
  for (uint64_t chunk : chunks) {
    auto it = r.provisional.find(chunk);
    if (it == r.provisional.end() || chunk >= r.facts.map.Chunks())
      continue;
    // A write since then went to both sides, but is not covered by syncs.
    bool hot = dirty || r.gens.Moved(chunk, it->second) ||
               r.gens.InFlight(chunk);
    if (!switches_.claim_hot_if_dirty)
      hot = false;
    r.provisional.erase(it);
    r.stale.erase(chunk);
    if (run.count != 0 && (run.first + run.count != chunk || run.hot != hot))
      TRY(flush());
    if (run.count == 0)
      run = {r.id, chunk, 0, hot};
    run.count++;
  }
  TRY(flush());
  if (claimed != 0)
    table_->Account(&r);
  return claimed;
}

// ----------------------------------------------------- source syncs, barrier

void ByteLedger::SourceWrittenLocked(FileRecord& r) {
  r.facts.source_dirty.Dirty();
  r.facts.source_epoch = source_epoch_.load();
}

uint32_t ByteLedger::BeginSourceSync() { return source_epoch_.fetch_add(1); }

void ByteLedger::EndSourceSync(uint32_t epoch, bool ok) {
  uint32_t now = source_synced_.load();
  while (ok && now < epoch + 1 &&
         !source_synced_.compare_exchange_weak(now, epoch + 1)) {
  }
}

ByteLedger::UnmarkRound ByteLedger::BeginUnmark() {
  UnmarkRound round;
  for (FileId id : table_->HotFiles()) {
    FileRef r = table_->Find(id);
    if (!r)
      continue;
    MutexLock lock(r->mu);
    UnmarkRound::File file{id, r->gens.Now(), {}};
    for (const ByteMap::Range& range : r->facts.map.HotRanges()) {
      uint64_t from = range.first;
      for (uint64_t c = range.first; c <= range.first + range.count; c++) {
        if (c < range.first + range.count && !r->gens.InFlight(c))
          continue;
        if (c > from)
          file.chunks.push_back({from, c - from});
        from = c + 1;
      }
    }
    if (!file.chunks.empty())
      round.files.push_back(std::move(file));
    else if (!r->facts.map.AnyHot() && r->provisional.empty())
      table_->SetHot(id, false);
  }
  return round;
}

Status ByteLedger::FinishUnmark(const UnmarkRound& round) {
  for (const UnmarkRound::File& file : round.files) {
    FileRef r = table_->Find(file.id);
    if (!r)
      continue;
    MutexLock lock(r->mu);
    for (const ByteMap::Range& range : file.chunks) {
      uint64_t end =
          std::min(range.first + range.count, r->facts.map.Chunks());
      auto still = [&](uint64_t c) {
        return r->facts.map.IsHot(c) &&
               (!switches_.unmark_rechecks ||
                (!r->gens.Moved(c, file.since) && !r->gens.InFlight(c)));
      };
      for (uint64_t c = range.first; c < end; c++) {
        uint64_t run = c;
        while (run < end && still(run))
          run++;
        if (run == c)
          continue;
        TRY(AppendLocked(*r, state::UnhotFact{r->id, c, run - c}));
        r->facts.map.Unhot(c, run - c);
        c = run;
      }
    }
    if (!r->facts.map.AnyHot() && r->provisional.empty())
      table_->SetHot(r->id, false);
  }
  return {};
}

Status ByteLedger::RecordSizes() {
  for (FileId id : table_->TakeGrown()) {
    FileRef r = table_->Find(id);
    if (!r)
      continue;
    MutexLock lock(r->mu);
    r->facts.grown = false;
    if (r->facts.pinned && !r->cut)
      TRY(AppendLocked(*r, state::ObjectSizeFact{id, r->facts.size}));
  }
  return {};
}

Status ByteLedger::Barrier() {
  UnmarkRound round = BeginUnmark();
  if (switches_.unmark_after_sync) {
    uint32_t epoch = BeginSourceSync();
    Status source = sys()->SyncFs(source_->RootFd());
    EndSourceSync(epoch, source.has_value());
    if (!source)
      return core::Fail(std::move(source).error().With("source"));
    TRY(SyncTarget());
  }
  TRY(FinishUnmark(round));
  return RecordSizes();
}

}  // namespace livemv::fusefs
