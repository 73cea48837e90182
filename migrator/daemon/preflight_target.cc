// CheckTarget: what is in the target, its room, and what it can store.

#include <dirent.h>
#include <fcntl.h>
#include <sys/statvfs.h>

#include <cerrno>
#include <memory>
#include <string_view>

#include "core/unique_fd.h"
#include "migrator/mount/mount_table.h"
#include "migrator/daemon/preflight.h"
#include "migrator/daemon/preflight_findings.h"
#include "migrator/daemon/target_probe.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {
namespace {

// What is in the target already. Returns whether an interrupted run of this
// move is.
bool CheckEmpty(const TargetRequest& request, Findings* findings) {
  // Not opened again: a server that squashes root lets its owner alone.
  core::UniqueFd copy(fcntl(request.target_fd, F_DUPFD_CLOEXEC, 0));
  std::unique_ptr<DIR, int (*)(DIR*)> dir(
      copy ? fdopendir(copy.Get()) : nullptr, closedir);
  if (dir == nullptr) {
    findings->Block("target-unreadable",
                    "TARGET " + Quote(request.name) +
                        " cannot be read: " + core::ErrnoName(errno),
                    "make it readable for root, or for its owner");
    return false;
  }
  copy.Release();
  rewinddir(dir.get());
  bool resumes = false;
  std::string other;
  std::string first;
  while (const struct dirent* entry = readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == ".." ||
        (request.is_root_of_filesystem && name == "lost+found"))
      continue;
    constexpr std::string_view kPrefix = ".livemv-";
    if (name.starts_with(kProbePrefix))
      continue;  // of a plan that was killed
    if (name.starts_with(kPrefix)) {
      const std::string id = name.substr(kPrefix.size());
      if (request.resumable.contains(id))
        resumes = true;
      else
        other = id;
      continue;
    }
    if (first.empty())
      first = name;
  }
  if (!other.empty())
    findings->Block("target-interrupted",
                    "TARGET " + Quote(request.name) +
                        " is not empty: it holds .livemv-" + other +
                        ", left by another migration",
                    "finish or abort that one; if it is gone, empty the "
                    "target");
  else if (!first.empty() && !resumes)
    findings->Block("target-not-empty",
                    "TARGET " + Quote(request.name) +
                        " is not empty: it holds " + Quote(first),
                    "empty it, or name a new directory");
  else if (resumes)
    findings->Note("target-resumes",
                   "TARGET holds an interrupted run of this move, which goes "
                   "on");
  return resumes;
}

void CheckRoom(const Survey& survey, const Volume& volume, Findings* findings) {
  // The source's blocks are the best guess of the target's; half a kilobyte
  // an object stands for its inode and name.
  const uint64_t need = survey.allocated + survey.Objects() * 512;
  const std::string numbers = "the tree needs about " + FormatBytes(need) +
                              ", TARGET has " + FormatBytes(volume.free_bytes) +
                              " free";
  if (volume.total_bytes > 0 && volume.free_bytes < need)
    findings->Block("target-too-small", "TARGET is too small: " + numbers,
                    "make room on the target");
  else if (volume.total_bytes > 0 && volume.free_bytes < need + need / 20)
    findings->Warn("target-tight",
                   "TARGET will be nearly full: " + numbers +
                       ", and the tree goes on growing",
                   "make room on the target");
  const uint64_t objects = survey.Objects() + 16;
  if (volume.total_files > 0 && volume.free_files < objects)
    findings->Block(
        "target-no-inodes",
        "TARGET has too few free inodes: " + FormatCount(volume.free_files) +
            ", the tree needs " + FormatCount(objects),
        "choose a target with more inodes");
}

}  // namespace

std::vector<Finding> CheckTarget(const TargetRequest& request, Volume* volume,
                                 fusefs::TargetHolds* holds) {
  std::vector<Finding> list;
  Findings findings(&list);
  struct statvfs st = {};
  if (fstatvfs(request.target_fd, &st) == 0) {
    volume->total_bytes = st.f_blocks * st.f_frsize;
    volume->free_bytes = st.f_bfree * st.f_frsize;
    volume->total_files = st.f_files;
    volume->free_files = st.f_ffree;
  }
  const bool resumes = CheckEmpty(request, &findings);
  if (request.survey != nullptr) {
    // A part of the tree is there already, so its room cannot be reckoned.
    if (!resumes)
      CheckRoom(*request.survey, *volume, &findings);
    if (!findings.Blocked())
      *holds = ProbeTarget(request.target_fd, *request.survey,
                           request.accepted, &findings);
  }
  return list;
}

}  // namespace livemv::daemon
