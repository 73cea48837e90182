#include "migrator/daemon/small_files.h"

#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "core/unique_fd.h"
#include "migrator/daemon/paths.h"

namespace livemv::daemon {

using core::FailSys;
using core::UniqueFd;

core::Result<std::string> ReadSmallFile(const std::string& path,
                                        size_t limit) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd)
    return FailSys(errno, "open " + Printable(path));
  std::string out;
  char buf[4096];
  while (out.size() < limit) {
    ssize_t n = ::read(fd.Get(), buf, sizeof buf);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return FailSys(errno, "read " + Printable(path));
    if (n == 0)
      break;
    out.append(buf, static_cast<size_t>(n));
  }
  return out;
}

core::Status ReplaceFile(const std::string& path, const std::string& content,
                         mode_t mode) {
  const std::string tmp = path + ".new";
  UniqueFd fd(::open(tmp.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC,
                     mode));
  if (!fd)
    return FailSys(errno, "create " + Printable(tmp));
  for (size_t done = 0; done < content.size();) {
    ssize_t n = ::write(fd.Get(), content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return FailSys(errno, "write " + Printable(tmp));
    done += static_cast<size_t>(n);
  }
  if (::fsync(fd.Get()) != 0)
    return FailSys(errno, "fsync " + Printable(tmp));
  if (::rename(tmp.c_str(), path.c_str()) != 0)
    return FailSys(errno, "rename to " + Printable(path));
  size_t slash = path.rfind('/');
  std::string dir = slash == std::string::npos ? "." : path.substr(0, slash);
  UniqueFd dirfd(::open(dir.empty() ? "/" : dir.c_str(),
                        O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dirfd || ::fsync(dirfd.Get()) != 0)
    return FailSys(errno, "fsync " + Printable(dir));
  return {};
}

core::Status MakeDirectories(const std::string& path, mode_t mode) {
  for (size_t pos = 1; pos <= path.size(); pos++) {
    if (pos != path.size() && path[pos] != '/')
      continue;
    std::string part = path.substr(0, pos);
    if (::mkdir(part.c_str(), mode) != 0 && errno != EEXIST)
      return FailSys(errno, "mkdir " + Printable(part));
  }
  struct stat st{};
  if (::stat(path.c_str(), &st) != 0)
    return FailSys(errno, Printable(path));
  if (!S_ISDIR(st.st_mode))
    return FailSys(ENOTDIR, Printable(path));
  return {};
}

core::Status SyncDirectory(const std::string& path) {
  UniqueFd dir(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir || ::fsync(dir.Get()) != 0)
    return FailSys(errno, "fsync " + path);
  return {};
}

core::Status RemoveTree(const std::string& path) {
  struct stat st{};
  if (::lstat(path.c_str(), &st) != 0) {
    if (errno == ENOENT)
      return {};
    return FailSys(errno, Printable(path));
  }
  int failed = ::nftw(
      path.c_str(),
      [](const char* name, const struct stat*, int, struct FTW*) {
        return ::remove(name) == 0 || errno == ENOENT ? 0 : errno;
      },
      16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
  if (failed != 0)
    return FailSys(failed > 0 ? failed : errno, "remove " + Printable(path));
  return {};
}

}  // namespace livemv::daemon
