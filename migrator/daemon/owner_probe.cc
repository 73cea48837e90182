#include "migrator/daemon/owner_probe.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "core/acting.h"
#include "core/unique_fd.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {
namespace {

constexpr char kWayOut[] =
    "export it with no_root_squash, or choose a filesystem with owners";

std::string Name(Owner owner) {
  return std::to_string(owner.uid) + ":" + std::to_string(owner.gid);
}

Owner OwnerOf(const struct stat& st) {
  return {st.st_uid, st.st_gid};
}

// Makes a file that is to be owner's; "" if it is, else what it is instead.
std::string Make(core::Syscalls* sys, int dir, const std::string& name,
                 Owner owner) {
  core::UniqueFd fd;
  int error = 0;
  {
    core::Acting acting(sys, {owner.uid, owner.gid, {}});
    if (!acting.status())
      return acting.status().error().ToString();
    fd = core::UniqueFd(openat(dir, name.c_str(),
                               O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    error = errno;
  }
  if (!fd) {  // a server that takes everybody for one and the same
    fd = core::UniqueFd(openat(dir, name.c_str(),
                               O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd)
      return "refused (" + core::ErrnoName(error) + ")";
  }
  struct stat st = {};
  if (fstat(fd.Get(), &st) == 0 && OwnerOf(st) == owner)
    return "";
  if (fchown(fd.Get(), owner.uid, owner.gid) == 0 &&
      fstat(fd.Get(), &st) == 0 && OwnerOf(st) == owner)
    return "";
  return Name(OwnerOf(st));
}

bool GivesAway(int dir, const std::string& name) {
  core::UniqueFd fd(openat(dir, name.c_str(),
                           O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  struct stat st = {};
  return fd && fchown(fd.Get(), 1, 1) == 0 && fstat(fd.Get(), &st) == 0 &&
         OwnerOf(st) == Owner{1, 1};
}

}  // namespace

void ReportLoss(Findings* findings, bool accepted, const char* loss,
                std::string code, std::string what, std::string way_out) {
  if (accepted)
    findings->Warn(std::move(code), what + "; this loss is accepted", "");
  else
    findings->Block(std::move(code), std::move(what),
                    way_out + ", or accept the loss: --allow-loss=" + loss);
}

core::Identity WhoProbes(int probe_fd, const Survey& survey) {
  struct stat st = {};
  if (fstat(probe_fd, &st) == 0 && st.st_uid == 0)
    return {};
  core::Identity who;
  uint64_t most = 0;
  for (const auto& [owner, part] : survey.owners) {
    if (owner.uid != 0 && part.objects > most) {
      most = part.objects;
      who = {owner.uid, owner.gid, {}};
    }
  }
  return who;
}

bool AsRootOrOwner(core::Syscalls* sys, int fd,
                   const std::function<int()>& call) {
  if (call() == 0)
    return true;
  const int error = errno;
  struct stat st = {};
  if ((error != EACCES && error != EPERM) || fstat(fd, &st) != 0 ||
      st.st_uid == 0) {
    errno = error;
    return false;
  }
  core::Acting acting(sys, {st.st_uid, st.st_gid, {st.st_gid}});
  return acting.status() && call() == 0;
}

bool ProbeOwners(core::Syscalls* sys, int probe_fd, const Survey& survey,
                 const core::Losses& accepted,
                 const std::function<void(const std::string&)>& remove,
                 Findings* findings) {
  remove("given");
  const bool gives = GivesAway(probe_fd, "given");
  uint64_t objects = 0;
  size_t owners = 0;
  std::string first;
  auto check = [&](Owner owner) {
    const std::string name = "owner-" + Name(owner);
    remove(name);
    return Make(sys, probe_fd, name, owner);
  };
  for (const auto& [owner, part] : survey.owners) {
    const std::string instead = check(owner);
    if (instead.empty())
      continue;
    ++owners;
    objects += part.objects;
    if (first.empty())
      first = Name(owner) + " becomes " + instead + ", as at " +
              Quote(part.example);
  }
  if (owners > 0) {
    ReportLoss(findings, accepted.owners, "owner", "target-owners",
               "TARGET does not give files the owners that they have: " +
                   first + " (" + FormatCount(objects) +
                   " objects of the tree, " + std::to_string(owners) +
                   (owners == 1 ? " owner)" : " owners)"),
               kWayOut);
    return gives;
  }
  // What is not there yet: files that root makes while the tree is moved.
  const bool squashes = survey.owners.contains({0, 0})
                            ? false
                            : !check({0, 0}).empty();
  if (squashes && !accepted.owners)
    findings->Warn("target-squashes-root",
                   "TARGET's server takes root for nobody (root_squash): "
                   "objects are written as their owners, and what root makes "
                   "in DIR meanwhile cannot be moved; processes of root lose "
                   "what the mode of a file keeps from others",
                   "export it with no_root_squash if processes of root use "
                   "DIR");
  return gives;
}

void ProbeRoot(core::Syscalls* sys, int target_fd, const Survey& survey,
               const core::Losses& accepted, Findings* findings) {
  struct stat st = {};
  if (fstat(target_fd, &st) != 0)
    return;
  const Owner mine = OwnerOf(st);
  const Owner want = survey.root_owner;
  bool given = mine == want;
  if (!given) {
    given = AsRootOrOwner(sys, target_fd, [&] {
      return fchown(target_fd, want.uid, want.gid);
    });
    if (given)
      AsRootOrOwner(sys, target_fd,
                    [&] { return fchown(target_fd, mine.uid, mine.gid); });
  }
  if (!given)
    ReportLoss(findings, accepted.owners, "owner", "target-root-owner",
               "TARGET's own directory belongs to " + Name(mine) +
                   ", DIR to " + Name(want) + ", and it cannot be given away (" +
                   core::ErrnoName(errno) + ")",
               "chown it on the server to " + Name(want) +
                   ", or export it with no_root_squash");
  const mode_t mode = st.st_mode & 07777;
  if (!AsRootOrOwner(sys, target_fd, [&] { return fchmod(target_fd, mode); }))
    findings->Block("target-root",
                    "TARGET's own directory takes no mode and times from root "
                    "nor its owner (" + core::ErrnoName(errno) +
                        "), and DIR's are to be given to it",
                    "export it with no_root_squash, or chown it on the server "
                    "to " + Name(want));
}

}  // namespace livemv::daemon
