#pragma once

// The registry under /run/livemv: one directory a migration,
//   ID/info.json   what stands in Registration
//   ID/alive       held with flock(2) by the supervisor for as long as it lives
//   ID/control     the supervisor's socket
// so that every verb finds a migration by its ID or by a path, and two starts
// cannot meet on one tree. Nothing here touches DIR or TARGET.
//
// Thread contract: one thread. Lock() may block while another start runs its
// checks; nothing else blocks.

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/unique_fd.h"

namespace livemv::daemon {

struct Registration {
  std::string id;
  std::string dir;        // normal form
  std::string target;     // "host:/path", or a directory in normal form
  std::string state_dir;  // this migration's own, ID included
  pid_t supervisor_pid = 0;
  bool alive = false;  // by the lock, not by the number; set by List and Find
};

class Registry {
 public:
  explicit Registry(std::string root = "/run/livemv");

  // Excludes other starts for as long as the descriptor is kept.
  core::Result<core::UniqueFd> Lock();

  // Entries that cannot be read are left out, each with a line in *broken.
  std::vector<Registration> List(std::vector<std::string>* broken = nullptr);

  // By ID, else by path: DIR itself or anything below it. kGone if there is
  // none. A path may be relative; it may lie under a dead overlay.
  core::Result<Registration> Find(const std::string& id_or_path);

  // OK if a migration of dir to target may start: no entry on dir, on a parent
  // or child of it, nor on target or a parent or child of that. kConflict
  // names the entry.
  core::Status CheckFree(const std::string& dir, const std::string& target);

  // Makes the entry and takes its lock; the descriptor must live as long as
  // the supervisor. The pid may be told later with SetPid.
  core::Result<core::UniqueFd> Add(const Registration& entry);
  core::Status SetPid(const std::string& id, pid_t pid);
  void Remove(const std::string& id);

  // Six characters of [a-z2-7] that no entry has.
  core::Result<std::string> NewId();

  std::string Directory(const std::string& id) const;
  std::string SocketPath(const std::string& id) const;
  const std::string& root() const { return root_; }

 private:
  core::Result<Registration> Read(const std::string& id);
  core::Status Write(const Registration& entry);

  const std::string root_;
};

// True for what NewId can make.
bool LooksLikeId(const std::string& text);

}  // namespace livemv::daemon
