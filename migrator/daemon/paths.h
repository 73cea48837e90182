#pragma once

// Paths as a user types them, made into the one form that the registry, the
// journal and the messages use: absolute, links resolved, no trailing slash.
//
// Resolving asks the kernel for links on the way only; it opens nothing, so a
// directory under a hung overlay or mount can still be named.
//
// Thread contract: pure but for the working directory and the filesystem.

#include <optional>
#include <string>

#include "core/result.h"

namespace livemv::daemon {

// realpath(3) of an existing path.
core::Result<std::string> Normalise(const std::string& path);

// path made absolute, "." and ".." and doubled slashes taken out, links not
// resolved: the fallback for a path that cannot be reached any more.
core::Result<std::string> MakeAbsolute(const std::string& path);

// True if path is root itself or lies below it; both in normal form.
bool IsInside(const std::string& path, const std::string& root);
// path without root in front: "" for root itself. path must be inside.
std::string Below(const std::string& path, const std::string& root);

// The two parts of "host:/export/sub"; empty if text names a directory.
struct NfsName {
  std::string host;  // brackets of an IPv6 address kept, as mount(8) has them
  std::string path;
};
std::optional<NfsName> ParseNfsName(const std::string& text);

// text with control characters and backslashes escaped, for one line of output.
std::string Printable(const std::string& text);
// text quoted for a shell, if it needs quotes.
std::string ShellQuoted(const std::string& text);

}  // namespace livemv::daemon
