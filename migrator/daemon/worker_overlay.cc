#include "migrator/daemon/worker_overlay.h"

#include <fcntl.h>

#include <algorithm>
#include <set>
#include <thread>

#include "core/fault_points.h"
#include "core/log.h"
#include "migrator/daemon/channel.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;
using core::UniqueFd;
using cutover::FlushReport;
using cutover::OpenAsk;
using fusefs::Serving;
using state::Event;
using state::MigrationState;

namespace {

// What the source must keep free beyond what is brought back.
constexpr uint64_t kSourceSlackBytes = 4u << 20;

}  // namespace

WorkerOverlay::WorkerOverlay(WorkerParts* parts)
    : parts_(parts), copy_back_(parts->ledger.get()) {}

Status WorkerOverlay::Advance(Event event, const std::string& reason) {
  return parts_->phase->Advance(event, reason);
}

Status WorkerOverlay::StartRedirect(int64_t deadline_ns) {
  if (attach_given_up_)
    return Fail(ErrorCode::kConflict, "the attach has been given up");
  TRY(core::FaultPoint("redirect.start"));
  TRY(parts_->fs->SetServing(Serving::kRedirect, deadline_ns, [this] {
    return parts_->phase->Advance(Event::kAttached, "");
  }));
  parts_->StartCopying();
  return core::FaultPoint("redirect.begun");
}

Status WorkerOverlay::GiveUpAttach() {
  if (parts_->fs->serving() != Serving::kSourceOnly)
    return Fail(ErrorCode::kConflict, "the redirect has begun");
  attach_given_up_ = true;
  return {};
}

Result<UniqueFd> WorkerOverlay::OpenByHint(const OpenAsk& ask,
                                           uint64_t target_ino) {
  const std::string path = ask.path_hint.empty() ? "." : ask.path_hint;
  ASSIGN_OR_RETURN(UniqueFd fd,
                   parts_->sys->OpenAt(parts_->target_mount.Get(), path.c_str(),
                                       ask.flags | O_NOFOLLOW));
  ASSIGN_OR_RETURN(core::Stat st,
                   parts_->sys->StatAt(fd.Get(), "", STATX_INO));
  if (st.stx_ino != target_ino)
    return Fail(ErrorCode::kConflict, "another file is at " + path);
  return fd;
}

Result<UniqueFd> WorkerOverlay::OpenOne(const OpenAsk& ask) {
  std::optional<fusefs::Object> object = parts_->objects->Find(ask.id);
  if (!object && (ask.id & state::kTargetBit) == 0)
    return UniqueFd();  // removed meanwhile
  // By path first: a dentry with a name is what /proc shows of the file.
  if (object && !ask.path_hint.empty() && ask.path_hint != ".") {
    Result<UniqueFd> fd = OpenByHint(ask, object->ino);
    if (fd)
      return fd;
  }
  Result<fusefs::SharedFd> path = parts_->objects->Path(ask.id);
  if (!path) {
    if (path.error().Errno() == ESTALE || path.error().Errno() == ENOENT)
      return UniqueFd();
    return std::unexpected(path.error());
  }
  if ((ask.flags & O_PATH) == 0) {
    // The open follows the magic link to the very object.
    const std::string magic =
        "/proc/self/fd/" + std::to_string((*path)->Get());
    return parts_->sys->OpenAt(AT_FDCWD, magic.c_str(),
                               ask.flags & ~O_NOFOLLOW);
  }
  // The mount's own descriptor is O_PATH, of which open_by_handle_at(2) before
  // Linux 6.12 wants to know nothing.
  return parts_->sys->OpenByHandle(parts_->objects->RootFd(), object->handle,
                                   ask.flags);
}

Result<std::vector<UniqueFd>> WorkerOverlay::OpenOnTarget(
    const std::vector<OpenAsk>& asks, int64_t deadline_ns) {
  std::vector<UniqueFd> out;
  for (const OpenAsk& ask : asks) {
    if (MonotonicNs() > deadline_ns)
      return Fail(ErrorCode::kTimeout, "opening files on the target took too "
                                       "long");
    Result<UniqueFd> fd = OpenOne(ask);
    if (!fd)
      return std::unexpected(std::move(fd).error().With(
          "open " + (ask.path_hint.empty() ? "file" : ask.path_hint) +
          " on the target"));
    out.push_back(std::move(*fd));
  }
  return out;
}

Result<std::vector<core::FileHandle>> WorkerOverlay::SourceHandles(
    const std::vector<state::FileId>& ids, int64_t) {
  std::vector<core::FileHandle> out;
  for (state::FileId id : ids)
    out.push_back(parts_->nodes->HandleOf(id).value_or(core::FileHandle{}));
  return out;
}

Result<std::vector<bool>> WorkerOverlay::AreDirect(
    const std::vector<state::FileId>& nodes, int64_t) {
  const std::vector<state::FileId> direct = parts_->passthrough->Direct();
  const std::set<state::FileId> all(direct.begin(), direct.end());
  std::vector<bool> out;
  for (state::FileId node : nodes)
    out.push_back(all.contains(node));
  return out;
}

Status WorkerOverlay::LeaveDirect(int64_t deadline_ns) {
  std::lock_guard lock(copy_back_mu_);
  const std::vector<state::FileId> direct = parts_->passthrough->Direct();
  TRY(parts_->passthrough->LeaveAll(deadline_ns));
  // Who mapped one while others still wrote it by its first number.
  for (state::FileId id : direct)
    TRY(parts_->session->InvalidateInode(parts_->fs->KernelNumber(id)));
  return {};
}

// On a thread of its own: a target that hangs keeps that one, and neither the
// re-anchorer nor the verbs after it.
Result<FlushReport> WorkerOverlay::FlushRound(int64_t deadline_ns) {
  auto wait = [&]() -> Status {
    const int64_t left = std::max<int64_t>(deadline_ns - MonotonicNs(), 0);
    if (flush_.wait_for(std::chrono::nanoseconds(left)) !=
        std::future_status::ready)
      return Fail(ErrorCode::kTimeout, "the target does not answer: a flush of "
                                       "it has not come back");
    return {};
  };
  if (flush_.valid()) {  // of an earlier attempt, which gave it up
    TRY(wait());
    if (Result<FlushReport> old = flush_.get(); !old)
      LOG_INFO("a flush that was given up: {}", old.error().ToString());
  }
  std::packaged_task<Result<FlushReport>()> task(
      [this, deadline_ns] { return FlushOnce(deadline_ns); });
  flush_ = task.get_future();
  std::thread(std::move(task)).detach();
  TRY(wait());
  return flush_.get();
}

Result<FlushReport> WorkerOverlay::FlushOnce(int64_t deadline_ns) {
  const int64_t began = MonotonicNs();
  // A worker that took over while the target was away.
  TRY(parts_->objects->Prepare());
  TRY(parts_->applier->Drain(deadline_ns, true));
  TRY(parts_->ledger->SyncTarget());
  // Where nothing was to be written this is what finds out that the target
  // hangs: behind the gate the private directory is removed, and that must not
  // be what waits.
  TRY(parts_->objects->Touch());
  FlushReport report;
  report.took_ns = MonotonicNs() - began;
  report.redo_left = parts_->redo->Count().pending;
  fusefs::FileTable::Totals totals = parts_->table->GetTotals();
  report.bytes_left = totals.bytes_below_end - totals.bytes_copied;
  if (MonotonicNs() > deadline_ns)
    return Fail(ErrorCode::kTimeout, "the target did not take all data in time");
  return report;
}

Result<FlushReport> WorkerOverlay::DrainAndGate(int64_t deadline_ns) {
  TRY(core::FaultPoint("gate.drain"));
  core::HoldLogs();
  // A change that is held back would be waited for.
  fusefs::Redo::Rush rush(parts_->redo.get());
  parts_->session->SetInFreeze(true);
  const int64_t began = MonotonicNs();
  Status drained = parts_->session->DrainAndClose(deadline_ns);
  if (!drained) {
    parts_->session->SetInFreeze(false);
    core::ReleaseLogs();
    return std::unexpected(drained.error());
  }
  gated_ = true;
  const MigrationState state = parts_->phase->state();
  const bool complete_it = state != MigrationState::kAborting &&
                           state != MigrationState::kAttaching &&
                           !parts_->phase->target_is_truth();
  Status complete;
  if (complete_it)
    complete = [&]() -> Status {
      TRY(parts_->applier->Drain(deadline_ns, true));
      if (auto why = parts_->Proof().WhyNotComplete())
        return Fail(ErrorCode::kConflict, *why);
      TRY(core::FaultPoint("gate.applied"));
      std::lock_guard lock(parts_->victims_mu);
      private_removed_ = true;
      // Hidden so far, and to be gone before the path is switched.
      Status removed = parts_->victims->RemovePrivate();
      if (!removed && removed.error().Errno() != ENOTEMPTY)
        return removed;
      if (removed)
        return {};
      // Deleted files that are open may be left, and nothing else.
      ASSIGN_OR_RETURN(std::optional<state::FileId> lost,
                       parts_->victims->WithoutPlace());
      if (lost)
        return Fail(ErrorCode::kConflict,
                    fmt::format("the object of inode {:x} has no place on the "
                                "target. It is sought; nothing was switched",
                                *lost));
      LOG_WARN("left for later: {}", removed.error().ToString());
      return {};
    }();
  if (!complete) {
    if (Status opened = OpenGate(); !opened)
      LOG_ERROR("open the gate: {}", opened.error().ToString());
    return std::unexpected(complete.error());
  }
  FlushReport report;
  report.took_ns = MonotonicNs() - began;
  if (complete_it)
    report.redo_left = parts_->redo->Count().pending;
  return report;
}

Status WorkerOverlay::GateOpens(int64_t) {
  core::HoldLogs();
  gated_ = opens_gated_ = true;
  parts_->session->SetInFreeze(true);
  parts_->session->GateOpens();
  return {};
}

Status WorkerOverlay::OpenGate() {
  return Ungate(false);
}

Status WorkerOverlay::RefuseOpens() {
  return Ungate(true);
}

Status WorkerOverlay::Ungate(bool stale_opens) {
  Status prepared;
  if (private_removed_ && !parts_->phase->target_is_truth()) {
    std::lock_guard lock(parts_->victims_mu);
    prepared = parts_->objects->Prepare();
    private_removed_ = !prepared;
  }
  if (gated_) {
    gated_ = opens_gated_ = false;
    parts_->session->OpenGate(stale_opens);
    parts_->session->SetInFreeze(false);
    core::ReleaseLogs();
    if (parts_->phase->target_is_truth() || parts_->phase->source_is_truth())
      DropCaches();
  }
  return prepared;
}

Status WorkerOverlay::CommitTarget(int64_t deadline_ns) {
  TRY(core::FaultPoint("commit.target"));
  TRY(parts_->fs->SetServing(
      Serving::kTargetOnly, deadline_ns, [this]() -> Status {
        // A sync of the target that has failed since the drain has taken
        // claims back.
        if (auto why = parts_->Proof().WhyNotComplete())
          return Fail(ErrorCode::kConflict, *why);
        return parts_->phase->SetTargetTruth(true);
      }));
  parts_->passthrough->SetFinal(true);
  return core::FaultPoint("commit.target_done");
}

Status WorkerOverlay::RevokeTarget(int64_t deadline_ns) {
  TRY(parts_->fs->SetServing(Serving::kRedirect, deadline_ns, [this] {
    return parts_->phase->SetTargetTruth(false);
  }));
  parts_->passthrough->SetFinal(false);
  return {};
}

Status WorkerOverlay::CommitSource(int64_t deadline_ns) {
  TRY(core::FaultPoint("commit.source"));
  std::unique_lock lock(copy_back_mu_, std::defer_lock);
  if (!lock.try_lock_for(std::chrono::nanoseconds(
          std::max<int64_t>(deadline_ns - MonotonicNs(), 0))))
    return Fail(ErrorCode::kTimeout,
                "a piece is still being brought back to the source");
  // By a round that was put back after it, or in an earlier life: since then
  // the source alone is written, past all that the records know of.
  if (parts_->phase->source_is_truth())
    return {};
  // One that was deleted when the others were opened again can have been given
  // a name since.
  if (const size_t direct = parts_->passthrough->Direct().size(); direct != 0)
    return Fail(ErrorCode::kConflict,
                std::to_string(direct) +
                    " files are still written by the kernel alone");
  // A successor that has yet to look at what its predecessor had seen: that
  // takes as long as the tree is large, and nobody shall wait for it.
  if (!ReadyToEnd())
    return Fail(ErrorCode::kConflict, "not all files have been looked at yet");
  TRY(copy_back_.Finish(deadline_ns));
  TRY(parts_->fs->SetServing(Serving::kSourceOnly, deadline_ns, [this] {
    return parts_->phase->SetSourceTruth();
  }));
  source_committed_ = true;
  return core::FaultPoint("commit.source_done");
}

// A straggler must not see what the kernel cached while the overlay was the
// only user of what it serves alone now (hazard H9). Never on a request's
// thread, and after the gate is open: the kernel may wait for an answer of
// ours in it.
void WorkerOverlay::DropCaches() {
  std::thread([parts = parts_] {
    Status all = parts->session->InvalidateAllEntries();
    if (!all)
      LOG_INFO("entries that the kernel cached expire: {}",
               all.error().ToString());
    std::vector<state::FileId> ids = parts->table->OpenIds();
    if (parts->resumed) {  // a predecessor's opens are not counted
      const auto known = parts->table->KnownFiles();
      ids.insert(ids.end(), known.begin(), known.end());
    }
    for (state::FileId id : ids) {
      if (Status one = parts->session->InvalidateInode(
              parts->fs->KernelNumber(id));
          !one)
        LOG_WARN("drop the cache of {:#x}: {}", id, one.error().ToString());
    }
  }).detach();
}

void WorkerOverlay::PeerGone() {
  if (gated_)
    LOG_WARN("the re-anchorer went away with the gate closed");
  // The overlay is on DIR, and whoever had a POSIX lock may have it on the
  // source again: the next re-anchorer takes the overlay off first.
  if (opens_gated_ && parts_->fs->serving() == Serving::kSourceOnly)
    return;
  if (Status opened = OpenGate(); !opened)
    LOG_ERROR("open the gate: {}", opened.error().ToString());
  if (parts_->phase->state() != MigrationState::kCuttingOver)
    return;
  // By what the journal says: the target is complete if it is the truth, and
  // whoever was put back on the overlay is served from it.
  Status advanced =
      parts_->phase->target_is_truth()
          ? parts_->phase->Advance(Event::kCommitted,
                                   "the re-anchorer ended after the commit")
          : parts_->phase->Advance(Event::kCutoverGivenUp,
                                   "the re-anchorer ended before the commit");
  if (!advanced)
    LOG_ERROR("{}", advanced.error().ToString());
}

Status WorkerOverlay::BeginAbort(const std::string& reason) {
  if (!parts_->phase->Allows(Event::kAbort))
    return Fail(ErrorCode::kConflict,
                "the migration is " +
                    std::string(state::StateName(parts_->phase->state())) +
                    ", from where there is no abort");
  std::lock_guard lock(copy_back_mu_);
  ASSIGN_OR_RETURN(copy::CopyBack::Lack lack, copy_back_.WhatTheSourceLacks());
  const uint64_t needed = lack.bytes;
  ASSIGN_OR_RETURN(struct statfs fs,
                   parts_->sys->FStatFs(parts_->source->RootFd()));
  const uint64_t free =
      static_cast<uint64_t>(fs.f_bfree) * static_cast<uint64_t>(fs.f_bsize);
  if (needed > 0 && needed + kSourceSlackBytes > free)
    return Fail(ErrorCode::kInvalid,
                "the source has no room for what only the target holds: " +
                    FormatBytes(needed) + " (" + std::to_string(needed) +
                    " bytes) are to be brought back and " + FormatBytes(free) +
                    " (" + std::to_string(free) +
                    " bytes) are free. Nothing was changed. Make room on the "
                    "source's filesystem outside the directory, or let the "
                    "move finish");
  const bool paused = parts_->phase->state() == MigrationState::kPaused;
  parts_->engine->Pause();
  // In one step: an abort that the journal knows and the overlay does not
  // would bring nothing back.
  Status begun = parts_->fs->SetServing(
      Serving::kAborting, MonotonicNs() + 10'000'000'000,
      [&]() -> Status {
        parts_->passthrough->Close();
        Status advanced = parts_->phase->Advance(Event::kAbort, reason);
        if (!advanced)
          parts_->passthrough->Reopen();
        return advanced;
      });
  if (!begun && !paused)
    parts_->engine->Resume();
  // Those of what is direct lead to its first number.
  if (begun && !parts_->passthrough->Direct().empty())
    if (Status dropped = parts_->session->InvalidateAllEntries(); !dropped)
      LOG_INFO("entries that the kernel cached expire: {}",
               dropped.error().ToString());
  return begun;
}

Result<bool> WorkerOverlay::CopyBackStep() {
  std::lock_guard lock(copy_back_mu_);
  if (source_committed_)
    return false;
  // What is done once for each file comes first: where somebody always writes
  // there is always something to bring back.
  ASSIGN_OR_RETURN(bool swept, SweepMarks());
  if (swept)
    return true;
  return copy_back_.Step();
}

bool WorkerOverlay::ReadyToEnd() const {
  return marks_swept_ && copy_back_.Looked();
}

Result<WorkerOverlay::Left> WorkerOverlay::LeftToDo() {
  std::lock_guard lock(copy_back_mu_);
  if (!ReadyToEnd())
    return Left{};
  ASSIGN_OR_RETURN(copy::CopyBack::Lack lack, copy_back_.WhatTheSourceLacks());
  return Left{lack, true};
}

Result<bool> WorkerOverlay::SweepMarks() {
  // A successor cannot know of a placeholder whose records went with its
  // predecessor or with a power cut.
  if (!mark_sweep_)
    mark_sweep_.emplace(parts_->source.get(), parts_->table->KnownFiles(),
                        parts_->past != WorkerParts::Past::kNone);
  ASSIGN_OR_RETURN(bool did, mark_sweep_->Step());
  marks_swept_ = !did;
  return did;
}

}  // namespace livemv::daemon
