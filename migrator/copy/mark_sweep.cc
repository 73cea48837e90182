#include "migrator/copy/mark_sweep.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "core/log.h"
#include "core/unique_fd.h"
#include "fusefs/tree_ops.h"

namespace livemv::copy {

using core::Result;
using core::Status;
using fusefs::SharedFd;

namespace {

constexpr int kFilesPerStep = 64;
constexpr size_t kListBytes = 64 << 10;

bool IsGone(const core::Error& e) {
  return e.sys_errno == ENOENT || e.sys_errno == ESTALE ||
         e.code == core::ErrorCode::kGone;
}

}  // namespace

MarkSweep::MarkSweep(fusefs::SourceTree* source,
                     std::vector<state::FileId> files, bool whole_tree)
    : source_(source), files_(files.begin(), files.end()) {
  if (whole_tree)
    directories_.push_back(state::kRootId);
}

Result<bool> MarkSweep::Step() {
  for (int i = 0; i < kFilesPerStep && !files_.empty(); i++) {
    TRY(UnmarkFile(files_.front()));
    files_.pop_front();
    if (files_.empty())
      return true;
  }
  if (!files_.empty())
    return true;
  if (directories_.empty())
    return false;
  TRY(SweepDirectory(directories_.front()));
  directories_.pop_front();
  return true;
}

Status MarkSweep::Unmark(int fd) {
  auto removed = source_->sys()->RemoveXattr(fd, fusefs::kMarkXattr);
  if (removed) {
    swept_++;
    return {};
  }
  switch (removed.error().sys_errno) {
    case ENODATA:
    case EOPNOTSUPP:
      return {};
    case EPERM:  // made immutable since; a mark does no harm but to be seen
    case EACCES:
      LOG_WARN("a mark stays: {}", removed.error().ToString());
      return {};
    default:
      return core::Fail(
          std::move(removed).error().With("take the mark off a file"));
  }
}

Status MarkSweep::UnmarkFile(state::FileId id) {
  auto fd = source_->Path(id);
  if (fd)
    return Unmark((*fd)->Get());
  ASSIGN_OR_RETURN(bool dead, source_->IsDead(id));
  if (dead)
    return {};
  return core::Fail(std::move(fd).error());
}

// By names from the directory, so that no file is given a number for it.
Status MarkSweep::SweepDirectory(state::FileId dir) {
  auto fd = source_->Dir(dir);
  if (!fd) {
    if (IsGone(fd.error()))
      return {};
    return core::Fail(std::move(fd).error());
  }
  core::Syscalls* sys = source_->sys();
  const int at = (*fd)->Get();
  int64_t offset = 0;
  std::vector<state::FileId> found;
  for (;;) {
    auto entries = [&] {
      core::MutexLock lock(source_->DirLock(dir));
      return sys->ReadDir(at, offset, kListBytes);
    }();
    if (!entries && IsGone(entries.error()))
      break;  // removed meanwhile
    if (!entries)
      return core::Fail(std::move(entries).error());
    if (entries->empty())
      break;
    offset = entries->back().next_offset;
    for (const core::DirEntry& entry : *entries) {
      const char* name = entry.name.c_str();
      if (entry.name == "." || entry.name == "..")
        continue;
      auto one = sys->OpenAt(at, name, O_PATH | O_NOFOLLOW);
      if (!one) {
        if (IsGone(one.error()))
          continue;
        return core::Fail(std::move(one).error().With(entry.name));
      }
      ASSIGN_OR_RETURN(core::Stat st, sys->StatAt(one->Get(), ""));
      if (S_ISREG(st.stx_mode)) {
        TRY(Unmark(one->Get()));
      } else if (S_ISDIR(st.stx_mode) &&
                 !source_->IsLostFound(dir, name, st)) {
        ASSIGN_OR_RETURN(state::FileId id, source_->IdOf(one->Get(), ""));
        found.push_back(id);
      }
    }
  }
  directories_.insert(directories_.end(), found.begin(), found.end());
  return {};
}

}  // namespace livemv::copy
