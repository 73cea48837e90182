#include "migrator/daemon/private_dir.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <map>

#include "core/log.h"
#include "fusefs/object_store.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;
using core::UniqueFd;
using state::FileId;

namespace {

constexpr size_t kReadBytes = 64 << 10;

Result<std::vector<std::string>> NamesIn(core::Syscalls* sys, int fd) {
  std::vector<std::string> names;
  int64_t offset = 0;
  for (;;) {
    ASSIGN_OR_RETURN(std::vector<core::DirEntry> some,
                     sys->ReadDir(fd, offset, kReadBytes));
    if (some.empty())
      return names;
    for (core::DirEntry& entry : some) {
      offset = entry.next_offset;
      if (entry.name != "." && entry.name != "..")
        names.push_back(std::move(entry.name));
    }
  }
}

bool IsGone(const core::Error& error) {
  return error.sys_errno == ESTALE || error.sys_errno == ENOENT;
}

// The first path of each wanted inode below a directory, as far as all can be
// read: they are for a person.
class PathFinder {
 public:
  PathFinder(core::Syscalls* sys, std::map<uint64_t, std::string>* wanted)
      : sys_(sys), wanted_(wanted), left_(wanted->size()) {}

  void Walk(int fd, const std::string& below) {
    auto names = NamesIn(sys_, fd);
    if (!names)
      return;
    std::vector<std::string> directories;
    for (const std::string& name : *names) {
      auto st = sys_->StatAt(fd, name.c_str(), STATX_TYPE | STATX_INO);
      if (!st)
        continue;
      auto it = wanted_->find(st->stx_ino);
      if (it != wanted_->end() && it->second.empty()) {
        it->second = below + name;
        left_--;
      }
      if (S_ISDIR(st->stx_mode))
        directories.push_back(name);
    }
    for (const std::string& name : directories) {
      if (left_ == 0)
        return;
      auto child = sys_->OpenAt(fd, name.c_str(),
                                O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      if (child)
        Walk(child->Get(), below + name + "/");
    }
  }

 private:
  core::Syscalls* const sys_;
  std::map<uint64_t, std::string>* const wanted_;
  size_t left_;
};

}  // namespace

std::string HandleText(const core::FileHandle& handle) {
  std::string text = std::to_string(handle.type) + ":";
  for (const char c : handle.bytes)
    text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

core::FileHandle PackedHandle(FileId id) {
  const uint32_t parts[2] = {static_cast<uint32_t>(id >> 32),
                             static_cast<uint32_t>(id)};
  core::FileHandle handle;
  handle.type = 1;  // FILEID_INO32_GEN
  handle.bytes.assign(reinterpret_cast<const char*>(parts), sizeof parts);
  return handle;
}

PrivateDir::PrivateDir(core::Syscalls* target_sys, int target_root_fd,
                       core::Syscalls* source_sys, int source_root_fd,
                       const state::RecoveredState& state,
                       const std::string& id)
    : target_(target_sys), target_root_(target_root_fd), source_(source_sys),
      source_root_(source_root_fd), state_(state), name_(".livemv-" + id) {}

Result<bool> PrivateDir::IsDead(FileId id) {
  if (state_.dead.contains(id))
    return true;
  if (id == state::kNoFile || id == state::kRootId || source_root_ < 0 ||
      (id & state::kTargetBit) != 0)
    return false;
  core::FileHandle handle;
  if (auto node = state_.nodes.find(id); node != state_.nodes.end())
    handle = node->second;
  else if ((id & state::kTableBit) == 0)
    handle = PackedHandle(id);
  else
    return false;
  // Deleted while it was open, which had no time to be told. The source has all
  // that was durable there when the target became the truth.
  auto fd = source_->OpenByHandle(source_root_, handle, O_PATH);
  if (!fd && IsGone(fd.error()))
    return true;
  if (!fd)
    return Fail(std::move(fd).error().With("look for an object on the source"));
  ASSIGN_OR_RETURN(core::Stat st,
                   source_->StatAt(fd->Get(), "", STATX_NLINK));
  return st.stx_nlink == 0;
}

FileId PrivateDir::IdOf(int dirfd, const Entry& entry) {
  if (entry.dir == "o")
    return fusefs::ObjectStore::IdOfSlot(entry.name).value_or(state::kNoFile);
  auto handle = target_->NameToHandle(dirfd, entry.name.c_str());
  if (!handle)
    return state::kNoFile;
  for (const auto& [id, file] : state_.files)
    if (file.bound && file.bound->handle == *handle)
      return id;
  return state::kNoFile;
}

Result<std::vector<PrivateDir::Entry>> PrivateDir::Look() {
  auto dir = target_->OpenAt(target_root_, name_.c_str(),
                             O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!dir && dir.error().sys_errno == ENOENT)
    return std::vector<Entry>();
  if (!dir)
    return Fail(std::move(dir).error().With(name_));
  return LookIn(*dir);
}

Result<std::vector<PrivateDir::Entry>> PrivateDir::LookIn(const UniqueFd& dir) {
  std::vector<Entry> all;
  std::map<uint64_t, uint32_t> names_here;
  for (const char* sub : {"o", "v"}) {
    auto fd = target_->OpenAt(dir.Get(), sub,
                              O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (!fd && fd.error().sys_errno == ENOENT)
      continue;
    if (!fd)
      return Fail(std::move(fd).error().With(name_ + "/" + sub));
    ASSIGN_OR_RETURN(std::vector<std::string> names,
                     NamesIn(target_, fd->Get()));
    for (std::string& name : names) {
      // An NFS client's, of what is still open: it goes by itself.
      if (name.starts_with(".nfs"))
        continue;
      Entry entry{sub, std::move(name), {}, false, state::kNoFile};
      ASSIGN_OR_RETURN(entry.st,
                       target_->StatAt(fd->Get(), entry.name.c_str(),
                                       STATX_TYPE | STATX_INO | STATX_NLINK));
      entry.id = IdOf(fd->Get(), entry);
      ASSIGN_OR_RETURN(const bool dead, IsDead(entry.id));
      entry.stranded = !dead;
      if (dead && S_ISDIR(entry.st.stx_mode)) {
        ASSIGN_OR_RETURN(UniqueFd in,
                         target_->OpenAt(fd->Get(), entry.name.c_str(),
                                         O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
        ASSIGN_OR_RETURN(std::vector<std::string> inside,
                         NamesIn(target_, in.Get()));
        entry.stranded = !inside.empty();
      }
      if (!S_ISDIR(entry.st.stx_mode))
        names_here[entry.st.stx_ino]++;
      all.push_back(std::move(entry));
    }
  }
  // A file that has names elsewhere too is in its places.
  for (Entry& entry : all)
    if (!S_ISDIR(entry.st.stx_mode) &&
        entry.st.stx_nlink > names_here[entry.st.stx_ino])
      entry.stranded = false;
  return all;
}

Result<std::vector<StrandedObject>> PrivateDir::Stranded() {
  ASSIGN_OR_RETURN(std::vector<Entry> entries, Look());
  std::erase_if(entries, [](const Entry& e) { return !e.stranded; });
  std::vector<StrandedObject> out;
  std::map<uint64_t, std::string> wanted;
  std::vector<uint64_t> inos;
  for (const Entry& entry : entries) {
    out.push_back({name_ + "/" + entry.dir + "/" + entry.name, ""});
    inos.push_back(0);
    if (source_root_ < 0 || entry.id == state::kNoFile)
      continue;
    auto node = state_.nodes.find(entry.id);
    auto fd = source_->OpenByHandle(
        source_root_,
        node != state_.nodes.end() ? node->second : PackedHandle(entry.id),
        O_PATH);
    auto st = fd ? source_->StatAt(fd->Get(), "", STATX_INO)
                 : Result<core::Stat>(std::unexpected(fd.error()));
    if (!st)
      continue;
    inos.back() = st->stx_ino;
    wanted[st->stx_ino];
  }
  if (!wanted.empty())
    PathFinder(source_, &wanted).Walk(source_root_, "");
  for (size_t i = 0; i < out.size(); i++)
    if (inos[i] != 0)
      out[i].source = wanted[inos[i]];
  return out;
}

Status PrivateDir::Remove() {
  auto dir = target_->OpenAt(target_root_, name_.c_str(),
                             O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!dir && dir.error().sys_errno == ENOENT)
    return {};
  if (!dir)
    return Fail(std::move(dir).error().With(name_));
  ASSIGN_OR_RETURN(std::vector<Entry> entries, LookIn(*dir));
  for (const Entry& entry : entries)
    if (entry.stranded)
      return Fail(ErrorCode::kConflict, name_ + "/" + entry.dir + "/" +
                                            entry.name +
                                            " has no place in the tree");
  for (const Entry& entry : entries)
    TRY(target_->UnlinkAt(dir->Get(), (entry.dir + "/" + entry.name).c_str(),
                          S_ISDIR(entry.st.stx_mode) ? AT_REMOVEDIR : 0));
  for (const char* sub : {"o", "v"}) {
    Status removed = target_->UnlinkAt(dir->Get(), sub, AT_REMOVEDIR);
    if (!removed && removed.error().sys_errno != ENOENT)
      return Fail(std::move(removed).error().With(name_ + "/" + sub));
  }
  dir->Reset();
  ASSIGN_OR_RETURN(core::Stat before,
                   target_->StatAt(target_root_, "", STATX_MTIME));
  Status removed =
      target_->UnlinkAt(target_root_, name_.c_str(), AT_REMOVEDIR);
  if (!removed)
    return Fail(std::move(removed).error().With("remove " + name_));
  // It was none of the tree, and its going is not to be seen in it.
  const timespec times[2] = {
      {0, UTIME_OMIT},
      {static_cast<time_t>(before.stx_mtime.tv_sec),
       static_cast<long>(before.stx_mtime.tv_nsec)}};
  return target_->UTimens(target_root_, times);
}

}  // namespace livemv::daemon
