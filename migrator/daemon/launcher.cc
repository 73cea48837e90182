#include "migrator/daemon/launcher.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>

#include "core/state/journal_writer.h"
#include "core/syscalls.h"
#include "fusefs/intents.h"
#include "fusefs/transport.h"
#include "migrator/daemon/advice.h"
#include "migrator/daemon/heartbeat.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/small_files.h"
#include "migrator/mount/mount_ops.h"
#include "migrator/mount/mount_table.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;

namespace {

// Made step by step; what is left in it is undone by its end.
struct Draft {
  Registry* registry;
  Settings settings;
  bool registered = false, has_state_dir = false;
  UniqueFd alive, dir, fuse, saved_init, intents, heartbeat;
  UniqueFd target_root;
  mount::MountFd source, target, overlay;

  ~Draft() {
    if (registered)
      registry->Remove(settings.id);
    if (has_state_dir) {
      // Nothing to be done about a failure but to say so, and the caller has
      // its own refusal to tell.
      if (Status removed = RemoveTree(settings.state_dir); !removed)
        ::perror(removed.error().ToString().c_str());
    }
  }
};

std::unexpected<Refusal> Refuse(Exit exit, std::string message) {
  return std::unexpected(Refusal{exit, std::move(message)});
}

Status MakeState(Draft& draft, core::Syscalls* sys) {
  const Settings& s = draft.settings;
  TRY(MakeDirectories(s.state_dir.substr(0, s.state_dir.rfind('/')), 0700));
  if (::mkdir(s.state_dir.c_str(), 0700) != 0)
    return FailSys(errno, "mkdir " + Printable(s.state_dir));
  draft.has_state_dir = true;
  ASSIGN_OR_RETURN(
      UniqueFd dirfd,
      sys->OpenAt(AT_FDCWD, s.state_dir.c_str(), O_RDONLY | O_DIRECTORY));
  state::MigrationFact first;
  first.id = s.id;
  first.source = s.dir;
  first.target = s.target;
  ASSIGN_OR_RETURN(first.source_root, sys->NameToHandle(draft.dir.Get(), ""));
  ASSIGN_OR_RETURN(std::unique_ptr<state::JournalFile> journal,
                   state::JournalFile::Create(sys, dirfd.Get(), "journal",
                                              first));
  return journal->SyncAll();
}

Status MakeOverlay(Draft& draft, mount::MountOps* ops) {
  struct stat st{};
  if (::fstat(draft.dir.Get(), &st) != 0)
    return FailSys(errno, Printable(draft.settings.dir));
  draft.fuse = UniqueFd(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!draft.fuse)
    return FailSys(errno, "open /dev/fuse");
  mount::OverlaySpec spec;
  spec.fuse_fd = draft.fuse.Get();
  spec.source = draft.settings.dir;
  ASSIGN_OR_RETURN(spec.flags, mount::FlagsOf(draft.dir.Get()));
  spec.root_mode = st.st_mode;
  spec.uid = st.st_uid;
  spec.gid = st.st_gid;
  ASSIGN_OR_RETURN(draft.overlay, ops->MakeOverlay(spec));
  // Nobody serves the overlay yet, so its attributes must not be asked for.
  struct statx sx{};
  if (::statx(draft.overlay.Get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0,
              &sx) != 0)
    return FailSys(errno, "statx of the overlay");
  draft.settings.overlay_dev = makedev(sx.stx_dev_major, sx.stx_dev_minor);
  ASSIGN_OR_RETURN(draft.saved_init,
                   MakeMemFd("livemv-init", sizeof(fusefs::SavedInit)));
  ASSIGN_OR_RETURN(draft.intents,
                   MakeMemFd("livemv-intents", fusefs::IntentTable::Bytes()));
  ASSIGN_OR_RETURN(draft.heartbeat,
                   MakeMemFd("livemv-heartbeat", Heartbeat::kBytes));
  return {};
}

// Here, where the server has just answered: a worker that is replaced while it
// is away must not wait for it.
Status AskTarget(Draft& draft) {
  struct statfs fs{};
  if (::fstatfs(draft.target_root.Get(), &fs) != 0)
    return FailSys(errno, "statfs of " + Printable(draft.settings.target));
  draft.settings.target_fs_type = fs.f_type;
  return {};
}

Status LookAtSource(Draft& draft, mount::MountOps* ops) {
  ASSIGN_OR_RETURN(mount::MountTable table, ops->TableOf(0));
  const mount::MountEntry* on = table.Walk(draft.settings.dir);
  if (on == nullptr)
    return Fail(ErrorCode::kUnsupported, Printable(draft.settings.dir) +
                                             " is on no mount of this "
                                             "namespace");
  draft.settings.dir_is_mount = on->point == draft.settings.dir;
  draft.settings.source_device = on->source;
  return {};
}

}  // namespace

std::expected<Launched, Refusal> Launch(Registry& registry,
                                        StartRequest request) {
  std::unique_ptr<core::Syscalls> sys = core::MakeRealSyscalls();
  std::unique_ptr<mount::MountOps> ops = mount::MakeRealMountOps();

  Draft draft;
  draft.registry = &registry;
  draft.target = std::move(request.target_mount);
  draft.target_root = std::move(request.target_root);
  Settings& s = draft.settings;
  s.dir = request.dir;
  s.target = request.target;
  s.registry = registry.root();
  s.mount_options = request.mount_options;
  s.losses = request.losses;
  s.holds = request.holds;
  s.auto_cutover = request.auto_cutover;
  s.max_pause_ns = request.max_pause_ns;
  s.fstab_line = FstabLine(s.target, s.dir, s.mount_options);
  if (const char* faults = std::getenv("LIVEMV_FAULTS"); faults != nullptr)
    s.faults = faults;

  draft.dir = UniqueFd(::open(s.dir.c_str(),
                              O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!draft.dir)
    return Refuse(Exit::kBlocked,
                  core::Error::System(errno, "open " + Printable(s.dir))
                      .ToString());
  {
    Result<UniqueFd> lock = registry.Lock();
    if (!lock)
      return Refuse(Exit::kBlocked, lock.error().ToString());
    if (Status free = registry.CheckFree(s.dir, s.target); !free)
      return Refuse(Exit::kBlocked, free.error().ToString());
    Result<std::string> id = registry.NewId();
    if (!id)
      return Refuse(Exit::kBlocked, id.error().ToString());
    s.id = *id;
    s.state_dir = request.state_parent + "/" + s.id;
    Result<UniqueFd> alive =
        registry.Add({s.id, s.dir, s.target, s.state_dir, ::getpid()});
    if (!alive)
      return Refuse(Exit::kBlocked, alive.error().ToString());
    draft.registered = true;
    draft.alive = std::move(*alive);
  }

  if (Status made = MakeState(draft, sys.get()); !made)
    return Refuse(Exit::kBlocked,
                  "the state directory cannot be used: " +
                      made.error().ToString() +
                      ". Name another one with --state-dir=PATH.");
  if (Status looked = LookAtSource(draft, ops.get()); !looked)
    return Refuse(Exit::kBlocked, looked.error().ToString());
  Result<mount::MountFd> source = ops->CloneTree(draft.dir.Get(), "");
  if (!source)
    return Refuse(Exit::kBlocked, "a private view of " + Printable(s.dir) +
                                      ": " + source.error().ToString());
  draft.source = std::move(*source);

  if (Status asked = AskTarget(draft); !asked)
    return Refuse(Exit::kBlocked, asked.error().ToString());
  if (Status made = MakeOverlay(draft, ops.get()); !made)
    return Refuse(Exit::kBlocked,
                  "the overlay cannot be made: " + made.error().ToString());

  Result<Child> supervisor =
      Spawn({"supervisor",
             &s,
             "",
             {{fd_name::kAlive, draft.alive.Get()},
              {fd_name::kDir, draft.dir.Get()},
              {fd_name::kFuse, draft.fuse.Get()},
              {fd_name::kSource, draft.source.Get()},
              {fd_name::kTarget, draft.target.Get()},
              {fd_name::kTargetRoot, draft.target_root.Get()},
              {fd_name::kOverlay, draft.overlay.Get()},
              {fd_name::kSavedInit, draft.saved_init.Get()},
              {fd_name::kIntents, draft.intents.Get()},
              {fd_name::kHeartbeat, draft.heartbeat.Get()}}},
            true);
  if (!supervisor)
    return Refuse(Exit::kBlocked, supervisor.error().ToString());
  // From here on entry and state directory are the supervisor's.
  draft.registered = draft.has_state_dir = false;
  return Launched{s, std::move(*supervisor)};
}

}  // namespace livemv::daemon
