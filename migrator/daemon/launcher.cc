#include "migrator/daemon/launcher.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>

#include "core/state/journal_writer.h"
#include "core/syscalls.h"
#include "migrator/daemon/advice.h"
#include "migrator/daemon/boot.h"
#include "migrator/daemon/guard.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/small_files.h"
#include "migrator/daemon/state_dir.h"
#include "migrator/mount/mount_ops.h"
#include "migrator/mount/mount_table.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;

namespace {

std::unexpected<Refusal> Refuse(Exit exit, std::string message) {
  return std::unexpected(Refusal{exit, std::move(message)});
}

Status MakeState(Draft& draft, core::Syscalls* sys) {
  const Settings& s = draft.settings;
  TRY(MakeDirectories(s.state_dir.substr(0, s.state_dir.rfind('/')), 0700));
  if (::mkdir(s.state_dir.c_str(), 0700) != 0)
    return FailSys(errno, "mkdir " + Printable(s.state_dir));
  draft.has_state_dir = true;
  ASSIGN_OR_RETURN(draft.state_lock, LockState(s.state_dir));
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
  TRY(journal->Append(state::OptionFact{kSettingsOption, SettingsToJson(s)}));
  TRY(journal->SyncAll());
  return LinkState(s);
}

// Here, where the server has just answered: a worker that is replaced while it
// is away must not wait for it.
Status AskTarget(Draft& draft) {
  struct statfs fs{};
  if (::fstatfs(draft.target_root.Get(), &fs) != 0)
    return FailSys(errno, "statfs of " + Printable(draft.settings.target));
  draft.settings.target_fs_type = fs.f_type;
  draft.settings.target_fsid = FsidOf(fs);
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
  struct statfs fs{};
  if (::fstatfs(draft.dir.Get(), &fs) != 0)
    return FailSys(errno, "statfs of " + Printable(draft.settings.dir));
  draft.settings.source_fsid = FsidOf(fs);
  return {};
}

}  // namespace

std::expected<Launched, Refusal> Launch(Registry& registry,
                                        StartRequest request) {
  std::unique_ptr<core::Syscalls> sys = core::MakeRealSyscalls();
  std::unique_ptr<mount::MountOps> ops = mount::MakeRealMountOps();

  Draft draft(&registry);
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
  s.boot = BootFromEnvironment();

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
    std::set<std::string> running;
    for (const Registration& entry : registry.List())
      running.insert(entry.id);
    if (Status none = CheckInterrupted(
            s.dir, {kDefaultStateParent, request.state_parent}, running);
        !none)
      return Refuse(Exit::kBlocked, none.error().ToString());
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

  if (Status looked = LookAtSource(draft, ops.get()); !looked)
    return Refuse(Exit::kBlocked, looked.error().ToString());
  Result<mount::MountFd> source = ops->CloneTree(draft.dir.Get(), "");
  if (!source)
    return Refuse(Exit::kBlocked, "a private view of " + Printable(s.dir) +
                                      ": " + source.error().ToString());
  draft.source = std::move(*source);

  if (Status asked = AskTarget(draft); !asked)
    return Refuse(Exit::kBlocked, asked.error().ToString());
  if (Status made = draft.MakeOverlay(ops.get()); !made)
    return Refuse(Exit::kBlocked,
                  "the overlay cannot be made: " + made.error().ToString());
  if (Status made = MakeState(draft, sys.get()); !made)
    return Refuse(Exit::kBlocked,
                  "the state directory cannot be used: " +
                      made.error().ToString() +
                      ". Name another one with --state-dir=PATH.");
  // Before the first byte is the target's alone.
  if (request.guarded) {
    Status made = [&]() -> Status {
      ASSIGN_OR_RETURN(std::string program, Normalise("/proc/self/exe"));
      return InstallGuard(s, program);
    }();
    if (!made)
      return Refuse(Exit::kBlocked,
                    "the units that protect " + Printable(s.dir) +
                        " after a reboot cannot be made: " +
                        made.error().ToString());
  }

  Result<Child> supervisor = draft.SpawnSupervisor("");
  if (!supervisor)
    return Refuse(Exit::kBlocked, supervisor.error().ToString());
  return Launched{s, std::move(*supervisor)};
}

}  // namespace livemv::daemon
