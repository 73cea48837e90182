#pragma once

// Pure parsers of what the kernel prints under /proc and /sys: text in, values
// out, no system calls. They accept any bytes: a line that does not have the
// shape the kernel gives it is left out, never guessed at, and no input makes
// them read out of bounds, throw or take more than linear time.
//
// Thread contract: free functions without state.

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace livemv::proc {

// /proc/PID/stat. comm may hold spaces, parentheses and newlines.
struct ProcStat {
  pid_t pid = 0;
  std::string comm;
  char state = '?';
  pid_t ppid = 0;
  uint64_t flags = 0;  // PF_*
  int64_t threads = 0;
  uint64_t start_time = 0;  // clock ticks since boot
};
inline constexpr uint64_t kPfExiting = 0x00000004;
inline constexpr uint64_t kPfKernelThread = 0x00200000;
std::optional<ProcStat> ParseStat(std::string_view text);

// /proc/PID/status, the lines that matter here.
struct ProcStatus {
  pid_t tgid = 0;
  pid_t pid = 0;
  pid_t tracer = 0;
  uid_t uid = 0;   // real
  uid_t euid = 0;  // effective
  int seccomp = 0;
  uint64_t pending = 0;  // SigPnd: bit N-1 is signal N, to this task
};
std::optional<ProcStatus> ParseStatus(std::string_view text);

// One line of /proc/PID/maps that has a file behind it.
struct MapLine {
  uint64_t start = 0;
  uint64_t end = 0;  // exclusive
  bool read = false, write = false, exec = false, shared = false;
  uint64_t offset = 0;
  dev_t dev = 0;  // of the superblock: not st_dev on btrfs
  uint64_t ino = 0;
  std::string path;  // as printed, "\012" for newlines undone
};
// Lines whose device is dev; all with a file if dev is 0.
std::vector<MapLine> ParseMaps(std::string_view text, dev_t dev);
// True if a context of io_setup(2) is mapped ("/[aio]").
bool MapsShowAio(std::string_view text);

// One line of /proc/PID/mountinfo, octal escapes undone.
struct MountLine {
  int id = 0;
  int parent = 0;
  dev_t dev = 0;        // of the superblock
  std::string root;     // of the mount inside its filesystem
  std::string point;    // relative to the reading process's root
  std::string options;  // per mount
  int shared = 0;       // peer group, 0: not shared
  int master = 0;       // peer group it receives from, 0: none
  std::string type;
  std::string source;
  std::string super_options;
};
std::vector<MountLine> ParseMountInfo(std::string_view text);
// "\040" and other three-digit octal escapes become the bytes they stand for.
std::string UnescapeOctal(std::string_view text);

// A lock, from /proc/locks or an fdinfo "lock:" line.
enum class LockKind { kPosix, kOfd, kFlock, kLease, kDelegation, kOther };
struct LockLine {
  LockKind kind = LockKind::kOther;
  bool write = false;
  bool waiting = false;  // "->": asked for, not held
  pid_t pid = 0;         // -1: an open file description lock
  dev_t dev = 0;         // of the superblock
  uint64_t ino = 0;
  uint64_t start = 0;
  uint64_t end = UINT64_MAX;  // inclusive; UINT64_MAX: to the end of file
};
// Held by the description, whoever has it (flock(2); fcntl(2), "Open file
// description locks"); the others are a process's own.
inline bool IsOfDescription(const LockLine& lock) {
  return lock.kind == LockKind::kFlock || lock.kind == LockKind::kOfd;
}
std::vector<LockLine> ParseLocks(std::string_view text);
const char* LockKindName(LockKind kind);

// An inotify or fanotify mark.
struct WatchLine {
  bool fanotify = false;
  int wd = -1;       // inotify only
  int mnt_id = -1;   // fanotify mark of a mount; -1: not one
  dev_t sdev = 0;    // of the superblock; 0 for a mount mark
  uint64_t ino = 0;  // 0: the mark is on the whole filesystem or mount
  int handle_type = 0;
  std::string handle;  // bytes of the file handle; empty if not printed
};
// One registered file of an epoll instance.
struct EpollLine {
  int fd = -1;
  uint64_t ino = 0;
  dev_t sdev = 0;
};
// /proc/PID/fdinfo/N.
struct FdInfo {
  int64_t pos = 0;
  int flags = 0;  // open flags as the kernel prints them, O_CLOEXEC included
  int mnt_id = -1;
  uint64_t ino = 0;
  std::vector<LockLine> locks;  // leases too
  std::vector<WatchLine> watches;
  std::vector<EpollLine> epoll;
  std::vector<std::string> ring_files;  // io_uring registered files, as paths
};
std::optional<FdInfo> ParseFdInfo(std::string_view text);

// /proc/swaps: the files and devices swapped to. A deleted one keeps its
// " (deleted)" here as the kernel prints it.
struct SwapLine {
  std::string path;
  bool is_file = false;  // "file", else "partition"
};
std::vector<SwapLine> ParseSwaps(std::string_view text);

// /sys/block/loopN/loop/backing_file: one path, unescaped, newline at the end.
std::optional<std::string> ParseLoopBackingFile(std::string_view text);

// /proc/fs/nfsd/exports (or /var/lib/nfs/etab): exported paths.
std::vector<std::string> ParseNfsdExports(std::string_view text);

// Filesystem names in /proc/filesystems.
std::vector<std::string> ParseFilesystems(std::string_view text);

}  // namespace livemv::proc
