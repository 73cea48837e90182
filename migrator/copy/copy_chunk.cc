// One file, one chunk: reading, writing, verifying, claiming.

#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/fault_points.h"
#include "core/log.h"
#include "fusefs/target_writer.h"
#include "migrator/copy/copy_engine.h"

namespace livemv::copy {

using core::MutexLock;
using core::Result;
using core::Status;
using fusefs::ByteLedger;
using fusefs::ByteRange;
using fusefs::SharedFd;
using state::ByteMap;

namespace {

bool IsGone(const core::Error& error) {
  return error.code == core::ErrorCode::kGone || error.sys_errno == ESTALE ||
         error.sys_errno == ENOENT;
}

// The parts of a chunk that the copier is answerable for.
Pieces SourcePieces(const ByteMap& map, uint64_t chunk) {
  ByteMap::Range bytes = map.ChunkBytesOf(chunk);
  Pieces pieces;
  for (const ByteMap::Segment& s : map.Split(bytes.first, bytes.count))
    if (s.owner == ByteMap::Owner::kSource)
      pieces.push_back({s.off, s.off + s.len});
  return pieces;
}

}  // namespace

bool CopyEngine::Prepare(Job& job) {
  job.record = ledger_->table()->Get(job.id);
  fusefs::FileRecord& r = *job.record;
  auto source_failed = [&](core::Error error) {
    job.gone = IsGone(error);
    if (!job.gone)
      job.source_trouble = core::Fail(std::move(error));
    return false;
  };
  auto target_failed = [&](core::Error error) {
    job.target_trouble = core::Fail(std::move(error).With("target"));
    return false;
  };
  auto source = ledger_->source()->Data(job.id);
  if (!source)
    return source_failed(std::move(source).error());
  job.source = *source;
  if (Status loaded = ledger_->Load(r); !loaded)
    return target_failed(std::move(loaded).error());
  bool pinned, empty;
  {
    MutexLock lock(r.mu);
    pinned = r.facts.pinned;
    empty = r.facts.size == 0;
    if (pinned && r.facts.map.AllCopied())
      return false;
  }
  bool bound = ledger_->objects()->Find(job.id).has_value();
  if (!pinned && empty && !bound)
    return false;
  auto object = ledger_->EnsureObject(r);
  if (!object)
    return target_failed(std::move(object).error());
  if (!pinned) {
    auto size = ledger_->ObjectSize(r);
    if (!size)
      return target_failed(std::move(size).error());
    // An empty file needs no record, unless its object is to be cut.
    if (empty && *size == 0)
      return false;
    // Appends only, so that no application waits for it.
    MutexLock writes(r.write_mu);
    if (Status done = ledger_->Pin(r, *size, false); !done)
      return target_failed(std::move(done).error());
  }
  auto fd = ledger_->objects()->Data(job.id);
  if (!fd)
    return target_failed(std::move(fd).error());
  job.object = *fd;
  return true;
}

std::optional<uint64_t> CopyEngine::NextChunk(Job& job, uint64_t* cursor) {
  fusefs::FileRecord& r = *job.record;
  MutexLock lock(r.mu);
  while (!r.urgent.empty()) {
    uint64_t chunk = *r.urgent.begin();
    r.urgent.erase(r.urgent.begin());
    if (chunk < r.facts.map.Chunks() && r.facts.map.WantsCopy(chunk))
      return chunk;
  }
  auto next = r.facts.map.NextToCopy(*cursor);
  if (next)
    *cursor = *next + 1;
  return next;
}

void CopyEngine::CopyFile(Job& job, Batch& batch) {
  uint64_t cursor = 0;
  for (;;) {
    if (batch.bytes >= options_.batch_bytes || Paused()) {
      job.wants_more = true;
      return;
    }
    std::optional<uint64_t> chunk = NextChunk(job, &cursor);
    if (!chunk)
      return;
    if (Failed(job.id, *chunk) ||
        std::any_of(job.chunks.begin(), job.chunks.end(),
                    [&](const Copied& c) { return c.chunk == *chunk; }))
      continue;
    CopyChunk(job, batch, *chunk);
    if (!job.source_trouble || !job.target_trouble || job.gone)
      return;
  }
}

void CopyEngine::CopyChunk(Job& job, Batch& batch, uint64_t chunk) {
  fusefs::FileRecord& r = *job.record;
  Copied copied{chunk, 0, {}};
  Pieces pieces;
  bool fresh, last;
  {
    MutexLock lock(r.mu);
    if (chunk >= r.facts.map.Chunks() || !r.facts.map.WantsCopy(chunk))
      return;
    ByteMap::Range bytes = r.facts.map.ChunkBytesOf(chunk);
    // Its writer asks for it again at the end.
    if (ledger_->PredecessorAlive() ||
        (ledger_->switches().copies_wait && r.gens.InFlight(chunk)) ||
        r.late_syncs != 0 ||  // nothing could be claimed
        ByteLedger::OverlapsAny(r.given_up, bytes.first,
                                bytes.first + bytes.count))
      return;
    copied.since = r.gens.Now();
    pieces = SourcePieces(r.facts.map, chunk);
    fresh = r.facts.fresh && !r.stale.contains(chunk);
    last = chunk + 1 == r.facts.map.Chunks();
    // No double writes while the copier writes: they would have no order.
    r.provisional.erase(chunk);
    r.stale.insert(chunk);
  }
  core::Hasher hasher;
  uint64_t begin = chunk * state::kChunkBytes, end = begin;
  job.wrote = true;
  for (const ByteRange& piece : pieces) {
    Throttle(piece.end - piece.begin);
    char* data = batch.buffer->Get() + (piece.begin - begin);
    std::vector<ByteRange> filled;
    job.source_trouble =
        ReadSource(job, piece.begin, piece.end, data, &filled);
    if (!job.source_trouble)
      return;
    hasher.Add(data, piece.end - piece.begin);
    uint64_t at = piece.begin;
    filled.push_back({piece.end, piece.end});
    for (const ByteRange& f : filled) {
      if (f.begin > at && !fresh)
        job.target_trouble = ClearRange(job, at, f.begin);
      if (job.target_trouble && f.begin < f.end)
        job.target_trouble = WriteRange(job, f.begin, f.end,
                                        batch.buffer->Get() + (f.begin - begin));
      if (!job.target_trouble)
        return;
      at = f.end;
    }
    end = piece.end;
    batch.bytes += piece.end - piece.begin;
    NoteBytes(piece.end - piece.begin);
  }
  if (last && end > begin) {
    job.target_trouble = ReachEnd(job, end);
    if (!job.target_trouble)
      return;
  }
  job.target_trouble = core::FaultPoint("copy.written");
  if (!job.target_trouble)
    return;
  copied.hash = hasher.Value();
  MutexLock lock(r.mu);
  if (ledger_->ProvideLocked(r, chunk, copied.since))
    job.chunks.push_back(copied);
  else
    job.wants_more = true;
}

Status CopyEngine::ReadSource(Job& job, uint64_t begin, uint64_t end,
                              char* data, std::vector<ByteRange>* filled) {
  int fd = job.source->Get();
  std::memset(data, 0, end - begin);
  uint64_t at = begin;
  while (at < end) {
    auto found = sys_->LSeek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (!found && found.error().sys_errno == ENXIO)
      break;  // zeros from here on
    uint64_t from = at, to = end;
    if (found) {
      from = static_cast<uint64_t>(*found);
      if (from >= end)
        break;
      ASSIGN_OR_RETURN(off_t hole, sys_->LSeek(fd, *found, SEEK_HOLE));
      to = std::min<uint64_t>(end, static_cast<uint64_t>(hole));
    } else if (found.error().sys_errno != EINVAL) {
      return core::Fail(std::move(found).error());
    }
    uint64_t pos = from;
    while (pos < to) {
      ASSIGN_OR_RETURN(size_t n,
                       sys_->PRead(fd, data + (pos - begin), to - pos,
                                   static_cast<off_t>(pos)));
      if (n == 0)
        break;
      pos += n;
    }
    if (pos > from)
      filled->push_back({from, pos});
    if (pos < to)
      break;  // the source ends here
    at = to;
  }
  return {};
}

Status CopyEngine::WriteRange(Job& job, uint64_t begin, uint64_t end,
                              const char* data) {
  fusefs::FileRecord& r = *job.record;
  const fusefs::SafetySwitches& on = ledger_->switches();
  std::vector<ByteRange> ranges;
  {
    MutexLock lock(r.mu);
    uint64_t stop = end;
    if (on.clamp_to_local_end)
      stop = std::min(end, r.facts.map.local_end());
    if (begin >= stop)
      return {};
    ranges = {{begin, stop}};
    if (on.spare_remote) {
      ranges.clear();
      for (const auto& s : r.facts.map.Split(begin, stop - begin)) {
        if (s.owner != ByteMap::Owner::kSource)
          continue;
        // What is just becoming remote is left alone, in whole segments: the
        // generation has moved, so the chunk is copied again anyway.
        if (!ByteLedger::OverlapsAny(r.becoming_remote, s.off, s.off + s.len))
          ranges.push_back({s.off, s.off + s.len});
      }
    }
    r.copier_writes.insert(r.copier_writes.end(), ranges.begin(),
                           ranges.end());
  }
  Status status;
  for (const ByteRange& range : ranges) {
    if (!status)
      break;
    if (data != nullptr)
      status = fusefs::PWriteAll(
          sys_, job.object->Get(),
          std::span(data + (range.begin - begin), range.end - range.begin),
          range.begin);
    else
      status = ZeroPart(job, range.begin, range.end);
  }
  MutexLock lock(r.mu);
  for (const ByteRange& range : ranges)
    ByteLedger::RemoveRange(r.copier_writes, range);
  r.changed.NotifyAll();
  if (!status)
    return core::Fail(std::move(status).error().With("target"));
  return {};
}

// A hole of the source over what may be old data of the object.
Status CopyEngine::ClearRange(Job& job, uint64_t begin, uint64_t end) {
  int fd = job.object->Get();
  uint64_t at = begin;
  while (at < end) {
    auto found = sys_->LSeek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (!found && found.error().sys_errno == ENXIO)
      return {};
    uint64_t from = at, to = end;
    if (found) {
      from = static_cast<uint64_t>(*found);
      if (from >= end)
        return {};
      auto hole = sys_->LSeek(fd, *found, SEEK_HOLE);
      if (hole)
        to = std::min<uint64_t>(end, static_cast<uint64_t>(*hole));
    }
    TRY(WriteRange(job, from, to, nullptr));
    at = to;
  }
  return {};
}

Status CopyEngine::ZeroPart(Job& job, uint64_t begin, uint64_t end) {
  Status punched =
      sys_->FAllocate(job.object->Get(),
                      FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, begin,
                      end - begin);
  if (punched || punched.error().sys_errno != EOPNOTSUPP)
    return punched;
  std::vector<char> zeros(std::min<uint64_t>(end - begin, 1 << 16));
  while (begin < end) {
    size_t n = std::min<uint64_t>(zeros.size(), end - begin);
    TRY(fusefs::PWriteAll(sys_, job.object->Get(), std::span(zeros.data(), n),
                          begin));
    begin += n;
  }
  return {};
}

// A file that ends in a hole: its object must be as long. A byte is written,
// because an ftruncate could cut what an application has just appended.
Status CopyEngine::ReachEnd(Job& job, uint64_t end) {
  auto st = sys_->StatAt(job.object->Get(), "", STATX_SIZE);
  if (!st)
    return core::Fail(std::move(st).error().With("target"));
  if (st->stx_size >= end)
    return {};
  const char zero = 0;
  return WriteRange(job, end - 1, end, &zero);
}

// ------------------------------------------------------- verify and claim

Result<bool> CopyEngine::Verify(Job& job, Verifier::File& file,
                                const Copied& copied) {
  fusefs::FileRecord& r = *job.record;
  auto untouched = [&] {
    return r.provisional.contains(copied.chunk) &&
           copied.chunk < r.facts.map.Chunks() &&
           !r.gens.Moved(copied.chunk, copied.since) &&
           !r.gens.InFlight(copied.chunk);
  };
  Pieces pieces;
  {
    MutexLock lock(r.mu);
    if (!untouched())
      return true;  // the double writes are its own
    pieces = SourcePieces(r.facts.map, copied.chunk);
  }
  ASSIGN_OR_RETURN(core::Hash128 hash, file.Hash(pieces));
  MutexLock lock(r.mu);
  if (!untouched())
    return true;
  lock.unlock();
  MutexLock count(mu_);
  verified_++;
  return hash == copied.hash;
}

void CopyEngine::NoteMismatch(Job& job, const Copied& copied) {
  {
    MutexLock lock(job.record->mu);
    job.record->provisional.erase(copied.chunk);
    job.record->stale.insert(copied.chunk);
  }
  job.wants_more = true;
  MutexLock lock(mu_);
  mismatches_++;
  uint32_t times = ++mismatched_[{job.id, copied.chunk}];
  LOG_ERROR(
      "verification: file {:#x}: bytes [{}, +{}) read back from the target "
      "differ from what was written ({}. time)",
      job.id, copied.chunk * state::kChunkBytes, state::kChunkBytes, times);
  if (times >= 2)
    failures_.push_back({job.id, copied.chunk});
}

void CopyEngine::FinishJob(Job& job, Batch& batch) {
  if (Status passed = core::FaultPoint("copy.synced"); !passed) {
    job.target_trouble = std::move(passed);
    return;
  }
  std::vector<uint64_t> good;
  if (options_.verify && !job.chunks.empty()) {
    auto file = verifier_.Open(job.id, batch.buffer);
    if (!file) {
      job.target_trouble = core::Fail(std::move(file).error());
      return;
    }
    for (const Copied& copied : job.chunks) {
      Result<bool> same = Verify(job, *file, copied);
      if (!same) {
        job.target_trouble = core::Fail(std::move(same).error());
        return;
      }
      if (*same)
        good.push_back(copied.chunk);
      else
        NoteMismatch(job, copied);
    }
  } else {
    for (const Copied& copied : job.chunks)
      good.push_back(copied.chunk);
  }
  std::sort(good.begin(), good.end());
  NoteTimes(job);
  MutexLock lock(job.record->mu);
  auto claimed = ledger_->ClaimLocked(*job.record, good);
  if (!claimed)
    job.target_trouble = core::Fail(std::move(claimed).error());
  else if (*claimed < good.size())
    job.wants_more = true;
  lock.unlock();
  if (job.target_trouble)
    job.target_trouble = core::FaultPoint("copy.claimed");
}

}  // namespace livemv::copy
