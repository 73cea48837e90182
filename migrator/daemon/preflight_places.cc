#include "migrator/daemon/preflight_places.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>

#include "migrator/daemon/paths.h"
#include "migrator/mount/mount_ops.h"
#include "migrator/proc/proc_files.h"

namespace livemv::daemon {
namespace {

// Exactly these; what lies below them may be moved.
constexpr std::array<std::string_view, 12> kSystem = {
    "/",    "/usr",     "/var",       "/var/lib", "/var/run",  "/usr/bin",
    "/bin", "/usr/lib", "/usr/lib64", "/sbin",    "/usr/sbin", "/usr/libexec"};
// These and everything below them.
constexpr std::array<std::string_view, 6> kSystemTrees = {
    "/etc", "/boot", "/dev", "/proc", "/sys", "/run"};

std::string TrimSlashes(std::string path) {
  while (path.size() > 1 && path.ends_with('/'))
    path.pop_back();
  return path;
}

core::Result<bool> HasHandles(int fd) {
  struct {
    struct file_handle head;
    char room[MAX_HANDLE_SZ];
  } handle = {};
  handle.head.handle_bytes = MAX_HANDLE_SZ;
  int mount_id = 0;
  if (name_to_handle_at(fd, "", &handle.head, &mount_id, AT_EMPTY_PATH) == 0)
    return true;
  if (errno == EOPNOTSUPP || errno == EOVERFLOW)
    return false;
  return core::FailSys(errno, "name_to_handle_at");
}

Volume VolumeOf(int fd, const mount::MountEntry& mount) {
  Volume volume;
  volume.type = mount.fs_type;
  volume.device = mount.source;
  if (mount.fs_type.starts_with("nfs"))
    volume.options = mount.super_options;
  struct statvfs st = {};
  if (fstatvfs(fd, &st) == 0) {
    volume.total_bytes = st.f_blocks * st.f_frsize;
    volume.free_bytes = st.f_bfree * st.f_frsize;
    volume.total_files = st.f_files;
    volume.free_files = st.f_ffree;
  }
  return volume;
}

void CheckSourceVolume(const Volume& volume, const mount::MountEntry& mount,
                       Findings* findings) {
  if (mount.HasOption("ro"))
    findings->Block(
        "source-read-only", "DIR is on a read-only mount",
        "mount it read-write: mount -o remount,rw " + ShellQuoted(mount.point));
  if (volume.total_bytes > 0 && volume.free_bytes == 0)
    findings->Warn(
        "source-full",
        "the source has no free block, not even root's reserve: names of new "
        "files need one now and then",
        "free a few blocks, or raise the reserve with tune2fs -m");
  if (volume.total_files > 0 && volume.free_files == 0)
    findings->Warn("source-no-inodes",
                   "the source has no free inode: creating files goes on "
                   "failing with ENOSPC until the move is complete",
                   "delete a file or two before the start");
}

void CheckRunning(const PlanRequest& request, const std::string& path,
                  const char* role, Findings* findings) {
  for (const RunningMigration& other : request.running) {
    for (const std::string& name : {other.dir, other.target}) {
      const std::string theirs = TrimSlashes(name);
      const bool comparable = theirs.starts_with('/') == path.starts_with('/');
      if (!comparable || !(IsInside(theirs, path) || IsInside(path, theirs)))
        continue;
      findings->Block(
          "managed",
          std::string(role) + " " + Quote(path) +
              (theirs == path ? " is" : " overlaps " + Quote(theirs) + ",") +
              " part of the running migration " + other.id,
          "finish or abort it first: livemv status " + other.id);
      break;
    }
  }
}

}  // namespace

bool IsSystemDirectory(const std::string& dir) {
  if (std::find(kSystem.begin(), kSystem.end(), dir) != kSystem.end())
    return true;
  if (dir.starts_with("/lib") && dir.find('/', 1) == std::string::npos)
    return true;
  return std::any_of(
      kSystemTrees.begin(), kSystemTrees.end(),
      [&](std::string_view tree) { return IsInside(dir, std::string(tree)); });
}

std::string SourceTypeRefusal(const std::string& fs_type, bool* known) {
  *known = true;
  if (fs_type == "ext4" || fs_type == "ext3" || fs_type == "ext2" ||
      fs_type == "xfs" || fs_type == "btrfs")
    return "";
  if (fs_type == "tmpfs" || fs_type == "ramfs")
    return "its file handles do not survive a restart";
  if (fs_type == "overlay")
    return "files change their identity when they are first written";
  if (fs_type == "vfat" || fs_type == "msdos" || fs_type == "exfat")
    return "it has no file handles with generation, owners or links";
  if (fs_type.starts_with("fuse"))
    return "what its server does with file handles cannot be known";
  if (fs_type.starts_with("nfs") || fs_type == "cifs" || fs_type == "smb3" ||
      fs_type == "ceph" || fs_type == "9p" || fs_type == "afs" ||
      fs_type == "lustre" || fs_type == "virtiofs" || fs_type == "glusterfs")
    return "it is not local: others can change it unseen";
  static constexpr std::array<std::string_view, 12> kPseudo = {
      "proc",    "sysfs",   "devtmpfs", "devpts",   "cgroup",  "cgroup2",
      "debugfs", "tracefs", "mqueue",   "squashfs", "iso9660", "erofs"};
  if (std::find(kPseudo.begin(), kPseudo.end(), fs_type) != kPseudo.end())
    return "it is not a filesystem that data are stored in";
  *known = false;
  return "";
}

std::optional<SourcePlace> CheckSource(const PlanRequest& request,
                                       const mount::MountTable& mounts,
                                       Plan* plan, Findings* findings) {
  auto dir = Normalise(request.dir);
  if (!dir) {
    findings->Block("dir-missing",
                    "DIR " + Quote(request.dir) + " cannot be reached: " +
                        core::ErrnoName(dir.error().sys_errno),
                    "name an existing directory");
    return std::nullopt;
  }
  plan->dir = *dir;
  CheckRunning(request, plan->dir, "DIR", findings);
  if (IsSystemDirectory(plan->dir)) {
    findings->Block("system-directory",
                    "DIR " + Quote(plan->dir) +
                        " is a system directory, which the machine and livemv "
                        "need while they work",
                    "move a directory below it that holds data");
    return std::nullopt;
  }
  SourcePlace place;
  place.fd = core::UniqueFd(
      open(plan->dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!place.fd) {
    if (errno == ENOTDIR)
      findings->Block("dir-not-directory",
                      "DIR " + Quote(plan->dir) + " is not a directory",
                      "name the directory that holds it");
    else
      findings->Block("dir-unreadable",
                      "DIR " + Quote(plan->dir) +
                          " cannot be opened: " + core::ErrnoName(errno),
                      "make it readable for root");
    return std::nullopt;
  }
  auto st = proc::PeekAt(place.fd.Get(), "");
  if (!st) {
    findings->Block("dir-unreadable", st.error().ToString(), "see dmesg");
    return std::nullopt;
  }
  place.dev = proc::DevOf(*st);
  const mount::MountEntry* mount = mounts.ById(st->stx_mnt_id);
  if (mount == nullptr) {
    findings->Block("dir-unreachable",
                    "DIR " + Quote(plan->dir) + " lies on no mount of ours",
                    "run livemv where the directory is mounted");
    return std::nullopt;
  }
  place.mount = *mount;
  plan->source_volume = VolumeOf(place.fd.Get(), place.mount);
  bool known = false;
  const std::string refusal = SourceTypeRefusal(mount->fs_type, &known);
  if (!refusal.empty()) {
    findings->Block("source-type",
                    "DIR " + Quote(plan->dir) + " is on " + mount->fs_type +
                        ", which cannot be a source: " + refusal,
                    "livemv moves from ext4, xfs and btrfs");
    return std::nullopt;
  }
  if (!known)
    findings->Warn(
        "source-type",
        "livemv has not been tested with " + mount->fs_type + " as a source",
        "try it with a copy of the data first");
  auto handles = HasHandles(place.fd.Get());
  if (!handles || !*handles) {
    findings->Block("no-handles",
                    "the filesystem of DIR gives no file handles (" +
                        (handles ? std::string("EOPNOTSUPP")
                                 : core::ErrnoName(handles.error().sys_errno)) +
                        "), by which files are told apart for good",
                    "livemv moves from ext4, xfs and btrfs");
    return std::nullopt;
  }
  auto tree = proc::MakeTreeRef(place.fd.Get(), plan->dir);
  if (!tree) {
    findings->Block("dir-unreachable", tree.error().ToString(),
                    "run livemv where the directory is mounted");
    return std::nullopt;
  }
  plan->tree = *tree;
  CheckSourceVolume(*plan->source_volume, place.mount, findings);
  for (const mount::MountEntry& below : mounts.Below(plan->dir))
    findings->Block(
        "nested-mount",
        Quote(below.point) + " (" + below.fs_type + ") is mounted below DIR",
        "unmount it, or move the directories beside it one by one");
  return place;
}

std::optional<TargetPlace> CheckTargetPlace(const PlanRequest& request,
                                            const mount::MountTable& mounts,
                                            const SourcePlace* source,
                                            Plan* plan, Findings* findings) {
  TargetPlace place;
  if (mount::IsNfsName(request.target)) {
    plan->target = TrimSlashes(request.target);
    plan->target_is_nfs = true;
    CheckRunning(request, plan->target, "TARGET", findings);
    core::Status client = mount::HasNfsClient();
    if (!client) {
      findings->Block("no-nfs",
                      "TARGET " + Quote(plan->target) +
                          " cannot be mounted: " + client.error().what,
                      "install nfs-common and load the module nfs, or name a "
                      "mounted directory");
      return std::nullopt;
    }
    return place;
  }
  if (!request.mount_options.empty())
    findings->Block("options",
                    "mount options (-o) are for targets of the form "
                    "host:/export, and TARGET is a directory",
                    "leave -o out");
  auto target = Normalise(request.target);
  if (!target) {
    findings->Block("target-missing",
                    "TARGET " + Quote(request.target) + " cannot be reached: " +
                        core::ErrnoName(target.error().sys_errno),
                    "make the directory, or name an export as host:/path");
    return std::nullopt;
  }
  plan->target = *target;
  CheckRunning(request, plan->target, "TARGET", findings);
  place.fd = core::UniqueFd(
      open(plan->target.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!place.fd) {
    findings->Block(
        errno == ENOTDIR ? "target-not-directory" : "target-unreadable",
        "TARGET " + Quote(plan->target) +
            (errno == ENOTDIR ? " is not a directory"
                              : " cannot be opened: " + core::ErrnoName(errno)),
        "name a directory on a mounted filesystem");
    return std::nullopt;
  }
  auto st = proc::PeekAt(place.fd.Get(), "");
  if (!st) {
    findings->Block("target-unreadable", st.error().ToString(), "see dmesg");
    return std::nullopt;
  }
  if (!plan->dir.empty() && plan->dir.starts_with('/')) {
    if (IsInside(plan->target, plan->dir) ||
        IsInside(plan->dir, plan->target)) {
      findings->Block("target-inside",
                      plan->target == plan->dir ? "TARGET is DIR itself"
                      : IsInside(plan->target, plan->dir)
                          ? "TARGET " + Quote(plan->target) +
                                " lies inside DIR " + Quote(plan->dir)
                          : "DIR " + Quote(plan->dir) + " lies inside TARGET " +
                                Quote(plan->target),
                      "name a target beside the directory");
      return std::nullopt;
    }
  }
  const mount::MountEntry* mount = mounts.ById(st->stx_mnt_id);
  const bool same_device =
      source != nullptr &&
      (proc::DevOf(*st) == source->dev ||
       (mount != nullptr && mount->dev == source->mount.dev));
  if (same_device) {
    findings->Block("same-filesystem",
                    "DIR and TARGET are on the same filesystem",
                    "name a target on another one; within one filesystem mv "
                    "does it");
    return std::nullopt;
  }
  plan->target_volume =
      VolumeOf(place.fd.Get(), mount != nullptr ? *mount : mount::MountEntry());
  if (mount != nullptr) {
    place.is_root_of_filesystem =
        mount->root == "/" && mount->point == plan->target;
    if (mount->HasOption("ro"))
      findings->Block("target-read-only", "TARGET is on a read-only mount",
                      "mount it read-write");
    bool known = false;
    const std::string refusal = SourceTypeRefusal(mount->fs_type, &known);
    if (mount->fs_type == "tmpfs" || mount->fs_type == "ramfs")
      findings->Warn("target-volatile",
                     "TARGET is in memory: everything is lost at a reboot",
                     "name a target on a disk or a server");
    else if (refusal.starts_with("it is not a filesystem that"))
      findings->Block("target-type",
                      "TARGET is on " + mount->fs_type + ", and " + refusal,
                      "name a directory on a filesystem for data");
    for (const mount::MountEntry& below : mounts.Below(plan->target))
      findings->Block("nested-mount",
                      Quote(below.point) + " (" + below.fs_type +
                          ") is mounted below TARGET",
                      "unmount it");
  }
  auto handles = HasHandles(place.fd.Get());
  if (!handles || !*handles)
    findings->Block("target-no-handles",
                    "the filesystem of TARGET gives no file handles, by which "
                    "copies are found again after a crash",
                    "name a target on ext4, xfs, btrfs or NFS");
  return place;
}

}  // namespace livemv::daemon
