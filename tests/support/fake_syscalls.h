#pragma once

// An in-memory kernel behind core::Syscalls: several filesystems with inodes,
// generations, handles, names, links, xattrs, times and holes; descriptors are
// numbers from 1,000,000 up. What was not synced can be lost (PowerCut), calls
// can be made to fail, and space can run out.
//
// Under a core::Scheduler every call lets the others run first, so that each
// system call is one step of an interleaving.
//
// What a power cut keeps, by kind of filesystem (model-bytes.md):
//   kLocal    a prefix of the changes of metadata (names, sizes, attributes)
//             and any subset of the data writes
//   kNfs      all metadata (the server answers after it is durable; a truncate
//             flushes its file), any subset of the data writes
//   kOrdered  a prefix of all changes (the filesystem of a journal)
//
// Thread contract: one thread, or fibers of one thread.

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/syscalls.h"

namespace livemv::fake {

class FakeSyscalls final : public core::Syscalls {
 public:
  enum class Kind { kLocal, kNfs, kOrdered };
  using FsId = int;
  static constexpr int kFirstFd = 1'000'000;
  static constexpr uint64_t kRootIno = 2;
  static constexpr uint64_t kPage = 4096;

  FakeSyscalls();
  ~FakeSyscalls() override;

  // ---- The stage.
  FsId AddFs(Kind kind);
  core::UniqueFd OpenRoot(FsId fs);
  // Bytes that data may take; what is there already counts.
  void SetSpace(FsId fs, uint64_t bytes);
  uint64_t UsedBytes(FsId fs) const;
  void SetTakesDirect(FsId fs, bool takes);  // O_DIRECT; default true
  void SetTakesPunch(FsId fs, bool takes);   // PUNCH_HOLE; default true
  // A server that takes root for nobody (65534) and looks at modes, each time
  // but when a descriptor's file is read or written; it believes nobody's
  // groups but the first. For one thread: identities are not kept by fiber.
  void SetSquash(FsId fs, bool squashes);

  struct Call {
    const char* name;  // the method, e.g. "PWrite"
    FsId fs;           // of the first operand; -1: none
    uint64_t ino;      // of the object acted on, or of the directory
    uint64_t off, len;
    int fd = -1;                  // the first operand
    const char* bytes = nullptr;  // what a PWrite writes
  };
  // Asked before every call (after the others ran); an errno makes it fail.
  std::function<int(const Call&)> on_call;
  // The next `times` calls of name on fs fail with err, after `skip` that do
  // not. ino 0: any.
  void FailNext(const char* name, FsId fs, int err, int times = 1, int skip = 0,
                uint64_t ino = 0);
  void ClearFailures() { failures_.clear(); }

  // One unsynced data write of ino (any file if 0) is lost from the page cache
  // and the next fsync of the file, or syncfs, fails with EIO. False if there
  // is no such write.
  bool LoseWriteback(FsId fs, uint64_t ino, std::mt19937_64& rng);
  // The storage under ino has a wrong byte at off: seen by O_DIRECT reads and
  // by reads after POSIX_FADV_DONTNEED; survives this many rewrites of it.
  void CorruptStorage(FsId fs, uint64_t ino, uint64_t off, int rewrites = 0);

  // The process dies: all its descriptors close, nothing is lost.
  void CloseAll();
  // The same, but others hold the descriptors in kept.
  void CloseAllBut(const std::set<int>& kept);
  // Another descriptor of the same file, with the same flags.
  core::UniqueFd Dup(int fd);
  // A sync of which this says true reports success and does nothing: for
  // tests that take a sync away. call: "fsync", "fdatasync" or "syncfs".
  std::function<bool(FsId fs, const char* call)> lying_sync;
  // The host dies: of what was not synced every filesystem keeps what its kind
  // allows, drawn from rng. Descriptors close.
  void PowerCut(std::mt19937_64& rng);
  // The server of fs dies and comes back, its clients keep their caches.
  void MakeAllDurable(FsId fs);

  int OpenFds() const { return static_cast<int>(fds_.size()); }
  uint64_t Calls() const { return calls_; }
  uint64_t CallsOf(const std::string& name) const;
  void AdvanceClock(int64_t ns) { now_ns_ += ns; }
  void SetYield(bool yield) { yield_ = yield; }

  // ---- Looking in without a call (for checks). Paths are "a/b/c".
  mode_t ModeOf(FsId fs, uint64_t ino) const;
  const core::Identity& acting() const { return acting_; }
  std::optional<uint64_t> InoOf(FsId fs, const std::string& path) const;
  std::string Content(FsId fs, uint64_t ino) const;
  uint64_t SizeOf(FsId fs, uint64_t ino) const;
  // "path type mode uid gid nlink size xattrs link|hash" of every object,
  // sorted; names in skip (of the root) are left out. For comparing trees.
  std::vector<std::string> Tree(FsId fs, const std::set<std::string>& skip = {},
                                bool with_times = false) const;

  // ---- core::Syscalls
  void CloseFd(int fd) noexcept override;
  core::Result<core::UniqueFd> OpenAt(int dirfd, const char* path, int flags,
                                      mode_t mode) override;
  core::Result<core::UniqueFd> OpenByHandle(int mount_fd,
                                            const core::FileHandle& handle,
                                            int flags) override;
  core::Result<core::FileHandle> NameToHandle(int dirfd,
                                              const char* path) override;
  core::Result<size_t> PRead(int fd, void* buf, size_t len, off_t off) override;
  core::Result<size_t> PWrite(int fd, const void* buf, size_t len,
                              off_t off) override;
  core::Result<size_t> WriteAppend(int fd, const void* buf,
                                   size_t len) override;
  core::Status FSync(int fd) override;
  core::Status FDataSync(int fd) override;
  core::Status SyncFs(int fd) override;
  core::Status FTruncate(int fd, uint64_t len) override;
  core::Status FAllocate(int fd, int mode, uint64_t off, uint64_t len) override;
  core::Result<off_t> LSeek(int fd, off_t off, int whence) override;
  core::Status FAdvise(int fd, uint64_t off, uint64_t len, int advice) override;
  core::Result<core::Stat> StatAt(int dirfd, const char* path,
                                  unsigned mask) override;
  core::Result<struct statfs> FStatFs(int fd) override;
  core::Result<std::vector<core::DirEntry>> ReadDir(int fd, int64_t offset,
                                                    size_t max_bytes) override;
  core::Status MkDirAt(int dirfd, const char* path, mode_t mode) override;
  core::Status MkNodAt(int dirfd, const char* path, mode_t mode,
                       dev_t dev) override;
  core::Status SymLinkAt(const char* text, int dirfd,
                         const char* path) override;
  core::Result<std::string> ReadLinkAt(int dirfd, const char* path) override;
  core::Status LinkFd(int fd, int dirfd, const char* path) override;
  core::Status UnlinkAt(int dirfd, const char* path, int flags) override;
  core::Status RenameAt(int olddir, const char* oldpath, int newdir,
                        const char* newpath, unsigned flags) override;
  core::Status ChMod(int fd, mode_t mode) override;
  core::Status ChOwn(int fd, uid_t uid, gid_t gid) override;
  core::Status UTimens(int fd, const struct timespec times[2]) override;
  core::Result<std::string> GetXattr(int fd, const char* name) override;
  core::Status SetXattr(int fd, const char* name, std::string_view value,
                        int flags) override;
  core::Result<std::vector<std::string>> ListXattr(int fd) override;
  core::Status RemoveXattr(int fd, const char* name) override;
  core::Result<core::Identity> ActAs(const core::Identity& who) override {
    return std::exchange(acting_, who);
  }
  int64_t MonotonicNs() override;
  int64_t RealtimeNs() override;

 private:
  using Page = std::array<char, kPage>;
  struct Inode {
    uint64_t ino = 0;
    uint32_t gen = 0;
    mode_t mode = 0;
    uid_t uid = 0;
    gid_t gid = 0;
    uint32_t nlink = 0;
    dev_t rdev = 0;
    uint64_t size = 0;
    std::map<uint64_t, std::shared_ptr<const Page>> pages;
    struct Entry {
      uint64_t ino;
      int64_t cookie;
    };
    std::map<std::string, Entry> entries;
    int64_t last_cookie = 2;
    uint64_t parent = 0;  // of a directory
    std::string link;
    std::map<std::string, std::string> xattrs;
    struct timespec atime {
    }, mtime{}, ctime{}, btime{};
    bool IsDir() const { return S_ISDIR(mode); }

    void Put(uint64_t off, std::string_view bytes);  // within size
    void Clear(uint64_t begin, uint64_t end);
    void Resize(uint64_t new_size);
    std::string Get(uint64_t off, uint64_t len) const;
  };
  struct Image {
    std::map<uint64_t, Inode> inodes;
    Inode* Find(uint64_t ino);
    const Inode* Find(uint64_t ino) const;
  };
  // One change that is not durable yet. A write is two: its size, its bytes.
  struct Op {
    uint64_t ino = 0;
    bool is_data = false;
    uint64_t off = 0;
    std::string bytes;                   // of a data write
    std::function<void(Image&)> change;  // of metadata
    void Apply(Image& image) const;
  };
  struct Fs {
    Kind kind = Kind::kLocal;
    Image live, durable;
    std::vector<Op> pending;
    std::map<uint64_t, uint32_t> open;  // descriptors by inode
    std::map<uint64_t, uint32_t> next_gen;
    std::set<uint64_t> free_inos;
    uint64_t next_ino = kRootIno + 1;
    std::optional<uint64_t> space;
    bool takes_direct = true, takes_punch = true, squashes = false;
    std::set<uint64_t> lost_writeback;  // inodes
    struct Rot {
      uint64_t off;
      int rewrites;
    };
    std::map<uint64_t, std::vector<Rot>> rot;  // by inode
    std::set<uint64_t> dropped;                // inodes read from storage
  };
  struct OpenFile {
    FsId fs;
    uint64_t ino;
    int flags;
  };
  struct Failure {
    std::string name;
    FsId fs;
    uint64_t ino;
    int err, times, skip;
  };
  struct At {  // a resolved name
    FsId fs;
    uint64_t dir;
    std::string name;
    uint64_t ino;  // 0: does not exist
  };

  core::Status Begin(const char* name, int fd, uint64_t off = 0,
                     uint64_t len = 0, const void* bytes = nullptr);
  core::Result<OpenFile*> File(int fd, const char* call);
  // EACCES unless the server lets whoever acts do what mask (4 read, 2 write,
  // 1 search) says.
  core::Status Allow(FsId fs, uint64_t ino, unsigned mask, const char* call);
  core::Status AllowOpen(FsId fs, uint64_t ino, int flags, const char* call);
  // The same for a change of a name in dir; ino: what has the name, 0 nothing.
  core::Status AllowName(FsId fs, uint64_t dir, uint64_t ino, const char* call);
  core::Status AllowOwner(FsId fs, uint64_t ino, const char* call);  // EPERM
  core::Identity Acting(FsId fs) const;
  core::Result<At> Resolve(int dirfd, const char* path, const char* call);
  core::UniqueFd Install(FsId fs, uint64_t ino, int flags);
  Inode& Live(FsId fs, uint64_t ino);
  // Applies a change of metadata, and remembers it until it is durable.
  void Change(FsId fs, uint64_t ino, std::function<void(Image&)> change);
  void Data(FsId fs, uint64_t ino, uint64_t off, std::string bytes);
  // Makes durable what a sync of ino does (0: of all).
  void Flush(FsId fs, uint64_t ino);
  core::Status SyncResult(FsId fs, uint64_t ino, const char* call);
  core::Result<uint64_t> NewInode(FsId fs, const At& at, mode_t mode, dev_t dev,
                                  const std::string& link);
  void Collect(FsId fs, uint64_t ino);
  void Touch(FsId fs, uint64_t ino, bool mtime);
  struct timespec Time();
  uint64_t NewPages(const Inode& inode, uint64_t off, uint64_t len) const;
  bool HasSpace(FsId fs, uint64_t new_pages) const;
  void KillCapability(FsId fs, uint64_t ino);
  core::Result<size_t> WriteTo(OpenFile file, const void* buf, size_t len,
                               uint64_t off);
  void Walk(FsId fs, uint64_t ino, const std::string& path,
            const std::set<std::string>& skip, bool with_times,
            std::vector<std::string>* out) const;

  std::vector<std::unique_ptr<Fs>> fss_;
  std::map<int, OpenFile> fds_;
  core::Identity acting_;
  int next_fd_ = kFirstFd;
  std::vector<Failure> failures_;
  std::map<std::string, uint64_t> counts_;
  uint64_t calls_ = 0;
  int64_t now_ns_ = 1'000'000'000;
  bool yield_ = true;
};

}  // namespace livemv::fake
