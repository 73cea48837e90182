#include "fusefs/passthrough.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/fault_points.h"
#include "core/log.h"
#include "fusefs/fuse_wire.h"

namespace livemv::fusefs {

using core::MutexLock;
using core::Result;
using core::Status;
using state::DirectFact;

namespace {

// Of the threads that serve requests; the others must stay free for what the
// source answers while the target is away.
constexpr int kMostWaiting = 8;
constexpr int64_t kRetryNs = 200'000'000;
// To begin costs more than a smaller file's reads from the page cache do.
constexpr uint64_t kWorthReading = 128u << 10;

class KernelBackingIds final : public BackingIds {
 public:
  explicit KernelBackingIds(int fuse_fd) : fd_(fuse_fd) {}
  Result<uint32_t> Open(int fd) override {
    wire::BackingMap map{};
    map.fd = fd;
    int id = ::ioctl(fd_, wire::kIoctlBackingOpen, &map);
    if (id <= 0)
      return core::FailSys(id < 0 ? errno : EINVAL, "FUSE_DEV_IOC_BACKING_OPEN");
    return static_cast<uint32_t>(id);
  }
  void Close(uint32_t id) override {
    if (::ioctl(fd_, wire::kIoctlBackingClose, &id) != 0)
      LOG_WARN("FUSE_DEV_IOC_BACKING_CLOSE of {}: {}", id,
               core::ErrnoName(errno));
  }

 private:
  const int fd_;
};

// What the worker does not see of such a descriptor must not need it.
bool NeedsDurableBirth(int flags) {
  return (flags & O_ACCMODE) == O_RDWR || (flags & (O_SYNC | O_DSYNC)) != 0;
}

bool SameTime(const struct statx_timestamp& a,
              const struct statx_timestamp& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

timespec ToTimespec(const struct statx_timestamp& t) {
  return {static_cast<time_t>(t.tv_sec), static_cast<long>(t.tv_nsec)};
}

class Counted {
 public:
  explicit Counted(std::atomic<int>* count) : count_(count), n_(++*count) {}
  ~Counted() { --*count_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  int n() const { return n_; }

 private:
  std::atomic<int>* const count_;
  const int n_;
};

}  // namespace

std::unique_ptr<BackingIds> MakeBackingIds(int fuse_fd) {
  return std::make_unique<KernelBackingIds>(fuse_fd);
}

Passthrough::Passthrough(ByteLedger* ledger, BackingIds* ids, bool resumed)
    : ledger_(ledger),
      sys_(ledger->sys()),
      ids_(ids),
      resumed_(resumed),
      possible_(ids != nullptr) {}

Status Passthrough::Adopt(const state::RecoveredState& state) {
  for (const auto& [id, file] : state.files) {
    if (file.direct == state::Direct::kAliased)
      aliased_.insert(id);
    if (file.direct != state::Direct::kYes)
      continue;
    FileRef r = ledger_->table()->Get(id);
    FileRecord::Direct direct;
    if (resumed_) {
      direct.others_open = direct.may_be_mapped = true;
      direct.backing = file.backing;
    } else {
      // Of a mount that is gone, with all its users. Its numbers will be given
      // again, and a successor must not take this one for such.
      over_.push_back(id);
      if (file.backing != 0 && ledger_->switches().direct_renumber) {
        MutexLock lock(r->mu);
        TRY(ledger_->AppendLocked(
            *r, DirectFact{id, static_cast<uint32_t>(state::Direct::kYes), 0}));
      }
    }
    r->direct = direct;
    direct_[id] = direct.backing;
  }
  return {};
}

// ------------------------------------------------------------------ opening

// With r.mu held.
Passthrough::Fit Passthrough::Fits(const FileRecord& r, int flags,
                                   bool created, bool begins) {
  // An abort: this open is of the second number.
  if (r.direct)
    return closed_ ? Fit::kBeside : Fit::kAlready;
  const FileFacts& facts = r.facts;
  if (closed_ || !begins || !possible_ || r.forgotten || !facts.pinned ||
      facts.map.local_end() != 0 ||
      (r.cut && ledger_->switches().direct_uncut) ||
      (r.id & state::kAliasBit) != 0)
    return Fit::kNo;
  // What a predecessor has opened was not counted.
  if (resumed_ && !facts.born)
    return Fit::kNo;
  if (ledger_->PredecessorAlive() || !r.given_up.empty())
    return Fit::kNo;
  if (created && NeedsDurableBirth(flags))
    return Fit::kNo;
  if ((flags & O_ACCMODE) == O_RDONLY && facts.size < kWorthReading)
    return Fit::kNo;
  if (ledger_->table()->OpenCount(r.id) != 1)
    return Fit::kNo;
  return Fit::kNew;
}

Result<Passthrough::Entered> Passthrough::Enter(FileId id, int flags,
                                                bool created, bool begins) {
  FileRef r = ledger_->table()->Find(id);
  if (!r)
    return Entered{};
  // Nothing that may wait for the target unless it has to be: whoever holds
  // write_mu may be waiting for it.
  {
    MutexLock lock(r->mu);
    const Fit fit = Fits(*r, flags, created, begins);
    if (fit == Fit::kNo || fit == Fit::kBeside)
      return Entered{0, fit == Fit::kBeside};
    if (fit == Fit::kAlready && r->direct->backing != 0 &&
        !NeedsDurableBirth(flags)) {
      r->direct->opens++;
      r->direct->entered++;
      return Entered{r->direct->backing, false};
    }
  }
  Counted waiting(&waiting_);
  if (waiting.n() > kMostWaiting)
    begins = false;
  MutexLock writes(r->write_mu, std::defer_lock);
  if (begins || IsDirect(*r))
    writes.lock();
  else
    return Entered{};
  return EnterSlowly(*r, flags, created, begins);
}

bool Passthrough::IsDirect(FileRecord& r) {
  MutexLock lock(r.mu);
  return r.direct.has_value();
}

// With write_mu held.
Result<Passthrough::Entered> Passthrough::EnterSlowly(FileRecord& r, int flags,
                                                      bool created,
                                                      bool begins) {
  uint32_t backing = 0;
  Fit fit;
  {
    MutexLock lock(r.mu);
    fit = Fits(r, flags, created, begins);
    if (fit == Fit::kAlready)
      backing = r.direct->backing;
  }
  if (fit == Fit::kNo || fit == Fit::kBeside)
    return Entered{0, fit == Fit::kBeside};
  if (fit == Fit::kNew) {
    // If it does not come about nothing has changed, and the worker serves.
    Status ready = [&]() -> Status {
      TRY(ledger_->EnsureObject(r));
      if (!created)
        TRY(TimesToObject(r));
      return {};
    }();
    if (!ready) {
      LOG_DEBUG("file {:#x} is served by the worker: {}", r.id,
                ready.error().ToString());
      return Entered{};
    }
  }
  if (NeedsDurableBirth(flags))
    TRY(MakeBirthDurable(r));
  const bool opened = backing == 0;
  if (opened) {
    auto fresh = OpenBacking(r);
    if (!fresh && fit == Fit::kNew)
      return Entered{};
    if (!fresh)
      return core::Fail(std::move(fresh).error());
    backing = *fresh;
  }
  ASSIGN_OR_RETURN(bool direct, Register(r, flags, backing, opened));
  if (!direct)
    return Entered{0, fit == Fit::kAlready};
  if (Status passed = core::FaultPoint("passthrough.entered"); !passed) {
    Leave(r.id);
    return core::Fail(std::move(passed).error());
  }
  return Entered{backing, false};
}

// False if an abort has begun, or somebody else has opened it meanwhile, who is
// served by the worker: the backing number is closed then.
Result<bool> Passthrough::Register(FileRecord& r, int flags, uint32_t backing,
                                   bool opened) {
  Status status;
  {
    MutexLock lock(r.mu);
    MutexLock own(mu_);
    // Each opener is counted before it looks whether the file is direct.
    const bool alone =
        r.direct || ledger_->table()->OpenCount(r.id) == 1 ||
        !ledger_->switches().direct_alone;
    if (!closed_ && alone) {
      if (opened)
        status = ledger_->AppendLocked(
            r, DirectFact{r.id, static_cast<uint32_t>(state::Direct::kYes),
                          backing});
      if (status) {
        if (!r.direct)
          r.direct.emplace();
        r.direct->backing = backing;
        r.direct->opens++;
        r.direct->entered++;
        direct_[r.id] = backing;
        if ((flags & O_ACCMODE) == O_RDWR && !r.direct->may_be_mapped) {
          r.direct->may_be_mapped = true;
          unseen_.push_back(r.id);
          woken_ = true;
          work_.NotifyOne();
        }
        return true;
      }
    }
  }
  if (opened)
    ids_->Close(backing);
  TRY(status);
  return false;
}

Result<uint32_t> Passthrough::OpenBacking(FileRecord& r) {
  if (ids_ == nullptr)
    return core::Fail(core::ErrorCode::kUnsupported, "no passthrough here");
  ASSIGN_OR_RETURN(SharedFd fd, ledger_->objects()->Data(r.id));
  auto id = ids_->Open(fd->Get());
  if (id)
    return id;
  switch (id.error().sys_errno) {
    case EPERM:
    case ENOTTY:
    case EINVAL:
    case ELOOP:
    case EOPNOTSUPP:
      if (possible_.exchange(false))
        LOG_INFO("no passthrough to this target, the worker serves all files: "
                 "{}",
                 id.error().ToString());
      break;
    default:
      LOG_WARN("file {:#x} cannot be passed through: {}", r.id,
               id.error().ToString());
  }
  return id;
}

// Its placeholder, with its name, and the records about it (rule 2).
Status Passthrough::MakeBirthDurable(FileRecord& r) {
  uint32_t mark;
  bool dirty, all;
  {
    MutexLock lock(r.mu);
    mark = r.facts.source_dirty.Mark();
    dirty = r.facts.source_dirty.IsDirty();
    all = r.facts.sync_all;
  }
  if (dirty) {
    ASSIGN_OR_RETURN(SharedFd fd, ledger_->source()->Data(r.id));
    TRY(sys_->FSync(fd->Get()));
  }
  if (all || dirty)
    TRY(ledger_->journal()->SyncAll());
  MutexLock lock(r.mu);
  r.facts.source_dirty.Cleaned(mark);
  r.facts.sync_all = false;
  return {};
}

// The applier may still owe them.
Status Passthrough::TimesToObject(FileRecord& r) {
  ASSIGN_OR_RETURN(SharedFd source, ledger_->source()->Path(r.id));
  ASSIGN_OR_RETURN(SharedFd object, ledger_->objects()->Path(r.id));
  ASSIGN_OR_RETURN(core::Stat want,
                   sys_->StatAt(source->Get(), "", STATX_MTIME | STATX_ATIME));
  ASSIGN_OR_RETURN(core::Stat have,
                   sys_->StatAt(object->Get(), "", STATX_MTIME | STATX_ATIME));
  if (SameTime(want.stx_mtime, have.stx_mtime) &&
      SameTime(want.stx_atime, have.stx_atime))
    return {};
  const timespec times[2] = {ToTimespec(want.stx_atime),
                             ToTimespec(want.stx_mtime)};
  return sys_->UTimens(object->Get(), times);
}

// ------------------------------------------------------------------ closing

void Passthrough::Leave(FileId id) {
  // Without a record it was deleted, and its last user is gone.
  if (FileRef r = ledger_->table()->Find(id)) {
    MutexLock lock(r->mu);
    if (!r->direct || r->direct->opens == 0)
      return;  // opened in the time of a predecessor
    if (--r->direct->opens != 0 || r->direct->others_open)
      return;
  }
  MutexLock lock(mu_);
  over_.push_back(id);
  woken_ = true;
  work_.NotifyOne();
}

bool Passthrough::IsUnseen(FileId id) {
  FileRef r = ledger_->table()->Find(id);
  if (!r)
    return false;
  MutexLock lock(r->mu);
  return r->direct && (closed_ || r->direct->may_be_mapped);
}

Status Passthrough::TakeBack(FileRecord& r) {
  if (!ledger_->objects()->Find(r.id))
    return {};  // deleted, and destroyed since
  ASSIGN_OR_RETURN(SharedFd object, ledger_->objects()->Path(r.id));
  ASSIGN_OR_RETURN(core::Stat is, sys_->StatAt(object->Get(), ""));
  auto source = ledger_->source()->Path(r.id);
  if (!source) {
    ASSIGN_OR_RETURN(bool dead, ledger_->source()->IsDead(r.id));
    if (!dead)
      return core::Fail(std::move(source).error());
  } else {
    ASSIGN_OR_RETURN(
        core::Stat was,
        sys_->StatAt((*source)->Get(), "", STATX_MTIME | STATX_ATIME));
    // To have been read only is no reason to move the source's ctime.
    if (!SameTime(was.stx_mtime, is.stx_mtime)) {
      const timespec times[2] = {ToTimespec(is.stx_atime),
                                 ToTimespec(is.stx_mtime)};
      TRY(ledger_->NothingToPutBack(r));
      BytesListener* listener = ledger_->listener();
      if (listener != nullptr)
        listener->AttrsTouching(r.id);
      Status set = sys_->UTimens((*source)->Get(), times);
      if (listener != nullptr)
        listener->AttrsTouched(r.id);
      TRY(set);
    }
  }
  MutexLock lock(r.mu);
  r.facts.size = is.stx_size;
  r.facts.size_known = true;
  r.facts.alone_dirty.Dirty();
  if (!std::exchange(r.facts.grown, true))
    ledger_->table()->SetGrown(r.id);
  return {};
}

Status Passthrough::End(FileRecord& r, uint64_t entered) {
  TRY(TakeBack(r));
  TRY(core::FaultPoint("passthrough.taken_back"));
  {
    MutexLock lock(r.mu);
    MutexLock own(mu_);
    // Opened meanwhile, and perhaps written and closed behind what was taken
    // back: its close comes back to this.
    if (r.direct->opens != 0 || (r.direct->entered != entered &&
                                 ledger_->switches().direct_recheck))
      return {};
    const state::Direct how =
        closed_ ? state::Direct::kAliased : state::Direct::kNo;
    TRY(ledger_->AppendLocked(
        r, DirectFact{r.id, static_cast<uint32_t>(how), 0}));
    if (closed_)
      aliased_.insert(r.id);
    r.direct.reset();
    ended_++;
    r.version++;
    r.changed.NotifyAll();
  }
  Drop(r.id);
  return {};
}

void Passthrough::Drop(FileId id) {
  uint32_t backing = 0;
  {
    MutexLock lock(mu_);
    auto it = direct_.find(id);
    if (it == direct_.end())
      return;
    backing = it->second;
    direct_.erase(it);
  }
  if (backing != 0)
    ids_->Close(backing);
}

Status Passthrough::Settle(FileId id) {
  FileRef r = ledger_->table()->Find(id);
  if (!r) {
    Drop(id);  // deleted, and its last user is gone
    return {};
  }
  MutexLock writes(r->write_mu);
  uint32_t backing = 0;
  bool stays;
  uint64_t entered;
  {
    MutexLock lock(r->mu);
    if (!r->direct || r->direct->opens != 0 || r->direct->others_open)
      return {};
    // Mapped, perhaps: what the mapping writes must be seen by the next open.
    stays = r->direct->may_be_mapped;
    entered = r->direct->entered;
    if (stays && r->direct->backing != 0) {
      TRY(ledger_->AppendLocked(
          *r, DirectFact{id, static_cast<uint32_t>(state::Direct::kYes), 0}));
      backing = std::exchange(r->direct->backing, 0);
      MutexLock own(mu_);
      direct_[id] = 0;
    }
  }
  if (backing != 0)
    ids_->Close(backing);
  if (stays)
    return {};
  return End(*r, entered);
}

bool Passthrough::Step() {
  FileId id;
  {
    MutexLock lock(mu_);
    if (!unseen_.empty()) {
      id = unseen_.front();
      unseen_.pop_front();
      lock.unlock();
      if (drop_attrs_)
        drop_attrs_(id);
      return true;
    }
    if (over_.empty() || final_)
      return false;
    id = over_.front();
    over_.pop_front();
  }
  if (Status settled = Settle(id); !settled) {
    LOG_WARN("file {:#x}, tried again: {}", id, settled.error().ToString());
    MutexLock lock(mu_);
    over_.push_back(id);
    return false;
  }
  return true;
}

void Passthrough::Run(const std::atomic<bool>& stop) {
  while (!stop.load()) {
    if (Step())
      continue;
    MutexLock lock(mu_);
    if (!woken_ && !stop.load())
      work_.WaitFor(lock, over_.empty() ? -1 : kRetryNs);
    woken_ = false;
  }
}

void Passthrough::Wake() {
  MutexLock lock(mu_);
  woken_ = true;
  work_.NotifyAll();
}

// -------------------------------------------------------------------- abort

void Passthrough::Close() {
  MutexLock lock(mu_);
  closed_ = true;
  for (const auto& [id, backing] : direct_)
    aliased_.insert(id);
}

void Passthrough::Reopen() {
  MutexLock lock(mu_);
  closed_ = false;
}

FileId Passthrough::NumberOf(FileId id) {
  if (!closed_)
    return id;
  MutexLock lock(mu_);
  return aliased_.contains(id) ? id | state::kAliasBit : id;
}

std::vector<FileId> Passthrough::Direct() {
  std::vector<FileId> ids;
  {
    MutexLock lock(mu_);
    for (const auto& [id, backing] : direct_)
      ids.push_back(id);
  }
  std::erase_if(ids, [this](FileId id) { return !HasName(id); });
  return ids;
}

bool Passthrough::HasName(FileId id) {
  auto fd = ledger_->source()->Path(id);
  if (!fd)
    return false;
  auto st = sys_->StatAt((*fd)->Get(), "", STATX_NLINK);
  return !st || st->stx_nlink != 0;
}

Status Passthrough::LeaveAll(int64_t deadline_ns) {
  for (FileId id : Direct()) {
    FileRef r = ledger_->table()->Find(id);
    if (!r)
      continue;
    if (sys_->MonotonicNs() > deadline_ns)
      return core::Fail(core::ErrorCode::kTimeout,
                        "the times of files are taken from the target");
    MutexLock writes(r->write_mu);
    uint64_t entered;
    {
      MutexLock lock(r->mu);
      if (!r->direct)
        continue;
      if (r->direct->opens != 0)
        return core::Fail(core::ErrorCode::kConflict,
                          "a file is still read and written by the kernel");
      entered = r->direct->entered;
    }
    TRY(End(*r, entered));
    if (IsDirect(*r))
      return core::Fail(core::ErrorCode::kConflict,
                        "a file was opened by its first number just now");
  }
  return {};
}

}  // namespace livemv::fusefs
