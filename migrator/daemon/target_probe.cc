#include "migrator/daemon/target_probe.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/acting.h"
#include "core/unique_fd.h"
#include "migrator/daemon/owner_probe.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {
namespace {

// The probe's directory, emptied and removed at the end, whatever happened.
class ProbeDirectory {
 public:
  ProbeDirectory(core::Syscalls* sys, int target) : sys_(sys), target_(target) {
    name_ = std::string(kProbePrefix) + "-" + std::to_string(getpid());
    kept_times_ = fstat(target, &before_) == 0;
    if (!AsRootOrOwner(sys, target, [&] {
          return mkdirat(target, name_.c_str(), 0711);
        })) {
      error_ = errno;
      return;
    }
    made_ = true;
    // Whoever owns a part of the tree makes a file in it.
    AsRootOrOwner(sys, target, [&] {
      fd_ = core::UniqueFd(
          openat(target, name_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      return fd_ ? fchmod(fd_.Get(), 0777) : -1;
    });
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
    AsRootOrOwner(sys_, target_, [&] {
      return unlinkat(target_, name_.c_str(), AT_REMOVEDIR);
    });
    if (kept_times_) {
      const struct timespec times[2] = {before_.st_atim, before_.st_mtim};
      AsRootOrOwner(sys_, target_, [&] { return futimens(target_, times); });
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
  core::Syscalls* const sys_;
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

constexpr char kOtherTarget[] = "choose another target";

void ProbeModes(int fd, Findings* findings) {
  struct stat st = {};
  const bool modes = fchmod(fd, 04640) == 0 && fstat(fd, &st) == 0 &&
                     (st.st_mode & 07777) == 04640;
  if (!modes)
    findings->Block("target-modes", "TARGET does not keep modes of files",
                    "choose a filesystem with modes, such as ext4 or NFS");
}

// Whether the target stores the attribute; errno tells why not.
bool Stores(int fd, const char* name, std::string_view value) {
  return fsetxattr(fd, name, value.data(), value.size(), 0) == 0;
}

fusefs::TargetHolds ProbeAttributes(int fd, const Survey& survey,
                                    const core::Losses& accepted,
                                    Findings* findings) {
  fusefs::TargetHolds holds;
  auto lost = [&](uint64_t count, bool is_accepted, const char* loss,
                  const char* code, const char* what, const char* way_out) {
    if (count > 0)
      ReportLoss(findings, is_accepted, loss, code,
                 std::string("TARGET stores no ") + what + " (" +
                     core::ErrnoName(errno) + "), and " + FormatCount(count) +
                     " objects of the tree have some",
                 way_out);
  };
  holds.user_xattrs = Stores(fd, "user.livemv-probe", "x");
  if (!holds.user_xattrs)
    lost(survey.with_user_xattrs, accepted.xattrs, "xattr", "target-xattrs",
         "extended attributes",
         "choose a target with extended attributes (NFS 4.2 has user.*, Linux "
         "5.9)");
  holds.system_xattrs = Stores(fd, "trusted.livemv-probe", "x") &&
                        Stores(fd, "security.livemv-probe", "x");
  if (!holds.system_xattrs)
    lost(survey.with_system_xattrs, accepted.xattrs, "xattr",
         "target-system-xattrs",
         "trusted or security attributes, file capabilities among them",
         "choose a local filesystem (NFS has none of them), or remove them "
         "(setcap -r)");
  holds.acls = Stores(fd, "system.posix_acl_access", SampleAcl());
  if (!holds.acls)
    lost(survey.with_acls, accepted.acls, "acl", "target-acls", "POSIX ACLs",
         "choose a target with ACLs (NFS 3 has them), or remove them: setfacl "
         "-R -b");
  if (survey.largest > 0 &&
      ftruncate(fd, static_cast<off_t>(survey.largest)) != 0)
    findings->Block("target-file-size",
                    "TARGET refuses a file of " + FormatBytes(survey.largest) +
                        " (" + core::ErrnoName(errno) + "), the size of " +
                        Quote(survey.largest_path),
                    "choose a filesystem for large files");
  return holds;
}

void ProbeTimes(int fd, const Survey& survey, const core::Losses& accepted,
                Findings* findings) {
  if (survey.oldest > survey.newest)
    return;  // nothing but directories
  auto keeps = [&](int64_t seconds, long ns) {
    const struct timespec want[2] = {{seconds, ns}, {seconds, ns}};
    struct stat st = {};
    return futimens(fd, want) == 0 && fstat(fd, &st) == 0 &&
           st.st_mtim.tv_sec == seconds && st.st_mtim.tv_nsec == ns;
  };
  if (!keeps(survey.oldest, 0) || !keeps(survey.newest, 0))
    ReportLoss(findings, accepted.times, "time", "target-times",
               "TARGET does not store the oldest or the newest time of the "
               "tree",
               kOtherTarget);
  else if (!keeps(survey.newest, 123'456'789))
    findings->Warn("target-times",
                   "TARGET does not store times to the nanosecond",
                   "mind programs that compare times, such as make and rsync");
}

// What programs do with files and may miss: nothing of it is lost by the move,
// and who uses it cannot be told before.
void ProbeCalls(ProbeDirectory* probe, int fd, Findings* findings) {
  std::string missing;
  auto miss = [&](const char* what) {
    missing += (missing.empty() ? "" : ", ") + std::string(what) + " (" +
               core::ErrnoName(errno) + ")";
  };
  const int dir = probe->Get();
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  if (fcntl(fd, F_OFD_SETLK, &lock) != 0)
    miss("record locks");
  lock.l_type = F_UNLCK;
  fcntl(fd, F_OFD_SETLK, &lock);
  core::UniqueFd reader(openat(dir, "file", O_RDONLY | O_CLOEXEC));
  if (reader && flock(reader.Get(), LOCK_EX | LOCK_NB) != 0)
    miss("an exclusive flock on a file opened for reading");
  core::UniqueFd direct(openat(dir, "file", O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (!direct)
    miss("O_DIRECT");
  void* map = mmap(nullptr, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED)
    miss("shared writable mappings");
  else
    munmap(map, 1);
  if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0)
    miss("punching holes");
  core::UniqueFd other(openat(dir, probe->Add("other"),
                              O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (other && renameat2(dir, "other", dir, "file", RENAME_EXCHANGE) != 0)
    miss("exchanging two names");
  if (!missing.empty())
    findings->Note("target-lacks",
                   "TARGET does not do everything that a local filesystem "
                   "does; programs that use it get errors after the move: " +
                       missing);
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
  if (survey.specials > survey.devices &&
      mkfifoat(dir, probe->Add("fifo"), 0600) != 0)
    refuse("target-specials", "FIFOs and sockets",
           survey.specials - survey.devices);
  if (survey.devices > 0 &&
      mknodat(dir, probe->Add("null"), S_IFCHR | 0600, makedev(1, 3)) != 0)
    refuse("target-devices", "device nodes", survey.devices);
}

}  // namespace

fusefs::TargetHolds ProbeTarget(int target_fd, const Survey& survey,
                                const core::Losses& accepted,
                                Findings* findings) {
  const std::unique_ptr<core::Syscalls> sys = core::MakeRealSyscalls();
  ProbeDirectory probe(sys.get(), target_fd);
  core::UniqueFd file;
  int error = probe.error();
  // On this thread, as whoever the tree's objects will be made.
  std::optional<core::Acting> acting;
  if (error == 0) {
    acting.emplace(sys.get(), WhoProbes(probe.Get(), survey));
    if (!acting->status())
      error = acting->status().error().Errno();
  }
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
    return {};
  }
  ProbeCalls(&probe, file.Get(), findings);
  fusefs::TargetHolds holds =
      ProbeAttributes(file.Get(), survey, accepted, findings);
  ProbeTimes(file.Get(), survey, accepted, findings);
  ProbeNames(&probe, survey, findings);
  ProbeKinds(&probe, survey, findings);
  ProbeModes(file.Get(), findings);
  acting.reset();
  ProbeRoot(sys.get(), target_fd, survey, accepted, findings);
  holds.gives_owners = ProbeOwners(
      sys.get(), probe.Get(), survey, accepted,
      [&](const std::string& name) { probe.Add(name); }, findings);
  return holds;
}

}  // namespace livemv::daemon
