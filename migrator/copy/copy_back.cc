#include "migrator/copy/copy_back.h"

#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "core/log.h"
#include "fusefs/target_writer.h"

namespace livemv::copy {

using core::MutexLock;
using core::Result;
using core::Status;
using fusefs::ByteRange;
using fusefs::FileRef;
using fusefs::SharedFd;
using state::ByteMap;

namespace {

constexpr char kCapability[] = "security.capability";

}  // namespace

CopyBack::CopyBack(fusefs::ByteLedger* ledger)
    : ledger_(ledger), sys_(ledger->sys()) {}

Result<uint64_t> CopyBack::BytesToBringBack() {
  uint64_t bytes = 0;
  for (state::FileId id : ledger_->table()->KnownFiles()) {
    FileRef r = ledger_->table()->Find(id);
    if (!r)
      continue;
    ASSIGN_OR_RETURN(bool gone, IsGone(id));
    if (gone)
      continue;
    bool direct;
    {
      MutexLock lock(r->mu);
      direct = r->direct.has_value();
    }
    // As it was known last: the target may be away, and the abort not begun.
    if (!direct)
      TRY(ledger_->Load(*r));
    MutexLock lock(r->mu);
    uint64_t end = r->facts.map.local_end();
    if (r->facts.size > end)
      bytes += r->facts.size - end;
    bytes += r->facts.map.RemoteBytes();
  }
  return bytes;
}

Result<bool> CopyBack::IsGone(state::FileId id) {
  if (auto fd = ledger_->source()->Path(id))
    return false;
  return ledger_->source()->IsDead(id);
}

Status CopyBack::List() {
  files_.clear();
  for (state::FileId id : ledger_->table()->KnownFiles()) {
    FileRef r = ledger_->table()->Find(id);
    if (!r)
      continue;
    ASSIGN_OR_RETURN(bool gone, IsGone(id));
    if (gone)
      continue;
    TRY(ledger_->Load(*r));
    MutexLock lock(r->mu);
    if (r->direct)
      continue;  // written unseen: later
    if (r->facts.size > r->facts.map.local_end() ||
        (r->facts.map.RemoteBytes() != 0 && !r->remote_back))
      files_.push_back(id);
  }
  return {};
}

Result<bool> CopyBack::Step() {
  for (;;) {
    // Files have grown since an older list was made: only the end of a new one
    // says that nothing is left.
    const bool is_new = files_.empty();
    if (is_new)
      TRY(List());
    while (!files_.empty()) {
      state::FileId id = files_.front();
      ASSIGN_OR_RETURN(bool did, StepFile(id));
      if (did)
        return true;
      files_.pop_front();
    }
    if (is_new)
      return false;
  }
}

Result<bool> CopyBack::StepFile(state::FileId id) {
  FileRef r = ledger_->table()->Find(id);
  if (!r)
    return false;
  ASSIGN_OR_RETURN(bool gone, IsGone(id));
  if (gone)
    return false;
  bool remote;
  {
    MutexLock lock(r->mu);
    remote = r->facts.map.RemoteBytes() != 0 && !r->remote_back;
  }
  if (remote) {
    TRY(BringRemote(*r));
    return true;
  }
  bool moved = false;
  ASSIGN_OR_RETURN(bool did, BringGrowth(*r, &moved));
  if (moved) {
    // Somebody writes there: the other files first.
    files_.pop_front();
    files_.push_back(id);
  }
  return did;
}

Status CopyBack::CopyRange(fusefs::FileRecord& r, uint64_t begin, uint64_t end,
                           bool skip_holes) {
  ASSIGN_OR_RETURN(SharedFd from, ledger_->objects()->Data(r.id));
  ASSIGN_OR_RETURN(SharedFd to, ledger_->source()->Data(r.id));
  if (buffer_ == nullptr)
    buffer_ = std::make_unique<char[]>(state::kChunkBytes);
  uint64_t at = begin;
  while (at < end) {
    uint64_t pos = at, stop = end;
    if (skip_holes) {
      auto data = sys_->LSeek(from->Get(), static_cast<off_t>(at), SEEK_DATA);
      if (!data && data.error().sys_errno == ENXIO)
        break;  // a hole to the end
      if (data) {
        pos = static_cast<uint64_t>(*data);
        if (pos >= end)
          break;
        auto hole = sys_->LSeek(from->Get(), *data, SEEK_HOLE);
        if (hole)
          stop = std::min<uint64_t>(end, static_cast<uint64_t>(*hole));
      }
    }
    stop = std::min(stop, pos + state::kChunkBytes);
    ASSIGN_OR_RETURN(size_t n,
                     sys_->PRead(from->Get(), buffer_.get(), stop - pos,
                                 static_cast<off_t>(pos)));
    if (n == 0)
      break;  // the object ends
    TRY(fusefs::PWriteAll(sys_, to->Get(), std::span(buffer_.get(), n), pos));
    at = pos + n;
  }
  return {};
}

Status CopyBack::SyncSource(fusefs::FileRecord& r) {
  if (!ledger_->switches().back_synced)
    return {};
  ASSIGN_OR_RETURN(SharedFd fd, ledger_->source()->Data(r.id));
  return sys_->FSync(fd->Get());
}

Result<CopyBack::Beside> CopyBack::LookAtSource(fusefs::FileRecord& r) {
  ASSIGN_OR_RETURN(SharedFd fd, ledger_->source()->Path(r.id));
  Beside seen;
  ASSIGN_OR_RETURN(seen.stat, sys_->StatAt(fd->Get(), ""));
  auto capability = sys_->GetXattr(fd->Get(), kCapability);
  if (capability)
    seen.capability = std::move(*capability);
  else if (capability.error().sys_errno != ENODATA &&
           capability.error().sys_errno != EOPNOTSUPP)
    return core::Fail(std::move(capability).error());
  return seen;
}

Status CopyBack::ResizeSource(fusefs::FileRecord& r, uint64_t size) {
  ASSIGN_OR_RETURN(SharedFd fd, ledger_->source()->Data(r.id));
  return sys_->FTruncate(fd->Get(), size);
}

// Bringing bytes back is no write of the file: its time stays, and its
// capabilities, which the kernel takes away with every write, even root's
// (security/commoncap.c, cap_inode_need_killpriv). With write_mu held, so that
// no application's write is between the check and the act.
Status CopyBack::Restore(fusefs::FileRecord& r, const Beside& before,
                         uint64_t since) {
  {
    MutexLock lock(r.mu);
    if (r.gens.Now() != since)
      return {};
  }
  ASSIGN_OR_RETURN(SharedFd fd, ledger_->source()->Path(r.id));
  if (before.capability) {
    // One that was given meanwhile is the newer one.
    Status given = sys_->SetXattr(fd->Get(), kCapability, *before.capability,
                                  XATTR_CREATE);
    if (!given && given.error().sys_errno != EEXIST)
      return given;
  }
  struct timespec times[2] = {
      {0, UTIME_OMIT},
      {before.stat.stx_mtime.tv_sec, before.stat.stx_mtime.tv_nsec}};
  return sys_->UTimens(fd->Get(), times);
}

// The source may hold bytes past the local end: of a truncate that a power
// cut took, or of a piece that was not claimed. They would show through holes.
Status CopyBack::TrimSource(fusefs::FileRecord& r) {
  uint64_t end, since;
  {
    MutexLock lock(r.mu);
    end = r.facts.map.local_end();
    since = r.gens.Now();
  }
  ASSIGN_OR_RETURN(Beside before, LookAtSource(r));
  if (before.stat.stx_size == end)
    return {};
  TRY(ResizeSource(r, end));
  return Restore(r, before, since);
}

Result<bool> CopyBack::BringGrowth(fusefs::FileRecord& r, bool* moved) {
  TRY(ledger_->Load(r));
  ByteRange range;
  Beside before;
  uint64_t since;
  {
    // No write is in flight while write_mu is held; from then on each one that
    // overlaps the range says so. A cut that is owed lies past the size.
    MutexLock writes(r.write_mu);
    {
      MutexLock lock(r.mu);
      uint64_t begin = r.facts.map.local_end();
      if (r.facts.size <= begin)
        return false;
      uint64_t chunk_end =
          (begin / state::kChunkBytes + 1) * state::kChunkBytes;
      range = {begin, std::min(r.facts.size, chunk_end)};
    }
    ASSIGN_OR_RETURN(before, LookAtSource(r));
    TRY(TrimSource(r));
    MutexLock lock(r.mu);
    since = r.gens.Now();
    r.back_range = range;
    r.back_moved = false;
  }
  Status copied = CopyRange(r, range.begin, range.end, true);
  if (copied)
    copied = SyncSource(r);
  MutexLock writes(r.write_mu);
  bool still;
  {
    MutexLock lock(r.mu);
    still = !r.back_moved || !ledger_->switches().back_generation;
  }
  if (copied && still) {
    // A hole at the end counts as well: the source is as long as its part.
    Result<Beside> now = LookAtSource(r);
    if (!now)
      copied = core::Fail(std::move(now).error());
    else if (now->stat.stx_size < range.end)
      copied = ResizeSource(r, range.end);
  }
  if (copied)
    copied = Restore(r, before, since);
  MutexLock lock(r.mu);
  *moved = !still;
  r.back_range.reset();
  r.changed.NotifyAll();
  if (!copied)
    return core::Fail(std::move(copied).error().With("bringing growth back"));
  if (*moved)
    return true;
  TRY(ledger_->AppendLocked(r, state::LocalEndFact{r.id, range.end}));
  r.facts.map.RaiseTo(range.end);
  r.provisional.clear();
  ledger_->SourceWrittenLocked(r);
  r.version++;
  ledger_->table()->Account(&r);
  brought_ += range.end - range.begin;
  return true;
}

// Remote bytes stay remote until the source becomes the truth for the whole
// tree; from now on they are written on both sides.
Status CopyBack::BringRemote(fusefs::FileRecord& r) {
  // Rare and small (the source refused these bytes), so applications wait.
  MutexLock writes(r.write_mu);
  std::vector<ByteMap::Range> ranges;
  uint64_t since;
  {
    MutexLock lock(r.mu);
    ranges = r.facts.map.RemoteRanges();
    since = r.gens.Now();
  }
  ASSIGN_OR_RETURN(Beside before, LookAtSource(r));
  for (const ByteMap::Range& range : ranges) {
    Status copied = CopyRange(r, range.first, range.first + range.count, false);
    if (!copied)
      return core::Fail(
          std::move(copied).error().With("bringing remote bytes back"));
    brought_ += range.count;
  }
  TRY(SyncSource(r));
  TRY(Restore(r, before, since));
  MutexLock lock(r.mu);
  r.remote_back = true;
  ledger_->SourceWrittenLocked(r);
  return {};
}

Status CopyBack::Finish() {
  files_.clear();
  for (;;) {
    ASSIGN_OR_RETURN(bool did, Step());
    if (!did)
      break;
  }
  for (state::FileId id : ledger_->table()->KnownFiles()) {
    FileRef r = ledger_->table()->Find(id);
    if (!r)
      continue;
    bool pinned;
    {
      MutexLock lock(r->mu);
      pinned = r->facts.pinned;
    }
    if (!pinned)
      continue;
    ASSIGN_OR_RETURN(bool gone, IsGone(id));
    if (gone)
      continue;
    MutexLock writes(r->write_mu);
    TRY(TrimSource(*r));
  }
  if (Status synced = sys_->SyncFs(ledger_->source()->RootFd()); !synced)
    return core::Fail(std::move(synced).error().With("source"));
  return {};
}

}  // namespace livemv::copy
