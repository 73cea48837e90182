#include "migrator/daemon/paths.h"

#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

namespace livemv::daemon {

using core::Fail;
using core::FailSys;

core::Result<std::string> Normalise(const std::string& path) {
  if (path.empty())
    return Fail(core::ErrorCode::kInvalid, "an empty path");
  std::unique_ptr<char, decltype(&::free)> real(
      ::realpath(path.c_str(), nullptr), &::free);
  if (!real)
    return FailSys(errno, Printable(path));
  return std::string(real.get());
}

core::Result<std::string> MakeAbsolute(const std::string& path) {
  if (path.empty())
    return Fail(core::ErrorCode::kInvalid, "an empty path");
  std::string full = path;
  if (full[0] != '/') {
    std::unique_ptr<char, decltype(&::free)> cwd(::getcwd(nullptr, 0), &::free);
    if (!cwd)
      return FailSys(errno, "the working directory");
    full = std::string(cwd.get()) + "/" + path;
  }
  std::vector<std::string> parts;
  for (size_t pos = 0; pos < full.size();) {
    size_t end = full.find('/', pos);
    if (end == std::string::npos)
      end = full.size();
    std::string part = full.substr(pos, end - pos);
    pos = end + 1;
    if (part.empty() || part == ".")
      continue;
    if (part != "..")
      parts.push_back(part);
    else if (!parts.empty())
      parts.pop_back();
  }
  std::string out;
  for (const std::string& part : parts)
    out += "/" + part;
  return out.empty() ? "/" : out;
}

bool IsInside(const std::string& path, const std::string& root) {
  if (root == "/")
    return true;
  return path.starts_with(root) &&
         (path.size() == root.size() || path[root.size()] == '/');
}

std::string Below(const std::string& path, const std::string& root) {
  if (path.size() <= root.size())
    return {};
  return path.substr(root == "/" ? 1 : root.size() + 1);
}

std::optional<NfsName> ParseNfsName(const std::string& text) {
  size_t colon = std::string::npos;
  if (text.starts_with('[')) {
    size_t close = text.find(']');
    if (close == std::string::npos || close == 1 || close + 1 >= text.size() ||
        text[close + 1] != ':')
      return std::nullopt;
    colon = close + 1;
  } else {
    colon = text.find(':');
  }
  // "./a:/b" and "/a:/b" are directories, as for mount(8) and rsync(1).
  if (colon == std::string::npos || colon == 0 || colon + 1 >= text.size() ||
      text[colon + 1] != '/' || text.find('/') < colon)
    return std::nullopt;
  return NfsName{text.substr(0, colon), text.substr(colon + 1)};
}

std::string Printable(const std::string& text) {
  std::string out;
  for (char c : text) {
    auto u = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\\') {
      out += "\\\\";
    } else if (u < 0x20 || u == 0x7f) {
      constexpr char kHex[] = "0123456789abcdef";
      out += "\\x";
      out += kHex[u >> 4];
      out += kHex[u & 15];
    } else {
      out += c;
    }
  }
  return out;
}

std::string ShellQuoted(const std::string& text) {
  constexpr char kPlain[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
      "%+,-./:=@_";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos)
    return text;
  std::string out = "'";
  for (char c : text) {
    if (c == '\'')
      out += "'\\''";
    else
      out += c;
  }
  return out + "'";
}

}  // namespace livemv::daemon
