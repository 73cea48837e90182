#pragma once

// MountFd: a descriptor of one mount's root. A detached mount lives as long as
// a descriptor of it does; once it is attached somewhere, dropping the
// descriptor changes nothing (fs/namespace.c, dissolve_on_fput acts on
// anonymous namespaces only).
//
// MountNamespace: another process's mount namespace and root, kept so that they
// can be entered after the process has ended.
//
// Thread contract: values; not shared without external synchronization.

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>

#include "core/result.h"
#include "core/unique_fd.h"

namespace livemv::mount {

class MountFd {
 public:
  MountFd() = default;
  explicit MountFd(core::UniqueFd fd) : fd_(std::move(fd)) {}
  int Get() const { return fd_.Get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }
  int Release() { return fd_.Release(); }

 private:
  core::UniqueFd fd_;
};

class MountNamespace {
 public:
  // kGone if there is no such process.
  static core::Result<MountNamespace> Of(pid_t pid);
  MountNamespace() = default;
  MountNamespace(core::UniqueFd ns, core::UniqueFd root, uint64_t inode,
                 pid_t witness)
      : ns_(std::move(ns)),
        root_(std::move(root)),
        inode_(inode),
        witness_(witness) {}
  uint64_t inode() const { return inode_; }
  // A process that was in it; messages only, it may have ended.
  pid_t witness() const { return witness_; }
  int ns_fd() const { return ns_.Get(); }
  // The witness's root directory (O_PATH): its paths start here.
  int root_fd() const { return root_.Get(); }

 private:
  core::UniqueFd ns_;
  core::UniqueFd root_;
  uint64_t inode_ = 0;
  pid_t witness_ = 0;
};

// A path in a mount namespace; ns nullptr: this process's own.
struct MountPoint {
  const MountNamespace* ns = nullptr;
  std::string path;

  std::string ToString() const;
};

}  // namespace livemv::mount
