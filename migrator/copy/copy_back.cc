#include "migrator/copy/copy_back.h"

#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "core/fault_points.h"
#include "core/log.h"
#include "fusefs/capability.h"
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

constexpr int kFilesPerLook = 64;
// Brought back with one sync of the source.
constexpr size_t kPiecesPerSync = 256;
constexpr uint64_t kBytesPerSync = 8ull << 20;

}  // namespace

CopyBack::CopyBack(fusefs::ByteLedger* ledger)
    : ledger_(ledger), sys_(ledger->sys()) {}

Result<CopyBack::Lack> CopyBack::WhatTheSourceLacks() {
  Lack lack;
  for (state::FileId id : ledger_->table()->FilesThatMayBeAhead()) {
    FileRef r = ledger_->table()->Find(id);
    if (!r)
      continue;
    bool known;
    {
      // That of a direct file as it was known last: the target may be away, and
      // the abort not begun.
      MutexLock lock(r->mu);
      known = r->facts.size_known || r->direct;
    }
    if (!known) {
      ASSIGN_OR_RETURN(bool gone, IsGone(id));
      if (gone)
        continue;
      TRY(ledger_->Load(*r));
    }
    uint64_t bytes = 0;
    {
      MutexLock lock(r->mu);
      const uint64_t end = r->facts.map.local_end();
      if (!r->remote_back)
        bytes = r->facts.map.RemoteBytes();
      if (r->facts.size > end)
        bytes += r->facts.size - end;
    }
    if (bytes == 0)
      continue;
    ASSIGN_OR_RETURN(bool gone, IsGone(id));
    if (gone)
      continue;
    lack.bytes += bytes;
    lack.files++;
  }
  return lack;
}

Result<bool> CopyBack::IsGone(state::FileId id) {
  if (auto fd = ledger_->source()->Path(id))
    return false;
  return ledger_->source()->IsDead(id);
}

Result<FileRef> CopyBack::FindLiving(state::FileId id) {
  FileRef r = ledger_->table()->Find(id);
  if (!r)
    return r;
  ASSIGN_OR_RETURN(bool gone, IsGone(id));
  if (gone)
    r.Reset();
  return r;
}

bool CopyBack::IsEven(const fusefs::FileRecord& r) {
  return !r.direct && r.facts.size_known &&
         r.facts.size <= r.facts.map.local_end() &&
         (r.facts.map.RemoteBytes() == 0 || r.remote_back);
}

Status CopyBack::LookAtSome() {
  for (int i = 0; i < kFilesPerLook && !to_look_at_.empty(); i++) {
    TRY(LookAt(to_look_at_.front()));
    to_look_at_.pop_front();
  }
  return {};
}

Status CopyBack::LookAt(state::FileId id) {
  ASSIGN_OR_RETURN(FileRef r, FindLiving(id));
  if (!r)
    return {};
  bool pinned;
  {
    MutexLock lock(r->mu);
    pinned = r->facts.pinned;
    if (!r->direct) {
      lock.unlock();
      TRY(ledger_->Load(*r));
    }
  }
  if (!pinned)
    return {};
  MutexLock writes(r->write_mu);
  return TrimSource(*r);
}

Status CopyBack::List() {
  files_.clear();
  for (state::FileId id : ledger_->table()->FilesThatMayBeAhead()) {
    FileRef r = ledger_->table()->Find(id);
    if (!r)
      continue;
    {
      MutexLock lock(r->mu);
      if (r->direct || IsEven(*r))
        continue;  // direct: written unseen, later
    }
    ASSIGN_OR_RETURN(bool gone, IsGone(id));
    if (gone)
      continue;
    TRY(ledger_->Load(*r));
    MutexLock lock(r->mu);
    if (!r->direct && !IsEven(*r))
      files_.push_back(id);
  }
  return {};
}

Result<bool> CopyBack::Step() {
  if (!source_root_) {
    ASSIGN_OR_RETURN(source_root_,
                     sys_->OpenAt(ledger_->source()->RootFd(), ".",
                                  O_RDONLY | O_DIRECTORY));
  }
  if (!looking_) {
    TRY(PutBackAll());
    looking_ = true;
    const auto known = ledger_->table()->KnownFiles();
    to_look_at_.assign(known.begin(), known.end());
  }
  TRY(LookAtSome());
  if (!to_look_at_.empty())
    return true;
  for (;;) {
    // Files have grown since an older list was made: only the end of a new one
    // says that nothing is left.
    const bool is_new = files_.empty();
    if (is_new)
      TRY(List());
    while (!files_.empty()) {
      ASSIGN_OR_RETURN(bool did, StepSome());
      if (did)
        return true;
    }
    if (is_new)
      return false;
  }
}

Result<bool> CopyBack::StepSome() {
  std::vector<Piece> pieces;
  uint64_t bytes = 0;
  bool did = false;
  Status status;
  for (size_t left = files_.size();
       left != 0 && status && pieces.size() < kPiecesPerSync &&
       bytes < kBytesPerSync;
       left--) {
    const state::FileId id = files_.front();
    files_.pop_front();
    status = [&]() -> Status {
      ASSIGN_OR_RETURN(FileRef r, FindLiving(id));
      if (!r)
        return {};
      files_.push_back(id);
      bool remote;
      {
        MutexLock lock(r->mu);
        remote = r->facts.map.RemoteBytes() != 0 && !r->remote_back;
      }
      if (remote) {
        TRY(BringRemote(*r));
        did = true;
      }
      ASSIGN_OR_RETURN(std::optional<Piece> piece, BeginPiece(std::move(r)));
      if (!piece) {
        files_.pop_back();
        return {};
      }
      bytes += piece->range.end - piece->range.begin;
      pieces.push_back(std::move(*piece));
      return {};
    }();
  }
  const Status kept = SyncKept();
  for (Piece& piece : pieces) {
    piece.copied = kept;
    if (kept)
      piece.copied =
          CopyRange(*piece.file, piece.range.begin, piece.range.end, true);
    if (piece.copied)
      piece.copied = core::FaultPoint("back.written");
  }
  Status synced = SyncPieces(pieces);
  // Each of them, whatever becomes of the others: their writers look at it.
  for (Piece& piece : pieces) {
    if (piece.copied)
      piece.copied = synced;
    if (Status ended = EndPiece(piece); !ended && status)
      status = ended;
  }
  TRY(status);
  return did || !pieces.empty();
}

Status CopyBack::SyncPieces(std::vector<Piece>& pieces) {
  if (pieces.empty() || !ledger_->switches().back_synced)
    return {};
  if (pieces.size() > 1)
    return SyncWholeSource();
  return SyncSource(*pieces.front().file);
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

Status CopyBack::SyncWholeSource() {
  std::vector<FileRef> put_back;
  for (state::FileId id : ledger_->table()->ToPutBack()) {
    FileRef r = ledger_->table()->Find(id);
    if (!r)
      continue;
    MutexLock lock(r->mu);
    if (r->put_back_done)
      put_back.push_back(std::move(r));
  }
  Status synced = sys_->SyncFs(source_root_.Get());
  if (!synced)
    return core::Fail(std::move(synced).error().With("source"));
  for (const FileRef& r : put_back) {
    MutexLock lock(r->mu);
    // Neither written since, nor at it again.
    if (r->put_back && r->put_back_done && !r->back_range)
      TRY(ledger_->PutBackDoneLocked(*r));
  }
  return {};
}

Result<uint64_t> CopyBack::SourceSize(fusefs::FileRecord& r) {
  ASSIGN_OR_RETURN(SharedFd fd, ledger_->source()->Path(r.id));
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(fd->Get(), "", STATX_SIZE));
  return uint64_t{st.stx_size};
}

// Bringing bytes back is no write of the file: its time stays, and its
// capability. What these were is written down before, since a successor would
// find what this has made of them.
Status CopyBack::KeepBeside(fusefs::FileRecord& r) {
  {
    MutexLock lock(r.mu);
    if (r.put_back && r.put_back_journaled) {
      r.put_back_done = false;
      return {};
    }
    if (r.put_back) {  // of a write in the last piece
      TRY(ledger_->ToPutBackLocked(r, *r.put_back, false));
      kept_seq_ = std::max(kept_seq_, r.facts.last_seq);
      return {};
    }
  }
  ASSIGN_OR_RETURN(SharedFd fd, ledger_->source()->Path(r.id));
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(fd->Get(), "", STATX_MTIME));
  state::PutBackFact fact{r.id, static_cast<uint64_t>(st.stx_mtime.tv_sec),
                          st.stx_mtime.tv_nsec, {}};
  ASSIGN_OR_RETURN(fact.capability, fusefs::CapabilityOf(sys_, fd->Get()));
  MutexLock lock(r.mu);
  TRY(ledger_->ToPutBackLocked(r, std::move(fact), false));
  kept_seq_ = std::max(kept_seq_, r.facts.last_seq);
  return {};
}

Status CopyBack::SyncKept() {
  const state::Seq seq = std::exchange(kept_seq_, 0);
  if (seq == 0)
    return {};
  TRY(ledger_->journal()->Sync(seq));
  return core::FaultPoint("back.kept");
}

Status CopyBack::ResizeSource(fusefs::FileRecord& r, uint64_t size) {
  ASSIGN_OR_RETURN(SharedFd fd, ledger_->source()->Data(r.id));
  return sys_->FTruncate(fd->Get(), size);
}

bool CopyBack::IsToPutBack(fusefs::FileRecord& r) {
  MutexLock lock(r.mu);
  return r.put_back && !r.put_back_done;
}

// With write_mu held, so that no application's write is between the check and
// the act.
Status CopyBack::PutBack(fusefs::FileRecord& r) {
  state::PutBackFact fact;
  {
    MutexLock lock(r.mu);
    if (!r.put_back)
      return {};  // somebody has written it meanwhile
    fact = *r.put_back;
  }
  ASSIGN_OR_RETURN(SharedFd fd, ledger_->source()->Path(r.id));
  if (!fact.capability.empty())
    TRY(sys_->SetXattr(fd->Get(), fusefs::kCapability, fact.capability, 0));
  const struct timespec times[2] = {{0, UTIME_OMIT},
                                    {static_cast<time_t>(fact.mtime_sec),
                                     static_cast<long>(fact.mtime_nsec)}};
  TRY(sys_->UTimens(fd->Get(), times));
  MutexLock lock(r.mu);
  r.put_back_done = true;
  return {};
}

Status CopyBack::PutBackAll() {
  Status all;
  for (state::FileId id : ledger_->table()->ToPutBack()) {
    Status one = [&]() -> Status {
      FileRef r = ledger_->table()->Find(id);
      if (!r || !IsToPutBack(*r))
        return {};
      ASSIGN_OR_RETURN(bool gone, IsGone(id));
      if (gone)
        return {};
      MutexLock writes(r->write_mu);
      return PutBack(*r);
    }();
    if (!one && all)
      all = std::move(one);
  }
  return all;
}

// The source may hold bytes past the local end: of a truncate that a power
// cut took, or of a piece that was not claimed. They would show through holes.
Status CopyBack::TrimSource(fusefs::FileRecord& r) {
  uint64_t end;
  {
    MutexLock lock(r.mu);
    end = r.facts.map.local_end();
  }
  ASSIGN_OR_RETURN(uint64_t size, SourceSize(r));
  if (size == end)
    return {};
  TRY(KeepBeside(r));
  TRY(SyncKept());
  TRY(ResizeSource(r, end));
  return PutBack(r);
}

Result<std::optional<CopyBack::Piece>> CopyBack::BeginPiece(FileRef file) {
  fusefs::FileRecord& r = *file;
  TRY(ledger_->Load(r));
  Piece piece;
  // No write is in flight while write_mu is held; from then on each one that
  // overlaps the range says so. A cut that is owed lies past the size.
  MutexLock writes(r.write_mu);
  {
    MutexLock lock(r.mu);
    uint64_t begin = r.facts.map.local_end();
    if (r.facts.size <= begin)
      return std::nullopt;
    uint64_t chunk_end = (begin / state::kChunkBytes + 1) * state::kChunkBytes;
    piece.range = {begin, std::min(r.facts.size, chunk_end)};
  }
  TRY(TrimSource(r));
  TRY(KeepBeside(r));
  {
    MutexLock lock(r.mu);
    r.back_range = piece.range;
    r.back_moved = false;
  }
  piece.file = std::move(file);
  return piece;
}

Status CopyBack::EndPiece(Piece& piece) {
  fusefs::FileRecord& r = *piece.file;
  const uint64_t end = piece.range.end;
  Status copied = piece.copied;
  MutexLock writes(r.write_mu);
  // Until it is claimed; a truncate that came in between has cut what was there
  // then, and the piece was written on.
  ledger_->table()->SetUntrimmed(r.id, true);
  bool still;
  {
    MutexLock lock(r.mu);
    still = !r.back_moved || !ledger_->switches().back_generation;
  }
  if (copied && still) {
    // A hole at the end counts as well: the source is as long as its part.
    Result<uint64_t> size = SourceSize(r);
    if (!size)
      copied = core::Fail(std::move(size).error());
    else if (*size < end)
      copied = ResizeSource(r, end);
  }
  if (copied)
    copied = core::FaultPoint("back.synced");
  if (Status put = PutBack(r); !put && copied)
    copied = std::move(put);
  if (copied)
    copied = core::FaultPoint("back.put_back");
  MutexLock lock(r.mu);
  r.back_range.reset();
  r.changed.NotifyAll();
  if (!copied)
    return core::Fail(std::move(copied).error().With("bringing growth back"));
  if (!still)
    return {};  // again, after the other files
  TRY(ledger_->AppendLocked(r, state::LocalEndFact{r.id, end}));
  r.facts.map.RaiseTo(end);
  r.provisional.clear();
  ledger_->SourceWrittenLocked(r);
  r.version++;
  ledger_->table()->Account(&r);
  ledger_->table()->SetUntrimmed(r.id, false);
  brought_ += end - piece.range.begin;
  return {};
}

// Remote bytes stay remote until the source becomes the truth for the whole
// tree; from now on they are written on both sides.
Status CopyBack::BringRemote(fusefs::FileRecord& r) {
  // Rare and small (the source refused these bytes), so applications wait.
  MutexLock writes(r.write_mu);
  std::vector<ByteMap::Range> ranges;
  {
    MutexLock lock(r.mu);
    ranges = r.facts.map.RemoteRanges();
  }
  TRY(KeepBeside(r));
  TRY(SyncKept());
  for (const ByteMap::Range& range : ranges) {
    Status copied = CopyRange(r, range.first, range.first + range.count, false);
    if (!copied)
      return core::Fail(
          std::move(copied).error().With("bringing remote bytes back"));
    brought_ += range.count;
  }
  TRY(SyncSource(r));
  TRY(PutBack(r));
  MutexLock lock(r.mu);
  r.remote_back = true;
  ledger_->SourceWrittenLocked(r);
  return {};
}

Status CopyBack::Finish(int64_t deadline_ns) {
  files_.clear();
  for (;;) {
    ASSIGN_OR_RETURN(bool did, Step());
    if (!did)
      break;
    if (deadline_ns >= 0 && sys_->MonotonicNs() >= deadline_ns)
      return core::Fail(core::ErrorCode::kTimeout,
                        "the time was not enough to bring back to the source "
                        "what the target alone holds");
  }
  for (state::FileId id : ledger_->table()->Untrimmed()) {
    ASSIGN_OR_RETURN(FileRef r, FindLiving(id));
    if (!r)
      continue;
    MutexLock writes(r->write_mu);
    TRY(TrimSource(*r));
  }
  TRY(PutBackAll());  // what an earlier call left
  return SyncWholeSource();
}

}  // namespace livemv::copy
