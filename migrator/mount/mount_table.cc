#include "migrator/mount/mount_table.h"

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "core/unique_fd.h"

namespace livemv::mount {

using core::ErrorCode;
using core::Fail;
using core::FailSys;
using core::Result;

namespace {

// fs/proc_namespace.c, mangle(): space, tab, newline, backslash and '#' are
// written as a backslash and three octal digits.
std::string Decode(std::string_view field) {
  std::string out;
  for (size_t i = 0; i < field.size(); ++i) {
    auto octal = [&](size_t at) {
      return at < field.size() && field[at] >= '0' && field[at] <= '7';
    };
    if (field[i] == '\\' && octal(i + 1) && octal(i + 2) && octal(i + 3)) {
      int value = (field[i + 1] - '0') * 64 + (field[i + 2] - '0') * 8 +
                  (field[i + 3] - '0');
      out.push_back(static_cast<char>(value));
      i += 3;
    } else {
      out.push_back(field[i]);
    }
  }
  return out;
}

template <class T>
std::optional<T> Number(std::string_view text) {
  T value{};
  auto [end, err] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (err != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return value;
}

std::vector<std::string_view> Split(std::string_view line) {
  std::vector<std::string_view> fields;
  while (!line.empty()) {
    size_t space = line.find(' ');
    std::string_view field = line.substr(0, space);
    if (!field.empty())
      fields.push_back(field);
    if (space == std::string_view::npos)
      break;
    line.remove_prefix(space + 1);
  }
  return fields;
}

// "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=ro"
// (Documentation/filesystems/proc.rst, 3.5). The source may be empty.
std::optional<MountEntry> ParseLine(std::string_view line) {
  size_t dash = line.find(" - ");
  if (dash == std::string_view::npos)
    return std::nullopt;
  auto left = Split(line.substr(0, dash));
  auto right = Split(line.substr(dash + 3));
  if (left.size() < 6 || right.empty())
    return std::nullopt;
  MountEntry entry;
  auto id = Number<uint64_t>(left[0]);
  auto parent = Number<uint64_t>(left[1]);
  size_t colon = left[2].find(':');
  if (!id || !parent || colon == std::string_view::npos)
    return std::nullopt;
  auto major = Number<unsigned>(left[2].substr(0, colon));
  auto minor = Number<unsigned>(left[2].substr(colon + 1));
  if (!major || !minor)
    return std::nullopt;
  entry.id = *id;
  entry.parent = *parent;
  entry.dev = makedev(*major, *minor);
  entry.root = Decode(left[3]);
  entry.point = Decode(left[4]);
  entry.options = std::string(left[5]);
  for (size_t i = 6; i < left.size(); ++i) {
    auto group = [&](std::string_view name) -> std::optional<uint32_t> {
      if (!left[i].starts_with(name))
        return std::nullopt;
      return Number<uint32_t>(left[i].substr(name.size()));
    };
    if (auto n = group("shared:"))
      entry.shared = *n;
    else if (auto m = group("master:"))
      entry.master = *m;
    else if (auto p = group("propagate_from:"))
      entry.propagate_from = *p;
    else if (left[i] == "unbindable")
      entry.unbindable = true;
  }
  entry.fs_type = std::string(right[0]);
  // An empty source leaves two blanks, so the options are the last field.
  if (right.size() >= 3)
    entry.source = Decode(right[1]);
  if (right.size() >= 2)
    entry.super_options = Decode(right.back());
  return entry;
}

std::string Join(std::string_view dir, std::string_view rest) {
  if (rest.empty())
    return std::string(dir);
  return dir == "/" ? std::string(rest) : std::string(dir) + std::string(rest);
}

// What of path follows dir, with its leading slash; "" if they are equal.
std::string_view Rest(std::string_view path, std::string_view dir) {
  return dir == "/" ? (path == "/" ? std::string_view() : path)
                    : path.substr(dir.size());
}

}  // namespace

bool MountEntry::HasOption(std::string_view name) const {
  std::string_view left = options;
  while (!left.empty()) {
    size_t comma = left.find(',');
    if (left.substr(0, comma) == name)
      return true;
    if (comma == std::string_view::npos)
      break;
    left.remove_prefix(comma + 1);
  }
  return false;
}

bool IsWithin(std::string_view path, std::string_view dir) {
  if (dir == "/")
    return path.starts_with('/');
  return path.starts_with(dir) &&
         (path.size() == dir.size() || path[dir.size()] == '/');
}

Result<MountTable> MountTable::Parse(std::string_view text) {
  MountTable table;
  while (!text.empty()) {
    size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (!line.empty()) {
      auto entry = ParseLine(line);
      if (!entry)
        return Fail(ErrorCode::kCorrupt,
                    "mountinfo line not understood: " + std::string(line));
      table.entries_.push_back(std::move(*entry));
    }
    if (end == std::string_view::npos)
      break;
    text.remove_prefix(end + 1);
  }
  return table;
}

Result<MountTable> MountTable::Of(pid_t pid) {
  std::string path =
      "/proc/" + (pid == 0 ? "self" : std::to_string(pid)) + "/mountinfo";
  core::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    // EINVAL: it is ending and has left its namespace (fs/proc_namespace.c,
    // mounts_open_common).
    if (errno == ENOENT || errno == ESRCH || errno == EINVAL)
      return Fail(ErrorCode::kGone, "open " + path + ": no such process");
    return FailSys(errno, "open " + path);
  }
  std::string text;
  char buf[32768];
  for (;;) {
    ssize_t n = ::read(fd.Get(), buf, sizeof buf);
    if (n < 0 && errno == EINTR)
      continue;
    // A zombie's table reads as EINVAL (fs/proc_namespace.c, mounts_open).
    if (n < 0)
      return FailSys(errno, "read " + path);
    if (n == 0)
      break;
    text.append(buf, static_cast<size_t>(n));
  }
  return Parse(text);
}

const MountEntry* MountTable::ById(uint64_t id) const {
  for (const MountEntry& e : entries_)
    if (e.id == id)
      return &e;
  return nullptr;
}

// A path walk crosses the first mount point it meets: of the current mount's
// children on the way, the one nearest the root; then the same from there. The
// order of lines says nothing: MOVE_MOUNT_BENEATH puts a newer mount below an
// older one.
const MountEntry* MountTable::Walk(std::string_view path) const {
  const MountEntry* at = nullptr;
  for (size_t steps = 0; steps <= entries_.size(); ++steps) {
    const MountEntry* next = nullptr;
    for (const MountEntry& e : entries_) {
      bool child = at != nullptr ? e.parent == at->id && e.id != at->id
                                 : ById(e.parent) == nullptr || e.parent == e.id;
      if (!child || !IsWithin(path, e.point))
        continue;
      if (next == nullptr || e.point.size() < next->point.size())
        next = &e;
    }
    if (next == nullptr)
      return at;
    at = next;
  }
  return at;
}

const MountEntry* MountTable::TopAt(std::string_view path) const {
  const MountEntry* at = Walk(path);
  return at != nullptr && at->point == path ? at : nullptr;
}

size_t MountTable::DepthAt(std::string_view path) const {
  return static_cast<size_t>(
      std::count_if(entries_.begin(), entries_.end(),
                    [&](const MountEntry& e) { return e.point == path; }));
}

Result<std::string> MountTable::PathInFilesystem(std::string_view path) const {
  const MountEntry* at = Walk(path);
  if (at == nullptr)
    return Fail(ErrorCode::kInvalid,
                "no mount is visible for " + std::string(path));
  return Join(at->root, Rest(path, at->point));
}

std::vector<Door> MountTable::DoorsTo(dev_t dev,
                                      std::string_view path_in_fs) const {
  std::vector<Door> doors;
  for (const MountEntry& e : entries_) {
    if (e.dev != dev)
      continue;
    Door door;
    door.mount_id = e.id;
    if (IsWithin(path_in_fs, e.root)) {
      door.kind = Door::Kind::kWhole;
      door.path = Join(e.point, Rest(path_in_fs, e.root));
    } else if (IsWithin(e.root, path_in_fs)) {
      door.kind = Door::Kind::kPart;
      door.path = e.point;
    } else {
      continue;
    }
    const MountEntry* end = Walk(door.path);
    door.covered = end == nullptr || end->id != e.id;
    doors.push_back(std::move(door));
  }
  return doors;
}

std::vector<MountEntry> MountTable::Below(std::string_view path) const {
  std::vector<MountEntry> below;
  for (const MountEntry& e : entries_) {
    if (e.point == path || !IsWithin(e.point, path))
      continue;
    const MountEntry* top = TopAt(e.point);
    if (top != nullptr && top->id == e.id)
      below.push_back(e);
  }
  return below;
}

}  // namespace livemv::mount
