#include "migrator/mount/mount_ops_calls.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace livemv::mount {

namespace {

// Linux 6.5; in no header of Debian 12.
constexpr unsigned kMoveMountBeneath = 0x200;

int Checked(long result) {
  return result < 0 ? -errno : static_cast<int>(result);
}

}  // namespace

int CallCloneTree(int dirfd, const char* path) {
  unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
  if (path[0] == '\0')
    flags |= AT_EMPTY_PATH;
  return Checked(::open_tree(dirfd, path, flags));
}

int CallFsOpen(const char* fs_type) {
  return Checked(::fsopen(fs_type, FSOPEN_CLOEXEC));
}

int CallFsConfigString(int fs_fd, const char* key, const char* value) {
  return Checked(::fsconfig(fs_fd, FSCONFIG_SET_STRING, key, value, 0));
}

int CallFsConfigFlag(int fs_fd, const char* key) {
  return Checked(::fsconfig(fs_fd, FSCONFIG_SET_FLAG, key, nullptr, 0));
}

int CallFsConfigCreate(int fs_fd) {
  return Checked(::fsconfig(fs_fd, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0));
}

int CallFsPick(int mount_fd) {
  return Checked(::fspick(mount_fd, "", FSPICK_EMPTY_PATH | FSPICK_CLOEXEC));
}

int CallFsReconfigure(int fs_fd) {
  return Checked(
      ::fsconfig(fs_fd, FSCONFIG_CMD_RECONFIGURE, nullptr, nullptr, 0));
}

int CallFsMount(int fs_fd, unsigned attributes) {
  return Checked(::fsmount(fs_fd, FSMOUNT_CLOEXEC, attributes));
}

int CallMoveMount(int mount_fd, int dirfd, const char* path, bool beneath) {
  unsigned flags = MOVE_MOUNT_F_EMPTY_PATH;
  if (beneath)
    flags |= kMoveMountBeneath;
  return Checked(::move_mount(mount_fd, "", dirfd, path, flags));
}

int CallProbeBeneath() {
  return Checked(
      ::move_mount(-1, "", -1, "", MOVE_MOUNT_F_EMPTY_PATH |
                                       MOVE_MOUNT_T_EMPTY_PATH |
                                       kMoveMountBeneath));
}

int CallDetach(const char* path) {
  return Checked(::umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW));
}

int CallMakePrivate(int dirfd, const char* path, bool recursive) {
  mount_attr attr{};
  attr.propagation = MS_PRIVATE;
  unsigned flags = path[0] == '\0' ? AT_EMPTY_PATH : 0;
  if (recursive)
    flags |= AT_RECURSIVE;
  return Checked(::mount_setattr(dirfd, path, flags, &attr, sizeof attr));
}

int CallUnshareMounts() {
  return Checked(::unshare(CLONE_NEWNS));
}

int CallEnterMounts(int ns_fd) {
  return Checked(::setns(ns_fd, CLONE_NEWNS));
}

}  // namespace livemv::mount
