#include "migrator/proc/proc_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <climits>
#include <memory>

namespace livemv::proc {
namespace {

// ESRCH is what /proc says of a process that ended; ENOENT of what it lost.
core::Error ReadError(int err, const char* act, const char* path) {
  std::string what = std::string(act) + " " + path;
  if (err == ESRCH || err == ENOENT)
    return {core::ErrorCode::kGone, err, std::move(what)};
  return core::Error::System(err, std::move(what));
}

}  // namespace

core::Status ReadFileAt(int dirfd, const char* path, std::string* out) {
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
    if (n == 0)
      break;
    used += static_cast<size_t>(n);
  }
  out->resize(used);
  return {};
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

core::Result<std::vector<std::string>> ListDir(int dirfd, const char* path) {
  ASSIGN_OR_RETURN(core::UniqueFd fd, OpenDir(dirfd, path));
  std::unique_ptr<DIR, int (*)(DIR*)> dir(fdopendir(fd.Get()), closedir);
  if (dir == nullptr)
    return core::Fail(ReadError(errno, "fdopendir", path));
  fd.Release();
  std::vector<std::string> names;
  while (true) {
    errno = 0;
    const struct dirent* entry = readdir(dir.get());
    if (entry == nullptr) {
      if (errno != 0)
        return core::Fail(ReadError(errno, "readdir", path));
      return names;
    }
    std::string name = entry->d_name;
    if (name != "." && name != "..")
      names.push_back(std::move(name));
  }
}

core::Result<std::vector<int>> ListNumbers(int dirfd, const char* path) {
  ASSIGN_OR_RETURN(std::vector<std::string> names, ListDir(dirfd, path));
  std::vector<int> numbers;
  for (const std::string& name : names) {
    int number = 0;
    auto [at, error] =
        std::from_chars(name.data(), name.data() + name.size(), number);
    if (error == std::errc{} && at == name.data() + name.size())
      numbers.push_back(number);
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
