#pragma once

// An FsCore straight over a directory of ext4 (any filesystem whose handles
// are inode number and generation): no migration, no state, so a session on it
// can be killed and resumed at any point. For integration tests.
//
// Thread contract: any thread.

#include <string>

#include "core/unique_fd.h"
#include "fusefs/fs_core.h"

namespace livemv::fake {

class DirCore final : public fusefs::FsCore {
 public:
  using FileId = fusefs::FileId;
  template <class T>
  using Result = core::Result<T>;

  explicit DirCore(const std::string& root);
  // Whether the filesystem is of the kind described above.
  bool usable() const { return usable_; }

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
  void Release(FileId, uint64_t) override {}
  Result<size_t> Read(FileId id, uint64_t off, std::span<char> buf) override;
  Result<size_t> Write(FileId id, uint64_t off, std::span<const char> data,
                       int open_flags, bool kill_suidgid) override;
  Result<uint64_t> SizeOf(FileId id) override;
  core::Status Flush(FileId) override { return {}; }
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
  double CacheSeconds() override { return 60; }

 private:
  Result<core::UniqueFd> Fd(FileId id, int flags);
  Result<FileId> IdOf(int dirfd, const char* name);
  Result<fusefs::Entry> EntryOf(int dirfd, const char* name);
  Result<fusefs::Entry> Give(int dirfd, const char* name,
                             const fusefs::Caller& caller);

  core::UniqueFd root_;
  bool usable_ = false;
  FileId root_handle_ = 0;
};

}  // namespace livemv::fake
