#pragma once

// Reading below one /proc/PID directory through a descriptor of it: a process
// that ends makes the calls fail (ESRCH, ENOENT), never answer for a process
// that got its number.
//
// Thread contract: one thread for each object.

#include <sys/stat.h>
#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/unique_fd.h"

namespace livemv::proc {

// The whole of a file; *out is reused. kGone if the process ended.
core::Status ReadFileAt(int dirfd, const char* path, std::string* out);
// The same in one read, for files that the kernel prints in one go (stat,
// status, fdinfo); falls back to more if they are long.
core::Status ReadShortFileAt(int dirfd, const char* path, std::string* out);
core::Result<std::string> ReadFile(const std::string& path);
core::Result<std::string> ReadLink(int dirfd, const char* path);
// Entries of a directory of /proc that are numbers, ascending.
core::Result<std::vector<int>> ListNumbers(int dirfd, const char* path);
core::Result<core::UniqueFd> OpenDir(int dirfd, const char* path);

// What the kernel knows now of the object that path leads to, following it if
// it is one of /proc's links; the filesystem is not asked
// (AT_STATX_DONT_SYNC). path "" is dirfd itself.
core::Result<struct statx> PeekAt(int dirfd, const char* path);
dev_t DevOf(const struct statx& st);

}  // namespace livemv::proc
