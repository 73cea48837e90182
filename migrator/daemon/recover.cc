#include "migrator/daemon/recover.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <ranges>

#include "core/as_owner.h"
#include "core/fault_points.h"
#include "core/state/journal_writer.h"
#include "core/syscalls.h"
#include "migrator/cutover/put_on.h"
#include "migrator/cutover/scan.h"
#include "migrator/daemon/boot.h"
#include "migrator/daemon/covers.h"
#include "migrator/daemon/guard.h"
#include "migrator/daemon/heartbeat.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/phase_keeper.h"
#include "migrator/daemon/private_dir.h"
#include "migrator/daemon/small_files.h"
#include "migrator/daemon/source_check.h"
#include "migrator/daemon/state_dir.h"
#include "migrator/mount/mount_ops.h"
#include "migrator/mount/target_mount.h"
#include "migrator/proc/process_snapshot.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;
using nlohmann::json;
using state::MigrationState;

namespace {

// Of known objects, tried until one is found to be there.
constexpr int kMostTried = 1000;

std::unexpected<Refusal> Refuse(Exit exit, std::string message) {
  return std::unexpected(Refusal{exit, std::move(message)});
}

// Result<T> or Status into the refusal that ends the recovery.
#define REFUSE_UNLESS(result, exit, prefix)                             \
  do {                                                                  \
    if (auto& livemv_r = (result); !livemv_r)                           \
      return Refuse((exit), std::string(prefix) + livemv_r.error().ToString());    \
  } while (0)

class Recovery {
 public:
  Recovery(Registry& registry, const RecoverRequest& request)
      : registry_(registry),
        request_(request),
        draft_(&registry),
        sys_(core::MakeRealSyscalls()),
        ops_(mount::MakeRealMountOps()) {}

  std::expected<Recovered, Refusal> Run() {
    std::expected<Recovered, Refusal> done = Bring();
    if (!done && guarded_)
      done.error().message +=
          "\n" + Printable(draft_.settings.dir) +
          " was bare, and has been covered by an empty read-only mount, so "
          "that nobody changes the source until it is back. To take that off: "
          "umount " + ShellQuoted(draft_.settings.dir);
    return done;
  }

 private:
  std::expected<Recovered, Refusal> Bring() {
    if (auto read = ReadJournal(); !read)
      return std::unexpected(std::move(read).error());
    if (auto registered = Register(); !registered)
      return std::unexpected(std::move(registered).error());
    out_.settings = draft_.settings;
    const MigrationState phase = state_.phase.state == MigrationState::kStuck
                                     ? state_.phase.before_stuck
                                     : state_.phase.state;
    out_.state = state::StateName(phase);
    switch (phase) {
      case MigrationState::kPlanned:
      case MigrationState::kAttaching:
        return BackToSource(true);
      case MigrationState::kAborted:
        return BackToSource(false);
      case MigrationState::kAborting:
        return state_.options.contains(kSourceTruthOption)
                   ? BackToSource(false)
                   : GoOn();
      case MigrationState::kFinished:
        return Moved();
      default:
        return state_.target_is_truth ? Moved() : GoOn();
    }
  }

  using Step = std::expected<void, Refusal>;

  // --- what the journal says

  Step ReadJournal() {
    const std::string& dir = request_.state_dir;
    struct stat st{};
    if (::stat(dir.c_str(), &st) != 0)
      return Refuse(Exit::kHuman, "the state directory " + Printable(dir) +
                                      " cannot be reached: " +
                                      core::ErrnoName(errno) +
                                      ". Mount what it is on; nothing was "
                                      "changed");
    Result<UniqueFd> lock = LockState(dir);
    if (!lock && lock.error().code == ErrorCode::kConflict)
      return Refuse(Exit::kBlocked,
                    "a process of the migration in " + Printable(dir) +
                        " lives" + WhoLives() + ". Nothing was changed");
    REFUSE_UNLESS(lock, Exit::kHuman, "");
    draft_.state_lock = std::move(*lock);
    Result<Boot> boot = ThisBoot(BootFromEnvironment());
    REFUSE_UNLESS(boot, Exit::kBlocked, "");
    boot_ = *boot;
    Result<UniqueFd> dirfd =
        sys_->OpenAt(AT_FDCWD, dir.c_str(), O_RDONLY | O_DIRECTORY);
    REFUSE_UNLESS(dirfd, Exit::kHuman, Printable(dir) + ": ");
    state::JournalOptions options;
    options.boot_id = boot_.id;
    // Makes it durable too, before anything is done by it.
    Result<state::JournalFile::Opened> opened = state::JournalFile::Open(
        sys_.get(), dirfd->Get(), "journal", options);
    if (!opened)
      return Refuse(Exit::kHuman, "the journal in " + Printable(dir) + ": " +
                                      opened.error().ToString() + "\n" +
                                      WithoutJournal());
    state_ = std::move(opened->state);
    journal_ = std::move(opened->journal);
    Result<Settings> settings = SettingsOf(state_);
    if (!settings)
      return Refuse(Exit::kHuman, "the journal in " + Printable(dir) + ": " +
                                      settings.error().ToString() + "\n" +
                                      WithoutJournal());
    draft_.settings = std::move(*settings);
    Settings& s = draft_.settings;
    s.state_dir = dir;
    s.registry = registry_.root();
    s.overlay_dev = 0;
    const char* faults = std::getenv("LIVEMV_FAULTS");
    s.faults = faults != nullptr ? faults : "";
    s.boot = BootFromEnvironment();
    return ReadSupervisorFile();
  }

  // What the operator has said since the start. The journal has the rest, and
  // the two must be of one migration.
  Step ReadSupervisorFile() {
    Result<std::string> text =
        ReadSmallFile(request_.state_dir + "/supervisor.json");
    json j = text ? json::parse(*text, nullptr, false) : json();
    if (!j.is_object()) {
      Warn("supervisor.json cannot be read, so the move waits for 'livemv "
           "cutover " + draft_.settings.id + "'");
      return {};
    }
    Result<Settings> theirs =
        SettingsFromJson(j.value("settings", json::object()).dump());
    if (!theirs || theirs->id != draft_.settings.id ||
        theirs->dir != draft_.settings.dir ||
        theirs->target != draft_.settings.target)
      return Refuse(Exit::kHuman,
                    "supervisor.json and journal in " +
                        Printable(request_.state_dir) +
                        " are not of the same migration. Nothing was changed. "
                        "The journal is of " + draft_.settings.id + " (" +
                        Printable(draft_.settings.dir) + " -> " +
                        Printable(draft_.settings.target) +
                        "); if that is right, move supervisor.json away and "
                        "try again");
    auto_cutover_ = j.value("cutover", "") == "auto";
    return {};
  }

  std::string WhoLives() {
    const std::string& dir = request_.state_dir;
    Result<std::string> text = ReadSmallFile(dir + "/supervisor.json");
    json j = text ? json::parse(*text, nullptr, false) : json();
    if (!j.is_object())
      return "";
    return " (its supervisor was pid " +
           std::to_string(j.value("supervisor_pid", 0)) + ", its worker pid " +
           std::to_string(j.value("worker_pid", 0)) + ")";
  }

  // With a journal that cannot be used the rest is a human's.
  std::string WithoutJournal() {
    const std::string& dir = request_.state_dir;
    Result<Settings> s = NotedSettings(dir);
    const std::string id = dir.substr(dir.rfind('/') + 1);
    const std::string source = s ? Printable(s->dir) : "DIR";
    const std::string target = s ? Printable(s->target) : "TARGET";
    return "Nothing was changed, and nothing is guessed. If there is a copy of "
           "the journal as it was at the crash, put it there and try again. "
           "Otherwise the two trees are to be merged by hand: beneath what "
           "covers " + source + ", the source has each file whole as far as it "
           "reached when the move began, with all later changes to that part; "
           "files that are empty there and have the attribute trusted.livemv "
           "were made since. " + target + " has what was appended since, and "
           "the files made since, under their names or in .livemv-" + id +
           "/o. 'livemv journal dump " + id + "' prints what can be read of "
           "the journal. When that is done: umount " + source + "; rm -r " +
           ShellQuoted(dir) + " /etc/systemd/system/livemv-guard-" + id +
           ".service";
  }

  Step Register() {
    const Settings& s = draft_.settings;
    Result<UniqueFd> lock = registry_.Lock();
    REFUSE_UNLESS(lock, Exit::kBlocked, "");
    Result<Registration> old = registry_.Find(s.id);
    if (old && old->id == s.id && old->alive)
      return Refuse(Exit::kBlocked,
                    "migration " + s.id + " is live (supervisor " +
                        std::to_string(old->supervisor_pid) + ")");
    if (old && old->id == s.id)
      registry_.Remove(s.id);
    Status free = registry_.CheckFree(s.dir, s.target);
    REFUSE_UNLESS(free, Exit::kBlocked, "");
    Result<UniqueFd> alive =
        registry_.Add({s.id, s.dir, s.target, s.state_dir, ::getpid()});
    REFUSE_UNLESS(alive, Exit::kBlocked, "");
    draft_.registered = true;
    draft_.alive = std::move(*alive);
    return {};
  }

  // --- the source

  // What covers DIR; the target's mounts among it if the target is known.
  Result<std::vector<Cover>> Covers() {
    ASSIGN_OR_RETURN(mount::MountTable table, ops_->TableOf(0));
    return FindCovers(table, draft_.settings, target_dev_);
  }

  // What is looked through must not change meanwhile, nor after a refusal. With
  // nothing on it DIR gets what the guard of the boot would have put there.
  Step CoverBare() {
    const Settings& s = draft_.settings;
    Result<std::vector<Cover>> covers = Covers();
    // Something else is there, which is told when all is known.
    if (!covers || !covers->empty())
      return {};
    UniqueFd dir(::open(s.dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    Result<core::FileHandle> handle =
        dir ? sys_->NameToHandle(dir.Get(), "")
            : Result<core::FileHandle>(FailSys(errno, "open"));
    if (!handle || *handle != state_.migration->source_root)
      return {};
    Status on = mount::CoverEmpty(s.dir, kGuardSource);
    REFUSE_UNLESS(on, Exit::kHuman, "");
    guarded_ = true;
    return {};
  }

  // draft_.dir and draft_.source, below whatever covers DIR.
  Status OpenSource(size_t covers) {
    const Settings& s = draft_.settings;
    const core::FileHandle& root = state_.migration->source_root;
    if (covers == 0) {
      draft_.dir =
          UniqueFd(::open(s.dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
      if (!draft_.dir)
        return FailSys(errno, "open " + Printable(s.dir));
    } else if (!s.dir_is_mount) {
      // By number, since each walk to it ends on what covers it.
      const size_t slash = s.dir.rfind('/');
      const std::string parent = slash == 0 ? "/" : s.dir.substr(0, slash);
      ASSIGN_OR_RETURN(UniqueFd on, sys_->OpenAt(AT_FDCWD, parent.c_str(),
                                                 O_RDONLY | O_DIRECTORY));
      Result<UniqueFd> found =
          sys_->OpenByHandle(on.Get(), root, O_PATH | O_DIRECTORY);
      if (!found)
        return Fail(std::move(found).error().With(
            "the directory that was " + Printable(s.dir) + " on " +
            Printable(s.source_device)));
      draft_.dir = std::move(*found);
      char link[PATH_MAX + 1] = "";
      const ssize_t n = ::readlink(
          ("/proc/self/fd/" + std::to_string(draft_.dir.Get())).c_str(), link,
          PATH_MAX);
      if (n < 0 || std::string(link, static_cast<size_t>(n)) != s.dir)
        return Fail(ErrorCode::kConflict,
                    "the directory that was " + Printable(s.dir) +
                        " is " + Printable(link) + " now");
    } else {
      ASSIGN_OR_RETURN(mount::MountFd base, mount::CloneCovered(s.dir, covers));
      draft_.dir = UniqueFd(base.Release());
    }
    ASSIGN_OR_RETURN(core::FileHandle handle,
                     sys_->NameToHandle(draft_.dir.Get(), ""));
    if (handle != root)
      return Fail(ErrorCode::kConflict,
                  Printable(s.dir) + " is another directory than it was");
    if (covers != 0 && s.dir_is_mount) {
      ASSIGN_OR_RETURN(draft_.source, mount::CloneCovered(s.dir, covers));
    } else {
      ASSIGN_OR_RETURN(draft_.source, ops_->CloneTree(draft_.dir.Get(), ""));
    }
    ASSIGN_OR_RETURN(source_root_,
                     sys_->OpenAt(draft_.source.Get(), ".",
                                  O_RDONLY | O_DIRECTORY));
    return SameSource();
  }

  // The handle of a filesystem's root is the same in all of one type, and
  // f_fsid of some the number of the device, which another may have now.
  Status SameSource() {
    int tried = 0;
    for (const auto& [id, file] : state_.files) {
      if ((!file.map && !file.bound) || id == state::kRootId ||
          state_.dead.contains(id) || (id & state::kTargetBit) != 0)
        continue;
      auto node = state_.nodes.find(id);
      if (node == state_.nodes.end() && (id & state::kTableBit) != 0)
        continue;
      if (tried++ == kMostTried)
        break;
      if (sys_->OpenByHandle(
              source_root_.Get(),
              node != state_.nodes.end() ? node->second : PackedHandle(id),
              O_PATH))
        return {};
    }
    const Settings& s = draft_.settings;
    if (tried > 0)
      return Fail(ErrorCode::kConflict,
                  "on " + Printable(s.dir) +
                      " there is another filesystem than there was: none of "
                      "the files that the journal knows is on it. It was " +
                      Printable(s.source_device) + "; mount that there and try "
                      "again");
    struct statfs fs{};
    if (::fstatfs(source_root_.Get(), &fs) != 0)
      return FailSys(errno, "statfs of the source");
    if (FsidOf(fs) == s.source_fsid)
      return {};
    return Fail(ErrorCode::kConflict,
                "on " + Printable(s.dir) +
                    " there is another filesystem than there was, by its "
                    "number, and the journal knows no file to tell by. It was " +
                    Printable(s.source_device) + "; mount that there and try "
                    "again");
  }

  // Nobody is on the bare source, and nobody has changed it.
  Step Untouched(const std::vector<Cover>& covers) {
    const bool dead_overlay =
        std::ranges::any_of(covers, [](const Cover& cover) {
          return cover.kind == Cover::Kind::kOverlay;
        });
    std::unique_ptr<cutover::ProcessScanner> scanner =
        cutover::MakeRealProcessScanner();
    cutover::Deps deps;
    deps.scanner = scanner.get();
    Result<std::vector<cutover::Straggler>> users =
        [&]() -> Result<std::vector<cutover::Straggler>> {
      ASSIGN_OR_RETURN(proc::TreeRef tree,
                       proc::MakeTreeRef(draft_.dir.Get(),
                                         draft_.settings.dir));
      return cutover::WhoUses(deps, tree, {::getpid()}, source_root_.Get());
    }();
    REFUSE_UNLESS(users, Exit::kHuman, "who uses the source: ");
    if (!users->empty())
      return Refuse(Exit::kHuman,
                    "the bare source is in use: " + cutover::NamesOf(*users) +
                        ". End these processes and try again; nothing was "
                        "changed");
    std::optional<int64_t> since = LastOwnChangeNs(state_, boot_, dead_overlay);
    if (!since)
      return Refuse(Exit::kHuman, "the journal does not say when a worker was "
                                  "last alive\n" + WithoutJournal());
    Result<ForeignChanges> found =
        FindForeignChanges(sys_.get(), source_root_.Get(), *since, state_,
                           request_.accept_changes);
    REFUSE_UNLESS(found, Exit::kHuman, "look through the source: ");
    changes_ = std::move(*found);
    if (changes_.count == 0)
      return {};
    if (request_.accept_changes)
      return NothingWasCut();
    const Settings& s = draft_.settings;
    std::string text = "the source was changed while livemv was not there, in " +
                       std::to_string(changes_.count) +
                       " places; nothing was changed now:";
    for (const ForeignChange& change : changes_.list)
      text += "\n  " + Printable(change.path) + ": " + change.what;
    if (changes_.count > changes_.list.size())
      text += "\n  and " +
              std::to_string(changes_.count - changes_.list.size()) + " more";
    text += "\nIf these are to stay, 'livemv recover " + s.id +
            " --accept-changes' compares all of them with the target again; "
            "bytes that the target alone counts for are not taken from the "
            "source even then: save those first.";
    return Refuse(Exit::kHuman, text);
  }

  Step NothingWasCut() {
    std::string text;
    for (const ForeignChange& change : changes_.list)
      if (change.cut)
        text += "\n  " + Printable(change.path) + ": " + change.what;
    if (text.empty())
      return {};
    return Refuse(Exit::kHuman,
                  "files that others have cut cannot be accepted as they are; "
                  "nothing was changed now:" + text +
                      "\nGive each its former size again (truncate -s BYTES), "
                      "try again, and cut it when it is back.");
  }

  // --- the target

  Step MountTarget() {
    const Settings& s = draft_.settings;
    const bool nfs = mount::IsNfsName(s.target);
    const std::string scratch =
        registry_.root() + "/.scratch-" + std::to_string(::getpid());
    Result<mount::TargetMount> mounted =
        [&]() -> Result<mount::TargetMount> {
      if (nfs)
        TRY(MakeDirectories(scratch, 0700));
      return ops_->MountTarget(s.target, nfs ? s.mount_options : "", scratch,
                               request_.mount_timeout_ns);
    }();
    if (nfs)
      ::rmdir(scratch.c_str());
    const std::string covered = Printable(s.dir) + " stays as it is. ";
    if (!mounted)
      return Refuse(Exit::kUnreachable,
                    "the target cannot be mounted: " +
                        mounted.error().ToString() + ". " + covered +
                        "Try again when it is there: livemv recover " + s.id);
    draft_.target = std::move(mounted->mount);
    Result<UniqueFd> root =
        core::MakeAsOwner(sys_.get(), draft_.target.Get(), nullptr)
            ->OpenAt(draft_.target.Get(), ".", O_RDONLY | O_DIRECTORY, 0);
    REFUSE_UNLESS(root, Exit::kUnreachable, "the target: ");
    draft_.target_root = std::move(*root);
    struct stat st{};
    if (::fstat(draft_.target_root.Get(), &st) != 0)
      return Refuse(Exit::kUnreachable,
                    FailSys(errno, "stat of the target").error().ToString());
    target_dev_ = st.st_dev;
    if (!SameTarget())
      return Refuse(Exit::kUnreachable,
                    "what is at " + Printable(s.target) +
                        " is not the target that it was: it is another directory, or "
                        "there is no .livemv-" + s.id + " and no file that the "
                        "journal knows. " + covered + "A copy of the target "
                        "cannot stand in for it. Mount the right one and try "
                        "again: livemv recover " + s.id);
    return {};
  }

  // The same directory, by its handle where the journal has that, which says
  // little for the root of a filesystem; and the directory of this ID, or an
  // object that only it can have.
  bool SameTarget() {
    const int root = draft_.target_root.Get();
    if (auto noted = state_.options.find(kTargetRootOption);
        noted != state_.options.end()) {
      Result<core::FileHandle> handle = sys_->NameToHandle(root, "");
      if (!handle || HandleText(*handle) != noted->second)
        return false;
    }
    const std::string own = ".livemv-" + draft_.settings.id;
    if (sys_->StatAt(root, own.c_str(), STATX_TYPE))
      return true;
    struct statfs fs{};
    const bool same_fsid = ::fstatfs(root, &fs) == 0 && FsidOf(fs) != 0 &&
                           FsidOf(fs) == draft_.settings.target_fsid;
    int tried = 0;
    for (const auto& [id, file] : state_.files) {
      if (!file.bound || id == state::kRootId || state_.dead.contains(id))
        continue;
      if (tried++ == kMostTried)
        break;
      if (sys_->OpenByHandle(root, file.bound->handle, O_PATH))
        return true;
    }
    return tried == 0 && same_fsid;
  }

  // --- the ends

  // Nothing is the target's: DIR shows the source.
  std::expected<Recovered, Refusal> BackToSource(bool private_is_empty) {
    const Settings& s = draft_.settings;
    Result<std::vector<Cover>> covers = Covers();
    REFUSE_UNLESS(covers, Exit::kHuman, "");
    std::string left;
    if (private_is_empty) {
      // Nothing was put into it before the redirect.
      if (auto mounted = MountTarget(); !mounted)
        left = " On " + Printable(s.target) + " the directory .livemv-" + s.id +
               " may be left; it is empty.";
      else if (Status removed = RemovePrivate(); !removed)
        left = " " + removed.error().ToString() + ".";
    }
    for (auto top = covers->rbegin(); top != covers->rend(); ++top) {
      Status off = ops_->DetachTop({nullptr, s.dir}, top->dev);
      REFUSE_UNLESS(off, Exit::kHuman, "");
    }
    journal_.reset();
    Status forgotten = ForgetState(s);
    REFUSE_UNLESS(forgotten, Exit::kHuman, "");
    out_.exit = private_is_empty ? Exit::kRolledBack : Exit::kDone;
    out_.message = private_is_empty
                       ? Printable(s.dir) + " is as it was before the start; "
                             "nothing had been moved." + left
                       : "aborted; " + Printable(s.dir) +
                             " is the source again. The incomplete copy was "
                             "left on " + Printable(s.target) + ".";
    return std::move(out_);
  }

  // f(PrivateDir&), whose calls act as whoever may there.
  auto WithPrivate(auto f) {
    const int root = draft_.target_root.Get();
    std::unique_ptr<core::Syscalls> as_owner =
        core::MakeAsOwner(sys_.get(), root, nullptr);
    PrivateDir dir(as_owner.get(), root, sys_.get(), source_root_.Get(), state_,
                   draft_.settings.id);
    return f(dir);
  }

  Status RemovePrivate() {
    return WithPrivate([](PrivateDir& dir) { return dir.Remove(); });
  }

  // The target is the truth, and has all of it in its place.
  Step NothingStranded() {
    Result<std::vector<StrandedObject>> found =
        WithPrivate([](PrivateDir& dir) { return dir.Stranded(); });
    REFUSE_UNLESS(found, Exit::kHuman, "the private directory on the target: ");
    if (found->empty())
      return {};
    const Settings& s = draft_.settings;
    std::string text =
        "the target has lost the names of " + std::to_string(found->size()) +
        " objects in the crash; what they hold may be nowhere else. Nothing "
        "was changed. On " + Printable(s.target) + ":";
    for (const StrandedObject& object : *found | std::views::take(kMostListed))
      text += "\n  " + Printable(object.path) +
              (object.source.empty() ? ": name not known"
                                     : ": " + Printable(object.source));
    if (found->size() > kMostListed)
      text += "\n  and others";
    text += "\nThe names are those of the source when it was left. Move each "
            "to its place on the target (mv -n; directories first), or away "
            "from there if it is not wanted, and try again: livemv recover " +
            s.id;
    return Refuse(Exit::kHuman, text);
  }

  // What covers it, that it is the one, and as it was left.
  Step LookAtSource(std::vector<Cover>* covers) {
    Result<std::vector<Cover>> found = Covers();
    REFUSE_UNLESS(found, Exit::kHuman, "");
    *covers = std::move(*found);
    Status opened = OpenSource(covers->size());
    REFUSE_UNLESS(opened, Exit::kHuman, "");
    return Untouched(*covers);
  }

  // The target is the truth: it alone belongs on DIR.
  std::expected<Recovered, Refusal> Moved() {
    const Settings& s = draft_.settings;
    if (auto mounted = MountTarget(); !mounted)
      return std::unexpected(std::move(mounted).error());
    // Not before: the target itself may be what is on DIR.
    if (auto covered = CoverBare(); !covered)
      return std::unexpected(std::move(covered).error());
    std::vector<Cover> covers;
    if (auto looked = LookAtSource(&covers); !looked)
      return std::unexpected(std::move(looked).error());
    if (auto complete = NothingStranded(); !complete)
      return std::unexpected(std::move(complete).error());
    Status shown = ShowTarget(covers);
    REFUSE_UNLESS(shown, Exit::kHuman, "");
    if (Status removed = RemovePrivate(); !removed)
      Warn("left on the target: " + removed.error().ToString());
    Status done = [&]() -> Status {
      if (state_.phase.state != MigrationState::kMoved) {
        TRY(journal_->Append(state::PhaseFact{
            static_cast<uint8_t>(MigrationState::kMoved), "recovered"}));
        TRY(journal_->SyncAll());
      }
      ASSIGN_OR_RETURN(draft_.heartbeat,
                       MakeMemFd("livemv-heartbeat", Heartbeat::kBytes));
      return {};
    }();
    REFUSE_UNLESS(done, Exit::kHuman, Printable(s.dir) +
                                          " shows the target, but: ");
    return Spawn("moved");
  }

  Status ShowTarget(const std::vector<Cover>& covers) {
    const mount::MountPoint at{nullptr, draft_.settings.dir};
    std::vector<Cover> left = covers;
    // Beneath the guard it may be already, by fstab or by the cutover.
    const bool there = std::any_of(left.begin(), left.end(), [](const Cover& c) {
      return c.kind == Cover::Kind::kTarget;
    });
    const bool beneath = !there && left.size() == 1 && ops_->HasBeneath();
    if (beneath)
      TRY(ops_->SlideBeneath(draft_.target, at));
    while (!left.empty() && left.back().kind != Cover::Kind::kTarget) {
      TRY(ops_->DetachTop(at, left.back().dev));
      left.pop_back();
    }
    return there || beneath ? Status() : ops_->AttachAt(draft_.target, at);
  }

  // Source and target together are: the overlay comes back.
  std::expected<Recovered, Refusal> GoOn() {
    if (auto covered = CoverBare(); !covered)
      return std::unexpected(std::move(covered).error());
    if (auto mounted = MountTarget(); !mounted)
      return std::unexpected(std::move(mounted).error());
    std::vector<Cover> covers;
    if (auto looked = LookAtSource(&covers); !looked)
      return std::unexpected(std::move(looked).error());
    Status accepted = Accept();
    REFUSE_UNLESS(accepted, Exit::kHuman, "the journal: ");
    Status made = draft_.MakeOverlay(ops_.get());
    REFUSE_UNLESS(made, Exit::kHuman, "the overlay: ");
    return Spawn(out_.state);
  }

  Status Accept() {
    if (changes_.list.empty())
      return {};
    ASSIGN_OR_RETURN(std::vector<state::Fact> facts,
                     FactsOfAcceptance(changes_, state_, journal_.get()));
    for (const state::Fact& fact : facts)
      TRY(journal_->Append(fact));
    return journal_->SyncAll();
  }

  std::expected<Recovered, Refusal> Spawn(const std::string& state) {
    // The worker is its appender from here on.
    journal_.reset();
    Status passed = core::FaultPoint("recover.spawn");
    REFUSE_UNLESS(passed, Exit::kHuman, "");
    Result<Child> supervisor =
        draft_.SpawnSupervisor(json({{"state", state},
                                     {"auto_cutover", auto_cutover_},
                                     {"starter", ::getpid()}})
                                   .dump());
    REFUSE_UNLESS(supervisor, Exit::kHuman, "");
    out_.settings = draft_.settings;
    out_.supervisor = std::move(*supervisor);
    return std::move(out_);
  }

  void Warn(const std::string& text) {
    out_.message += (out_.message.empty() ? "" : "\n") + text;
  }

  Registry& registry_;
  const RecoverRequest& request_;
  Draft draft_;
  std::unique_ptr<core::Syscalls> sys_;
  std::unique_ptr<mount::MountOps> ops_;
  Boot boot_;
  state::RecoveredState state_;
  std::unique_ptr<state::JournalFile> journal_;
  UniqueFd source_root_;
  dev_t target_dev_ = 0;
  bool guarded_ = false;  // by CoverBare
  ForeignChanges changes_;
  bool auto_cutover_ = false;
  Recovered out_;
};

}  // namespace

std::expected<Recovered, Refusal> Recover(Registry& registry,
                                          const RecoverRequest& request) {
  return Recovery(registry, request).Run();
}

}  // namespace livemv::daemon
