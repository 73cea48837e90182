// Opening, reading and looking.

#include "fusefs/data_path.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/log.h"
#include "fusefs/capability.h"

namespace livemv::fusefs {

using core::MutexLock;
using core::Result;
using core::Status;
using state::ByteMap;

DataPath::DataPath(ByteLedger* ledger, TargetWriter* writer, Options options)
    : ledger_(ledger),
      table_(ledger->table()),
      source_(ledger->source()),
      objects_(ledger->objects()),
      sys_(ledger->sys()),
      writer_(writer),
      options_(options) {}

namespace {

bool IsLater(const struct statx_timestamp& a, const struct statx_timestamp& b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

}  // namespace

Result<SharedFd> DataPath::AloneFd(FileId id) {
  return serving_ == Serving::kTargetOnly ? objects_->Data(id)
                                          : source_->Data(id);
}

Result<FileRef> DataPath::Loaded(FileId id) {
  FileRef r = table_->Get(id);
  TRY(ledger_->Load(*r));
  return r;
}

DataPath::Asking::Asking(DataPath* path) : path_(path) {
  MutexLock lock(path_->asking_mu_);
  const int64_t until =
      path_->sys_->MonotonicNs() + path_->options_.double_write_limit_ns;
  while (path_->asking_ >= kMostAsking) {
    const int64_t left = until - path_->sys_->MonotonicNs();
    if (left <= 0)
      return;
    path_->asked_.WaitFor(lock, left);
  }
  path_->asking_++;
  may_ = true;
}

DataPath::Asking::~Asking() {
  if (!may_)
    return;
  MutexLock lock(path_->asking_mu_);
  path_->asking_--;
  path_->asked_.NotifyOne();
}

DataPath::Touching::Touching(DataPath* path, FileId id)
    : listener_(path->ledger_->listener()), id_(id) {
  if (listener_ != nullptr)
    listener_->AttrsTouching(id_);
}

DataPath::Touching::~Touching() {
  if (listener_ != nullptr)
    listener_->AttrsTouched(id_);
}

Status DataPath::KillSuidGid(const SharedFd& fd) {
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(fd->Get(), "", STATX_MODE));
  mode_t drop = st.stx_mode & S_ISUID;
  // fs/attr.c: setgid without group execute means mandatory locking and stays.
  if ((st.stx_mode & S_ISGID) != 0 && (st.stx_mode & S_IXGRP) != 0)
    drop |= S_ISGID;
  if (drop != 0)
    TRY(sys_->ChMod(fd->Get(), (st.stx_mode & 07777) & ~drop));
  Status removed = sys_->RemoveXattr(fd->Get(), kCapability);
  int err = removed ? 0 : removed.error().sys_errno;
  if (err != 0 && err != ENODATA && err != EOPNOTSUPP)
    return removed;
  return {};
}

bool DataPath::IsDirect(FileId id) {
  FileRef r = table_->Find(id);
  return r && IsDirect(*r);
}

bool DataPath::IsDirect(FileRecord& r) {
  MutexLock lock(r.mu);
  return r.direct.has_value();
}

Status DataPath::TouchTimes(FileRecord& r) {
  ASSIGN_OR_RETURN(SharedFd fd, IsDirect(r) ? objects_->Path(r.id)
                                            : source_->Path(r.id));
  struct timespec times[2] = {{0, UTIME_OMIT}, {0, UTIME_NOW}};
  return sys_->UTimens(fd->Get(), times);
}

// --------------------------------------------------------------- reading

Result<size_t> DataPath::ReadFull(const SharedFd& fd, uint64_t off,
                                  std::span<char> buf) {
  size_t done = 0;
  while (done < buf.size()) {
    ASSIGN_OR_RETURN(size_t n, sys_->PRead(fd->Get(), buf.data() + done,
                                           buf.size() - done,
                                           static_cast<off_t>(off + done)));
    if (n == 0)
      break;
    done += n;
  }
  return done;
}

Result<size_t> DataPath::Read(FileId id, uint64_t off, std::span<char> buf) {
  if (!Split()) {
    ASSIGN_OR_RETURN(SharedFd fd, AloneFd(id));
    return ReadFull(fd, off, buf);
  }
  FileRef r = table_->Find(id);
  if (!r) {
    ASSIGN_OR_RETURN(SharedFd fd, source_->Data(id));
    ASSIGN_OR_RETURN(size_t n, ReadFull(fd, off, buf));
    r = table_->Find(id);
    if (!r)
      return n;  // still the source's alone
  }
  TRY(ledger_->Load(*r));
  return ReadRecord(*r, off, buf);
}

Result<size_t> DataPath::ReadRecord(FileRecord& r, uint64_t off,
                                    std::span<char> buf) {
  for (;;) {
    uint64_t version;
    size_t len;
    std::vector<ByteMap::Segment> segments;
    {
      MutexLock lock(r.mu);
      version = r.version;
      if (off >= r.facts.size)
        return size_t{0};
      len = std::min<uint64_t>(buf.size(), r.facts.size - off);
      segments = r.facts.map.Split(off, len);
    }
    Status status;
    for (const ByteMap::Segment& segment : segments) {
      bool source = segment.owner == ByteMap::Owner::kSource;
      auto fd = source ? source_->Data(r.id) : objects_->Data(r.id);
      if (!fd) {
        status = core::Fail(std::move(fd).error());
        break;
      }
      std::span<char> part = buf.subspan(segment.off - off, segment.len);
      Result<size_t> n = ReadFull(*fd, segment.off, part);
      if (!n) {
        status = core::Fail(std::move(n).error());
        break;
      }
      // A side that ends early has zeros there: the other one says the size.
      std::memset(part.data() + *n, 0, part.size() - *n);
    }
    MutexLock lock(r.mu);
    if (r.version == version || !ledger_->switches().version_recheck) {
      if (!status)
        return core::Fail(std::move(status).error());
      return len;
    }
  }
}

Result<off_t> DataPath::LSeek(FileId id, off_t off, int whence) {
  if (whence != SEEK_DATA && whence != SEEK_HOLE)
    return core::FailSys(EINVAL, "lseek: only SEEK_DATA and SEEK_HOLE");
  if (off < 0)
    return core::FailSys(ENXIO, "lseek");
  if (!IsSplit(id)) {
    ASSIGN_OR_RETURN(SharedFd fd, AloneFd(id));
    return sys_->LSeek(fd->Get(), off, whence);
  }
  FileRef r = table_->Find(id);
  if (!r) {
    ASSIGN_OR_RETURN(SharedFd fd, source_->Data(id));
    auto pos = sys_->LSeek(fd->Get(), off, whence);
    r = table_->Find(id);
    if (!r)
      return pos;
  }
  TRY(ledger_->Load(*r));
  return SeekSplit(*r, static_cast<uint64_t>(off), whence);
}

Result<off_t> DataPath::SeekSplit(FileRecord& r, uint64_t off, int whence) {
  for (;;) {
    uint64_t version, size;
    std::vector<ByteMap::Segment> segments;
    {
      MutexLock lock(r.mu);
      version = r.version;
      size = r.facts.size;
      if (off >= size)
        return core::FailSys(ENXIO, "lseek");
      segments = r.facts.map.Split(off, size - off);
    }
    uint64_t found = size;
    for (const ByteMap::Segment& segment : segments) {
      bool source = segment.owner == ByteMap::Owner::kSource;
      ASSIGN_OR_RETURN(SharedFd fd,
                       source ? source_->Data(r.id) : objects_->Data(r.id));
      auto pos = sys_->LSeek(fd->Get(), static_cast<off_t>(segment.off),
                             whence);
      uint64_t end = segment.off + segment.len, at = end;
      if (pos)
        at = std::min(static_cast<uint64_t>(*pos), end);
      else if (pos.error().sys_errno != ENXIO)
        return pos;
      else if (whence == SEEK_HOLE)
        at = segment.off;  // this side ends before: zeros from here on
      if (at < end) {
        found = at;
        break;
      }
    }
    MutexLock lock(r.mu);
    if (r.version != version)
      continue;
    if (found == size && whence == SEEK_DATA)
      return core::FailSys(ENXIO, "lseek");
    return static_cast<off_t>(found);
  }
}

// --------------------------------------------------------------- looking

Result<uint64_t> DataPath::SizeOf(FileId id) {
  if (!IsSplit(id)) {
    ASSIGN_OR_RETURN(SharedFd fd, serving_ == Serving::kTargetOnly
                                      ? objects_->Path(id)
                                      : source_->Path(id));
    ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(fd->Get(), "", STATX_SIZE));
    return uint64_t{st.stx_size};
  }
  ASSIGN_OR_RETURN(FileRef r, Loaded(id));
  MutexLock lock(r->mu);
  return r->facts.size;
}

Status DataPath::Complete(FileId id, core::Stat* stat) {
  if (!IsSplit(id))
    return {};
  FileRef r = table_->Find(id);
  if (!r)
    return {};
  if (IsDirect(*r))
    return CompleteDirect(*r, stat);
  TRY(ledger_->Load(*r));
  MutexLock lock(r->mu);
  stat->stx_size = r->facts.size;
  if (r->put_back) {
    stat->stx_mtime.tv_sec = static_cast<int64_t>(r->put_back->mtime_sec);
    stat->stx_mtime.tv_nsec = r->put_back->mtime_nsec;
  }
  if (!r->facts.pinned)
    return {};
  // What the target alone holds counts as data: asking the object for its
  // blocks might block for as long as the target does.
  uint64_t end = r->facts.map.local_end();
  uint64_t alone = r->facts.size > end ? r->facts.size - end : 0;
  alone += r->facts.map.RemoteBytes();
  stat->stx_blocks += (alone + 511) / 512;
  return {};
}

// Its size and times are the object's. What a chmod or chown did is the source's
// to say; the applier's own changes of the object are nobody's business.
Status DataPath::CompleteDirect(FileRecord& r, core::Stat* stat) {
  Asking asking(this);
  if (!asking.may()) {
    MutexLock lock(r.mu);
    stat->stx_size = r.facts.size;  // as it was known last
    return {};
  }
  ASSIGN_OR_RETURN(SharedFd fd, objects_->Path(r.id));
  ASSIGN_OR_RETURN(core::Stat is, sys_->StatAt(fd->Get(), ""));
  stat->stx_size = is.stx_size;
  stat->stx_blocks += is.stx_blocks;
  stat->stx_atime = is.stx_atime;
  stat->stx_mtime = is.stx_mtime;
  const struct statx_timestamp& written =
      IsLater(is.stx_mtime, is.stx_ctime) ? is.stx_ctime : is.stx_mtime;
  if (IsLater(written, stat->stx_ctime))
    stat->stx_ctime = written;
  MutexLock lock(r.mu);
  if (r.direct)  // still
    r.facts.size = is.stx_size;
  return {};
}

Status DataPath::ChangeAttrs(FileId id, const AttrsChange& change,
                             const std::function<Status()>& on_source) {
  if (change.times == nullptr && !change.capability)
    return on_source();
  FileRef r = table_->Find(id);
  if (!r)
    return on_source();
  if (serving_ != Serving::kAborting &&
      (change.times == nullptr || !IsWhollyRemote(*r))) {
    TRY(on_source());
    // An abort that has begun meanwhile does not wait for this.
    if (serving_ != Serving::kAborting)
      return {};
    MutexLock writes(r->write_mu);
    return KeepChanged(*r, change);
  }
  // Neither becoming direct nor its end comes in between, nor the begin or end
  // of a piece that is brought back.
  MutexLock writes(r->write_mu);
  if (change.capability)
    TRY(ForgetCapability(*r));
  TRY(on_source());
  TRY(KeepChanged(*r, change));
  if (change.times == nullptr || !IsDirect(*r))
    return {};
  ASSIGN_OR_RETURN(SharedFd fd, objects_->Path(id));
  return sys_->UTimens(fd->Get(), change.times);
}

Status DataPath::ForgetCapability(FileRecord& r) {
  state::Seq seq;
  {
    MutexLock lock(r.mu);
    if (!r.put_back || r.put_back->capability.empty())
      return {};
    state::PutBackFact fact = *r.put_back;
    fact.capability.clear();
    TRY(ledger_->ToPutBackLocked(r, std::move(fact), r.put_back_done));
    seq = r.facts.last_seq;
  }
  return ledger_->journal()->Sync(seq);
}

// As the change has it, not as the source is: a piece may just be written.
Status DataPath::KeepChanged(FileRecord& r, const AttrsChange& change) {
  MutexLock lock(r.mu);
  if (!r.put_back)
    return {};
  state::PutBackFact fact = *r.put_back;
  if (change.times != nullptr && change.times[1].tv_nsec == UTIME_NOW) {
    const state::PutBackFact now = ledger_->PutBackNow(r.id);
    fact.mtime_sec = now.mtime_sec;
    fact.mtime_nsec = now.mtime_nsec;
  } else if (change.times != nullptr &&
             change.times[1].tv_nsec != UTIME_OMIT) {
    fact.mtime_sec = static_cast<uint64_t>(change.times[1].tv_sec);
    fact.mtime_nsec = static_cast<uint32_t>(change.times[1].tv_nsec);
  }
  if (change.capability)
    fact.capability = *change.capability;
  return ledger_->ToPutBackLocked(r, std::move(fact),
                                  r.put_back_done && !r.back_range);
}

Status DataPath::BeforeChange(FileRecord& r) {
  if (serving_ != Serving::kAborting)
    return {};
  return ledger_->NothingToPutBack(r);
}

Status DataPath::NewFile(FileId id) {
  if (!Split())
    return {};
  FileRef r = table_->Get(id);
  MutexLock lock(r->mu);
  FileFacts facts;
  facts.size_known = facts.pinned = facts.fresh = facts.born = true;
  facts.sync_all = true;
  // Whoever finds no record of it finds an empty source: the same local end.
  facts.pin_durable = true;
  facts.source_dirty = DirtyMark(true);
  facts.clock = r->facts.clock;
  r->facts = std::move(facts);
  TRY(ledger_->AppendLocked(*r, state::LocalEndFact{id, 0}));
  r->facts.pin_seq = r->facts.last_seq;
  r->version++;
  return {};
}

}  // namespace livemv::fusefs
