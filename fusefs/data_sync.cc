// fsync and flush (rule 2).

#include <cerrno>
#include <memory>
#include <utility>

#include "core/log.h"
#include "fusefs/data_path.h"

namespace livemv::fusefs {

using core::MutexLock;
using core::Result;
using core::Status;

Status DataPath::FSync(FileId id, bool data_only) {
  if (IsSplit(id)) {
    if (FileRef r = table_->Find(id)) {
      TRY(ledger_->Load(*r));
      return SyncSplit(*r, data_only);
    }
  }
  ASSIGN_OR_RETURN(SharedFd fd, Split() ? source_->Data(id) : AloneFd(id));
  return data_only ? sys_->FDataSync(fd->Get()) : sys_->FSync(fd->Get());
}

Status DataPath::SyncSplit(FileRecord& r, bool data_only) {
  SafetySwitches& on = ledger_->switches();
  uint32_t source_mark, alone_mark, double_mark;
  bool source, alone, doubles;
  {
    MutexLock lock(r.mu);
    source_mark = r.facts.source_dirty.Mark();
    alone_mark = r.facts.alone_dirty.Mark();
    double_mark = r.facts.double_dirty.Mark();
    source = r.facts.source_dirty.IsDirty();
    alone = OwesAlone(r);
    doubles = r.facts.double_dirty.IsDirty() && r.facts.pinned;
  }
  if (source && on.fsync_source) {
    ASSIGN_OR_RETURN(SharedFd fd, source_->Data(r.id));
    if (Status done = data_only ? sys_->FDataSync(fd->Get())
                                : sys_->FSync(fd->Get());
        !done)
      return core::Fail(std::move(done).error().With("source"));
    MutexLock lock(r.mu);
    r.facts.source_dirty.Cleaned(source_mark);
  }
  if (alone && on.fsync_target) {
    TRY(SyncAlone(r, alone_mark, double_mark));
  } else if (doubles && on.fsync_target) {
    TRY(SyncDoubles(r));
    MutexLock lock(r.mu);
    r.facts.double_dirty.Cleaned(double_mark);
  }
  if (on.fsync_journal) {
    state::Seq seq;
    bool all;
    {
      MutexLock lock(r.mu);
      seq = r.facts.last_seq;
      all = std::exchange(r.facts.sync_all, false);
    }
    Status synced;
    if (all)
      synced = ledger_->journal()->SyncAll();
    else if (seq != 0)
      synced = ledger_->journal()->Sync(seq);
    if (!synced) {
      MutexLock lock(r.mu);
      r.facts.sync_all = all;
      return synced;
    }
  }
  MutexLock lock(r.mu);
  if (int error = std::exchange(r.fsync_error, 0); error != 0)
    return core::FailSys(error, "fsync: the target lost bytes meanwhile");
  return {};
}

// Whether the target alone has bytes of r that may not be durable; r.mu held.
bool DataPath::OwesAlone(const FileRecord& r) {
  if (r.direct)
    return true;  // written unseen
  return r.facts.alone_dirty.IsDirty() &&
         (r.facts.size > r.facts.map.local_end() ||
          r.facts.map.RemoteBytes() != 0);
}

Status DataPath::SyncAlone(FileRecord& r, uint32_t alone_mark,
                           uint32_t double_mark) {
  TRY(ledger_->SyncObject(r, true));
  MutexLock lock(r.mu);
  r.facts.alone_dirty.Cleaned(alone_mark);
  r.facts.double_dirty.Cleaned(double_mark);
  return {};
}

// The source has all of it: a target that fails or hangs costs the claims.
Status DataPath::SyncDoubles(FileRecord& r) {
  int64_t limit = options_.double_write_limit_ns;
  Status status;
  if (!ledger_->BeginSync(r, limit)) {
    status = core::Fail(core::ErrorCode::kTimeout, "fsync of the target");
    return ledger_->TargetSyncFailed(r, EIO, false);
  }
  struct GivenUp {
    FileRef record;
    bool returned = false, noted = false;  // guarded by the record's mu
  };
  auto given_up = std::make_shared<GivenUp>();
  given_up->record = table_->Get(r.id);
  ByteLedger* ledger = ledger_;
  auto late = [given_up, ledger](Status result) {
    FileRecord& file = *given_up->record;
    if (!result) {
      Status after = ledger->TargetSyncFailed(file, result.error().Errno());
      if (!after)
        LOG_ERROR("file {:#x}: withdrawing: {}", file.id,
                  after.error().ToString());
    }
    {
      MutexLock lock(file.mu);
      given_up->returned = true;
      if (!given_up->noted)
        return;
      file.late_syncs--;
    }
    if (ledger->listener() != nullptr)
      ledger->listener()->CopyWanted(file.id, false);
  };
  TargetWriter::Outcome outcome = writer_->FSync(r.id, limit, std::move(late));
  if (outcome.in_flight) {
    MutexLock lock(r.mu);
    if (!given_up->returned) {
      given_up->noted = true;
      r.late_syncs++;
    }
  }
  Status after;
  if (!outcome.status) {
    LOG_WARN("file {:#x}: fsync of double writes: {}", r.id,
             outcome.status.error().ToString());
    after = ledger_->TargetSyncFailed(r, outcome.status.error().Errno(),
                                      false);
  }
  ledger_->EndSync(r);
  return after;
}

Status DataPath::Flush(FileId id) {
  if (!ledger_->tells_at_close())
    return {};
  if (serving_ == Serving::kTargetOnly) {
    ASSIGN_OR_RETURN(SharedFd fd, AloneFd(id));
    return sys_->FSync(fd->Get());
  }
  if (!Split())
    return {};
  FileRef r = table_->Find(id);
  if (!r)
    return {};
  MutexLock lock(r->mu);
  if (OwesAlone(*r)) {
    const uint32_t alone_mark = r->facts.alone_dirty.Mark();
    const uint32_t double_mark = r->facts.double_dirty.Mark();
    lock.unlock();
    TRY(SyncAlone(*r, alone_mark, double_mark));
    lock.lock();
  }
  if (int error = std::exchange(r->flush_error, 0); error != 0)
    return core::FailSys(error, "close: the target lost bytes");
  return {};
}

}  // namespace livemv::fusefs
