#include "migrator/daemon/preflight_nfs.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "migrator/daemon/paths.h"

namespace livemv::daemon {
namespace {

using Option = std::pair<std::string_view, std::string_view>;  // name, value

std::vector<Option> Split(std::string_view options) {
  std::vector<Option> list;
  while (!options.empty()) {
    const std::string_view one = options.substr(0, options.find(','));
    const size_t sign = one.find('=');
    if (!one.empty())
      list.emplace_back(one.substr(0, sign),
                        sign == one.npos ? "" : one.substr(sign + 1));
    options.remove_prefix(std::min(one.size() + 1, options.size()));
  }
  return list;
}

std::optional<std::string_view> Find(const std::vector<Option>& options,
                                     std::string_view name) {
  for (const Option& option : options) {
    if (option.first == name)
      return option.second;
  }
  return std::nullopt;
}

// Shown as they were given if they are in effect at all.
bool IsShownAsGiven(std::string_view name) {
  for (std::string_view known :
       {"nconnect", "timeo", "retrans", "rsize", "wsize", "proto", "sec", "hard",
        "soft", "softerr", "sync", "noac", "nocto", "acregmin", "acregmax",
        "acdirmin", "acdirmax", "nosharecache", "softreval"}) {
    if (name == known)
      return true;
  }
  return false;
}

}  // namespace

void CheckSoft(const std::string& options, const core::Losses& accepted,
               Findings* findings) {
  const std::vector<Option> effective = Split(options);
  if (!Find(effective, "soft") && !Find(effective, "softerr"))
    return;
  const std::string what =
      "TARGET is a soft mount: when the server is away for long, writes that "
      "were acknowledged are lost";
  if (accepted.soft)
    findings->Warn("target-soft", what + "; this is accepted", "");
  else
    findings->Block("target-soft", what,
                    "mount it hard, or accept the loss: --allow-loss=soft");
}

void CheckEffective(const std::string& asked, const std::string& options,
                    Findings* findings) {
  const std::vector<Option> effective = Split(options);
  std::string differ;
  bool only_sizes = true;
  for (const auto& [name, value] : Split(asked)) {
    if (!IsShownAsGiven(name))
      continue;
    const auto is = Find(effective, name);
    if (is && *is == value)
      continue;
    differ += (differ.empty() ? "" : ", ") + std::string(name);
    if (!value.empty())
      differ += "=" + std::string(value);
    if (is)
      differ += " (it is " + std::string(*is) + ")";
    only_sizes = only_sizes && is && (name == "rsize" || name == "wsize");
  }
  if (differ.empty())
    return;
  const std::string what =
      "of the mount options asked for, not in effect: " + Printable(differ);
  // A server says how much it takes at once.
  if (only_sizes)
    findings->Note("target-options", what + "; the server has a say in them");
  else
    findings->Warn("target-options", what,
                   "another mount of this server may decide them (findmnt -t "
                   "nfs,nfs4): unmount it first, or leave the options out");
}

namespace {

// What is locked of one file, by the first that has it so.
struct FileLocks {
  std::string path;
  pid_t flock = 0, range = 0;  // 0: nobody
  bool write = false;
};

void BlockUnfit(const proc::Holder& holder, const proc::Descriptor& fd,
                bool write, Findings* findings) {
  findings->Block(
      "holder-flock",
      "process " + std::to_string(holder.pid) + " (" + Printable(holder.comm) +
          ") has " + Quote(fd.at.path) + " locked for " +
          (write ? "writing (flock) and open for reading"
                 : "reading (flock) and open for writing") +
          " only, which NFS 4 does not allow",
      "let the process go of the lock, or mount the export with "
      "local_lock=flock if no other host locks its files");
}

}  // namespace

void CheckLocks(const std::vector<PlannedHolder>& holders,
                const std::string& options, Findings* findings) {
  const std::vector<Option> effective = Split(options);
  const std::string_view version = Find(effective, "vers").value_or("");
  const std::string_view local = Find(effective, "local_lock").value_or("none");
  const bool asks_for_flocks = local != "all" && local != "flock";
  const bool asks_for_ranges = local != "all" && local != "posix";
  std::map<std::pair<dev_t, uint64_t>, FileLocks> files;
  size_t in_the_pause = 0;
  for (const PlannedHolder& planned : holders)
    for (const proc::Task& task : planned.holder.tasks)
      for (const proc::Descriptor& fd : task.fds)
        for (const proc::LockLine& lock : fd.locks) {
          const bool flock = lock.kind == proc::LockKind::kFlock;
          const bool posix = lock.kind == proc::LockKind::kPosix;
          if (lock.waiting || S_ISDIR(fd.at.mode) ||
              (!flock && !posix && lock.kind != proc::LockKind::kOfd))
            continue;
          const int unfit = lock.write ? O_RDONLY : O_WRONLY;
          if (flock && asks_for_flocks && version.starts_with("4") &&
              (fd.flags & O_ACCMODE) == unfit)
            BlockUnfit(planned.holder, fd, lock.write, findings);
          if (posix && asks_for_ranges)
            in_the_pause++;
          FileLocks& file = files[{fd.at.dev, fd.at.ino}];
          file.path = fd.at.path;
          (flock ? file.flock : file.range) = planned.holder.pid;
          file.write |= lock.write;
        }
  if (in_the_pause != 0)
    findings->Note("posix-locks",
                   std::to_string(in_the_pause) +
                       " POSIX locks are taken at the server while all "
                       "processes stand still");
  if (!asks_for_flocks || !asks_for_ranges)
    return;
  for (const auto& [inode, file] : files)
    if (file.flock != 0 && file.range != 0 && file.write)
      findings->Block(
          "holder-locks-differ",
          Quote(file.path) + " is locked by process " +
              std::to_string(file.flock) + " with flock and by process " +
              std::to_string(file.range) +
              " with fcntl, which do not know of each other here; on NFS they "
              "do, and only one of them could have it",
          "let one of them go of its lock, or mount the export with "
          "local_lock=flock if no other host locks its files");
}

void CheckOtherMounts(const mount::MountTable& mounts, const std::string& name,
                      const std::string& options, dev_t dev,
                      Findings* findings) {
  const auto ours = ParseNfsName(name);
  if (!ours)
    return;
  const auto our_address = Find(Split(options), "addr");
  for (const mount::MountEntry& other : mounts.entries()) {
    const auto theirs = ParseNfsName(other.source);
    if (!other.fs_type.starts_with("nfs") || !theirs || other.dev == dev)
      continue;
    // One server may have many names.
    const std::vector<Option> its = Split(other.super_options);
    const auto its_address = Find(its, "addr");
    if (ours->host != theirs->host &&
        !(our_address && its_address && *our_address == *its_address))
      continue;
    if (!IsInside(ours->path, theirs->path) &&
        !IsInside(theirs->path, ours->path))
      continue;
    findings->Warn("export-mounted",
                   Quote(other.source) + " is mounted on " +
                       Quote(other.point) +
                       " with other options and so with a cache of its own: "
                       "whoever reads there may find old data",
                   "unmount it, or keep others from using it during the move");
  }
}

}  // namespace livemv::daemon
