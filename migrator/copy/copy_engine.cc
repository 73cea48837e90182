// The queue, progress and batches. What happens to one chunk is in
// copy_chunk.cc.

#include "migrator/copy/copy_engine.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/log.h"

namespace livemv::copy {

using core::MutexLock;
using core::Status;

namespace {
// When a file whose chunks are being written right now is looked at again.
constexpr int64_t kBusyRetryNs = 20'000'000;
constexpr int64_t kRateWindowNs = 5'000'000'000;
}  // namespace

CopyEngine::CopyEngine(fusefs::ByteLedger* ledger, Options options)
    : ledger_(ledger),
      sys_(ledger->sys()),
      verifier_(ledger->objects()),
      options_(options),
      limit_(options.bytes_per_second) {}

// ----------------------------------------------------------------- queue

void CopyEngine::PutLocked(FileId id, Where where, int64_t when_ns) {
  queued_.Put(id, where);
  if (where == Where::kUrgent)
    urgent_.push_back(id);
  else if (where == Where::kQueue)
    queue_.push_back(id);
  else
    later_.emplace(when_ns, id);
  woken_ = true;
  wake_.NotifyAll();
}

void CopyEngine::Enqueue(FileId id, bool urgent) {
  MutexLock lock(mu_);
  if (auto it = active_.find(id); it != active_.end()) {
    it->second = true;
    return;
  }
  const Where* queued = queued_.Find(id);
  if (queued == nullptr)
    PutLocked(id, urgent ? Where::kUrgent : Where::kQueue);
  else if (urgent && *queued == Where::kQueue)
    PutLocked(id, Where::kUrgent);
}

void CopyEngine::EnqueueUnfinished(const state::RecoveredState& state) {
  for (const auto& [id, file] : state.files) {
    bool regular = file.bound && S_ISREG(file.bound->type);
    if ((regular || file.map) && !(file.map && file.map->AllCopied()) &&
        !state.dead.contains(id))
      Enqueue(id);
  }
}

void CopyEngine::Forget(FileId id) {
  MutexLock lock(mu_);
  queued_.Erase(id);
  std::erase_if(failures_, [&](const auto& f) { return f.id == id; });
  std::erase_if(mismatched_, [&](const auto& m) { return m.first.first == id; });
}

bool CopyEngine::TakeJob(FileId* id) {
  MutexLock lock(mu_);
  if (paused_)
    return false;
  int64_t now = Now();
  while (!later_.empty() && later_.begin()->first <= now) {
    FileId due = later_.begin()->second;
    later_.erase(later_.begin());
    const Where* queued = queued_.Find(due);
    if (queued != nullptr && *queued == Where::kLater)
      PutLocked(due, Where::kQueue);
  }
  for (auto [queue, where] : {std::pair(&urgent_, Where::kUrgent),
                              std::pair(&queue_, Where::kQueue)}) {
    while (!queue->empty()) {
      FileId next = queue->front();
      queue->pop_front();
      const Where* queued = queued_.Find(next);
      if (queued == nullptr || *queued != where)
        continue;
      queued_.Erase(next);
      active_[next] = false;
      *id = next;
      return true;
    }
  }
  return false;
}

// What was not finished goes back, at once or after a while: as long as a
// pinned file is not wholly copied it is queued.
void CopyEngine::GiveBack(Job& job) {
  bool copied = true;
  if (!job.gone && job.record) {
    MutexLock lock(job.record->mu);
    const state::ByteMap& map = job.record->facts.map;
    for (auto c = map.NextToCopy(0); c; c = map.NextToCopy(*c + 1))
      if (!Failed(job.id, *c)) {
        copied = false;
        break;
      }
    copied = copied || !job.record->facts.pinned;
  }
  bool trouble = !job.source_trouble || !job.target_trouble;
  NoteTimes(job);
  job.record.Reset();
  MutexLock lock(mu_);
  auto it = active_.find(job.id);
  bool again = it->second;
  active_.erase(it);
  if (job.gone || (copied && !again && !trouble))
    return;
  if (!job.source_trouble)
    PutLocked(job.id, Where::kLater, Now() + options_.longest_backoff_ns);
  else if (again || job.wants_more || !job.target_trouble)
    PutLocked(job.id, again ? Where::kUrgent : Where::kQueue);
  else
    PutLocked(job.id, Where::kLater, Now() + kBusyRetryNs);
}

void CopyEngine::NoteTimes(Job& job) {
  if (std::exchange(job.wrote, false) && ledger_->listener() != nullptr)
    ledger_->listener()->TimesDisturbed(job.id);
}

// ----------------------------------------------------------------- batches

std::shared_ptr<AlignedBuffer> CopyEngine::TakeBuffer() {
  {
    MutexLock lock(mu_);
    if (!spare_.empty()) {
      std::shared_ptr<AlignedBuffer> buffer = std::move(spare_.back());
      spare_.pop_back();
      return buffer;
    }
  }
  return std::make_shared<AlignedBuffer>(state::kChunkBytes +
                                         2 * AlignedBuffer::kAlign);
}

bool CopyEngine::Step() {
  {
    MutexLock lock(mu_);
    if (paused_ || Now() < not_before_ns_)
      return false;
    working_++;
  }
  Batch batch;
  FileId id;
  bool trouble = false;
  while (!trouble && batch.bytes < options_.batch_bytes &&
         batch.jobs.size() < options_.batch_files && TakeJob(&id)) {
    if (batch.buffer == nullptr)
      batch.buffer = TakeBuffer();
    Job& job = batch.jobs.emplace_back();
    job.id = id;
    if (Prepare(job))
      CopyFile(job, batch);
    trouble = !job.target_trouble;
    // Nothing to sync for it: others may have it at once.
    if (job.chunks.empty()) {
      if (!job.source_trouble)
        NoteTrouble("reading the source: " +
                        job.source_trouble.error().ToString(),
                    false);
      if (!job.target_trouble)
        NoteTrouble(job.target_trouble.error().ToString(), true);
      GiveBack(job);
      batch.jobs.pop_back();
    }
  }
  const bool did = batch.buffer != nullptr;
  const bool synced = SyncBatch(batch);
  bool failed = trouble;
  for (Job& job : batch.jobs) {
    if (synced)
      FinishJob(job, batch);
    if (!job.source_trouble)
      NoteTrouble("reading the source: " +
                      job.source_trouble.error().ToString(),
                  false);
    if (!job.target_trouble) {
      failed = true;
      NoteTrouble(job.target_trouble.error().ToString(), true);
    }
    GiveBack(job);
  }
  MutexLock lock(mu_);
  working_--;
  if (did)
    spare_.push_back(std::move(batch.buffer));
  if (did && !failed && !batch.jobs.empty()) {
    backoff_ns_ = 0;
    reason_.clear();
  }
  // Nobody is woken for this: what others could do now was queued by GiveBack,
  // and two idle workers that wake each other would never sleep.
  return did;
}

bool CopyEngine::SyncBatch(Batch& batch) {
  if (batch.jobs.empty() || !ledger_->switches().claim_after_fsync)
    return true;
  Status synced = batch.jobs.size() == 1
                      ? ledger_->SyncObject(*batch.jobs[0].record, false)
                      : ledger_->SyncTarget();
  if (synced)
    return true;
  for (Job& job : batch.jobs)
    job.target_trouble = core::Fail(synced.error());
  return false;
}

void CopyEngine::Run(const std::atomic<bool>& stop) {
  while (!stop.load()) {
    if (Step())
      continue;
    MutexLock lock(mu_);
    if (woken_ || stop.load()) {
      woken_ = false;
      if (!paused_ && Now() >= not_before_ns_)
        continue;
    }
    int64_t until = -1;
    if (!paused_) {
      if (!later_.empty())
        until = later_.begin()->first;
      if (not_before_ns_ > Now() && !queued_.Empty())
        until = not_before_ns_;
    }
    if (!stop.load())
      wake_.WaitFor(lock, until < 0 ? -1 : std::max<int64_t>(until - Now(), 1));
  }
}

void CopyEngine::Wake() {
  MutexLock lock(mu_);
  woken_ = true;
  wake_.NotifyAll();
}

void CopyEngine::Pause() {
  MutexLock lock(mu_);
  paused_ = true;
}

void CopyEngine::Resume() {
  MutexLock lock(mu_);
  paused_ = false;
  woken_ = true;
  wake_.NotifyAll();
}

void CopyEngine::SetLimit(uint64_t bytes_per_second) {
  MutexLock lock(mu_);
  limit_ = bytes_per_second;
  budget_at_ns_ = 0;
  wake_.NotifyAll();
}

bool CopyEngine::Paused() {
  MutexLock lock(mu_);
  return paused_;
}

bool CopyEngine::Idle() {
  MutexLock lock(mu_);
  return queued_.Empty() && active_.empty() && failures_.empty();
}

bool CopyEngine::Quiet() {
  MutexLock lock(mu_);
  return working_ == 0;
}

// ---------------------------------------------------------------- progress

void CopyEngine::Throttle(uint64_t bytes) {
  MutexLock lock(mu_);
  if (limit_ == 0)
    return;
  int64_t cost = static_cast<int64_t>(static_cast<double>(bytes) * 1e9 /
                                      static_cast<double>(limit_));
  budget_at_ns_ = std::max(budget_at_ns_, Now()) + cost;
  int64_t until = budget_at_ns_ - cost;
  while (limit_ != 0 && Now() < until)
    wake_.WaitFor(lock, until - Now());
}

void CopyEngine::NoteTrouble(const std::string& reason, bool target) {
  MutexLock lock(mu_);
  if (reason_ != reason)
    LOG_WARN("copier: {}", reason);
  reason_ = reason;
  if (!target)
    return;
  backoff_ns_ = std::clamp(backoff_ns_ * 2, options_.first_backoff_ns,
                           options_.longest_backoff_ns);
  not_before_ns_ = Now() + backoff_ns_;
}

void CopyEngine::NoteBytes(uint64_t bytes) {
  MutexLock lock(mu_);
  int64_t now = Now();
  recent_.emplace_back(now, bytes);
  while (recent_.front().first < now - kRateWindowNs)
    recent_.pop_front();
}

CopyEngine::Progress CopyEngine::GetProgress() {
  fusefs::FileTable::Totals totals = ledger_->table()->GetTotals();
  MutexLock lock(mu_);
  Progress p;
  p.bytes_total = totals.bytes_below_end;
  p.bytes_copied = totals.bytes_copied;
  p.files_total = ledger_->objects()->Files();
  p.files_copied = p.files_total - std::min<uint64_t>(
                                       p.files_total,
                                       queued_.Size() + active_.size());
  int64_t now = Now();
  uint64_t bytes = 0;
  int64_t from = now;
  for (const auto& [when, n] : recent_) {
    if (when < now - kRateWindowNs)
      continue;
    from = std::min(from, when);
    bytes += n;
  }
  if (now > from)
    p.bytes_per_second =
        static_cast<double>(bytes) * 1e9 / static_cast<double>(now - from);
  p.chunks_verified = verified_;
  p.mismatches = mismatches_;
  p.paused = paused_;
  p.reason = reason_;
  if (!failures_.empty())
    p.reason = "verification: the target gives back other bytes than were "
               "written to it";
  return p;
}

std::vector<CopyEngine::VerifyFailure> CopyEngine::VerifyFailures() {
  MutexLock lock(mu_);
  return failures_;
}

bool CopyEngine::Failed(FileId id, uint64_t chunk) {
  MutexLock lock(mu_);
  return std::any_of(failures_.begin(), failures_.end(), [&](const auto& f) {
    return f.id == id && f.chunk == chunk;
  });
}

}  // namespace livemv::copy
