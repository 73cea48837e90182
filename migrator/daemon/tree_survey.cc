#include "migrator/daemon/tree_survey.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/unique_fd.h"
#include "fusefs/tree_ops.h"

namespace livemv::daemon {
namespace {

constexpr size_t kExamples = 16;
constexpr unsigned kMask = STATX_TYPE | STATX_MODE | STATX_NLINK | STATX_UID |
                           STATX_GID | STATX_INO | STATX_SIZE | STATX_BLOCKS |
                           STATX_MTIME;

struct LinkedFile {
  uint32_t links = 0;
  uint32_t found = 0;
  std::string path;  // the first name found
};
using LinkedFiles = std::unordered_map<uint64_t, LinkedFile>;

struct Entry {
  std::string name;
  uint8_t type;
};

core::Result<std::vector<Entry>> ReadEntries(int dirfd) {
  struct Raw {  // linux_dirent64
    uint64_t ino;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
  };
  alignas(Raw) char buffer[65536];
  std::vector<Entry> entries;
  while (true) {
    const long n = syscall(SYS_getdents64, dirfd, buffer, sizeof buffer);
    if (n < 0)
      return core::FailSys(errno, "read directory");
    if (n == 0)
      return entries;
    for (long at = 0; at < n;) {
      const auto* raw = reinterpret_cast<const Raw*>(buffer + at);
      const std::string_view name = raw->name;
      if (name != "." && name != "..")
        entries.push_back({std::string(name), raw->type});
      at += raw->length;
    }
  }
}

class Walk {
 public:
  Walk(const SurveyOptions& options, bool links_only)
      : options_(options), links_only_(links_only) {}

  core::Status Run(int root);
  Survey& survey() { return survey_; }
  LinkedFiles& linked() { return linked_; }

 private:
  // One directory on the way down: its open descriptor and what is left of it.
  struct Level {
    core::UniqueFd fd;
    std::string path;  // "" for the root
    std::vector<Entry> entries;
    size_t next = 0;
  };

  core::Status Visit(std::vector<Level>* levels);
  void Count(const struct statx& st, const Level& level, const Entry& entry,
             const std::string& path);
  void CountOwner(const struct statx& st, const std::string& path);
  void CountXattrs(int dirfd, const char* name);
  void Unreadable(const std::string& path, int err) {
    ++survey_.unreadable_count;
    if (survey_.unreadable.size() < kExamples)
      survey_.unreadable.push_back(path + ": " + core::ErrnoName(err));
  }

  const SurveyOptions& options_;
  const bool links_only_;
  uint64_t device_ = 0;
  uint64_t seen_ = 0;
  Survey survey_;
  LinkedFiles linked_;
};

core::Status Walk::Run(int root) {
  struct statx st = {};
  if (statx(root, "", AT_EMPTY_PATH, kMask, &st) != 0)
    return core::FailSys(errno, "statx the root of the tree");
  device_ = makedev(st.stx_dev_major, st.stx_dev_minor);
  survey_.directories = 1;
  int flags = 0;
  if (ioctl(root, FS_IOC_GETFLAGS, &flags) == 0)
    survey_.case_folding = (flags & FS_CASEFOLD_FL) != 0;
  if (!links_only_) {
    CountXattrs(root, "");
    survey_.root_owner = {st.stx_uid, st.stx_gid};
    CountOwner(st, ".");
  }
  std::vector<Level> levels(1);
  // Its own description: reading moves a position.
  levels[0].fd =
      core::UniqueFd(openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!levels[0].fd)
    return core::FailSys(errno, "open the root of the tree");
  auto entries = ReadEntries(levels[0].fd.Get());
  if (!entries)
    return core::Fail(entries.error());
  levels[0].entries = std::move(*entries);
  while (!levels.empty()) {
    if (levels.back().next == levels.back().entries.size())
      levels.pop_back();
    else
      TRY(Visit(&levels));
  }
  return {};
}

core::Status Walk::Visit(std::vector<Level>* levels) {
  const size_t depth = levels->size() - 1;
  Level& level = levels->back();
  const Entry entry = std::move(level.entries[level.next++]);
  if (depth == 0 && options_.skip_lost_found && entry.name == "lost+found")
    return {};
  const std::string path =
      level.path.empty() ? entry.name : level.path + "/" + entry.name;
  if (++seen_ % 4096 == 0 && options_.progress && !options_.progress(survey_))
    return core::Fail(core::ErrorCode::kAborted, "the survey was stopped");
  // Only directories and regular files matter when links are counted again.
  if (links_only_ && entry.type != DT_DIR && entry.type != DT_REG &&
      entry.type != DT_UNKNOWN)
    return {};
  struct statx st = {};
  if (statx(level.fd.Get(), entry.name.c_str(),
            AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, kMask, &st) != 0) {
    if (errno != ENOENT)
      Unreadable(path, errno);
    return {};
  }
  const uint64_t device = makedev(st.stx_dev_major, st.stx_dev_minor);
  const bool is_mount =
      (st.stx_attributes & st.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT) != 0;
  if (device != device_ || is_mount) {
    if (survey_.other_devices.size() < kExamples)
      survey_.other_devices.push_back(path);
    return {};
  }
  Count(st, level, entry, path);
  if (!S_ISDIR(st.stx_mode))
    return {};
  // One descriptor a level, and 1024 is what a process usually has.
  if (depth > 900) {
    Unreadable(path, ELOOP);
    return {};
  }
  core::UniqueFd fd(
      openat(level.fd.Get(), entry.name.c_str(),
             O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NOATIME));
  if (!fd) {
    if (errno != ENOENT && errno != ENOTDIR)
      Unreadable(path, errno);
    return {};
  }
  auto entries = ReadEntries(fd.Get());
  if (!entries) {
    Unreadable(path, entries.error().sys_errno);
    return {};
  }
  levels->push_back({std::move(fd), path, std::move(*entries), 0});
  return {};
}

void Walk::Count(const struct statx& st, const Level& level, const Entry& entry,
                 const std::string& path) {
  if (S_ISREG(st.stx_mode) && st.stx_nlink > 1) {
    LinkedFile& file = linked_[st.stx_ino];
    file.links = st.stx_nlink;
    if (++file.found == 1)
      file.path = path;
    else if (!links_only_)
      return;  // counted under its first name
  }
  if (links_only_)
    return;
  if (entry.name.size() > survey_.longest_name) {
    survey_.longest_name = entry.name.size();
    survey_.longest_name_path = path;
  }
  CountOwner(st, path);
  survey_.oldest = std::min<int64_t>(survey_.oldest, st.stx_mtime.tv_sec);
  survey_.newest = std::max<int64_t>(survey_.newest, st.stx_mtime.tv_sec);
  survey_.allocated += st.stx_blocks * 512;
  if (S_ISDIR(st.stx_mode)) {
    ++survey_.directories;
  } else if (S_ISLNK(st.stx_mode)) {
    ++survey_.symlinks;
  } else if (S_ISREG(st.stx_mode)) {
    ++survey_.files;
    survey_.bytes += st.stx_size;
    if (st.stx_nlink > 1)
      ++survey_.hard_linked;
    if (st.stx_size > survey_.largest) {
      survey_.largest = st.stx_size;
      survey_.largest_path = path;
    }
  } else {
    ++survey_.specials;
    survey_.devices += S_ISCHR(st.stx_mode) || S_ISBLK(st.stx_mode);
  }
  CountXattrs(level.fd.Get(), entry.name.c_str());
}

void Walk::CountOwner(const struct statx& st, const std::string& path) {
  const Owner owner{st.stx_uid, st.stx_gid};
  auto it = survey_.owners.find(owner);
  if (it == survey_.owners.end()) {
    if (survey_.owners.size() >= Survey::kMostOwners)
      return;
    it = survey_.owners.emplace(owner, Survey::Owned{0, path}).first;
  }
  ++it->second.objects;
}

void Walk::CountXattrs(int dirfd, const char* name) {
  const std::string path =
      "/proc/self/fd/" + std::to_string(dirfd) + (*name ? "/" : "") + name;
  char list[4096];
  // A link in the last place is not followed, and "" is the directory itself.
  const ssize_t n = *name ? llistxattr(path.c_str(), list, sizeof list)
                          : listxattr(path.c_str(), list, sizeof list);
  if (n < 0) {
    // More names than fit are certainly some of each kind worth testing for.
    if (errno == ERANGE) {
      ++survey_.with_user_xattrs;
      ++survey_.with_system_xattrs;
    }
    return;
  }
  bool acl = false;
  bool user = false;
  bool system = false;
  for (ssize_t at = 0; at < n;) {
    const std::string_view attr = list + at;
    if (attr.starts_with("system.posix_acl_"))
      acl = true;
    else if (attr.starts_with("user."))
      user = true;
    // A label is the target's policy's; our own mark may be left on the source
    // of an earlier move.
    else if (attr != "security.selinux" && attr != fusefs::kMarkXattr)
      system = true;
    at += static_cast<ssize_t>(attr.size()) + 1;
  }
  survey_.with_acls += acl;
  survey_.with_user_xattrs += user;
  survey_.with_system_xattrs += system;
}

bool Incomplete(const LinkedFile& file) {
  return file.found < file.links;
}

}  // namespace

core::Result<Survey> SurveyTree(int dirfd, const SurveyOptions& options) {
  struct timespec begin = {};
  clock_gettime(CLOCK_MONOTONIC, &begin);
  Walk walk(options, false);
  TRY(walk.Run(dirfd));
  LinkedFiles suspects;
  for (auto& [ino, file] : walk.linked()) {
    if (Incomplete(file))
      suspects.emplace(ino, file);
  }
  // A name made or moved during the walk may have been missed; a file with a
  // name outside is incomplete in every walk.
  for (int again = 0; again < 2 && !suspects.empty(); ++again) {
    Walk links(options, true);
    TRY(links.Run(dirfd));
    for (auto it = suspects.begin(); it != suspects.end();) {
      auto found = links.linked().find(it->first);
      if (found == links.linked().end() || !Incomplete(found->second))
        it = suspects.erase(it);
      else
        ++it;
    }
  }
  Survey survey = std::move(walk.survey());
  survey.outside_link_count = suspects.size();
  for (const auto& [ino, file] : suspects) {
    if (survey.outside_links.size() < kExamples)
      survey.outside_links.push_back(file.path);
  }
  struct timespec end = {};
  clock_gettime(CLOCK_MONOTONIC, &end);
  survey.took_ns =
      (end.tv_sec - begin.tv_sec) * 1'000'000'000 + end.tv_nsec - begin.tv_nsec;
  return survey;
}

}  // namespace livemv::daemon
