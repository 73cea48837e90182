#include "migrator/daemon/source_check.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>

#include "core/state/node_table.h"
#include "core/unique_fd.h"
#include "fusefs/tree_ops.h"
#include "migrator/daemon/state_dir.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::Result;
using core::Status;
using core::UniqueFd;
using state::FileId;

namespace {

constexpr size_t kReadBytes = 64 << 10;
constexpr unsigned kMask =
    STATX_TYPE | STATX_SIZE | STATX_INO | STATX_CTIME | STATX_NLINK;

int64_t CtimeNs(const core::Stat& st) {
  return st.stx_ctime.tv_sec * 1'000'000'000ll + st.stx_ctime.tv_nsec;
}

class Search {
 public:
  Search(core::Syscalls* sys, int64_t since_ns,
         const state::RecoveredState& state, bool all)
      : sys_(sys), since_ns_(since_ns), state_(state), all_(all) {}

  Result<ForeignChanges> Run(int root_fd) {
    ASSIGN_OR_RETURN(core::Stat root, sys_->StatAt(root_fd, "", kMask));
    dev_major_ = root.stx_dev_major;
    dev_minor_ = root.stx_dev_minor;
    TRY(Look(root_fd, "", root, "."));
    TRY(Directory(root_fd, ""));
    return std::move(found_);
  }

 private:
  // By paths that are walked anew for each level, so that a deep tree needs no
  // more descriptors than it has levels.
  Status Directory(int fd, const std::string& below) {
    std::vector<std::string> directories;
    int64_t offset = 0;
    for (;;) {
      ASSIGN_OR_RETURN(std::vector<core::DirEntry> entries,
                       sys_->ReadDir(fd, offset, kReadBytes));
      if (entries.empty())
        break;
      for (const core::DirEntry& entry : entries) {
        offset = entry.next_offset;
        if (entry.name == "." || entry.name == "..")
          continue;
        auto st = sys_->StatAt(fd, entry.name.c_str(), kMask);
        if (!st && st.error().sys_errno == ENOENT)
          continue;
        if (!st)
          return core::Fail(std::move(st).error().With(below + entry.name));
        if (st->stx_dev_major != dev_major_ || st->stx_dev_minor != dev_minor_)
          continue;
        TRY(Look(fd, entry.name, *st, below + entry.name));
        if (S_ISDIR(st->stx_mode))
          directories.push_back(entry.name);
      }
    }
    for (const std::string& name : directories) {
      ASSIGN_OR_RETURN(UniqueFd child,
                       sys_->OpenAt(fd, name.c_str(),
                                    O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
      TRY(Directory(child.Get(), below + name + "/"));
    }
    return {};
  }

  Status Look(int dirfd, const std::string& name, const core::Stat& st,
              const std::string& path) {
    if (CtimeNs(st) <= since_ns_)
      return {};
    ASSIGN_OR_RETURN(core::FileHandle handle,
                     sys_->NameToHandle(dirfd, name.c_str()));
    const FileId id = state_.migration && handle == state_.migration->source_root
                          ? state::kRootId
                          : state::NodeTable::Pack(handle).value_or(0);
    auto file = state_.files.find(id);
    const bool known = file != state_.files.end();
    // A truncate of ours that the power cut interrupted is finished by the
    // filesystem's own recovery, which moves the ctime (fs/ext4/inode.c,
    // ext4_truncate from ext4_process_orphan).
    if (known && file->second.cut && st.stx_size == *file->second.cut)
      return {};
    found_.count++;
    if (!all_ && found_.list.size() >= kMostListed)
      return {};
    ForeignChange change;
    change.path = path;
    change.handle = std::move(handle);
    change.directory = S_ISDIR(st.stx_mode);
    if (change.directory) {
      change.what = "names in it, or its attributes, were changed";
    } else if (S_ISREG(st.stx_mode)) {
      change.what = "it was written or made, or its attributes or names were "
                    "changed";
      std::optional<uint64_t> end;
      if (known && file->second.map)
        end = file->second.map->local_end();
      else if (known && file->second.bound && IsPlaceholder(dirfd, name))
        end = 0;
      if (end && st.stx_size > *end)
        change.what += "; it has " + FormatBytes(st.stx_size - *end) +
                       " at the end of which only the target's count";
      if (end && st.stx_size < *end) {
        change.cut = true;
        change.what += "; it was cut to " + std::to_string(st.stx_size) +
                       " bytes, and had " + std::to_string(*end);
      }
    } else {
      change.what = "it was made, or its attributes or names were changed";
    }
    found_.list.push_back(std::move(change));
    return {};
  }

  bool IsPlaceholder(int dirfd, const std::string& name) {
    auto fd = sys_->OpenAt(dirfd, name.c_str(), O_PATH | O_NOFOLLOW);
    return fd && sys_->GetXattr(fd->Get(), fusefs::kMarkXattr).has_value();
  }

  core::Syscalls* const sys_;
  const int64_t since_ns_;
  const state::RecoveredState& state_;
  const bool all_;
  uint32_t dev_major_ = 0, dev_minor_ = 0;
  ForeignChanges found_;
};

}  // namespace

std::optional<int64_t> LastAliveNs(const state::RecoveredState& state) {
  auto it = state.options.find(kAliveOption);
  if (it == state.options.end())
    return std::nullopt;
  int64_t alive = 0;
  const std::string& text = it->second;
  if (std::from_chars(text.data(), text.data() + text.size(), alive).ec !=
      std::errc())
    return std::nullopt;
  return alive;
}

std::optional<int64_t> LastOwnChangeNs(const state::RecoveredState& state,
                                       const Boot& boot, bool covered) {
  const std::optional<int64_t> alive = LastAliveNs(state);
  if (!alive)
    return std::nullopt;
  const int64_t last = *alive + kAliveSlackNs;
  // Not by the sessions alone: one may have begun in this boot and ended before
  // its overlay was on. A boot that seems to have begun before the word of a
  // former one has another clock and says nothing.
  if (boot.began_ns > *alive)
    return std::min(last, boot.began_ns);
  const bool rebooted =
      !state.sessions.empty() && state.sessions.back().boot_id != boot.id;
  return rebooted || covered ? last : *alive;
}

Result<ForeignChanges> FindForeignChanges(core::Syscalls* sys, int root_fd,
                                          int64_t since_ns,
                                          const state::RecoveredState& state,
                                          bool all) {
  return Search(sys, since_ns, state, all).Run(root_fd);
}

Result<std::vector<state::Fact>> FactsOfAcceptance(
    const ForeignChanges& changes, const state::RecoveredState& state,
    state::Journal* journal) {
  std::vector<state::Fact> facts;
  state::NodeTable nodes(journal);
  nodes.SetRoot(state.migration->source_root);
  for (const auto& [id, handle] : state.nodes)
    TRY(nodes.Adopt(state::NodeFact{id, handle}));
  for (const ForeignChange& change : changes.list) {
    ASSIGN_OR_RETURN(FileId id, nodes.IdFor(change.handle));
    auto file = state.files.find(id);
    if (file != state.files.end() && file->second.map &&
        file->second.map->Chunks() > 0)
      facts.push_back(
          state::WithdrawnFact{id, 0, file->second.map->Chunks()});
    facts.push_back(state::OwedFact{id});
  }
  return facts;
}

}  // namespace livemv::daemon
