#include "migrator/proc/verdict.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <map>
#include <string_view>
#include <utility>

namespace livemv::proc {
namespace {

// Frozen, these hold up the very calls that the freeze may need: the NFS
// client asks them for credentials and names, and PID 1 reaps and restarts
// everybody (hazard H20).
constexpr std::array<std::string_view, 9> kNeverFrozen = {
    "rpc.gssd", "nfsidmap", "rpc.idmapd", "rpc.statd",  "rpcbind",
    "gssproxy", "sssd",     "sssd_be",    "request-key"};

class Reasons {
 public:
  // Keeps the first three of each code; Take adds the count of the others.
  void Add(std::string_view code, std::string what, std::string_view way_out) {
    int& count = counts_[std::string(code)];
    if (++count <= 3)
      reasons_.push_back(
          {std::string(code), std::move(what), std::string(way_out)});
  }

  std::vector<Reason> Take() {
    for (const auto& [code, count] : counts_) {
      if (count <= 3)
        continue;
      auto last = std::find_if(
          reasons_.rbegin(), reasons_.rend(),
          [&code = code](const Reason& r) { return r.code == code; });
      last->what += " and " + std::to_string(count - 3) + " more";
    }
    return std::move(reasons_);
  }
  bool Empty() const { return reasons_.empty(); }

 private:
  std::vector<Reason> reasons_;
  std::map<std::string, int> counts_;
};

std::string Quoted(const Place& place) {
  return place.path_known ? "\"" + place.path + "\""
                          : "a file with a very long path";
}

const char* KindName(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFIFO:
      return "FIFO";
    case S_IFSOCK:
      return "socket file";
    case S_IFLNK:
      return "symbolic link";
    case S_IFCHR:
    case S_IFBLK:
      return "device node";
    default:
      return "object of unknown kind";
  }
}

// own_table: of a thread that does not share its leader's.
void JudgeDescriptor(const Descriptor& fd, bool own_table, Reasons* block) {
  const std::string it =
      "descriptor " + std::to_string(fd.number) + " (" + Quoted(fd.at) + ")";
  if (!fd.at.path_known)
    block->Add("long-path", it + " cannot be opened again by name",
               "let the process close it");
  if (fd.at.deleted)
    block->Add("deleted", it + " has been deleted or replaced",
               "let the process close it, for example by restarting it");
  if (!S_ISREG(fd.at.mode) && !S_ISDIR(fd.at.mode)) {
    block->Add(S_ISFIFO(fd.at.mode) ? "fifo" : "kind",
               it + " is a " + KindName(fd.at.mode),
               "let the process close it");
  } else if (S_ISDIR(fd.at.mode) && !fd.PathOnly() && fd.pos != 0) {
    block->Add("half-read-directory",
               it + " is a directory read half-way, and the position means "
                    "nothing on another filesystem",
               "wait until the process has closed or rewound it");
  }
  for (const LockLine& lock : fd.locks) {
    // pidfd_getfd(2) gives the leader's descriptors alone.
    if (lock.waiting || (IsOfDescription(lock) && !own_table))
      continue;
    const bool lease =
        lock.kind == LockKind::kLease || lock.kind == LockKind::kDelegation;
    block->Add(lease ? "lease" : "lock",
               it + " holds a " + LockKindName(lock.kind),
               lease ? "let the process give the lease up"
                     : "wait until the process has released the lock");
  }
  if (fd.in_epoll)
    block->Add("epoll", it + " is registered with epoll",
               "let the process close it");
}

void JudgeTask(const Task& task, pid_t leader, Reasons* block) {
  if (task.cwd && task.cwd->deleted)
    block->Add("deleted", "its working directory has been deleted",
               "let the process change its directory");
  if (task.root)
    block->Add("root", "its root directory is in the tree (chroot)",
               "stop the process for the move");
  for (const Descriptor& fd : task.fds)
    JudgeDescriptor(fd, task.tid != leader, block);
  for (const Watch& watch : task.watches)
    block->Add("watch",
               std::string(watch.line.fanotify ? "fanotify" : "inotify") +
                   " descriptor " + std::to_string(watch.number) + " watches " +
                   (watch.path.empty() ? "the tree" : "\"" + watch.path + "\""),
               "stop the watching process for the move");
  for (const Ring& ring : task.rings) {
    if (ring.kind == RingKind::kIoUring)
      block->Add("io_uring",
                 "it has an io_uring instance (descriptor " +
                     std::to_string(ring.number) +
                     "), whose requests can hold files out of sight",
                 "wait until the process has ended");
    else
      block->Add("aio",
                 "it has an asynchronous I/O context (io_setup), whose "
                 "requests can hold files out of sight",
                 "wait until the process has ended");
  }
  for (const BoundSocket& socket : task.sockets)
    block->Add(
        "socket",
        "it is bound to the UNIX socket \"" + socket.name + "\" in the tree",
        "stop the process for the move");
}

}  // namespace

const char* MovabilityName(Movability movability) {
  switch (movability) {
    case Movability::kMovable:
      return "movable";
    case Movability::kStays:
      return "stays on the overlay until it exits";
    case Movability::kBlocks:
      return "blocks";
  }
  return "blocks";
}

std::string Verdict::Line() const {
  std::string line;
  for (const Reason& reason : reasons) {
    if (!line.empty())
      line += "; ";
    line += reason.what;
  }
  return line;
}

std::set<uint64_t> WrittenInodes(const std::vector<Holder>& holders) {
  std::set<uint64_t> written;
  for (const Holder& holder : holders) {
    for (const Mapping& mapping : holder.mappings) {
      if (mapping.line.shared && mapping.line.write)
        written.insert(mapping.at.ino);
    }
    for (const Task& task : holder.tasks) {
      for (const Descriptor& fd : task.fds) {
        if (fd.Writable())
          written.insert(fd.at.ino);
      }
    }
  }
  return written;
}

Verdict Judge(const Holder& holder, const std::set<uint64_t>& written) {
  Reasons block;
  Reasons stay;
  if (holder.pid == 1)
    block.Add("never-frozen", "it is PID 1 and must never be frozen",
              "make it leave the directory; see systemctl for the unit");
  else if (std::find(kNeverFrozen.begin(), kNeverFrozen.end(), holder.comm) !=
           kNeverFrozen.end())
    block.Add("never-frozen",
              holder.comm + " must never be frozen: NFS needs its answers",
              "stop it, or move its files out of the tree");
  if (holder.tracer != 0)
    block.Add("traced",
              "it is traced by process " + std::to_string(holder.tracer) +
                  " (a debugger or strace)",
              "detach the tracer");
  // One line for each file, not for each of its segments.
  std::set<std::pair<uint64_t, int>> told;
  for (const Mapping& mapping : holder.mappings) {
    const bool shared = mapping.line.shared && mapping.line.write;
    const bool stays =
        !shared && !written.contains(mapping.at.ino) && mapping.at.nlink > 0;
    if (!told.insert({mapping.at.ino, shared ? 1 : 0}).second)
      continue;
    std::string what = "it maps " + Quoted(mapping.at) +
                       (shared               ? " shared and writable"
                        : mapping.line.exec  ? " as program text"
                        : mapping.line.write ? " privately"
                                             : " for reading");
    if (!shared && !stays)
      what += mapping.at.nlink == 0 ? ", which has been deleted"
                                    : ", which is being written";
    (stays ? stay : block)
        .Add("mapping", std::move(what),
             "wait until the process has unmapped it or ended");
  }
  if (holder.exe)
    stay.Add("exe", "it runs the program " + Quoted(*holder.exe),
             "wait until it has ended, or start it from another place");
  for (const Task& task : holder.tasks)
    JudgeTask(task, holder.pid, &block);

  Verdict verdict;
  verdict.movability = !block.Empty()  ? Movability::kBlocks
                       : !stay.Empty() ? Movability::kStays
                                       : Movability::kMovable;
  verdict.reasons = block.Take();
  for (Reason& reason : stay.Take())
    verdict.reasons.push_back(std::move(reason));
  return verdict;
}

}  // namespace livemv::proc
