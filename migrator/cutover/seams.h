#pragma once

// The seams of attach, cutover and abort to the machine: processes,
// descriptors, time. Each has the real one (MakeReal...) and a fake in the
// tests; mounts have mount::MountOps, the worker has OverlayControl.
//
// Thread contract: one thread.

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/syscalls.h"
#include "core/unique_fd.h"
#include "migrator/cutover/overlay_control.h"
#include "migrator/mount/mount_ops.h"
#include "migrator/proc/process_snapshot.h"
#include "migrator/trace/frozen_set.h"

namespace livemv::cutover {

class ProcessScanner {
 public:
  virtual ~ProcessScanner() = default;
  virtual core::Result<proc::Snapshot> Capture(
      const proc::TreeRef& tree, const proc::Options& options) = 0;
  virtual core::Result<proc::Holder> CaptureOne(
      const proc::TreeRef& tree, pid_t pid, const proc::Options& options) = 0;
  virtual core::Status Identify(std::vector<proc::Holder>* holders,
                                bool frozen) = 0;
  // proc::LetOpensPass.
  virtual core::Status LetOpensPass(const std::set<pid_t>& exclude,
                                    int64_t deadline_ns) = 0;
  // Children of all its threads; empty if it is gone.
  virtual std::vector<pid_t> ChildrenOf(pid_t pid) = 0;
  virtual core::Result<uint64_t> OwnMountNamespace() = 0;
};

// A descriptor of another process; number -1 is its working directory.
struct Seat {
  pid_t pid = 0;
  pid_t tid = 0;
  int number = -1;
};

using Locks = std::vector<proc::LockLine>;

// An inode, looked at once.
struct ObjectRef {
  // The filesystem's handle, type and bytes, which holds a generation and so
  // is never another inode's.
  std::string name;
  uint64_t ino = 0;
};

class DescriptorOps {
 public:
  virtual ~DescriptorOps() = default;
  // What inode it is. Asks no worker and no server.
  virtual core::Result<ObjectRef> ObjectAt(const Seat& seat) = 0;
  // Opens path below dirfd with exactly these flags (O_CLOEXEC is added), no
  // link and no mount crossed. kConflict if what is there is not inode ino.
  virtual core::Result<core::UniqueFd> OpenBeneath(int dirfd,
                                                   const std::string& path,
                                                   int flags,
                                                   uint64_t ino) = 0;
  // The same of the object with this handle, on the mount of dirfd (O_PATH
  // suffices).
  virtual core::Result<core::UniqueFd> OpenObject(
      int dirfd, const core::FileHandle& handle, int flags, uint64_t ino) = 0;
  // The inode number of an open file. Asks no worker and no server.
  virtual core::Result<uint64_t> InodeOf(int fd) = 0;
  // The directory at path as the process sees it (O_PATH).
  virtual core::Result<core::UniqueFd> DirectoryIn(pid_t pid,
                                                   const std::string& path) = 0;
  virtual core::Status SetPosition(int fd, int64_t position) = 0;
  // Whether F_SETOWN or F_SETSIG was used on it; and the same put on fd.
  virtual bool HasOwner(const Seat& seat) = 0;
  virtual core::Status CopyOwner(const Seat& seat, int fd) = 0;
  // Another descriptor of the same description.
  virtual core::Result<core::UniqueFd> Duplicate(int fd) = 0;
  // The seat's own description.
  virtual core::Result<core::UniqueFd> Share(const Seat& seat) = 0;
  // Takes the locks of `want` for the description fd and lets go of those of
  // `have`, of which it holds every one, that are not in `want`; all of
  // proc::IsOfDescription. Does not wait for whoever holds one: kConflict.
  // Blocks as long as the filesystem does.
  virtual core::Status SetLocks(int fd, const Locks& have,
                                const Locks& want) = 0;
  // All POSIX locks of the machine. Asks no filesystem.
  virtual core::Result<Locks> AllOfProcesses() = 0;
  // From outside: the seat holds the description fd (or the directory fd, on
  // the same mount). kConflict if not.
  virtual core::Status Verify(const Seat& seat, int fd) = 0;
};

// An old description that holds locks, kept when its holders have been moved.
// ino and flags: as in the Want that stood for it.
struct KeptOld {
  uint64_t ino = 0;
  int flags = 0;
  Locks locks;
  core::UniqueFd fd;
  // The locks were its process's and are the description's now, in their place.
  bool stand_in = false;
};

// The same ranges in the same way, whichever file and process.
bool SameLock(const proc::LockLine& a, const proc::LockLine& b);
bool SameLocks(const Locks& a, const Locks& b);
// Those that its description holds itself.
Locks HeldLocks(const proc::Descriptor& fd);
// Those of the process that were taken through it (POSIX).
Locks LocksOfProcess(const proc::Descriptor& fd);
// The same ranges, as a description has them (OFD).
Locks AsOfDescription(Locks locks);
// Whether any of the holders has such a one.
bool AnyLockOfProcess(const std::vector<proc::Holder>& holders);
// Those of a that are not in b.
Locks LocksLess(const Locks& a, const Locks& b);

class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t NowNs() = 0;  // CLOCK_MONOTONIC
  virtual void WaitNs(int64_t ns) = 0;
};

struct Deps {
  OverlayControl* overlay = nullptr;
  ProcessScanner* scanner = nullptr;
  DescriptorOps* files = nullptr;
  mount::MountOps* mounts = nullptr;
  Clock* clock = nullptr;
  std::function<core::Result<std::unique_ptr<trace::FrozenSet>>()>
      make_frozen_set;
  // True when the operator wants it stopped; asked between steps, obeyed until
  // the commit. May be empty.
  std::function<bool()> cancelled;

  core::Status Continue(const char* what) const;
};

std::unique_ptr<ProcessScanner> MakeRealProcessScanner();
std::unique_ptr<DescriptorOps> MakeRealDescriptorOps();
std::unique_ptr<Clock> MakeRealClock();

}  // namespace livemv::cutover
