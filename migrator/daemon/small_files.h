#pragma once

// Whole small files: the registry's, the supervisor's state file, /proc.
//
// Thread contract: any thread.

#include <sys/types.h>

#include <string>

#include "core/result.h"

namespace livemv::daemon {

// At most limit bytes of path.
core::Result<std::string> ReadSmallFile(const std::string& path,
                                        size_t limit = 1 << 20);
// Replaces path in one step: a temporary file beside it, fsync, rename, fsync
// of the directory.
core::Status ReplaceFile(const std::string& path, const std::string& content,
                         mode_t mode = 0600);
// mkdir -p; new directories get mode.
core::Status MakeDirectories(const std::string& path, mode_t mode);
// Makes what was made, renamed and removed in a directory durable.
core::Status SyncDirectory(const std::string& path);
// rm -r, on one filesystem, links not followed. A missing path is fine.
core::Status RemoveTree(const std::string& path);

}  // namespace livemv::daemon
