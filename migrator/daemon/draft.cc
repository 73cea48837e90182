#include "migrator/daemon/draft.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <cstdio>

#include "fusefs/intents.h"
#include "fusefs/transport.h"
#include "migrator/daemon/heartbeat.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/state_dir.h"

namespace livemv::daemon {

using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;

Draft::~Draft() {
  if (registered)
    registry->Remove(settings.id);
  if (has_state_dir) {
    // Nothing to be done about a failure but to say so, and the caller has
    // its own refusal to tell.
    if (Status removed = ForgetState(settings); !removed)
      std::fprintf(stderr, "livemv: %s\n",
                   removed.error().ToString().c_str());
  }
}

Status Draft::MakeOverlay(mount::MountOps* ops) {
  struct stat st{};
  if (::fstat(dir.Get(), &st) != 0)
    return FailSys(errno, Printable(settings.dir));
  fuse = UniqueFd(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!fuse)
    return FailSys(errno, "open /dev/fuse");
  mount::OverlaySpec spec;
  spec.fuse_fd = fuse.Get();
  spec.source = settings.dir;
  ASSIGN_OR_RETURN(spec.flags, mount::FlagsOf(dir.Get()));
  spec.root_mode = st.st_mode;
  spec.uid = st.st_uid;
  spec.gid = st.st_gid;
  ASSIGN_OR_RETURN(overlay, ops->MakeOverlay(spec));
  // Nobody serves the overlay yet, so its attributes must not be asked for.
  struct statx sx{};
  if (::statx(overlay.Get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &sx) !=
      0)
    return FailSys(errno, "statx of the overlay");
  settings.overlay_dev = makedev(sx.stx_dev_major, sx.stx_dev_minor);
  ASSIGN_OR_RETURN(saved_init,
                   MakeMemFd("livemv-init", sizeof(fusefs::SavedInit)));
  ASSIGN_OR_RETURN(intents,
                   MakeMemFd("livemv-intents", fusefs::IntentTable::Bytes()));
  ASSIGN_OR_RETURN(heartbeat, MakeMemFd("livemv-heartbeat", Heartbeat::kBytes));
  return {};
}

Result<Child> Draft::SpawnSupervisor(const std::string& extra) {
  std::vector<std::pair<std::string, int>> fds;
  for (const auto& [name, fd] : std::initializer_list<std::pair<const char*, int>>{
           {fd_name::kAlive, alive.Get()},
           {fd_name::kStateLock, state_lock.Get()},
           {fd_name::kDir, dir.Get()},
           {fd_name::kFuse, fuse.Get()},
           {fd_name::kSource, source.Get()},
           {fd_name::kTarget, target.Get()},
           {fd_name::kTargetRoot, target_root.Get()},
           {fd_name::kOverlay, overlay.Get()},
           {fd_name::kSavedInit, saved_init.Get()},
           {fd_name::kIntents, intents.Get()},
           {fd_name::kHeartbeat, heartbeat.Get()}})
    if (fd >= 0)
      fds.emplace_back(name, fd);
  ASSIGN_OR_RETURN(Child supervisor,
                   Spawn({"supervisor", &settings, extra, fds}, true));
  registered = has_state_dir = false;
  return supervisor;
}

}  // namespace livemv::daemon
