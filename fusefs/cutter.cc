#include "fusefs/cutter.h"

#include <utility>

#include "core/log.h"

namespace livemv::fusefs {

using core::MutexLock;
using core::Status;

namespace {
// How long a cut that could not be done waits for the next try.
constexpr int64_t kRetryNs = 5'000'000;
constexpr int64_t kTroubleRetryNs = 200'000'000;
}  // namespace

bool Cutter::Step() {
  trouble_ = false;
  bool any = false;
  for (FileId id : ledger_->table()->CutsOwed()) {
    bool done = false;
    Status status = CutOne(id, &done);
    any = any || done;
    if (!status) {
      trouble_ = true;
      LOG_WARN("file {:#x}: cutting the object: {}", id,
               status.error().ToString());
    }
  }
  return any;
}

void Cutter::Run(const std::atomic<bool>& stop) {
  while (!stop.load()) {
    Step();
    if (stop.load())
      return;
    int64_t wait = trouble_ ? kTroubleRetryNs : Idle() ? -1 : kRetryNs;
    ledger_->table()->WaitForCuts(wait);
  }
}

Status Cutter::CutOne(FileId id, bool* done) {
  if (ledger_->PredecessorAlive())
    return {};
  FileTable* table = ledger_->table();
  FileRef r = table->Find(id);
  if (!r) {
    table->SetCutOwed(id, false);
    return {};
  }
  SafetySwitches& on = ledger_->switches();
  uint64_t size;
  {
    MutexLock lock(r->mu);
    if (!r->cut) {
      table->SetCutOwed(id, false);
      return {};
    }
    size = *r->cut;
    if ((on.cut_waits_for_copier &&
         ByteLedger::OverlapsAny(r->copier_writes, size, UINT64_MAX)) ||
        (on.cut_waits_for_given_up &&
         ByteLedger::OverlapsAny(r->given_up, size, UINT64_MAX)))
      return {};
  }
  // The record of the cut is durable before the object loses bytes that the
  // record before it may still claim.
  TRY(ledger_->journal()->SyncAll());
  const bool found = ledger_->objects()->Find(id).has_value();
  if (found) {
    ASSIGN_OR_RETURN(SharedFd fd, ledger_->objects()->Data(id));
    TRY(ledger_->sys()->FTruncate(fd->Get(), size));
    if (on.cut_synced)
      TRY(ledger_->SyncObject(*r, false));
    // Journaled before the cut is done: a successor would not come back to it.
    if (ledger_->listener() != nullptr)
      ledger_->listener()->TimesDisturbed(id);
  }
  {
    MutexLock lock(r->mu);
    if (!r->cut || *r->cut != size)
      return {};  // shrunk further meanwhile: once more
    if (!found && ledger_->objects()->Find(id))
      return {};  // made meanwhile
    TRY(ledger_->AppendLocked(*r, state::CutDoneFact{id}));
    r->cut.reset();
    // Under the lock, so that a cut that becomes owed now stays in the set.
    table->SetCutOwed(id, false);
    r->version++;
    r->changed.NotifyAll();
  }
  *done = true;
  return {};
}

}  // namespace livemv::fusefs
