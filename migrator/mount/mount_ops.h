#pragma once

// Every act on mounts: making detached ones, putting them on a directory,
// sliding one beneath another, taking the top off; in this mount namespace and
// in others (by a forked child that enters them).
//
// What is mounted where is the caller's business. Nothing here calls a
// filesystem except MakeOverlay (the kernel queues the overlay's INIT, nobody
// waits for it) and MountTarget (the server of an NFS target).
//
// Needs CAP_SYS_ADMIN. Thread contract: one thread; MountTarget forks and runs
// libmount in the child, so call it while the process has no other thread.

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "core/result.h"
#include "migrator/mount/mount_fd.h"
#include "migrator/mount/mount_table.h"

namespace livemv::mount {

struct MountFlags {
  bool read_only = false, nosuid = false, nodev = false, noexec = false;
  bool operator==(const MountFlags&) const = default;
};

struct OverlaySpec {
  int fuse_fd = -1;      // /dev/fuse, not mounted yet; borrowed
  std::string source;    // what mountinfo shows as the source: DIR
  MountFlags flags;      // those of the mount it covers
  mode_t root_mode = 0;  // st_mode of DIR
  uid_t uid = 0;
  gid_t gid = 0;
};

struct TargetMount {
  MountFd mount;
  // As mountinfo has them; for an NFS target only, whose effective options the
  // server and earlier mounts of the same export have a say in.
  std::string fs_type;
  std::string options;
};

class MountOps {
 public:
  virtual ~MountOps() = default;

  // A detached, private copy of the mount at dirfd/path whose root is that
  // directory; mounts below it are not copied and what is mounted over it
  // later is not seen. path "": dirfd itself.
  virtual core::Result<MountFd> CloneTree(int dirfd,
                                          const std::string& path) = 0;
  // A detached FUSE mount: type fuse.livemv, allow_other,
  // default_permissions, max_read 1 MiB. Its INIT request is in fuse_fd then.
  virtual core::Result<MountFd> MakeOverlay(const OverlaySpec& spec) = 0;
  // Drops every name of the overlay that the kernel has cached and nobody
  // uses (fs/super.c, reconfigure_super: shrink_dcache_sb). What is open keeps
  // its names. The kernel only queues FORGETs for it.
  virtual core::Status ForgetNames(const MountFd& overlay) = 0;
  // The target as a detached, private mount: an existing directory (its
  // mount's copy), or "host:/export[/sub]" by libmount and mount.nfs with
  // options (as after mount -o). scratch: a directory to mount on out of
  // everybody's sight, left empty. At most timeout_ns, then kTimeout.
  virtual core::Result<TargetMount> MountTarget(const std::string& target,
                                            const std::string& options,
                                            const std::string& scratch,
                                            int64_t timeout_ns) = 0;

  // Mounts a detached mount over the top of what is at the place.
  virtual core::Status AttachAt(const MountFd& mount,
                                const MountPoint& at) = 0;
  // Puts a detached mount under the top mount of the place, where nobody sees
  // it. kUnsupported where HasBeneath() is false.
  virtual core::Status SlideBeneath(const MountFd& mount,
                                    const MountPoint& at) = 0;
  // Takes the top mount off, lazily: what is in use goes on working. kConflict
  // if the top is not a mount of superblock dev.
  virtual core::Status DetachTop(const MountPoint& at, dev_t dev) = 0;

  // pid 0: this process.
  virtual core::Result<MountTable> TableOf(pid_t pid) = 0;
  virtual core::Result<MountTable> TableIn(const MountNamespace& ns) = 0;
  // The mount's number in mountinfo, attached or not.
  virtual core::Result<uint64_t> IdOf(const MountFd& mount) = 0;
  virtual core::Result<MountNamespace> NamespaceOf(pid_t pid) = 0;
  virtual bool HasBeneath() = 0;  // MOVE_MOUNT_BENEATH, Linux 6.5
};

std::unique_ptr<MountOps> MakeRealMountOps();

// Mounts an empty read-only filesystem, which mountinfo shows as source, over
// the top of what is at dir.
core::Status CoverEmpty(const std::string& dir, const std::string& source);
// fsopen, fsmount, move_mount (5.2) and mount_setattr (5.12) are there.
bool HasFsopen();
// OK if the kernel has an NFS client and mount.nfs is installed; kUnsupported
// saying which is missing.
core::Status HasNfsClient();
// "host:/path" or "[v6]:/path". A path that starts with '/' or '.' is never
// one.
bool IsNfsName(const std::string& target);
// The flags of the mount that fd lies on.
core::Result<MountFlags> FlagsOf(int fd);

}  // namespace livemv::mount
