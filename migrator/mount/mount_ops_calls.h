#pragma once

// The mount system calls, one thin function each, and nothing else: this is
// the only place that makes them. They return 0 (or a descriptor) or -errno,
// and are async-signal-safe, so a forked child may call them.
//
// Thread contract: no state.

#include <sys/types.h>

#include <cstdint>

namespace livemv::mount {

// open_tree(OPEN_TREE_CLONE), not recursive; path "": dirfd itself.
int CallCloneTree(int dirfd, const char* path);
int CallFsOpen(const char* fs_type);
int CallFsConfigString(int fs_fd, const char* key, const char* value);
int CallFsConfigFlag(int fs_fd, const char* key);
int CallFsConfigCreate(int fs_fd);
// fspick of the mount mount_fd itself, and its reconfiguration as it is.
int CallFsPick(int mount_fd);
int CallFsReconfigure(int fs_fd);
// attributes: MOUNT_ATTR_*.
int CallFsMount(int fs_fd, unsigned attributes);
// Mounts the mount mount_fd on dirfd/path, or beneath the top there.
int CallMoveMount(int mount_fd, int dirfd, const char* path, bool beneath);
// The same with arguments that cannot succeed: tells a kernel that knows the
// flag (EBADF) from one that does not (EINVAL).
int CallProbeBeneath();
// umount2(MNT_DETACH | UMOUNT_NOFOLLOW), path relative to the current one.
int CallDetach(const char* path);
// mount_setattr: propagation of the mount at dirfd/path made private.
int CallMakePrivate(int dirfd, const char* path, bool recursive);
int CallUnshareMounts();
int CallEnterMounts(int ns_fd);

}  // namespace livemv::mount
