// Descriptors and bytes: DataPath's work, with what belongs to names around it.

#include <fcntl.h>

#include <cerrno>

#include "core/log.h"
#include "fusefs/overlay_fs.h"

namespace livemv::fusefs {
namespace {

// In a file handle, beside the flags of the open: the kernel was given a
// backing number for it.
constexpr uint64_t kPassedFh = 1ull << 32;

}  // namespace

OpenReply OverlayFs::ReplyFor(const Pass& pass, int flags) const {
  OpenReply reply;
  reply.fh = static_cast<uint64_t>(static_cast<unsigned>(flags));
  reply.direct_io = !pass.Split();
  reply.keep_cache = pass.Split();
  // Without names that are kept for long each of a kept listing would have to
  // be looked up by itself when it is wanted.
  reply.cache_dir =
      pass.Split() && (flags & O_DIRECTORY) != 0 && CanDropCaches();
  // NFS, too, syncs at the close of a file that could be written only
  // (fs/nfs/nfs4file.c, nfs4_file_flush).
  reply.no_flush = (flags & O_ACCMODE) == O_RDONLY ||
                   !parts_.data->ledger()->tells_at_close();
  return reply;
}

core::Status OverlayFs::Count(const Pass& pass, FileId id) {
  // Counted and looked at in one step, so that a deletion either sees the
  // count or comes first. After cutover the look may wait for the target,
  // and deletions are the target's.
  core::MutexLock lock(orphans_mu_);
  parts_.data->Opened(id);
  if (pass.mode() == Serving::kTargetOnly)
    lock.unlock();
  core::Status there = [&]() -> core::Status {
    ASSIGN_OR_RETURN(SharedFd fd, pass.ops().tree()->Path(id));
    // Elsewhere others delete, too, and what is open is theirs.
    if (!pass.Split() || orphans_.contains(id))
      return {};
    if (!losing_.contains(id)) {
      // It may be deleted and alive because somebody of ours has it open. The
      // kernel looks the name up again.
      ASSIGN_OR_RETURN(core::Stat st, parts_.source->sys()->StatAt(
                                          fd->Get(), "", STATX_NLINK));
      return st.stx_nlink != 0 ? core::Status{}
                               : core::FailSys(ESTALE, "it was deleted");
    }
    // Its last name goes at this moment, and its bytes must not, even if this
    // process dies before the deletion comes to its end.
    TRY(pass.ops().tree()->Pin(id));
    orphans_.insert(id);
    return {};
  }();
  if (!there)
    parts_.data->Closed(id);
  return there;
}

core::Result<OpenReply> OverlayFs::FinishOpen(FileId id, int flags,
                                              bool created) {
  Pass pass(this, Pass::Kind::kBytes);
  OpenReply reply = ReplyFor(pass, flags);
  core::Status done = [&]() -> core::Status {
    // Before it is emptied: the cut of a file that is not direct is owed for a
    // moment, in which it cannot become so.
    if (parts_.passthrough != nullptr && (flags & O_DIRECTORY) == 0) {
      ASSIGN_OR_RETURN(Passthrough::Entered entered,
                       parts_.passthrough->Enter(
                           id, flags, created,
                           pass.mode() == Serving::kRedirect));
      reply.backing = entered.backing;
      if (reply.backing != 0)
        reply.fh |= kPassedFh;
      reply.direct_io |= entered.uncached;
    }
    if ((flags & O_TRUNC) != 0 && !created)
      TRY(parts_.data->Truncate(id, 0, false));
    return {};
  }();
  if (done)
    return reply;
  if (reply.backing != 0)
    parts_.passthrough->Leave(id);
  parts_.data->Closed(id);
  // It was deleted meanwhile, and pinned for this open.
  if (!parts_.resumed && !parts_.data->IsOpen(id))
    LastUseGone(id);
  return core::Fail(std::move(done).error());
}

core::Result<OpenReply> OverlayFs::Open(FileId id, int flags) {
  {
    Pass pass(this);
    TRY(Count(pass, id));
  }
  return FinishOpen(id, flags, false);
}

core::Result<std::pair<Entry, OpenReply>> OverlayFs::Create(
    FileId dir, const char* name, int flags, mode_t mode,
    const Caller& caller) {
  bool created = true;
  auto made = [&]() -> core::Result<Entry> {
    Pass pass(this);
    auto node = MakeNode(pass, dir, name, (mode & 07777) | S_IFREG, 0, nullptr,
                         caller);
    if (!node && node.error().sys_errno == EEXIST && (flags & O_EXCL) == 0) {
      // Somebody else made it between the kernel's look and now.
      created = false;
      node = pass.ops().Lookup(dir, name);
      if (node && !S_ISREG(node->attr.stx_mode))
        return core::FailSys(EEXIST, "not a regular file");
    }
    auto entry = created ? Completed(std::move(node)) : std::move(node);
    if (entry)
      TRY(Count(pass, entry->id));
    return entry;
  }();
  if (!made)
    return core::Fail(std::move(made).error());
  ASSIGN_OR_RETURN(OpenReply reply, FinishOpen(made->id, flags, created));
  if (created)
    return std::pair(*made, reply);
  Pass pass(this);
  auto entry = Completed(pass.ops().Lookup(dir, name));
  if (!entry) {
    Release(made->id, reply.fh);
    return core::Fail(std::move(entry).error());
  }
  return std::pair(*entry, reply);
}

core::Result<std::pair<Entry, OpenReply>> OverlayFs::TmpFile(
    FileId dir, int flags, mode_t mode, const Caller& caller) {
  FileId pinned = state::kNoFile;
  auto made = [&]() -> core::Result<Entry> {
    Pass pass(this);
    // Without a name there is nothing to redo: it is like a file that was
    // deleted while it was open, from its birth on.
    ASSIGN_OR_RETURN(Entry entry, pass.ops().MakeNameless(dir, mode, caller));
    {
      core::MutexLock lock(orphans_mu_);
      TRY(pass.ops().tree()->Pin(entry.id));
      orphans_.insert(entry.id);
    }
    pinned = entry.id;
    TRY(BecomePlaceholder(pass, entry));
    auto complete = Completed(entry);
    if (complete)
      TRY(Count(pass, entry.id));
    return complete;
  }();
  auto reply = made ? FinishOpen(made->id, flags, true)
                    : core::Result<OpenReply>(core::Fail(made.error()));
  if (!reply) {
    if (pinned != state::kNoFile)
      LastUseGone(pinned);
    return core::Fail(std::move(reply).error());
  }
  return std::pair(*made, *reply);
}

void OverlayFs::Release(FileId id, uint64_t fh) {
  Pass pass(this);
  if ((fh & kPassedFh) != 0 && parts_.passthrough != nullptr)
    parts_.passthrough->Leave(id);
  parts_.data->Closed(id);
  if (parts_.data->IsOpen(id))
    return;
  if (pass.Split())
    parts_.redo->Ripen(id);
  // After a restart others may be open that were not counted: Forget tells.
  if (!parts_.resumed)
    LastUseGone(id);
  if (pass.mode() == Serving::kTargetOnly)
    target_.Drop(id);  // hazard H37
}

core::Result<size_t> OverlayFs::Read(FileId id, uint64_t off,
                                     std::span<char> buf) {
  Pass pass(this, Pass::Kind::kBytes);
  return parts_.data->Read(id, off, buf);
}

core::Result<size_t> OverlayFs::Write(FileId id, uint64_t off,
                                      std::span<const char> data,
                                      int open_flags, bool kill_suidgid) {
  Pass pass(this, Pass::Kind::kBytes);
  if (kill_suidgid)
    TRY(DropPrivileges(pass, id));
  return parts_.data->Write(id, off, data, open_flags, false);
}

core::Result<uint64_t> OverlayFs::SizeOf(FileId id) {
  Pass pass(this, Pass::Kind::kBytes);
  return parts_.data->SizeOf(id);
}

core::Status OverlayFs::Flush(FileId id) {
  Pass pass(this, Pass::Kind::kBytes);
  return parts_.data->Flush(id);
}

core::Status OverlayFs::FSync(FileId id, bool data_only) {
  Pass pass(this, Pass::Kind::kBytes);
  ASSIGN_OR_RETURN(core::Stat st, pass.ops().GetAttr(id));
  Tree* tree = pass.ops().tree();
  if (S_ISREG(st.stx_mode)) {
    TRY(parts_.data->FSync(id, data_only));
    // Mode, owner and the like, if they changed since the last barrier.
    if (data_only || !pass.Split())
      return {};
    const bool named = TakeNamed(id);
    if (!named && !parts_.redo->IsHot(id))
      return {};
    core::Status synced = [&]() -> core::Status {
      ASSIGN_OR_RETURN(SharedFd fd, tree->Data(id));
      TRY(tree->sys()->FSync(fd->Get()));
      return parts_.journal->SyncAll();
    }();
    if (!synced && named)
      NameChanged(id);
    return synced;
  }
  if (!S_ISDIR(st.stx_mode))
    return core::FailSys(EINVAL, "fsync of a special file");
  ASSIGN_OR_RETURN(SharedFd fd, tree->Dir(id));
  TRY(tree->sys()->FSync(fd->Get()));
  if (pass.Split())
    return parts_.journal->SyncAll();
  return {};
}

core::Status OverlayFs::FAllocate(FileId id, int mode, uint64_t off,
                                  uint64_t len) {
  Pass pass(this, Pass::Kind::kBytes);
  return parts_.data->FAllocate(id, mode, off, len);
}

core::Result<off_t> OverlayFs::LSeek(FileId id, off_t off, int whence) {
  Pass pass(this, Pass::Kind::kBytes);
  return parts_.data->LSeek(id, off, whence);
}

}  // namespace livemv::fusefs
