#pragma once

// The seam to the filesystem part of the kernel: every act on source, target
// and journal files goes through Syscalls, so that tests and the simulator can
// stand in for the kernel. One virtual call a system call, no logic. Errors
// carry the errno and the call's name; callers add the operand.
//
// Paths are NUL-terminated and relative to dirfd; all descriptors are opened
// with O_CLOEXEC. Calls may block as long as the filesystem beneath blocks.
//
// Thread contract: all methods may be called from any thread.

#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/types.h>

#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "core/unique_fd.h"

namespace livemv::core {

// A kernel file handle, name_to_handle_at(2): type and up to 128 bytes.
struct FileHandle {
  int32_t type = 0;
  std::string bytes;
  auto operator<=>(const FileHandle&) const = default;
};

struct DirEntry {
  uint64_t ino;
  int64_t next_offset;  // d_off: cookie of the entry after this one
  uint8_t type;         // DT_*
  std::string name;
};

using Stat = struct statx;

// Whom a filesystem takes a thread for: its fsuid, fsgid and supplementary
// groups (setfsuid(2), credentials(7)). What this program is: root in no group.
struct Identity {
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;
  bool operator==(const Identity&) const = default;
};

class Syscalls : public FdCloser {
 public:
  virtual Result<UniqueFd> OpenAt(int dirfd, const char* path, int flags,
                                  mode_t mode = 0) = 0;
  // mount_fd: any descriptor on the filesystem; the descriptor that results
  // lies on the mount of mount_fd.
  virtual Result<UniqueFd> OpenByHandle(int mount_fd, const FileHandle& handle,
                                        int flags) = 0;
  // path "" means dirfd itself (AT_EMPTY_PATH). Links are not followed.
  virtual Result<FileHandle> NameToHandle(int dirfd, const char* path) = 0;

  virtual Result<size_t> PRead(int fd, void* buf, size_t len, off_t off) = 0;
  virtual Result<size_t> PWrite(int fd, const void* buf, size_t len,
                                off_t off) = 0;
  // Writes at the end whatever the end is now: pwritev2(RWF_APPEND).
  virtual Result<size_t> WriteAppend(int fd, const void* buf, size_t len) = 0;
  virtual Status FSync(int fd) = 0;
  virtual Status FDataSync(int fd) = 0;
  virtual Status SyncFs(int fd) = 0;
  virtual Status FTruncate(int fd, uint64_t len) = 0;
  virtual Status FAllocate(int fd, int mode, uint64_t off, uint64_t len) = 0;
  virtual Result<off_t> LSeek(int fd, off_t off, int whence) = 0;
  // advice: POSIX_FADV_*; len 0: to the end.
  virtual Status FAdvise(int fd, uint64_t off, uint64_t len, int advice) = 0;
  // path "" means dirfd itself. Links are not followed. mask: STATX_*.
  virtual Result<Stat> StatAt(int dirfd, const char* path,
                              unsigned mask = STATX_BASIC_STATS |
                                              STATX_BTIME) = 0;
  virtual Result<struct statfs> FStatFs(int fd) = 0;
  // Entries from offset on ("." and ".." included), about max_bytes of them;
  // empty at the end. Moves the descriptor's position.
  virtual Result<std::vector<DirEntry>> ReadDir(int fd, int64_t offset,
                                                size_t max_bytes) = 0;

  virtual Status MkDirAt(int dirfd, const char* path, mode_t mode) = 0;
  virtual Status MkNodAt(int dirfd, const char* path, mode_t mode,
                         dev_t dev) = 0;
  virtual Status SymLinkAt(const char* text, int dirfd, const char* path) = 0;
  virtual Result<std::string> ReadLinkAt(int dirfd, const char* path) = 0;
  // Links the object behind fd (O_PATH suffices) to dirfd/path.
  virtual Status LinkFd(int fd, int dirfd, const char* path) = 0;
  virtual Status UnlinkAt(int dirfd, const char* path, int flags) = 0;
  virtual Status RenameAt(int olddir, const char* oldpath, int newdir,
                          const char* newpath, unsigned flags) = 0;

  // The next ones act on the object behind fd, which may be O_PATH, a
  // directory or a link.
  virtual Status ChMod(int fd, mode_t mode) = 0;
  virtual Status ChOwn(int fd, uid_t uid, gid_t gid) = 0;  // -1: leave
  virtual Status UTimens(int fd, const struct timespec times[2]) = 0;
  virtual Result<std::string> GetXattr(int fd, const char* name) = 0;
  virtual Status SetXattr(int fd, const char* name, std::string_view value,
                          int flags) = 0;
  virtual Result<std::vector<std::string>> ListXattr(int fd) = 0;
  virtual Status RemoveXattr(int fd, const char* name) = 0;

  // The calling thread acts as who from now on, with all its capabilities; the
  // former identity comes back. Nothing has changed on an error. Scoped use:
  // core/acting.h.
  virtual Result<Identity> ActAs(const Identity& who) = 0;

  // CLOCK_MONOTONIC and CLOCK_REALTIME in nanoseconds.
  virtual int64_t MonotonicNs() = 0;
  virtual int64_t RealtimeNs() = 0;
};

// The kernel itself.
std::unique_ptr<Syscalls> MakeRealSyscalls();

}  // namespace livemv::core
