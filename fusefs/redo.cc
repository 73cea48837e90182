#include "fusefs/redo.h"

#include <algorithm>
#include <array>

#include "core/fault_points.h"
#include "core/log.h"

namespace livemv::fusefs {
namespace {

constexpr int64_t kFirstPauseNs = 50'000'000;
// As many places as are left to an applier that is at work already.
constexpr size_t kOneApplier = 4;
constexpr int64_t kLongestPauseNs = 10'000'000'000;

state::Fact DirtyFact(const Place& p) {
  if (p.IsEntry())
    return state::EntryDirtyFact{p.id, p.name};
  return state::AttrsDirtyFact{p.id};
}

state::Fact CleanFact(const Place& p) {
  if (p.IsEntry())
    return state::EntryCleanFact{p.id, p.name};
  return state::AttrsCleanFact{p.id};
}

}  // namespace

Redo::Redo(core::Syscalls* sys, state::Journal* journal,
           const Options& options)
    : sys_(sys), journal_(journal), options_(options) {
  ages_[age_] = Age{sys_->MonotonicNs(), 0};
}

void Redo::Adopt(const state::RecoveredState& state) {
  core::MutexLock lock(mu_);
  auto adopt = [this](Place place) {
    auto [it, added] = records_.try_emplace(std::move(place));
    if (!added)
      return;
    unapplied_[it->first.id]++;
    SetAge(&it->second, age_);
    MakeReady(it);
  };
  for (const auto& [dir, names] : state.dirty_entries) {
    for (const std::string& name : names)
      adopt(Place{dir, name});
  }
  for (FileId id : state.dirty_attrs)
    adopt(Place{id, {}});
  for (FileId id : state.meta_hot)
    hot_[id].durable = true;
  for (FileId id : state.owed)
    owed_[id] = ++owed_generation_;
}

// --- changes

Redo::Change& Redo::Change::operator=(Change&& o) noexcept {
  if (this != &o) {
    End();
    redo_ = std::exchange(o.redo_, nullptr);
    places_ = std::move(o.places_);
  }
  return *this;
}

void Redo::Change::End() {
  if (redo_ == nullptr)
    return;
  redo_->EndPlaces(places_);
  redo_ = nullptr;
}

core::Result<Redo::Records::iterator> Redo::Dirty(const Place& place) {
  auto it = records_.find(place);
  if (it == records_.end()) {
    TRY(journal_->Append(DirtyFact(place)));
    it = records_.try_emplace(place).first;
    unapplied_[place.id]++;
  }
  it->second.generation++;
  made_++;
  return it;
}

core::Result<Redo::Change> Redo::Start(std::vector<Place> places, Kind kind) {
  const bool hot = kind != Kind::kTouch;
  Change change;
  state::Seq must_sync = 0;
  {
    core::MutexLock lock(mu_);
    if (hot)
      HoldBack(lock, places.size());
    for (Place& place : places) {
      if (hot) {
        auto [it, added] = hot_.try_emplace(place.id);
        if (added) {
          auto seq = journal_->Append(state::MetaHotFact{place.id});
          if (!seq) {
            hot_.erase(it);
            lock.unlock();
            change.End();
            return core::Fail(std::move(seq).error());
          }
          it->second.seq = *seq;
          // As durable as the directory's mark, which is unmarked later.
          if (auto born = born_.find(place.id); born != born_.end())
            it->second.durable = hot_.at(born->second).durable;
        }
        if (place.IsEntry() && kind != Kind::kAddsName)
          ForgetBorn(&it->second);
        it->second.changes++;
        if (!it->second.durable)
          must_sync = std::max(must_sync, it->second.seq);
      }
      auto record = Dirty(place);
      if (!record) {
        lock.unlock();
        change.End();
        return core::Fail(std::move(record).error());
      }
      Record& r = (*record)->second;
      r.in_flight++;
      r.lazy = false;
      SetAge(&r, age_);
      change.redo_ = this;
      change.places_.push_back(std::move(place));
    }
  }
  if (must_sync == 0)
    return change;
  // Rule 3: durable before the source changes, because the source may become
  // durable by itself at any time and the record would then be missing.
  TRY(journal_->Sync(must_sync));
  core::MutexLock lock(mu_);
  for (const Place& place : change.places_) {
    auto it = hot_.find(place.id);
    if (it != hot_.end() && it->second.seq <= must_sync)
      it->second.durable = true;
  }
  return change;
}

core::Result<Redo::Change> Redo::Begin(std::vector<Place> places) {
  auto change = Start(std::move(places), Kind::kChange);
  if (change)
    TRY(core::FaultPoint("redo.begun"));
  return change;
}

core::Result<Redo::Change> Redo::BeginAdding(Place place) {
  std::vector<Place> places;
  places.push_back(std::move(place));
  auto change = Start(std::move(places), Kind::kAddsName);
  if (change)
    TRY(core::FaultPoint("redo.begun"));
  return change;
}

void Redo::Born(FileId id, FileId dir) {
  core::MutexLock lock(mu_);
  auto hot = hot_.find(dir);
  if (hot == hot_.end() || !born_.emplace(id, dir).second)
    return;
  hot->second.born.push_back(id);
}

void Redo::ForgetBorn(Hot* dir) {
  for (FileId id : dir->born)
    born_.erase(id);
  dir->born.clear();
}

core::Result<Redo::Change> Redo::Touch(std::vector<Place> places) {
  return Start(std::move(places), Kind::kTouch);
}

core::Status Redo::Mark(Place place) {
  ASSIGN_OR_RETURN(Change change, Touch({std::move(place)}));
  change.End();
  return {};
}

void Redo::EndPlaces(const std::vector<Place>& places) {
  core::MutexLock lock(mu_);
  for (const Place& place : places) {
    auto it = records_.find(place);
    CHECK(it != records_.end() && it->second.in_flight > 0);
    Record& r = it->second;
    r.generation++;
    if (--r.in_flight != 0)
      continue;
    switch (r.where) {
      case Where::kAside:  // the application changed it: perhaps it suits now
        LeaveAside(&r);
        r.failures = 0;
        MakeReady(it);
        break;
      case Where::kInFlight:
        Settle(it);
        break;
      case Where::kLazy:
        Undelay(it);
        Settle(it);
        break;
      case Where::kSettling:
      case Where::kReady:
      case Where::kTaken:
      case Where::kDelayed:
        break;
    }
  }
}

core::Result<Redo::Records::iterator> Redo::DirtyLazily(FileId id) {
  const int64_t now = sys_->MonotonicNs();
  auto it = records_.find(Place{id, {}});
  if (it == records_.end()) {
    ASSIGN_OR_RETURN(it, Dirty(Place{id, {}}));
    it->second.lazy = true;
    Delay(it, Where::kLazy, now + kLazyNs);
  }
  it->second.touched_ns = now;
  return it;
}

core::Status Redo::MarkLazily(FileId id) {
  core::MutexLock lock(mu_);
  TRY(DirtyLazily(id));
  return {};
}

core::Status Redo::BeginWrite(FileId id) {
  core::MutexLock lock(mu_);
  ASSIGN_OR_RETURN(Records::iterator it, DirtyLazily(id));
  it->second.writes++;
  return {};
}

core::Status Redo::EndWrite(FileId id) {
  core::MutexLock lock(mu_);
  ASSIGN_OR_RETURN(Records::iterator it, DirtyLazily(id));
  if (it->second.writes > 0)  // 0: its begin was not journaled
    it->second.writes--;
  return {};
}

void Redo::Ripen(FileId id) {
  core::MutexLock lock(mu_);
  auto it = records_.find(Place{id, {}});
  if (it == records_.end() || it->second.where != Where::kLazy)
    return;
  Undelay(it);
  it->second.lazy = false;
  SetAge(&it->second, age_);
  MakeReady(it);
}

// --- states of a record

void Redo::SetAge(Record* record, uint64_t age) {
  if (record->age == age)
    return;
  if (record->age != 0) {
    auto old = ages_.find(record->age);
    if (--old->second.count == 0 && old->first != age_)
      ages_.erase(old);
  }
  record->age = age;
  if (age != 0)
    ages_[age].count++;
}

void Redo::MakeReady(Records::iterator it) {
  it->second.where = Where::kReady;
  (it->first.IsEntry() ? ready_entries_ : ready_attrs_).push_back(&it->first);
  // An applier at work comes back by itself; waking one for each place costs
  // more than the place.
  if (taken_ == 0 || ready_entries_.size() + ready_attrs_.size() > kOneApplier)
    work_.NotifyOne();
}

uint64_t Redo::FrontAge(const std::deque<const Place*>& queue) {
  if (queue.empty())
    return age_;
  // 0: ripened in the queue; it was put off because nobody waits for it.
  const uint64_t age = records_.find(*queue.front())->second.age;
  return age == 0 ? age_ : age;
}

bool Redo::Behind() {
  uint64_t oldest = FrontAge(ready_entries_);
  if (!hold_attrs_)
    oldest = std::min(oldest, FrontAge(ready_attrs_));
  return oldest + 1 < age_ &&
         sys_->MonotonicNs() - last_clean_ns_ < kStuckNs;
}

void Redo::HoldBack(core::MutexLock& lock, uint64_t places) {
  if (rushing_ != 0 || !Behind())
    return;
  held_back_++;
  holding_++;
  promised_ = std::max(promised_, clean_) + 2 * places;
  const uint64_t mine = promised_;
  const int64_t until = sys_->MonotonicNs() + options_.longest_hold_ns;
  for (int64_t left = options_.longest_hold_ns;
       left > 0 && clean_ < mine && rushing_ == 0 && Behind();
       left = until - sys_->MonotonicNs())
    cleaned_.WaitFor(lock, left);
  holding_--;
  // Who has waited the longest time has paid, too.
  if (holding_ == 0)
    promised_ = clean_;
}

void Redo::Settle(Records::iterator it) {
  if (options_.settle_ns == 0 || rushing_ != 0) {
    MakeReady(it);
    return;
  }
  // Many at once, so that appliers are not woken for each.
  const int64_t grain = std::max<int64_t>(options_.settle_ns / 3, 1);
  const int64_t due = sys_->MonotonicNs() + options_.settle_ns;
  Delay(it, Where::kSettling, (due / grain + 1) * grain);
}

void Redo::Delay(Records::iterator it, Where where, int64_t due_ns) {
  it->second.where = where;
  it->second.due_ns = due_ns;
  delayed_.emplace(due_ns, &it->first);
}

void Redo::Undelay(Records::iterator it) {
  auto [begin, end] = delayed_.equal_range(it->second.due_ns);
  for (auto at = begin; at != end; ++at) {
    if (at->second == &it->first) {
      delayed_.erase(at);
      return;
    }
  }
}

void Redo::LeaveAside(Record* record) {
  record->reason.clear();
  set_aside_--;
}

void Redo::Erase(Records::iterator it) {
  SetAge(&it->second, 0);
  auto unapplied = unapplied_.find(it->first.id);
  if (--unapplied->second == 0)
    unapplied_.erase(unapplied);
  records_.erase(it);
}

void Redo::PromoteDelayed(int64_t now) {
  while (!delayed_.empty() && delayed_.begin()->first <= now) {
    auto it = records_.find(*delayed_.begin()->second);
    delayed_.erase(delayed_.begin());
    Record& r = it->second;
    if (r.where == Where::kLazy && r.touched_ns + kLazyNs > now) {
      Delay(it, Where::kLazy, r.touched_ns + kLazyNs);
      continue;
    }
    MakeReady(it);
  }
}

// --- the applier's side

std::optional<Redo::Job> Redo::Take() {
  const int64_t now = sys_->MonotonicNs();
  core::MutexLock lock(mu_);
  PromoteDelayed(now);
  std::array queues{&ready_entries_, &ready_attrs_};
  if (FrontAge(ready_attrs_) < FrontAge(ready_entries_))
    std::swap(queues[0], queues[1]);
  for (auto* queue : queues) {
    if (queue == &ready_attrs_ && hold_attrs_)
      continue;
    while (!queue->empty()) {
      auto it = records_.find(*queue->front());
      queue->pop_front();
      if (it->second.in_flight > 0) {
        it->second.where = Where::kInFlight;
        continue;
      }
      it->second.where = Where::kTaken;
      taken_++;
      return Job{it->first, it->second.generation, now};
    }
  }
  return std::nullopt;
}

core::Status Redo::Done(const Job& job) {
  core::MutexLock lock(mu_);
  auto it = records_.find(job.place);
  CHECK(it != records_.end() && it->second.where == Where::kTaken);
  taken_--;
  Record& r = it->second;
  r.failures = 0;
  if (r.in_flight > 0) {
    r.where = Where::kInFlight;
    return {};
  }
  if (r.generation != job.generation) {
    Settle(it);
    return {};
  }
  if (r.writes > 0)
    r.touched_ns = sys_->MonotonicNs();
  if (r.touched_ns >= job.taken_ns) {
    // Writes went on meanwhile: only times are open, until they pause.
    r.lazy = true;
    SetAge(&r, 0);
    Delay(it, Where::kLazy, r.touched_ns + kLazyNs);
    return {};
  }
  auto clean = journal_->Append(CleanFact(job.place));
  if (!clean) {
    // Still dirty in the journal, so it is done once more.
    Delay(it, Where::kDelayed, sys_->MonotonicNs() + kLongestPauseNs);
    return core::Fail(std::move(clean).error());
  }
  Erase(it);
  clean_++;
  last_clean_ns_ = sys_->MonotonicNs();
  if (holding_ != 0)
    cleaned_.NotifyAll();
  if (records_.empty())
    last_error_.clear();
  return {};
}

void Redo::Retry(const Job& job, const core::Error& why) {
  const int64_t now = sys_->MonotonicNs();
  core::MutexLock lock(mu_);
  last_error_ = why.ToString();
  auto it = records_.find(job.place);
  CHECK(it != records_.end() && it->second.where == Where::kTaken);
  taken_--;
  Record& r = it->second;
  const int64_t pause =
      std::min(kLongestPauseNs, kFirstPauseNs << std::min(r.failures, 8u));
  r.failures++;
  Delay(it, Where::kDelayed, now + pause);
}

void Redo::SetAside(const Job& job, std::string reason) {
  core::MutexLock lock(mu_);
  auto it = records_.find(job.place);
  CHECK(it != records_.end() && it->second.where == Where::kTaken);
  taken_--;
  Record& r = it->second;
  if (r.generation != job.generation && r.in_flight == 0) {
    MakeReady(it);
    return;
  }
  LOG_WARN("set aside: {}", reason);
  r.where = Where::kAside;
  r.reason = std::move(reason);
  set_aside_++;
}

void Redo::RetryAll(bool lazy) {
  core::MutexLock lock(mu_);
  auto delayed = std::move(delayed_);
  delayed_.clear();
  for (auto [due, place] : delayed) {
    auto it = records_.find(*place);
    if (it->second.where == Where::kLazy && !lazy) {
      delayed_.emplace(due, place);
      continue;
    }
    MakeReady(it);
  }
  for (auto it = records_.begin(); it != records_.end() && set_aside_ > 0;
       ++it) {
    if (it->second.where != Where::kAside)
      continue;
    LeaveAside(&it->second);
    if (it->second.in_flight > 0)
      it->second.where = Where::kInFlight;
    else
      MakeReady(it);
  }
}

void Redo::HoldAttributes(bool hold) {
  core::MutexLock lock(mu_);
  hold_attrs_ = hold;
  work_.NotifyAll();
}

void Redo::WaitForWork(int64_t timeout_ns) {
  const int64_t now = sys_->MonotonicNs();
  core::MutexLock lock(mu_);
  PromoteDelayed(now);
  if (AnyReady())
    return;
  if (!delayed_.empty())
    timeout_ns = std::min(timeout_ns, delayed_.begin()->first - now);
  work_.WaitFor(lock, std::max<int64_t>(timeout_ns, 0));
}

void Redo::WakeAll() {
  core::MutexLock lock(mu_);
  work_.NotifyAll();
}

Redo::Rush::Rush(Redo* redo) : redo_(redo) {
  {
    core::MutexLock lock(redo_->mu_);
    redo_->rushing_++;
    redo_->cleaned_.NotifyAll();
  }
  redo_->RetryAll(false);
}

Redo::Rush::~Rush() {
  core::MutexLock lock(redo_->mu_);
  redo_->rushing_--;
}

// --- what is told

Redo::Counters Redo::Count() {
  const int64_t now = sys_->MonotonicNs();
  core::MutexLock lock(mu_);
  Counters c;
  bool first = true;
  for (const auto& [age, place] : ages_) {
    if (place.count == 0)
      continue;
    c.pending += place.count;
    if (age < age_)
      c.older_than_barrier += place.count;
    if (std::exchange(first, false))
      c.oldest_ns = now - place.began_ns;
  }
  c.dirty = records_.size();
  c.made = made_;
  c.set_aside = set_aside_;
  c.taken = taken_;
  c.owed = owed_.size();
  c.held_back = held_back_;
  c.behind = Behind();
  c.last_error = last_error_;
  return c;
}

std::vector<Redo::Aside> Redo::SetAsides(size_t at_most) {
  core::MutexLock lock(mu_);
  std::vector<Aside> out;
  if (set_aside_ == 0)
    return out;
  for (const auto& [place, record] : records_) {
    if (record.where != Where::kAside)
      continue;
    out.push_back({place, record.reason});
    if (out.size() >= at_most)
      break;
  }
  return out;
}

bool Redo::IsHot(FileId id) {
  core::MutexLock lock(mu_);
  return hot_.contains(id);
}

// --- owed comparisons

core::Status Redo::Owe(FileId id) {
  ASSIGN_OR_RETURN(state::Seq seq, journal_->Append(state::OwedFact{id}));
  {
    core::MutexLock lock(mu_);
    owed_[id] = ++owed_generation_;
    made_++;
  }
  return journal_->Sync(seq);
}

std::vector<std::pair<FileId, uint64_t>> Redo::Owed() {
  core::MutexLock lock(mu_);
  return {owed_.begin(), owed_.end()};
}

core::Status Redo::PaidOwed(FileId id, uint64_t generation) {
  core::MutexLock lock(mu_);
  auto it = owed_.find(id);
  if (it == owed_.end() || it->second != generation)
    return {};
  TRY(journal_->Append(state::OwedDoneFact{id}));
  owed_.erase(it);
  return {};
}

// --- the barrier's side

std::vector<std::pair<FileId, uint64_t>> Redo::BeginBarrier() {
  const int64_t now = sys_->MonotonicNs();
  core::MutexLock lock(mu_);
  if (ages_[age_].count == 0)
    ages_.erase(age_);
  ages_[++age_] = Age{now, 0};
  std::vector<std::pair<FileId, uint64_t>> out;
  for (const auto& [id, hot] : hot_) {
    // A change in flight keeps its places dirty, so it is excluded too.
    if (!unapplied_.contains(id))
      out.emplace_back(id, hot.changes);
  }
  return out;
}

core::Status Redo::EndBarrier(
    const std::vector<std::pair<FileId, uint64_t>>& hot) {
  core::MutexLock lock(mu_);
  for (const auto& [id, changes] : hot) {
    auto it = hot_.find(id);
    if (it == hot_.end() || it->second.changes != changes)
      continue;
    TRY(journal_->Append(state::MetaUnhotFact{id}));
    ForgetBorn(&it->second);
    hot_.erase(it);
  }
  return {};
}

}  // namespace livemv::fusefs
