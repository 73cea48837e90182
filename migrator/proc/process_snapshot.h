#pragma once

// Who holds what in a tree: one pass over /proc, processes running or frozen.
//
// A tree is told by the device of its filesystem and its path inside that
// filesystem, not by a path in our namespace: so the same call finds holders on
// the bare source beneath the overlay, on the overlay, and those that came
// through a bind mount, a chroot or another mount namespace.
//
// Nothing here asks a filesystem for anything: attributes come from the
// kernel's inodes (AT_STATX_DONT_SYNC), so neither a worker nor a server is
// needed, and a hung one does not hang the scan. Two exceptions: names that end
// in " (deleted)" and inotify marks are looked up below Options::root_fd.
//
// A process that ends during the scan is left out or shown as it was. What
// changes while the scan runs may be seen on either side of the change: rescan
// until two passes agree, or freeze first.
//
// Needs CAP_SYS_PTRACE. Thread contract: free functions without shared state.

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/result.h"
#include "migrator/proc/proc_parse.h"

namespace livemv::proc {

// A plain value: it stays true while the filesystem is mounted somewhere and
// the directory is not moved inside it.
struct TreeRef {
  dev_t dev = 0;     // st_dev of the tree's objects
  dev_t sb_dev = 0;  // of the superblock, as in mountinfo and maps
  uint64_t root_ino = 0;
  std::string path_in_fs;  // "/" is the filesystem's root; no slash at the end
  // The kernel may forget the name of an object that has one: what /proc calls
  // deleted is so only if it has no link (fs/fuse/dir.c, fuse_dentry_revalidate
  // fails once the session has dropped its entries, and fs/d_path.c says
  // " (deleted)" of every name that is not cached).
  bool names_expire = false;
  // For a filesystem that may end while it is looked for, since its numbers
  // are then given to the next one (fs/super.c, get_anon_bdev): whether it
  // exists. What was seen under its numbers before an answer of true is its
  // own. Empty: whoever uses this keeps the filesystem.
  std::function<bool()> lives = {};

  bool WholeFilesystem() const { return path_in_fs == "/"; }
  bool Lives() const { return !lives || lives(); }
};

// The tree below dirfd (O_PATH suffices). If its mount is in no mount table of
// ours (a detached clone), seen_at says at which absolute path of ours the
// directory is, or was before it was covered; kInvalid if that does not help.
core::Result<TreeRef> MakeTreeRef(int dirfd, const std::string& seen_at = "");

// An object of the tree that a process holds.
struct Place {
  dev_t dev = 0;  // st_dev
  uint64_t ino = 0;
  mode_t mode = 0;
  uint32_t nlink = 0;
  uint64_t mnt_id = 0;     // as in mountinfo
  std::string path;        // relative to the tree's root; "." is the root
  bool path_known = true;  // false: longer than the kernel prints
  bool deleted = false;    // the name it was opened by is gone
};

struct Descriptor {
  int number = -1;
  Place at;
  int flags = 0;         // access mode and status flags; without O_CLOEXEC
  bool cloexec = false;  // of this number, not of the description
  int64_t pos = 0;
  std::vector<LockLine> locks;  // held through it; leases too
  bool in_epoll = false;        // some epoll instance of the process has it
  // Descriptors with equal numbers are one description (kcmp); -1 until
  // IdentifyDescriptions. The numbers mean nothing beyond one Snapshot.
  int description = -1;

  bool PathOnly() const;  // O_PATH
  bool Writable() const;
};

struct Mapping {
  MapLine line;
  Place at;
};

enum class RingKind { kIoUring, kAio };
// Shown for holders whatever it works on: which files its requests in flight
// hold cannot be told from outside. Alone it makes no holder, except through
// registered files of the tree.
struct Ring {
  RingKind kind = RingKind::kIoUring;
  int number = -1;                      // descriptor; -1 for aio contexts
  std::vector<std::string> tree_files;  // registered files of the tree
};

// A watch on the tree, or on all of its filesystem or mount.
struct Watch {
  int number = -1;  // the inotify or fanotify descriptor
  WatchLine line;
  std::string path;     // relative to the tree; empty: whole filesystem
  bool certain = true;  // false: on this filesystem, perhaps not in the tree
};

struct BoundSocket {
  int number = -1;
  std::string name;  // as bound
  uint64_t ino = 0;  // of the socket file; its low 32 bits
  bool certain = true;
};

// The tables of one thread group, or of a thread that unshared its own.
struct Task {
  pid_t tid = 0;
  bool own_files = true;  // no earlier task, also of other holders, has it
  bool own_fs = true;     // likewise what cwd and root are in
  std::optional<Place> cwd;
  std::optional<Place> root;  // only if it is in the tree
  std::vector<Descriptor> fds;
  std::vector<Watch> watches;
  std::vector<Ring> rings;
  std::vector<BoundSocket> sockets;

  bool Empty() const {
    return !cwd && !root && fds.empty() && watches.empty() && rings.empty() &&
           sockets.empty();
  }
};

struct Holder {
  pid_t pid = 0;
  uint64_t start_time = 0;  // clock ticks since boot: pid and this are unique
  pid_t ppid = 0;
  std::string comm;
  std::string cmdline;  // arguments separated by spaces
  uid_t uid = 0;        // effective
  pid_t tracer = 0;     // TracerPid
  int seccomp = 0;
  uint64_t mnt_ns = 0;  // inode of its mount namespace
  int64_t threads = 1;
  bool leader_gone = false;  // the leader is a zombie, other threads live
  std::optional<Place> exe;
  std::vector<Mapping> mappings;
  // First the leader's (or, with a zombie leader, the first live thread's);
  // after it only threads with tables of their own that hold something.
  std::vector<Task> tasks;

  size_t FdCount() const;
  bool Empty() const;
};

// Something on the tree's filesystem of which it cannot be told whether it is
// in the tree.
struct Uncertain {
  pid_t pid = 0;
  std::string comm;
  std::string what;
  bool harmless = false;  // a watch: events are missed, no data is
};

// One mount namespace met, with a process that is in it.
struct Namespace {
  uint64_t inode = 0;
  pid_t pid = 0;
};

struct Snapshot {
  std::vector<Holder> holders;  // by pid
  std::vector<Namespace> namespaces;
  std::vector<Uncertain> uncertain;
  size_t scanned = 0;  // processes looked at
  // Processes that refused to be looked at, with the reason; they may be
  // holders. Empty for root in the initial user namespace.
  std::vector<Uncertain> unreadable;
  int64_t took_ns = 0;
};

struct Options {
  std::set<pid_t> exclude;  // our own processes
  std::set<pid_t> only;     // empty: all
  // All processes of interest stand still: descriptions are told apart by
  // position and flags first, and cmdline, uid and tracer are not read. Costs
  // about half.
  bool frozen = false;
  bool mappings = true;      // read /proc/PID/maps
  bool watches = true;       // look into inotify, fanotify, epoll, io_uring
  bool sockets = true;       // ask sock_diag for sockets bound in the tree
  bool descriptions = true;  // group by kcmp
  // A directory descriptor of the tree's root for the two look-ups named
  // above, or of a tree with the same names and inode numbers; -1: names count
  // as deleted (see TreeRef::names_expire), marks as uncertain. Borrowed.
  int root_fd = -1;
};

// All processes. kSystem if /proc itself cannot be read.
core::Result<Snapshot> Capture(const TreeRef& tree, const Options& options);

// One process again, for instance when it is frozen. Empty() if it holds
// nothing now; kGone if there is no such process.
core::Result<Holder> CaptureOne(const TreeRef& tree, pid_t pid,
                                const Options& options);

// Gives every descriptor its description number, and clears own_files and
// own_fs of tasks whose tables an earlier task of the list has (CLONE_FILES or
// CLONE_FS between processes): such a table is to be changed once. kcmp is
// asked only inside groups of equal (dev, ino), if frozen also of equal
// (position, flags), and orders them, so n descriptors cost n log n calls.
core::Status IdentifyDescriptions(std::vector<Holder>* holders,
                                  bool frozen = false);

}  // namespace livemv::proc
