#pragma once

// The filesystem's operations in our own types: what the dispatcher calls for
// each request, and what the simulator drives. No libfuse here.
//
// Permissions are the kernel's (default_permissions): FsCore acts as root and
// gives new objects to the caller.
//
// Thread contract: all operations from any thread. Operations may block on the
// source; on the target only where rule 1 or 2 says so.

#include <sys/stat.h>
#include <sys/types.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <ctime>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "core/state/ids.h"
#include "core/syscalls.h"
#include "fusefs/serving.h"

namespace livemv::fusefs {

using state::FileId;

struct Caller {
  uid_t uid = 0;
  gid_t gid = 0;
  pid_t pid = 0;
  mode_t umask = 0;
};

struct Entry {
  FileId id = state::kNoFile;
  core::Stat attr{};
};

// As a uid: nobody else gets it, and still it counts as a change of the owner.
inline constexpr uid_t kSameOwner = static_cast<uid_t>(-1);

// What SETATTR asks; an empty member is left alone.
struct AttrChange {
  std::optional<mode_t> mode;
  std::optional<uid_t> uid;
  std::optional<gid_t> gid;
  std::optional<uint64_t> size;
  std::optional<timespec> atime, mtime;  // tv_nsec may be UTIME_NOW
  bool kill_suidgid = false;  // FATTR_KILL_SUIDGID: drop setuid, setgid, caps
  // As utimensat(2) takes them.
  std::array<timespec, 2> Times() const {
    constexpr timespec kOmit = {0, UTIME_OMIT};
    return {atime.value_or(kOmit), mtime.value_or(kOmit)};
  }
};

struct OpenReply {
  // Stateless: the open flags (rule 4), and whether a backing number was given.
  uint64_t fh = 0;
  bool direct_io = false;
  bool keep_cache = false;
  bool cache_dir = false;  // the kernel may keep what is listed
  bool no_flush = false;  // its close has nothing to say
  // The kernel reads and writes by itself (passthrough.h), by this number of
  // its; 0: no. The two above are then without a meaning.
  uint32_t backing = 0;
};

struct DirItem {
  FileId id = state::kNoFile;  // set by ReadDirPlus only
  core::DirEntry entry;
  core::Stat attr{};  // set by ReadDirPlus only
};

class FsCore {
 public:
  virtual ~FsCore() = default;

  virtual core::Result<Entry> Lookup(FileId dir, const char* name) = 0;
  virtual core::Result<core::Stat> GetAttr(FileId id) = 0;
  virtual core::Result<core::Stat> SetAttr(FileId id, const AttrChange& change,
                                           const Caller& caller) = 0;
  virtual core::Result<std::string> ReadLink(FileId id) = 0;
  virtual core::Result<Entry> MkNod(FileId dir, const char* name, mode_t mode,
                                    dev_t dev, const Caller& caller) = 0;
  virtual core::Result<Entry> MkDir(FileId dir, const char* name, mode_t mode,
                                    const Caller& caller) = 0;
  virtual core::Result<Entry> SymLink(FileId dir, const char* name,
                                      const char* text,
                                      const Caller& caller) = 0;
  // For a resent MKNOD, MKDIR, SYMLINK or CREATE whose predecessor made
  // dir/name and died: gives it the owner and mode that the request asked for,
  // which the predecessor may not have done. Doing it twice changes nothing.
  // mode with its S_IFMT bits.
  virtual core::Result<Entry> FinishMake(FileId dir, const char* name,
                                         mode_t mode, const Caller& caller) {
    (void)mode, (void)caller;
    return Lookup(dir, name);
  }
  virtual core::Result<Entry> Link(FileId id, FileId dir, const char* name) = 0;
  virtual core::Status Unlink(FileId dir, const char* name) = 0;
  virtual core::Status RmDir(FileId dir, const char* name) = 0;
  virtual core::Status Rename(FileId dir, const char* name, FileId new_dir,
                              const char* new_name, unsigned flags) = 0;

  // flags: open(2) flags without O_CREAT and O_EXCL; O_TRUNC is obeyed
  // (ATOMIC_O_TRUNC). Each successful Open or Create is followed by one
  // Release. Directories too.
  virtual core::Result<OpenReply> Open(FileId id, int flags) = 0;
  virtual core::Result<std::pair<Entry, OpenReply>> Create(
      FileId dir, const char* name, int flags, mode_t mode,
      const Caller& caller) = 0;
  // A regular file without a name in dir's filesystem (O_TMPFILE), open; Link
  // may give it one. One Release follows.
  virtual core::Result<std::pair<Entry, OpenReply>> TmpFile(
      FileId dir, int flags, mode_t mode, const Caller& caller) {
    (void)dir, (void)flags, (void)mode, (void)caller;
    return core::FailSys(EOPNOTSUPP, "O_TMPFILE");
  }
  virtual void Release(FileId id, uint64_t fh) = 0;
  // The kernel has evicted the inode (FORGET): nobody has it open, mapped or
  // as a working directory. No count matters; for an inode that was deleted
  // there is only one, and it is what lets its bytes go after a restart, when
  // descriptors are not counted. Cheap; touches the target never.
  virtual void Forget(FileId id) { (void)id; }

  // Bytes read into buf; less than asked only at the end of the file.
  virtual core::Result<size_t> Read(FileId id, uint64_t off,
                                    std::span<char> buf) = 0;
  // open_flags: with O_APPEND it goes to the end of the file, which off may
  // lie before.
  // kill_suidgid: FUSE_WRITE_KILL_SUIDGID.
  virtual core::Result<size_t> Write(FileId id, uint64_t off,
                                     std::span<const char> data, int open_flags,
                                     bool kill_suidgid) = 0;
  virtual core::Result<uint64_t> SizeOf(FileId id) = 0;  // regular files
  // close(2) of one descriptor: delivers errors of the target.
  virtual core::Status Flush(FileId id) = 0;
  virtual core::Status FSync(FileId id, bool data_only) = 0;  // files and dirs
  virtual core::Status FAllocate(FileId id, int mode, uint64_t off,
                                 uint64_t len) = 0;
  virtual core::Result<off_t> LSeek(FileId id, off_t off, int whence) = 0;

  // Items from offset on; empty at the end. max_bytes bounds their size about.
  virtual core::Result<std::vector<DirItem>> ReadDir(FileId dir, int64_t offset,
                                                     size_t max_bytes,
                                                     bool plus) = 0;

  virtual core::Result<std::string> GetXattr(FileId id, const char* name) = 0;
  virtual core::Status SetXattr(FileId id, const char* name,
                                std::string_view value, int flags) = 0;
  virtual core::Result<std::vector<std::string>> ListXattr(FileId id) = 0;
  virtual core::Status RemoveXattr(FileId id, const char* name) = 0;
  virtual core::Result<struct statfs> StatFs() = 0;

  // The number under which the kernel is to know id: id itself, or that with
  // state::kAliasBit, of which the caller strips what comes back.
  virtual FileId KernelNumber(FileId id) { return id; }

  // Somebody writes the file without the worker seeing it, so that the end of
  // the file is not the kernel's to say.
  virtual bool IsWrittenBeside(FileId id) {
    (void)id;
    return CacheSeconds() <= 0;
  }

  // Seconds for which the kernel may cache entries and attributes: 0 while
  // serving the source or the target alone.
  virtual double CacheSeconds() = 0;
  // The same for attributes of id: less where they may change without the
  // kernel's knowing.
  virtual double AttrSeconds(FileId id, const core::Stat& attr) {
    (void)id, (void)attr;
    return CacheSeconds();
  }
};

}  // namespace livemv::fusefs
