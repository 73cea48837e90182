#include "migrator/daemon/registry.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>

#include "migrator/daemon/paths.h"
#include "migrator/daemon/small_files.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::Fail;
using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;
using nlohmann::json;

namespace {

constexpr char kIdLetters[] = "abcdefghijklmnopqrstuvwxyz234567";
constexpr size_t kIdLength = 6;

bool IsLocked(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd)
    return false;
  if (::flock(fd.Get(), LOCK_SH | LOCK_NB) == 0)
    return false;
  return errno == EWOULDBLOCK;
}

bool Overlap(const std::string& a, const std::string& b) {
  return IsInside(a, b) || IsInside(b, a);
}

// Two targets are the same place if the paths overlap on the same host, or
// both are directories that overlap.
bool TargetsOverlap(const std::string& a, const std::string& b) {
  std::optional<NfsName> na = ParseNfsName(a), nb = ParseNfsName(b);
  if (na.has_value() != nb.has_value())
    return false;
  if (na)
    return na->host == nb->host && Overlap(na->path, nb->path);
  return Overlap(a, b);
}

std::string Running(const Registration& entry) {
  std::string text = "migration " + entry.id + " (" + Printable(entry.dir) +
                     " -> " + Printable(entry.target) + ")";
  if (!entry.alive)
    text += ", whose supervisor (pid " + std::to_string(entry.supervisor_pid) +
            ") is gone";
  return text;
}

}  // namespace

bool LooksLikeId(const std::string& text) {
  return text.size() == kIdLength &&
         text.find_first_not_of(kIdLetters) == std::string::npos;
}

Registry::Registry(std::string root) : root_(std::move(root)) {}

std::string Registry::Directory(const std::string& id) const {
  return root_ + "/" + id;
}

std::string Registry::SocketPath(const std::string& id) const {
  return Directory(id) + "/control";
}

Result<UniqueFd> Registry::Lock() {
  TRY(MakeDirectories(root_, 0755));
  const std::string path = root_ + "/lock";
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd)
    return FailSys(errno, "open " + path);
  while (::flock(fd.Get(), LOCK_EX) != 0) {
    if (errno != EINTR)
      return FailSys(errno, "lock " + path);
  }
  return fd;
}

Result<Registration> Registry::Read(const std::string& id) {
  const std::string path = Directory(id) + "/info.json";
  ASSIGN_OR_RETURN(std::string text, ReadSmallFile(path));
  json j = json::parse(text, nullptr, false);
  if (!j.is_object() || !j.contains("dir") || !j.contains("target"))
    return Fail(ErrorCode::kCorrupt, path + " is not a registration");
  Registration entry;
  entry.id = id;
  entry.dir = j.value("dir", "");
  entry.target = j.value("target", "");
  entry.state_dir = j.value("state_dir", "");
  entry.supervisor_pid = j.value("supervisor_pid", 0);
  entry.alive = IsLocked(Directory(id) + "/alive");
  return entry;
}

Status Registry::Write(const Registration& entry) {
  json j = {{"id", entry.id},
            {"dir", entry.dir},
            {"target", entry.target},
            {"state_dir", entry.state_dir},
            {"supervisor_pid", entry.supervisor_pid}};
  // A path need not be UTF-8; a lossy copy would find nothing.
  std::string text;
  try {
    text = j.dump();
  } catch (const json::exception&) {
    return Fail(ErrorCode::kUnsupported,
                "a path that is not UTF-8: " + Printable(entry.dir) + " -> " +
                    Printable(entry.target));
  }
  return ReplaceFile(Directory(entry.id) + "/info.json", text + "\n");
}

std::vector<Registration> Registry::List(std::vector<std::string>* broken) {
  std::vector<Registration> out;
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(root_.c_str()),
                                          &::closedir);
  if (!dir)
    return out;
  while (const struct dirent* item = ::readdir(dir.get())) {
    std::string name = item->d_name;
    if (!LooksLikeId(name))
      continue;
    Result<Registration> entry = Read(name);
    if (entry)
      out.push_back(std::move(*entry));
    else if (entry.error().sys_errno != ENOENT && broken != nullptr)
      broken->push_back(entry.error().ToString());
  }
  std::sort(out.begin(), out.end(),
            [](const Registration& a, const Registration& b) {
              return a.dir < b.dir;
            });
  return out;
}

Result<Registration> Registry::Find(const std::string& id_or_path) {
  if (LooksLikeId(id_or_path)) {
    Result<Registration> entry = Read(id_or_path);
    if (entry)
      return entry;
  }
  // Both forms are tried: under a dead overlay realpath(3) fails with ENOTCONN
  // while the text still names the place.
  std::vector<std::string> forms;
  if (Result<std::string> real = Normalise(id_or_path))
    forms.push_back(*real);
  if (Result<std::string> text = MakeAbsolute(id_or_path))
    forms.push_back(*text);
  std::vector<Registration> all = List();
  for (const std::string& form : forms) {
    for (const Registration& entry : all) {
      if (IsInside(form, entry.dir))
        return entry;
    }
  }
  return Fail(ErrorCode::kGone,
              "no migration is known by " + Printable(id_or_path));
}

Status Registry::CheckFree(const std::string& dir, const std::string& target) {
  for (const Registration& entry : List()) {
    if (entry.dir == dir)
      return Fail(ErrorCode::kConflict,
                  Printable(dir) + " is already being moved by " +
                      Running(entry));
    if (IsInside(dir, entry.dir))
      return Fail(ErrorCode::kConflict,
                  Printable(dir) + " lies inside the tree of " +
                      Running(entry));
    if (IsInside(entry.dir, dir))
      return Fail(ErrorCode::kConflict,
                  Printable(dir) + " contains the tree of " + Running(entry));
    if (TargetsOverlap(entry.target, target))
      return Fail(ErrorCode::kConflict, "the target " + Printable(target) +
                                            " is in use by " + Running(entry));
    if (!ParseNfsName(target) && Overlap(entry.dir, target))
      return Fail(ErrorCode::kConflict, "the target " + Printable(target) +
                                            " overlaps the tree of " +
                                            Running(entry));
    if (!ParseNfsName(entry.target) && Overlap(entry.target, dir))
      return Fail(ErrorCode::kConflict, Printable(dir) +
                                            " overlaps the target of " +
                                            Running(entry));
  }
  return {};
}

Result<UniqueFd> Registry::Add(const Registration& entry) {
  TRY(MakeDirectories(root_, 0755));
  const std::string dir = Directory(entry.id);
  if (::mkdir(dir.c_str(), 0700) != 0)
    return FailSys(errno, "mkdir " + dir);
  const std::string alive = dir + "/alive";
  UniqueFd fd(::open(alive.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd)
    return FailSys(errno, "create " + alive);
  if (::flock(fd.Get(), LOCK_EX | LOCK_NB) != 0)
    return FailSys(errno, "lock " + alive);
  if (Status written = Write(entry); !written) {
    Remove(entry.id);
    return std::unexpected(written.error());
  }
  return fd;
}

Status Registry::SetPid(const std::string& id, pid_t pid) {
  ASSIGN_OR_RETURN(Registration entry, Read(id));
  entry.supervisor_pid = pid;
  return Write(entry);
}

void Registry::Remove(const std::string& id) {
  if (!LooksLikeId(id))
    return;
  for (const char* name : {"/info.json", "/info.json.new", "/control", "/alive"})
    ::unlink((Directory(id) + name).c_str());
  ::rmdir(Directory(id).c_str());
}

Result<std::string> Registry::NewId() {
  for (int attempt = 0; attempt < 100; attempt++) {
    unsigned char bytes[kIdLength];
    if (::getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
      return FailSys(errno, "getrandom");
    std::string id;
    for (unsigned char b : bytes)
      id += kIdLetters[b % 32];
    if (::access(Directory(id).c_str(), F_OK) != 0 && errno == ENOENT)
      return id;
  }
  return Fail(ErrorCode::kConflict, "no free migration ID found");
}

}  // namespace livemv::daemon
