#include "migrator/daemon/preflight_doors.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "core/unique_fd.h"
#include "migrator/daemon/paths.h"
#include "migrator/proc/proc_files.h"
#include "migrator/proc/proc_parse.h"

namespace livemv::daemon {
namespace {

// "mnt:[4026531840]" -> 4026531840; 0 for other links.
uint64_t MountNamespaceNumber(std::string_view link) {
  constexpr std::string_view kPrefix = "mnt:[";
  if (!link.starts_with(kPrefix))
    return 0;
  uint64_t number = 0;
  std::from_chars(link.data() + kPrefix.size(), link.data() + link.size(),
                  number);
  return number;
}

struct Pin {
  std::string by;  // "process 4711 (snapd), descriptor 8"
  core::UniqueFd ns;
};

// Namespaces that descriptors or bind mounts keep, and no process is in.
std::map<uint64_t, Pin> FindPins(const mount::MountTable& mounts,
                                 const std::set<uint64_t>& alive,
                                 const std::set<pid_t>& own) {
  std::map<uint64_t, Pin> pins;
  for (const mount::MountEntry& entry : mounts.entries()) {
    if (entry.fs_type != "nsfs")
      continue;
    const uint64_t inode = MountNamespaceNumber(entry.root);
    if (inode == 0 || alive.contains(inode))
      continue;
    pins[inode] = {
        "the bind mount " + Quote(entry.point),
        core::UniqueFd(open(entry.point.c_str(), O_RDONLY | O_CLOEXEC))};
  }
  auto pids = proc::ListNumbers(AT_FDCWD, "/proc");
  for (size_t i = 0; pids && i < pids->size(); ++i) {
    const pid_t pid = (*pids)[i];
    const std::string dir = "/proc/" + std::to_string(pid) + "/fd";
    auto fds = own.contains(pid) ? core::Result<std::vector<int>>()
                                 : proc::ListNumbers(AT_FDCWD, dir.c_str());
    for (size_t j = 0; fds && j < fds->size(); ++j) {
      const std::string path = dir + "/" + std::to_string((*fds)[j]);
      auto link = proc::ReadLink(AT_FDCWD, path.c_str());
      const uint64_t inode = link ? MountNamespaceNumber(*link) : 0;
      if (inode == 0 || alive.contains(inode) || pins.contains(inode))
        continue;
      pins[inode] = {"descriptor " + std::to_string((*fds)[j]) +
                         " of process " + std::to_string(pid),
                     core::UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC))};
    }
  }
  return pins;
}

// The mounts of a namespace that no process is in.
core::Result<mount::MountTable> TableInside(int ns) {
  // Opened before: the namespace may have no /proc.
  core::UniqueFd proc_dir(open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!proc_dir)
    return core::FailSys(errno, "open /proc");
  std::string text;
  core::Status status;
  std::thread([&] {
    // A thread that shares its root with others cannot change namespace.
    if (unshare(CLONE_FS) != 0 || setns(ns, CLONE_NEWNS) != 0)
      status = core::FailSys(errno, "enter mount namespace");
    else
      status = proc::ReadFileAt(proc_dir.Get(), "thread-self/mountinfo", &text);
  }).join();
  TRY(std::move(status));
  return mount::MountTable::Parse(text);
}

// What fstype=overlay mounts are made of: "lowerdir=/a:/b,upperdir=/c".
std::vector<std::string> LayersOf(const mount::MountEntry& entry) {
  std::vector<std::string> layers;
  std::string_view options = entry.super_options;
  while (!options.empty()) {
    const size_t comma = options.find(',');
    std::string_view option = options.substr(0, comma);
    options.remove_prefix(comma == std::string_view::npos ? options.size()
                                                          : comma + 1);
    const size_t equals = option.find('=');
    if (equals == std::string_view::npos)
      continue;
    const std::string_view key = option.substr(0, equals);
    if (!key.starts_with("lowerdir") && key != "upperdir" && key != "workdir")
      continue;
    std::string_view values = option.substr(equals + 1);
    while (!values.empty()) {
      const size_t colon = values.find(':');
      layers.push_back(proc::UnescapeOctal(values.substr(0, colon)));
      values.remove_prefix(colon == std::string_view::npos ? values.size()
                                                           : colon + 1);
    }
  }
  return layers;
}

}  // namespace

void JudgeDoors(const proc::TreeRef& tree, const mount::MountTable& mounts,
                const std::string& where, const std::string& dir,
                Findings* findings) {
  const std::string in = where.empty() ? "" : " in " + where;
  size_t whole = 0;
  for (const mount::Door& door : mounts.DoorsTo(tree.sb_dev, tree.path_in_fs)) {
    if (door.covered)
      continue;
    if (door.kind == mount::Door::Kind::kPart) {
      findings->Block("other-door",
                      "a part of the tree is mounted on " + Quote(door.path) +
                          in + " too: writes there would bypass livemv",
                      "umount " + ShellQuoted(door.path) + in);
      continue;
    }
    if (!dir.empty() && door.path == dir)
      continue;
    ++whole;
    if (!dir.empty() || whole > 1)
      findings->Block("other-door",
                      "the tree can be reached at " + Quote(door.path) + in +
                          " too: writes there would bypass livemv",
                      "unmount what shows it there (findmnt -T " +
                          ShellQuoted(door.path) + ")");
  }
}

void CheckDoors(const Plan& plan, const SourcePlace& source,
                const mount::MountTable& mounts,
                const std::vector<proc::Namespace>& namespaces,
                const std::set<pid_t>& own, Findings* findings) {
  const proc::TreeRef& tree = *plan.tree;
  JudgeDoors(tree, mounts, "", plan.dir, findings);
  auto own_link = proc::ReadLink(AT_FDCWD, "/proc/self/ns/mnt");
  const uint64_t own_ns = own_link ? MountNamespaceNumber(*own_link) : 0;
  std::set<uint64_t> alive = {own_ns};
  for (const proc::Namespace& ns : namespaces) {
    alive.insert(ns.inode);
    if (ns.inode == own_ns)
      continue;
    auto table = mount::MountTable::Of(ns.pid);
    const std::string where =
        "the mount namespace of process " + std::to_string(ns.pid);
    if (!table) {
      if (table.error().code != core::ErrorCode::kGone)
        findings->Warn(
            "namespace-unread",
            where + " could not be read: " + table.error().ToString(),
            "see whether it shows the tree");
      continue;
    }
    JudgeDoors(tree, *table, where, "", findings);
    for (const mount::Door& door :
         table->DoorsTo(tree.sb_dev, tree.path_in_fs)) {
      if (door.covered || door.kind != mount::Door::Kind::kWhole)
        continue;
      const mount::MountEntry* theirs = table->ById(door.mount_id);
      const bool follows = theirs != nullptr && source.mount.shared != 0 &&
                           (theirs->shared == source.mount.shared ||
                            theirs->master == source.mount.shared);
      if (!follows)
        findings->Note("private-namespace",
                       where + " shows the tree at " + Quote(door.path) +
                           " and does not follow our mounts: the overlay and "
                           "the target are mounted there one by one");
    }
  }
  for (auto& [inode, pin] : FindPins(mounts, alive, own)) {
    const std::string where = "the mount namespace kept by " + pin.by;
    auto table = pin.ns ? TableInside(pin.ns.Get())
                        : core::Result<mount::MountTable>(
                              core::FailSys(errno, "open the namespace"));
    if (!table) {
      findings->Warn("namespace-unread",
                     where + " could not be read: " + table.error().ToString(),
                     "see whether it shows the tree");
      continue;
    }
    for (const mount::Door& door :
         table->DoorsTo(tree.sb_dev, tree.path_in_fs)) {
      if (door.covered)
        continue;
      findings->Block("pinned-namespace",
                      where + ", in which no process is, shows the tree at " +
                          Quote(door.path),
                      "let it go: end the process or unmount the bind mount "
                      "that keeps it");
      break;
    }
  }
}

void CheckKernelUsers(const Plan& plan, const mount::MountTable& mounts,
                      Findings* findings) {
  if (auto text = proc::ReadFile("/proc/swaps")) {
    for (const proc::SwapLine& swap : proc::ParseSwaps(*text)) {
      if (swap.is_file && IsInside(swap.path, plan.dir))
        findings->Block("swap", Quote(swap.path) + " is a swap area",
                        "swapoff " + ShellQuoted(swap.path));
    }
  }
  std::unique_ptr<DIR, int (*)(DIR*)> blocks(opendir("/sys/block"), closedir);
  while (blocks != nullptr) {
    const struct dirent* entry = readdir(blocks.get());
    if (entry == nullptr)
      break;
    const std::string name = entry->d_name;
    if (!name.starts_with("loop"))
      continue;
    auto text = proc::ReadFile("/sys/block/" + name + "/loop/backing_file");
    if (!text)
      continue;  // not in use
    auto file = proc::ParseLoopBackingFile(*text);
    if (file && IsInside(*file, plan.dir))
      findings->Block(
          "loop-device", Quote(*file) + " backs the loop device /dev/" + name,
          "losetup -d /dev/" + name + ", after unmounting what is on it");
  }
  std::set<std::string> exported;
  for (const char* list : {"/proc/fs/nfsd/exports", "/var/lib/nfs/etab"}) {
    auto text = proc::ReadFile(list);
    if (!text)
      continue;
    for (const std::string& path : proc::ParseNfsdExports(*text))
      exported.insert(path);
  }
  for (const std::string& path : exported) {
    // A server follows no mounts that come later: clients of a parent's
    // export see the covered directory.
    if (IsInside(path, plan.dir) || IsInside(plan.dir, path))
      findings->Block("exported",
                      Quote(path) +
                          " is exported by this machine's NFS "
                          "server, whose clients would go on "
                          "writing to the source",
                      "exportfs -u the path first");
  }
  for (const mount::MountEntry& entry : mounts.entries()) {
    if (entry.fs_type != "overlay")
      continue;
    for (const std::string& layer : LayersOf(entry)) {
      if (IsInside(layer, plan.dir)) {
        findings->Block("overlay-layer",
                        "the overlay on " + Quote(entry.point) + " has " +
                            Quote(layer) + " as a layer",
                        "stop the container, or unmount the overlay");
        break;
      }
    }
  }
}

void CheckOwnFiles(const PlanRequest& request, const Plan& plan,
                   Findings* findings) {
  auto maps = proc::ReadFile("/proc/self/maps");
  std::set<std::string> told;
  if (maps) {
    for (const proc::MapLine& line : proc::ParseMaps(*maps, 0)) {
      if (line.path.starts_with('/') && IsInside(line.path, plan.dir) &&
          told.insert(line.path).second)
        findings->Block("own-files",
                        "livemv itself needs " + Quote(line.path) +
                            ", which is in the tree",
                        "run a copy of livemv from elsewhere");
    }
  }
  // The nearest part of the path that exists decides where it would be made.
  std::string state = MakeAbsolute(request.state_dir).value_or("/");
  while (true) {
    auto real = Normalise(state);
    if (real) {
      state = *real;
      break;
    }
    const size_t slash = state.rfind('/');
    if (slash == 0 || slash == std::string::npos) {
      state = "/";
      break;
    }
    state.resize(slash);
  }
  if (IsInside(state, plan.dir))
    findings->Block(
        "state-inside",
        "the state directory " + Quote(request.state_dir) + " is in the tree",
        "name another one: --state-dir=PATH");
  struct stat st = {};
  if (plan.tree && stat(state.c_str(), &st) == 0 &&
      st.st_dev == plan.tree->dev && plan.source_volume &&
      plan.source_volume->total_bytes > 0 &&
      plan.source_volume->free_bytes < (64ull << 20))
    findings->Warn("state-on-full-disk",
                   "the state directory " + Quote(request.state_dir) +
                       " is on the source's filesystem, which is nearly full",
                   "name one on another disk: --state-dir=PATH");
}

}  // namespace livemv::daemon
