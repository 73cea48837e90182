#include "migrator/daemon/state_dir.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "migrator/daemon/guard.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/registry.h"
#include "migrator/daemon/small_files.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;
using nlohmann::json;

namespace {

std::string LinkOf(const Settings& settings) {
  return std::string(kDefaultStateParent) + "/" + settings.id;
}

}  // namespace

Result<UniqueFd> LockState(const std::string& state_dir) {
  const std::string path = state_dir + "/lock";
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd)
    return FailSys(errno, "open " + Printable(path));
  while (::flock(fd.Get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK)
      return Fail(ErrorCode::kConflict, Printable(path) + " is held");
    if (errno != EINTR)
      return FailSys(errno, "lock " + Printable(path));
  }
  return fd;
}

Status LinkState(const Settings& settings) {
  const std::string link = LinkOf(settings);
  if (settings.state_dir == link)
    return {};
  TRY(MakeDirectories(kDefaultStateParent, 0700));
  if (::symlink(settings.state_dir.c_str(), link.c_str()) != 0)
    return FailSys(errno, "link " + link + " to " +
                              Printable(settings.state_dir));
  return SyncDirectory(kDefaultStateParent);
}

Result<std::vector<std::string>> StateDirs(const std::string& parent) {
  std::vector<std::string> out;
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(parent.c_str()),
                                          &::closedir);
  if (!dir && errno == ENOENT)
    return out;
  if (!dir)
    return FailSys(errno, "open " + Printable(parent));
  while (const struct dirent* item = ::readdir(dir.get())) {
    const std::string name = item->d_name;
    if (!LooksLikeId(name))
      continue;
    const std::string path = parent + "/" + name;
    // A link that leads nowhere may be to a disk that is not there yet: it is
    // kept as it is, and whoever reads it says so.
    Result<std::string> real = Normalise(path);
    out.push_back(real ? *real : path);
  }
  std::sort(out.begin(), out.end());
  return out;
}

Result<Settings> SettingsOf(const state::RecoveredState& state) {
  if (!state.migration)
    return Fail(ErrorCode::kCorrupt, "the journal names no migration");
  auto it = state.options.find(kSettingsOption);
  if (it == state.options.end())
    return Fail(ErrorCode::kCorrupt, "the journal has no settings");
  ASSIGN_OR_RETURN(Settings settings, SettingsFromJson(it->second));
  if (settings.id != state.migration->id ||
      settings.dir != state.migration->source ||
      settings.target != state.migration->target)
    return Fail(ErrorCode::kCorrupt,
                "the settings in the journal are of migration " + settings.id +
                    ", its first record is of " + state.migration->id);
  return settings;
}

Result<Settings> NotedSettings(const std::string& state_dir) {
  ASSIGN_OR_RETURN(std::string text,
                   ReadSmallFile(state_dir + "/supervisor.json"));
  json j = json::parse(text, nullptr, false);
  if (!j.is_object() || !j.contains("settings"))
    return Fail(ErrorCode::kCorrupt,
                Printable(state_dir) + "/supervisor.json has no settings");
  return SettingsFromJson(j["settings"].dump());
}

Status CheckInterrupted(const std::string& dir,
                        const std::vector<std::string>& parents,
                        const std::set<std::string>& ids) {
  for (const std::string& parent : parents) {
    ASSIGN_OR_RETURN(std::vector<std::string> states, StateDirs(parent));
    for (const std::string& state : states) {
      Result<Settings> noted = NotedSettings(state);
      if (!noted || ids.contains(noted->id) ||
          !(IsInside(dir, noted->dir) || IsInside(noted->dir, dir)))
        continue;
      return Fail(ErrorCode::kConflict,
                  "migration " + noted->id + " of " + Printable(noted->dir) +
                      " to " + Printable(noted->target) +
                      " was interrupted and has data that is nowhere else; "
                      "bring it back first: livemv recover " + noted->id);
    }
  }
  return {};
}

uint64_t FsidOf(const struct statfs& fs) {
  uint64_t id = 0;
  static_assert(sizeof fs.f_fsid == sizeof id);
  std::memcpy(&id, &fs.f_fsid, sizeof id);
  return id;
}

Status ForgetState(const Settings& settings) {
  // The directory last: as long as it is there `recover` can do this again.
  Status first = RemoveGuard(settings.id);
  const std::string link = LinkOf(settings);
  if (settings.state_dir != link && ::unlink(link.c_str()) != 0 &&
      errno != ENOENT && errno != EISDIR && first)
    first = FailSys(errno, "remove " + link);
  if (!first)
    return first;
  // Not in pieces: what a power cut left of it would look like a migration that
  // has lost its journal.
  const size_t name = settings.state_dir.rfind('/') + 1;
  const std::string gone = settings.state_dir.substr(0, name) + ".gone-" +
                           settings.state_dir.substr(name);
  if (::rename(settings.state_dir.c_str(), gone.c_str()) != 0)
    return errno == ENOENT
               ? Status{}
               : FailSys(errno, "rename " + Printable(settings.state_dir));
  TRY(SyncDirectory(settings.state_dir.substr(0, name)));
  return RemoveTree(gone);
}

}  // namespace livemv::daemon
