#include "tests/support/fake_dir_core.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace livemv::fake {

using core::FailSys;
using core::Status;
using core::UniqueFd;
using fusefs::AttrChange;
using fusefs::Caller;
using fusefs::DirItem;
using fusefs::Entry;
using fusefs::OpenReply;

namespace {

constexpr int kInoGen = 1;  // FILEID_INO32_GEN
struct Handle {
  file_handle head;
  uint32_t ino_gen[2];
};

Status Check(int result, const char* what) {
  if (result < 0)
    return FailSys(errno, what);
  return {};
}

std::string ProcPath(const UniqueFd& fd) {
  return "/proc/self/fd/" + std::to_string(fd.Get());
}

core::Result<core::Stat> StatOf(int dirfd, const char* name) {
  core::Stat st;
  TRY(Check(::statx(dirfd, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW,
                    STATX_BASIC_STATS | STATX_BTIME, &st),
            "statx"));
  return st;
}

}  // namespace

DirCore::DirCore(const std::string& root)
    : root_(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  auto id = IdOf(root_.Get(), "");
  usable_ = id.has_value();
  if (usable_)
    root_handle_ = *id;
}

core::Result<DirCore::FileId> DirCore::IdOf(int dirfd, const char* name) {
  Handle h{};
  h.head.handle_bytes = sizeof h.ino_gen;
  int mount_id;
  TRY(Check(::name_to_handle_at(dirfd, name, &h.head, &mount_id, AT_EMPTY_PATH),
            "name_to_handle_at"));
  if (h.head.handle_type != kInoGen)
    return FailSys(EOPNOTSUPP, "handle type");
  // As state::FileId: a generation uses all its bits, a number few.
  FileId id = static_cast<FileId>(h.ino_gen[0]) << 32 | h.ino_gen[1];
  return id == root_handle_ ? state::kRootId : id;
}

core::Result<UniqueFd> DirCore::Fd(FileId id, int flags) {
  if (id == state::kRootId)
    id = root_handle_;
  Handle h{};
  h.head.handle_bytes = sizeof h.ino_gen;
  h.head.handle_type = kInoGen;
  h.ino_gen[0] = static_cast<uint32_t>(id >> 32);
  h.ino_gen[1] = static_cast<uint32_t>(id);
  UniqueFd fd(::open_by_handle_at(root_.Get(), &h.head, flags | O_CLOEXEC));
  if (!fd)
    return FailSys(errno, "open_by_handle_at");
  return fd;
}

core::Result<Entry> DirCore::EntryOf(int dirfd, const char* name) {
  ASSIGN_OR_RETURN(core::Stat st, StatOf(dirfd, name));
  ASSIGN_OR_RETURN(FileId id, IdOf(dirfd, name));
  return Entry{id, st};
}

core::Result<Entry> DirCore::Give(int dirfd, const char* name,
                                  const Caller& caller) {
  TRY(Check(
      ::fchownat(dirfd, name, caller.uid, caller.gid, AT_SYMLINK_NOFOLLOW),
      "fchownat"));
  return EntryOf(dirfd, name);
}

core::Result<Entry> DirCore::Lookup(FileId dir, const char* name) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(dir, O_PATH));
  return EntryOf(fd.Get(), name);
}

core::Result<core::Stat> DirCore::GetAttr(FileId id) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_PATH));
  return StatOf(fd.Get(), "");
}

core::Result<core::Stat> DirCore::SetAttr(FileId id, const AttrChange& change,
                                          const Caller&) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_PATH));
  std::string path = ProcPath(fd);
  if (change.size)
    TRY(Check(::truncate(path.c_str(), static_cast<off_t>(*change.size)),
              "truncate"));
  if (change.uid || change.gid)
    TRY(Check(::fchownat(fd.Get(), "", change.uid.value_or(-1u),
                         change.gid.value_or(-1u), AT_EMPTY_PATH),
              "fchownat"));
  if (change.mode)
    TRY(Check(::chmod(path.c_str(), *change.mode & 07777), "chmod"));
  if (change.atime || change.mtime) {
    timespec omit{0, UTIME_OMIT};
    timespec times[2] = {change.atime.value_or(omit),
                         change.mtime.value_or(omit)};
    TRY(Check(::utimensat(AT_FDCWD, path.c_str(), times, 0), "utimensat"));
  }
  return StatOf(fd.Get(), "");
}

core::Result<std::string> DirCore::ReadLink(FileId id) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_PATH | O_NOFOLLOW));
  std::string text(4096, '\0');
  ssize_t n = ::readlinkat(fd.Get(), "", text.data(), text.size());
  if (n < 0)
    return FailSys(errno, "readlink");
  text.resize(static_cast<size_t>(n));
  return text;
}

core::Result<Entry> DirCore::MkNod(FileId dir, const char* name, mode_t mode,
                                   dev_t dev, const Caller& caller) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(dir, O_PATH));
  TRY(Check(::mknodat(fd.Get(), name, mode & ~caller.umask, dev), "mknod"));
  return Give(fd.Get(), name, caller);
}

core::Result<Entry> DirCore::MkDir(FileId dir, const char* name, mode_t mode,
                                   const Caller& caller) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(dir, O_PATH));
  TRY(Check(::mkdirat(fd.Get(), name, mode & ~caller.umask), "mkdir"));
  return Give(fd.Get(), name, caller);
}

core::Result<Entry> DirCore::SymLink(FileId dir, const char* name,
                                     const char* text, const Caller& caller) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(dir, O_PATH));
  TRY(Check(::symlinkat(text, fd.Get(), name), "symlink"));
  return Give(fd.Get(), name, caller);
}

core::Result<Entry> DirCore::Link(FileId id, FileId dir, const char* name) {
  ASSIGN_OR_RETURN(UniqueFd from, Fd(id, O_PATH));
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(dir, O_PATH));
  TRY(Check(::linkat(from.Get(), "", fd.Get(), name, AT_EMPTY_PATH), "link"));
  return EntryOf(fd.Get(), name);
}

Status DirCore::Unlink(FileId dir, const char* name) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(dir, O_PATH));
  return Check(::unlinkat(fd.Get(), name, 0), "unlink");
}

Status DirCore::RmDir(FileId dir, const char* name) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(dir, O_PATH));
  return Check(::unlinkat(fd.Get(), name, AT_REMOVEDIR), "rmdir");
}

Status DirCore::Rename(FileId dir, const char* name, FileId new_dir,
                       const char* new_name, unsigned flags) {
  ASSIGN_OR_RETURN(UniqueFd from, Fd(dir, O_PATH));
  ASSIGN_OR_RETURN(UniqueFd to, Fd(new_dir, O_PATH));
  return Check(::renameat2(from.Get(), name, to.Get(), new_name, flags),
               "rename");
}

core::Result<OpenReply> DirCore::Open(FileId id, int flags) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, flags & ~(O_APPEND | O_CREAT | O_EXCL)));
  return OpenReply{0, false, true};
}

core::Result<std::pair<Entry, OpenReply>> DirCore::Create(
    FileId dir, const char* name, int flags, mode_t mode,
    const Caller& caller) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(dir, O_PATH));
  UniqueFd made(::openat(fd.Get(), name,
                         (flags & ~(O_APPEND | O_NOCTTY)) | O_CREAT | O_CLOEXEC,
                         mode & 07777 & ~caller.umask));
  if (!made)
    return FailSys(errno, "create");
  ASSIGN_OR_RETURN(Entry entry, Give(fd.Get(), name, caller));
  return std::pair(entry, OpenReply{0, false, true});
}

core::Result<size_t> DirCore::Read(FileId id, uint64_t off,
                                   std::span<char> buf) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_RDONLY));
  size_t got = 0;
  while (got < buf.size()) {
    ssize_t n = ::pread(fd.Get(), buf.data() + got, buf.size() - got,
                        static_cast<off_t>(off + got));
    if (n < 0)
      return FailSys(errno, "pread");
    if (n == 0)
      break;
    got += static_cast<size_t>(n);
  }
  return got;
}

core::Result<size_t> DirCore::Write(FileId id, uint64_t off,
                                    std::span<const char> data, int, bool) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_WRONLY));
  ssize_t n =
      ::pwrite(fd.Get(), data.data(), data.size(), static_cast<off_t>(off));
  if (n < 0)
    return FailSys(errno, "pwrite");
  return static_cast<size_t>(n);
}

Status DirCore::FSync(FileId id, bool data_only) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_RDONLY));
  return Check(data_only ? ::fdatasync(fd.Get()) : ::fsync(fd.Get()), "fsync");
}

Status DirCore::FAllocate(FileId id, int mode, uint64_t off, uint64_t len) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_WRONLY));
  return Check(::fallocate(fd.Get(), mode, static_cast<off_t>(off),
                           static_cast<off_t>(len)),
               "fallocate");
}

core::Result<uint64_t> DirCore::SizeOf(FileId id) {
  ASSIGN_OR_RETURN(off_t end, LSeek(id, 0, SEEK_END));
  return static_cast<uint64_t>(end);
}

core::Result<off_t> DirCore::LSeek(FileId id, off_t off, int whence) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_RDONLY));
  off_t at = ::lseek(fd.Get(), off, whence);
  if (at < 0)
    return FailSys(errno, "lseek");
  return at;
}

core::Result<std::vector<DirItem>> DirCore::ReadDir(FileId dir, int64_t offset,
                                                    size_t max_bytes,
                                                    bool plus) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(dir, O_RDONLY | O_DIRECTORY));
  if (::lseek(fd.Get(), offset, SEEK_SET) < 0)
    return FailSys(errno, "lseek");
  std::string buf(std::max<size_t>(max_bytes, 1024), '\0');
  ssize_t got = ::getdents64(fd.Get(), buf.data(), buf.size());
  if (got < 0)
    return FailSys(errno, "getdents64");
  std::vector<DirItem> items;
  for (ssize_t at = 0; at < got;) {
    auto* d = reinterpret_cast<dirent64*>(buf.data() + at);
    DirItem item;
    item.entry = core::DirEntry{d->d_ino, d->d_off, d->d_type, d->d_name};
    bool dots = item.entry.name == "." || item.entry.name == "..";
    if (plus && !dots) {
      // A name that vanished meanwhile is listed without attributes.
      if (auto entry = EntryOf(fd.Get(), d->d_name)) {
        item.id = entry->id;
        item.attr = entry->attr;
      }
    }
    items.push_back(std::move(item));
    at += d->d_reclen;
  }
  return items;
}

core::Result<std::string> DirCore::GetXattr(FileId id, const char* name) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_PATH));
  std::string value(65536, '\0');
  ssize_t n =
      ::getxattr(ProcPath(fd).c_str(), name, value.data(), value.size());
  if (n < 0)
    return FailSys(errno, "getxattr");
  value.resize(static_cast<size_t>(n));
  return value;
}

Status DirCore::SetXattr(FileId id, const char* name, std::string_view value,
                         int flags) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_PATH));
  return Check(
      ::setxattr(ProcPath(fd).c_str(), name, value.data(), value.size(), flags),
      "setxattr");
}

core::Result<std::vector<std::string>> DirCore::ListXattr(FileId id) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_PATH));
  std::string joined(65536, '\0');
  ssize_t n = ::listxattr(ProcPath(fd).c_str(), joined.data(), joined.size());
  if (n < 0)
    return FailSys(errno, "listxattr");
  std::vector<std::string> names;
  for (size_t at = 0; at < static_cast<size_t>(n);) {
    names.emplace_back(joined.c_str() + at);
    at += names.back().size() + 1;
  }
  return names;
}

Status DirCore::RemoveXattr(FileId id, const char* name) {
  ASSIGN_OR_RETURN(UniqueFd fd, Fd(id, O_PATH));
  return Check(::removexattr(ProcPath(fd).c_str(), name), "removexattr");
}

core::Result<struct statfs> DirCore::StatFs() {
  struct statfs fs;
  TRY(Check(::fstatfs(root_.Get(), &fs), "fstatfs"));
  return fs;
}

}  // namespace livemv::fake
