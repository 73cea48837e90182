#include "migrator/proc/proc_files.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstring>

namespace livemv::proc {
namespace {

// ESRCH is what /proc says of a process that ended; ENOENT of what it lost.
core::Error ReadError(int err, const char* act, const char* path) {
  std::string what = std::string(act) + " " + path;
  if (err == ESRCH || err == ENOENT)
    return {core::ErrorCode::kGone, err, std::move(what)};
  return core::Error::System(err, std::move(what));
}

core::Status Read(int dirfd, const char* path, std::string* out,
                  bool in_one_go) {
  core::UniqueFd fd(openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY));
  if (!fd)
    return core::Fail(ReadError(errno, "open", path));
  constexpr size_t kStep = 16384;
  size_t used = 0;
  while (true) {
    if (out->size() < used + kStep)
      out->resize(used + kStep);
    const ssize_t n = read(fd.Get(), out->data() + used, out->size() - used);
    if (n < 0) {
      if (errno == EINTR)
        continue;
      return core::Fail(ReadError(errno, "read", path));
    }
    used += static_cast<size_t>(n);
    if (n == 0 || (in_one_go && used < kStep))
      break;
  }
  out->resize(used);
  return {};
}

}  // namespace

core::Status ReadFileAt(int dirfd, const char* path, std::string* out) {
  return Read(dirfd, path, out, false);
}

core::Status ReadShortFileAt(int dirfd, const char* path, std::string* out) {
  return Read(dirfd, path, out, true);
}

core::Result<std::string> ReadFile(const std::string& path) {
  std::string text;
  TRY(ReadFileAt(AT_FDCWD, path.c_str(), &text));
  return text;
}

core::Result<std::string> ReadLink(int dirfd, const char* path) {
  // fs/proc/base.c prints into one page: longer paths are ENAMETOOLONG.
  char buffer[PATH_MAX + 1];
  const ssize_t n = readlinkat(dirfd, path, buffer, sizeof buffer);
  if (n < 0)
    return core::Fail(ReadError(errno, "readlink", path));
  return std::string(buffer, static_cast<size_t>(n));
}

core::Result<core::UniqueFd> OpenDir(int dirfd, const char* path) {
  core::UniqueFd fd(openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd)
    return core::Fail(ReadError(errno, "open", path));
  return fd;
}

core::Result<std::vector<int>> ListNumbers(int dirfd, const char* path) {
  ASSIGN_OR_RETURN(core::UniqueFd fd, OpenDir(dirfd, path));
  struct Entry {  // linux_dirent64
    uint64_t ino;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
  };
  alignas(Entry) char buffer[32768];
  std::vector<int> numbers;
  while (true) {
    const long n = syscall(SYS_getdents64, fd.Get(), buffer, sizeof buffer);
    if (n < 0)
      return core::Fail(ReadError(errno, "getdents64", path));
    for (long at = 0; at < n;) {
      const auto* entry = reinterpret_cast<const Entry*>(buffer + at);
      const char* end = entry->name + strlen(entry->name);
      int number = 0;
      auto [stop, error] = std::from_chars(entry->name, end, number);
      if (error == std::errc{} && stop == end)
        numbers.push_back(number);
      at += entry->length;
    }
    // /proc fills the buffer while it has entries: room left is the end.
    if (n < static_cast<long>(sizeof buffer) - 512)
      break;
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

core::Result<struct statx> PeekAt(int dirfd, const char* path) {
  struct statx st = {};
  // NFS's weak revalidation and FUSE's getattr both stay local with
  // DONT_SYNC, so neither a dead server nor a busy worker is waited for.
  const int flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT |
                    (*path == '\0' ? AT_EMPTY_PATH : 0);
  if (statx(dirfd, path, flags,
            STATX_TYPE | STATX_MODE | STATX_INO | STATX_NLINK | STATX_MNT_ID,
            &st) != 0)
    return core::Fail(ReadError(errno, "statx", path));
  return st;
}

dev_t DevOf(const struct statx& st) {
  return makedev(st.stx_dev_major, st.stx_dev_minor);
}

}  // namespace livemv::proc
