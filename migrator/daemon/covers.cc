#include "migrator/daemon/covers.h"

#include <algorithm>

#include "migrator/daemon/guard.h"
#include "migrator/daemon/paths.h"

namespace livemv::daemon {

core::Result<std::vector<Cover>> FindCovers(const mount::MountTable& table,
                                            const Settings& settings,
                                            dev_t target_dev) {
  std::vector<const mount::MountEntry*> stack;
  for (const mount::MountEntry* at = table.TopAt(settings.dir);
       at != nullptr && at->point == settings.dir; at = table.ById(at->parent))
    stack.push_back(at);
  std::reverse(stack.begin(), stack.end());

  std::vector<Cover> covers;
  bool base = false;
  for (const mount::MountEntry* at : stack) {
    if (at->fs_type == "tmpfs" && at->source == kGuardSource) {
      covers.push_back({Cover::Kind::kGuard, at->dev});
    } else if (at->fs_type == "fuse.livemv" && at->source == settings.dir) {
      covers.push_back({Cover::Kind::kOverlay, at->dev});
    } else if (target_dev != 0 && at->dev == target_dev) {
      covers.push_back({Cover::Kind::kTarget, at->dev});
    } else if (settings.dir_is_mount && !base && covers.empty()) {
      base = true;
    } else {
      return Fail(core::ErrorCode::kConflict,
                  "on " + Printable(settings.dir) + " there is a mount of " +
                      Printable(at->source) + " (" + at->fs_type +
                      ") that was not there");
    }
  }
  if (settings.dir_is_mount && !base)
    return Fail(core::ErrorCode::kConflict,
                "nothing is mounted on " + Printable(settings.dir) +
                    "; it was " + Printable(settings.source_device));
  return covers;
}

}  // namespace livemv::daemon
