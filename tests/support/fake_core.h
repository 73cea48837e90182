#pragma once

// A small FsCore in memory: a tree of inodes, with hooks that tests use to
// look in between, to hold an operation up or to make it fail.
//
// Thread contract: any thread; hooks are set before use.

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "fusefs/fs_core.h"

namespace livemv::fake {

class FakeCore final : public fusefs::FsCore {
 public:
  using FileId = fusefs::FileId;
  template <class T>
  using Result = core::Result<T>;

  FakeCore();

  // Called at the start and the end of each changing operation.
  std::function<void(const char*op)> before, after;
  std::atomic<int> calls{0};        // operations of any kind
  std::atomic<int> releases{0};     // Release
  std::atomic<int> flushes{0};      // Flush
  std::atomic<double> seconds{60};  // CacheSeconds
  fusefs::AttrChange last_change;   // of the last SetAttr
  bool last_write_kill = false;
  int last_write_flags = 0;

  // For expectations.
  bool Has(const std::string& name);  // in the root
  FileId IdOf(const std::string& name);
  std::string Data(const std::string& name);
  core::Stat& Attr(FileId id);

  Result<fusefs::Entry> Lookup(FileId dir, const char* name) override;
  Result<core::Stat> GetAttr(FileId id) override;
  Result<core::Stat> SetAttr(FileId id, const fusefs::AttrChange& change,
                             const fusefs::Caller& caller) override;
  Result<std::string> ReadLink(FileId id) override;
  Result<fusefs::Entry> MkNod(FileId dir, const char* name, mode_t mode,
                              dev_t dev, const fusefs::Caller& caller) override;
  Result<fusefs::Entry> MkDir(FileId dir, const char* name, mode_t mode,
                              const fusefs::Caller& caller) override;
  Result<fusefs::Entry> SymLink(FileId dir, const char* name, const char* text,
                                const fusefs::Caller& caller) override;
  Result<fusefs::Entry> Link(FileId id, FileId dir, const char* name) override;
  core::Status Unlink(FileId dir, const char* name) override;
  core::Status RmDir(FileId dir, const char* name) override;
  core::Status Rename(FileId dir, const char* name, FileId new_dir,
                      const char* new_name, unsigned flags) override;
  Result<fusefs::OpenReply> Open(FileId id, int flags) override;
  Result<std::pair<fusefs::Entry, fusefs::OpenReply>> Create(
      FileId dir, const char* name, int flags, mode_t mode,
      const fusefs::Caller& caller) override;
  void Release(FileId id, uint64_t fh) override;
  Result<size_t> Read(FileId id, uint64_t off, std::span<char> buf) override;
  Result<size_t> Write(FileId id, uint64_t off, std::span<const char> data,
                       int open_flags, bool kill_suidgid) override;
  Result<uint64_t> SizeOf(FileId id) override;
  core::Status Flush(FileId id) override;
  core::Status FSync(FileId id, bool data_only) override;
  core::Status FAllocate(FileId id, int mode, uint64_t off,
                         uint64_t len) override;
  Result<off_t> LSeek(FileId id, off_t off, int whence) override;
  Result<std::vector<fusefs::DirItem>> ReadDir(FileId dir, int64_t offset,
                                               size_t max_bytes,
                                               bool plus) override;
  Result<std::string> GetXattr(FileId id, const char* name) override;
  core::Status SetXattr(FileId id, const char* name, std::string_view value,
                        int flags) override;
  Result<std::vector<std::string>> ListXattr(FileId id) override;
  core::Status RemoveXattr(FileId id, const char* name) override;
  Result<struct statfs> StatFs() override;
  double CacheSeconds() override { return seconds; }

 private:
  struct Inode {
    core::Stat attr{};
    std::string data;  // bytes, or the text of a link
    std::map<std::string, FileId> names;
    std::map<std::string, std::string> xattrs;
  };
  class Hooks;

  Inode* Find(FileId id);
  Result<fusefs::Entry> Make(const char* op, FileId dir, const char* name,
                             mode_t mode, const fusefs::Caller& caller,
                             const char* data);
  core::Status Remove(const char* op, FileId dir, const char* name);

  std::recursive_mutex mu_;  // hooks may look at the tree
  std::map<FileId, Inode> inodes_;
  FileId next_ = 2;
};

}  // namespace livemv::fake
