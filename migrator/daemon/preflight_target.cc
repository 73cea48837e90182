#include "migrator/daemon/preflight_target.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "core/unique_fd.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {
namespace {

constexpr std::string_view kProbe = ".livemv-probe";

// The probe's directory, emptied and removed at the end, whatever happened.
class ProbeDirectory {
 public:
  explicit ProbeDirectory(int target) : target_(target) {
    name_ = std::string(kProbe) + "-" + std::to_string(getpid());
    kept_times_ = fstat(target, &before_) == 0;
    if (mkdirat(target, name_.c_str(), 0700) != 0) {
      error_ = errno;
      return;
    }
    made_ = true;
    fd_ = core::UniqueFd(
        openat(target, name_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd_)
      error_ = errno;
  }
  ProbeDirectory(const ProbeDirectory&) = delete;
  ProbeDirectory& operator=(const ProbeDirectory&) = delete;
  ~ProbeDirectory() {
    for (const std::string& name : names_)
      unlinkat(fd_.Get(), name.c_str(), 0);
    fd_.Reset();
    if (!made_)
      return;
    unlinkat(target_, name_.c_str(), AT_REMOVEDIR);
    if (kept_times_) {
      const struct timespec times[2] = {before_.st_atim, before_.st_mtim};
      futimens(target_, times);
    }
  }

  int error() const { return error_; }
  int Get() const { return fd_.Get(); }
  // name will be removed; before it is made.
  const char* Add(std::string name) {
    names_.push_back(std::move(name));
    return names_.back().c_str();
  }

 private:
  const int target_;
  std::string name_;
  std::vector<std::string> names_;
  struct stat before_ = {};
  bool kept_times_ = false;
  bool made_ = false;
  int error_ = 0;
  core::UniqueFd fd_;
};

// A POSIX ACL as system.posix_acl_access has it (linux/posix_acl_xattr.h),
// little-endian: rw for the owner, r for user 1, group and mask.
std::string SampleAcl() {
  std::string acl("\2\0\0\0", 4);
  auto add = [&](char tag, char perm, uint32_t id) {
    acl += tag;
    acl += '\0';
    acl += perm;
    acl += '\0';
    for (int shift = 0; shift < 32; shift += 8)
      acl += static_cast<char>(id >> shift);
  };
  add(0x01, 6, UINT32_MAX);  // ACL_USER_OBJ
  add(0x02, 4, 1);           // ACL_USER
  add(0x04, 4, UINT32_MAX);  // ACL_GROUP_OBJ
  add(0x10, 4, UINT32_MAX);  // ACL_MASK
  add(0x20, 0, UINT32_MAX);  // ACL_OTHER
  return acl;
}

void ProbeOwnership(int fd, const Survey& survey, Findings* findings) {
  struct stat st = {};
  const bool owns =
      fchown(fd, 1, 1) == 0 && fstat(fd, &st) == 0 && st.st_uid == 1;
  if (!owns && survey.foreign_owners > 0)
    findings->Block("target-owners",
                    "TARGET refuses to give files their owners, and " +
                        FormatCount(survey.foreign_owners) +
                        " objects of the tree do not belong to root",
                    "export it with no_root_squash, or choose a filesystem "
                    "with owners");
  else if (!owns)
    findings->Warn("target-owners",
                   "TARGET refuses to give files their owners: files that "
                   "others than root create cannot be moved",
                   "export it with no_root_squash, or choose a filesystem "
                   "with owners");
  const bool modes = fchmod(fd, 04640) == 0 && fstat(fd, &st) == 0 &&
                     (st.st_mode & 07777) == 04640;
  if (!modes)
    findings->Block("target-modes", "TARGET does not keep modes of files",
                    "choose a filesystem with modes, such as ext4 or NFS");
}

void ProbeAttributes(int fd, const Survey& survey, Findings* findings) {
  if (survey.with_xattrs > 0 &&
      fsetxattr(fd, "user.livemv-probe", "x", 1, 0) != 0)
    findings->Block("target-xattrs",
                    "TARGET stores no extended attributes (" +
                        core::ErrnoName(errno) + "), and " +
                        FormatCount(survey.with_xattrs) +
                        " objects of the tree have some",
                    "choose a target with extended attributes (NFS 4.2 has "
                    "them, Linux 5.9)");
  const std::string acl = SampleAcl();
  if (survey.with_acls > 0 &&
      fsetxattr(fd, "system.posix_acl_access", acl.data(), acl.size(), 0) != 0)
    findings->Block("target-acls",
                    "TARGET stores no POSIX ACLs (" + core::ErrnoName(errno) +
                        "), and " + FormatCount(survey.with_acls) +
                        " objects of the tree have some",
                    "choose a target with ACLs (NFS 3 has them), or remove "
                    "them: setfacl -R -b");
  if (survey.largest > 0 &&
      ftruncate(fd, static_cast<off_t>(survey.largest)) != 0)
    findings->Block("target-file-size",
                    "TARGET refuses a file of " + FormatBytes(survey.largest) +
                        " (" + core::ErrnoName(errno) + "), the size of " +
                        Quote(survey.largest_path),
                    "choose a filesystem for large files");
}

void ProbeNames(ProbeDirectory* probe, const Survey& survey,
                Findings* findings) {
  const int dir = probe->Get();
  auto create = [&](const std::string& name) {
    core::UniqueFd fd(openat(dir, probe->Add(name),
                             O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    return static_cast<bool>(fd);
  };
  if (survey.longest_name > 100 &&
      !create(std::string(survey.longest_name, 'n')))
    findings->Block("target-names",
                    "TARGET refuses names of " +
                        std::to_string(survey.longest_name) + " bytes (" +
                        core::ErrnoName(errno) + "), the length of " +
                        Quote(survey.longest_name_path),
                    "shorten the name, or choose another target");
  if (!create("\xff\n"))
    findings->Warn("target-names",
                   "TARGET refuses names that are not text (" +
                       core::ErrnoName(errno) +
                       "): files with such names cannot be moved",
                   "choose another target if the tree has or gets such names");
  const bool folds =
      create("case") && faccessat(dir, "CASE", F_OK, AT_SYMLINK_NOFOLLOW) == 0;
  if (folds && !survey.case_folding)
    findings->Block("target-case",
                    "TARGET does not tell upper from lower case in names, the "
                    "source does",
                    "choose a target that tells them apart");
  if (!folds && survey.case_folding)
    findings->Warn("target-case",
                   "DIR looks names up without regard to case, TARGET does not",
                   "make sure that programs use names as they are written");
}

void ProbeKinds(ProbeDirectory* probe, const Survey& survey,
                Findings* findings) {
  const int dir = probe->Get();
  auto refuse = [&](const char* code, const char* what, uint64_t count) {
    findings->Block(code,
                    std::string("TARGET refuses ") + what + " (" +
                        core::ErrnoName(errno) + "), and the tree has " +
                        FormatCount(count),
                    "choose a target that has them");
  };
  if (survey.hard_linked > 0 &&
      linkat(dir, "file", dir, probe->Add("link"), 0) != 0)
    refuse("target-links", "hard links", survey.hard_linked);
  if (survey.symlinks > 0 && symlinkat("to", dir, probe->Add("symlink")) != 0)
    refuse("target-symlinks", "symbolic links", survey.symlinks);
  if (survey.specials > 0 && mkfifoat(dir, probe->Add("fifo"), 0600) != 0)
    refuse("target-specials", "FIFOs and device nodes", survey.specials);
}

// What is in the target already. Returns whether an interrupted run of this
// move is.
bool CheckEmpty(const TargetRequest& request, Findings* findings) {
  core::UniqueFd copy(
      openat(request.target_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  std::unique_ptr<DIR, int (*)(DIR*)> dir(
      copy ? fdopendir(copy.Get()) : nullptr, closedir);
  if (dir == nullptr) {
    findings->Block("target-unreadable",
                    "TARGET " + Quote(request.name) +
                        " cannot be read: " + core::ErrnoName(errno),
                    "make it readable for root");
    return false;
  }
  copy.Release();
  bool resumes = false;
  std::string other;
  std::string first;
  while (const struct dirent* entry = readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == ".." ||
        (request.is_root_of_filesystem && name == "lost+found"))
      continue;
    constexpr std::string_view kPrefix = ".livemv-";
    if (name.starts_with(kProbe))
      continue;  // of a plan that was killed
    if (name.starts_with(kPrefix)) {
      const std::string id = name.substr(kPrefix.size());
      if (request.resumable.contains(id))
        resumes = true;
      else
        other = id;
      continue;
    }
    if (first.empty())
      first = name;
  }
  if (!other.empty())
    findings->Block("target-interrupted",
                    "TARGET " + Quote(request.name) +
                        " is not empty: it holds .livemv-" + other +
                        ", left by another migration",
                    "finish or abort that one; if it is gone, empty the "
                    "target");
  else if (!first.empty() && !resumes)
    findings->Block("target-not-empty",
                    "TARGET " + Quote(request.name) +
                        " is not empty: it holds " + Quote(first),
                    "empty it, or name a new directory");
  else if (resumes)
    findings->Note("target-resumes",
                   "TARGET holds an interrupted run of this move, which goes "
                   "on");
  return resumes;
}

void CheckRoom(const Survey& survey, const Volume& volume, Findings* findings) {
  // The source's blocks are the best guess of the target's; half a kilobyte
  // an object stands for its inode and name.
  const uint64_t need = survey.allocated + survey.Objects() * 512;
  const std::string numbers = "the tree needs about " + FormatBytes(need) +
                              ", TARGET has " + FormatBytes(volume.free_bytes) +
                              " free";
  if (volume.total_bytes > 0 && volume.free_bytes < need)
    findings->Block("target-too-small", "TARGET is too small: " + numbers,
                    "make room on the target");
  else if (volume.total_bytes > 0 && volume.free_bytes < need + need / 20)
    findings->Warn("target-tight",
                   "TARGET will be nearly full: " + numbers +
                       ", and the tree goes on growing",
                   "make room on the target");
  const uint64_t objects = survey.Objects() + 16;
  if (volume.total_files > 0 && volume.free_files < objects)
    findings->Block(
        "target-no-inodes",
        "TARGET has too few free inodes: " + FormatCount(volume.free_files) +
            ", the tree needs " + FormatCount(objects),
        "choose a target with more inodes");
}

}  // namespace

void ProbeTarget(int target_fd, const Survey& survey, Findings* findings) {
  ProbeDirectory probe(target_fd);
  core::UniqueFd file;
  int error = probe.error();
  if (error == 0) {
    file = core::UniqueFd(openat(probe.Get(), probe.Add("file"),
                                 O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!file)
      error = errno;
    else if (pwrite(file.Get(), "x", 1, 0) != 1)
      error = errno;
  }
  if (error != 0) {
    findings->Block("target-unwritable",
                    "TARGET cannot be written: " + core::ErrnoName(error),
                    error == EACCES || error == EPERM
                        ? "export it with no_root_squash, or make it writable"
                        : "see that it is writable and has room");
    return;
  }
  ProbeOwnership(file.Get(), survey, findings);
  ProbeAttributes(file.Get(), survey, findings);
  ProbeNames(&probe, survey, findings);
  ProbeKinds(&probe, survey, findings);
}

std::vector<Finding> CheckTarget(const TargetRequest& request, Volume* volume) {
  std::vector<Finding> list;
  Findings findings(&list);
  struct statvfs st = {};
  if (fstatvfs(request.target_fd, &st) == 0) {
    volume->total_bytes = st.f_blocks * st.f_frsize;
    volume->free_bytes = st.f_bfree * st.f_frsize;
    volume->total_files = st.f_files;
    volume->free_files = st.f_ffree;
  }
  const bool resumes = CheckEmpty(request, &findings);
  if (request.survey != nullptr) {
    // A part of the tree is there already, so its room cannot be reckoned.
    if (!resumes)
      CheckRoom(*request.survey, *volume, &findings);
    if (!findings.Blocked())
      ProbeTarget(request.target_fd, *request.survey, &findings);
  }
  return list;
}

}  // namespace livemv::daemon
