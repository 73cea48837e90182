#include "core/state/journal_writer.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "core/fault_points.h"
#include "core/hash.h"
#include "core/log.h"

namespace livemv::state {
namespace {

using core::Error;
using core::ErrorCode;
using core::Fail;
using core::FailSys;

// How long a disk that had no room for more is left alone.
constexpr int64_t kRoomRetryNs = 1'000'000'000;
// A compaction takes the appends' lock when less than this is left to copy.
constexpr uint64_t kLastStepBytes = 64u << 10;

std::string NewName(const std::string& name) {
  return name + ".new";
}

core::Status WriteAll(core::Syscalls* sys, int fd, std::string_view bytes,
                      uint64_t off) {
  while (!bytes.empty()) {
    ASSIGN_OR_RETURN(size_t n, sys->PWrite(fd, bytes.data(), bytes.size(),
                                           static_cast<off_t>(off)));
    if (n == 0)
      return FailSys(EIO, "pwrite wrote nothing");
    bytes.remove_prefix(n);
    off += n;
  }
  return {};
}

// Makes [*allocated, want) of fd the file's own, so that writes into it need
// no more room. *allocated says how far that came.
core::Status Allocate(core::Syscalls* sys, int fd, uint64_t want,
                      uint64_t* allocated) {
  if (*allocated >= want)
    return {};
  core::Status status = sys->FAllocate(fd, 0, *allocated, want - *allocated);
  if (status) {
    *allocated = want;
    return {};
  }
  if (status.error().sys_errno != EOPNOTSUPP)
    return status;
  // A filesystem without fallocate: zeros do the same.
  const std::string zeros(256u << 10, '\0');
  while (*allocated < want) {
    uint64_t n = std::min<uint64_t>(zeros.size(), want - *allocated);
    TRY(WriteAll(sys, fd, std::string_view(zeros).substr(0, n), *allocated));
    *allocated += n;
  }
  return {};
}

uint64_t NewSalt(core::Syscalls* sys, const std::string& name,
                 uint64_t old_salt) {
  int64_t values[3] = {sys->RealtimeNs(), sys->MonotonicNs(),
                       static_cast<int64_t>(old_salt)};
  return core::Hash64Of(values, sizeof values) ^
         core::Hash64Of(name.data(), name.size());
}

}  // namespace

// --------------------------------------------------- writing a whole new file

class JournalFile::Rewrite {
 public:
  // The file dirfd/name.new, empty but for its header. Gone with this object
  // unless Install was called.
  static core::Result<std::unique_ptr<Rewrite>> Begin(
      core::Syscalls* sys, int dirfd, const std::string& name,
      const JournalHeader& header) {
    auto out = std::unique_ptr<Rewrite>(new Rewrite(sys, dirfd, name, header));
    ASSIGN_OR_RETURN(out->fd_, sys->OpenAt(dirfd, NewName(name).c_str(),
                                           O_RDWR | O_CREAT | O_TRUNC, 0600));
    out->buffer_ = EncodeHeader(header);
    return out;
  }
  ~Rewrite() {
    if (!installed_ && fd_) {
      // What stays behind is removed by the next Open or overwritten.
      (void)sys_->UnlinkAt(dirfd_, NewName(name_).c_str(), 0);
    }
  }
  Rewrite(const Rewrite&) = delete;
  Rewrite& operator=(const Rewrite&) = delete;

  core::Status Put(const Fact& fact) {
    Seq seq = ++last_seq_;
    buffer_ += EncodeFrame(header_.salt, seq, header_.first_seq - 1,
                           FactType(fact), EncodeFact(fact));
    return buffer_.size() < (1u << 20) ? core::Status() : Flush();
  }
  core::Status Flush() {
    TRY(WriteAll(sys_, fd_.Get(), buffer_, end_));
    end_ += buffer_.size();
    buffer_.clear();
    return {};
  }
  // Flush, then room for reserve bytes past the end.
  core::Status Reserve(uint64_t reserve) {
    TRY(Flush());
    allocated_ = std::max(allocated_, end_);
    return Allocate(sys_, fd_.Get(), end_ + reserve, &allocated_);
  }
  // Flush, and everything durable; the header says so.
  core::Status Seal() {
    TRY(Flush());
    header_.installed_seq = last_seq_;
    TRY(WriteAll(sys_, fd_.Get(), EncodeHeader(header_), 0));
    return sys_->FSync(fd_.Get());
  }
  // Takes the journal's name. *renamed says whether a failure came after.
  core::Status Install(bool* renamed) {
    *renamed = false;
    TRY(core::FaultPoint("journal.install.rename"));
    core::Status status = sys_->RenameAt(dirfd_, NewName(name_).c_str(), dirfd_,
                                         name_.c_str(), 0);
    // rename(2) that failed changed nothing, but for an EIO.
    *renamed = status.has_value() || status.error().sys_errno == EIO;
    installed_ = *renamed;
    TRY(std::move(status));
    TRY(core::FaultPoint("journal.install.dirsync"));
    return sys_->FSync(dirfd_);
  }

  int Fd() const { return fd_.Get(); }
  core::UniqueFd TakeFd() { return std::move(fd_); }
  const JournalHeader& header() const { return header_; }
  Seq last_seq() const { return last_seq_; }
  uint64_t end() const { return end_; }
  uint64_t allocated() const { return std::max(allocated_, end_); }

 private:
  Rewrite(core::Syscalls* sys, int dirfd, std::string name,
          const JournalHeader& header)
      : sys_(sys),
        dirfd_(dirfd),
        name_(std::move(name)),
        header_(header),
        last_seq_(header.first_seq - 1) {}

  core::Syscalls* const sys_;
  const int dirfd_;
  const std::string name_;
  JournalHeader header_;
  core::UniqueFd fd_;
  std::string buffer_;
  uint64_t end_ = 0, allocated_ = 0;
  Seq last_seq_;
  bool installed_ = false;
};

// -------------------------------------------------------- creation and opening

core::Result<std::unique_ptr<JournalFile>> JournalFile::Create(
    core::Syscalls* sys, int dirfd, const std::string& name,
    const MigrationFact& first, const JournalOptions& options) {
  auto there = sys->StatAt(dirfd, name.c_str());
  if (there)
    return Fail(Error{ErrorCode::kConflict, EEXIST, "journal " + name});
  if (there.error().sys_errno != ENOENT)
    return Fail(std::move(there).error().With("journal " + name));

  ASSIGN_OR_RETURN(core::UniqueFd dir,
                   sys->OpenAt(dirfd, ".", O_RDONLY | O_DIRECTORY));
  JournalHeader header;
  header.salt = NewSalt(sys, name, 0);
  header.created_ns = sys->RealtimeNs();
  auto write = [&]() -> core::Result<std::unique_ptr<Rewrite>> {
    ASSIGN_OR_RETURN(std::unique_ptr<Rewrite> file,
                     Rewrite::Begin(sys, dir.Get(), name, header));
    TRY(file->Put(first));
    TRY(file->Reserve(options.reserve_bytes));
    TRY(file->Seal());
    bool renamed = false;
    TRY(file->Install(&renamed));
    return file;
  };
  auto file = write();
  if (!file)
    return Fail(std::move(file).error().With("making journal " + name));

  auto journal = std::unique_ptr<JournalFile>(
      new JournalFile(sys, std::move(dir), name, options));
  journal->header_ = (*file)->header();
  journal->end_ = (*file)->end();
  journal->allocated_ = (*file)->allocated();
  journal->last_seq_ = journal->durable_seq_ = (*file)->last_seq();
  journal->fd_ = (*file)->TakeFd();
  return journal;
}

core::Result<JournalFile::Opened> JournalFile::Open(
    core::Syscalls* sys, int dirfd, const std::string& name,
    const JournalOptions& options) {
  ASSIGN_OR_RETURN(core::UniqueFd dir,
                   sys->OpenAt(dirfd, ".", O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(LoadedJournal loaded, LoadJournal(sys, dir.Get(), name));
  const JournalTail& tail = loaded.tail;
  const std::vector<SessionFact>& sessions = loaded.state.sessions;
  bool same_boot = !options.boot_id.empty() && !sessions.empty() &&
                   sessions.back().boot_id == options.boot_id;
  if (tail.kind == JournalTail::Kind::kDamaged ||
      (same_boot && tail.whole_after != 0))
    return Fail(ErrorCode::kCorrupt,
                "journal " + name + " is damaged at byte " +
                    std::to_string(tail.offset) + ": " + tail.what);

  auto opened = sys->OpenAt(dir.Get(), name.c_str(), O_RDWR);
  if (!opened)
    return Fail(std::move(opened).error().With("journal " + name));
  // A compaction that did not get to its end.
  core::Status unlinked = sys->UnlinkAt(dir.Get(), NewName(name).c_str(), 0);
  if (!unlinked && unlinked.error().sys_errno != ENOENT)
    return Fail(std::move(unlinked).error().With("unlink " + NewName(name)));

  auto journal = std::unique_ptr<JournalFile>(
      new JournalFile(sys, std::move(dir), name, options));
  journal->fd_ = *std::move(opened);
  journal->header_ = loaded.header;
  journal->end_ = tail.offset;
  journal->allocated_ = std::max(tail.file_bytes, tail.offset);
  journal->last_seq_ = tail.next_seq - 1;
  // The torn tail becomes zeros in place: cutting it off would give away room
  // that a full disk does not give back.
  if (tail.dirty_end > tail.offset) {
    std::string zeros(tail.dirty_end - tail.offset, '\0');
    if (core::Status s = WriteAll(sys, journal->fd_.Get(), zeros, tail.offset);
        !s)
      return Fail(
          std::move(s).error().With("clearing the torn tail of " + name));
  }
  if (core::Status s = sys->FSync(journal->fd_.Get()); !s)
    return Fail(std::move(s).error().With("journal " + name));
  // A compaction that was killed between its rename and the sync of it: the
  // name may still lead to the old file after a power cut, without what is
  // appended here.
  if (core::Status s = sys->FSync(journal->dir_.Get()); !s)
    return Fail(std::move(s).error().With("directory of journal " + name));
  journal->durable_seq_ = journal->last_seq_;
  {
    core::MutexLock lock(journal->mu_);
    if (core::Status s = journal->MakeRoom(0); !s)
      LOG_WARN("journal {}: no room made ahead: {}", name,
               s.error().ToString());
  }
  Opened out;
  out.journal = std::move(journal);
  out.state = std::move(loaded.state);
  out.tail = std::move(loaded.tail);
  return out;
}

// --------------------------------------------------------------------
// appending

std::unexpected<Error> JournalFile::SetFailed(Error error) {
  error = std::move(error).With("journal " + name_ +
                                " (given up: what is durable is not known)");
  failed_ = std::unexpected(error);
  synced_.NotifyAll();
  return std::unexpected(std::move(error));
}

// Keeps reserve_bytes allocated past the end. Fails only if not even need
// bytes fit.
core::Status JournalFile::MakeRoom(uint64_t need) {
  if (allocated_ >= end_ + need + options_.reserve_bytes)
    return {};
  bool fits = need != 0 && allocated_ >= end_ + need;
  if (fits && sys_->MonotonicNs() < next_room_try_ns_)
    return {};
  uint64_t want = end_ + need + options_.reserve_bytes + options_.step_bytes;
  core::Status status = Allocate(sys_, fd_.Get(), want, &allocated_);
  if (status || allocated_ >= end_ + need + options_.reserve_bytes)
    return {};
  next_room_try_ns_ = sys_->MonotonicNs() + kRoomRetryNs;
  if (fits)
    return {};
  return Fail(std::move(status).error().With("room for journal " + name_));
}

core::Result<Seq> JournalFile::Append(const Fact& fact) {
  std::string body = EncodeFact(fact);
  if (body.size() > kMaxBodyBytes)
    return Fail(ErrorCode::kInvalid,
                "a journal record of " + std::to_string(body.size()) +
                    " bytes; the limit is " + std::to_string(kMaxBodyBytes));
  core::MutexLock lock(mu_);
  TRY(failed_);
  TRY(MakeRoom(kFrameHeadBytes + body.size()));
  std::string frame = EncodeFrame(header_.salt, last_seq_ + 1, durable_seq_,
                                  FactType(fact), body);
  core::Status status = core::FaultPoint("journal.append");
  if (status)
    status = WriteAll(sys_, fd_.Get(), frame, end_);
  if (!status)
    return SetFailed(std::move(status).error());
  end_ += frame.size();
  return ++last_seq_;
}

core::Status JournalFile::Sync(Seq seq) {
  core::MutexLock lock(mu_);
  if (seq > last_seq_)
    return Fail(ErrorCode::kInvalid, "sync of journal record " +
                                         std::to_string(seq) +
                                         ", which was never appended");
  for (;;) {
    TRY(failed_);
    if (durable_seq_ >= seq)
      return {};
    if (!syncing_)
      break;
    synced_.Wait(lock);
  }
  // This caller syncs for all who wait, and for what was appended so far.
  syncing_ = true;
  const Seq covered = last_seq_;
  const int fd = fd_.Get();
  lock.unlock();
  core::Status status = core::FaultPoint("journal.sync");
  if (status)
    status = sys_->FDataSync(fd);
  lock.lock();
  syncing_ = false;
  if (!status)
    return SetFailed(std::move(status).error());
  durable_seq_ = std::max(durable_seq_, covered);
  synced_.NotifyAll();
  // A write may have failed meanwhile; what this caller asked for is durable.
  return {};
}

core::Status JournalFile::SyncAll() {
  Seq seq;
  {
    core::MutexLock lock(mu_);
    seq = last_seq_;
  }
  return Sync(seq);
}

uint64_t JournalFile::FileBytes() {
  core::MutexLock lock(mu_);
  return end_;
}

uint64_t JournalFile::RoomBytes() {
  core::MutexLock lock(mu_);
  return allocated_ > end_ ? allocated_ - end_ : 0;
}

// -------------------------------------------------------------------
// compaction

bool JournalFile::CompactIsUseful() {
  core::MutexLock lock(mu_);
  return failed_.has_value() && !compacting_ &&
         end_ >= options_.compact_bytes &&
         end_ >= options_.compact_factor * live_bytes_;
}

core::Status JournalFile::Compact() {
  {
    core::MutexLock lock(mu_);
    TRY(failed_);
    if (compacting_)
      return Fail(ErrorCode::kConflict, "the journal is being compacted");
    compacting_ = true;
  }
  core::Status status = CompactNow();
  core::MutexLock lock(mu_);
  compacting_ = false;
  if (!status)
    return Fail(std::move(status).error().With("compaction of " + name_));
  return {};
}

core::Status JournalFile::CompactNow() {
  JournalHeader header;
  uint64_t end = 0;
  {
    core::MutexLock lock(mu_);
    header = header_;
    header.first_seq = last_seq_ + 1;
    end = end_;
  }
  header.salt = NewSalt(sys_, name_, header.salt);
  header.compactions++;
  header.created_ns = sys_->RealtimeNs();

  // Only a compaction changes fd_, and there is one at a time; what lies below
  // end never changes. So the bulk is read and written without the lock.
  const int fd = fd_.Get();
  ASSIGN_OR_RETURN(JournalReader reader,
                   JournalReader::FromSource(
                       [this, fd](void* buf, size_t len, uint64_t off) {
                         return sys_->PRead(fd, buf, len,
                                            static_cast<off_t>(off));
                       },
                       end));
  RecoveredState state;
  for (;;) {
    ASSIGN_OR_RETURN(std::optional<JournalRecord> record, reader.Next());
    if (!record)
      break;
    TRY(state.Apply(record->fact));
  }
  if (reader.offset() != end)
    return Fail(ErrorCode::kCorrupt, "the journal reads back only up to byte " +
                                         std::to_string(reader.offset()) +
                                         " of " + std::to_string(end));

  ASSIGN_OR_RETURN(std::unique_ptr<Rewrite> rewrite,
                   Rewrite::Begin(sys_, dir_.Get(), name_, header));
  {
    std::vector<Fact> facts = state.ToFacts();
    state = RecoveredState();
    for (const Fact& fact : facts)
      TRY(rewrite->Put(fact));
  }
  TRY(rewrite->Reserve(options_.reserve_bytes + options_.step_bytes));
  TRY(core::FaultPoint("journal.compact.written"));
  TRY(sys_->FSync(rewrite->Fd()));

  // What was appended meanwhile, as long as that is much.
  core::UniqueFd old;
  core::MutexLock lock(mu_);
  for (int round = 0; round < 8 && end_ - reader.offset() > kLastStepBytes;
       round++) {
    reader.SetFileBytes(end_);
    lock.unlock();
    for (;;) {
      ASSIGN_OR_RETURN(std::optional<JournalRecord> record, reader.Next());
      if (!record)
        break;
      TRY(rewrite->Put(record->fact));
    }
    TRY(rewrite->Flush());
    TRY(sys_->FDataSync(rewrite->Fd()));
    lock.lock();
  }
  core::Status status = SwitchTo(rewrite.get(), &reader, lock, &old);
  lock.unlock();
  return status;  // old is closed here, without the lock: that frees its blocks
}

core::Status JournalFile::SwitchTo(Rewrite* rewrite, JournalReader* reader,
                                   core::MutexLock& lock, core::UniqueFd* old) {
  while (syncing_)
    synced_.Wait(lock);
  TRY(failed_);
  reader->SetFileBytes(end_);
  for (;;) {
    ASSIGN_OR_RETURN(std::optional<JournalRecord> record, reader->Next());
    if (!record)
      break;
    TRY(rewrite->Put(record->fact));
  }
  if (reader->offset() != end_)
    return Fail(ErrorCode::kCorrupt, "the journal reads back only up to byte " +
                                         std::to_string(reader->offset()));
  TRY(rewrite->Seal());
  bool renamed = false;
  if (core::Status s = rewrite->Install(&renamed); !s) {
    // Once renamed, which of the two a power cut leaves is not known.
    if (renamed)
      return SetFailed(std::move(s).error());
    return s;
  }
  *old = std::exchange(fd_, rewrite->TakeFd());
  header_ = rewrite->header();
  end_ = live_bytes_ = rewrite->end();
  allocated_ = rewrite->allocated();
  last_seq_ = durable_seq_ = rewrite->last_seq();
  return {};
}

}  // namespace livemv::state
