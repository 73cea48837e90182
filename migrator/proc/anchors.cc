#include "migrator/proc/anchors.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <utility>

namespace livemv::proc {
namespace {

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

std::string Range(const LockLine& lock) {
  if (lock.start == 0 && lock.end == UINT64_MAX)
    return "";
  return " from " + std::to_string(lock.start) +
         (lock.end == UINT64_MAX ? " on" : " to " + std::to_string(lock.end));
}

std::string Details(const Descriptor& fd) {
  std::string text;
  auto add = [&text](const std::string& more) {
    text += (text.empty() ? "" : ", ") + more;
  };
  if (!S_ISREG(fd.at.mode))
    add(S_ISDIR(fd.at.mode) ? "directory" : KindName(fd.at.mode));
  if (fd.PathOnly()) {
    add("path only");
  } else {
    const int access = fd.flags & O_ACCMODE;
    add(access == O_RDONLY   ? "read"
        : access == O_WRONLY ? "write"
                             : "read and write");
    if ((fd.flags & O_APPEND) != 0)
      add("append");
    if ((fd.flags & O_DIRECT) != 0)
      add("direct");
    if ((fd.flags & O_SYNC) == O_SYNC)
      add("sync");
    else if ((fd.flags & O_DSYNC) != 0)
      add("dsync");
    if (fd.pos != 0)
      add("at " + std::to_string(fd.pos));
  }
  if (fd.cloexec)
    add("close on exec");
  for (const LockLine& lock : fd.locks)
    if (!lock.waiting)
      add(std::string(LockKindName(lock.kind)) + " for " +
          (lock.write ? "writing" : "reading") + Range(lock));
  return text;
}

class Collector {
 public:
  Collector(const Holder& holder, const std::set<uint64_t>& written)
      : holder_(holder), written_(written) {}

  std::vector<Anchor> Take() {
    for (const Mapping& mapping : holder_.mappings)
      AddMapping(mapping);
    if (holder_.exe) {
      Anchor& exe = Add(AnchorKind::kExe, holder_.pid, *holder_.exe);
      exe.movability = Movability::kStays;
      exe.reasons.push_back(
          {"exe", "it runs the program " + Quoted(*holder_.exe),
           "wait until it has ended, or start it from another place"});
    }
    for (const Task& task : holder_.tasks)
      AddTask(task);
    return std::move(anchors_);
  }

 private:
  Anchor& Add(AnchorKind kind, pid_t tid, const Place& at) {
    Anchor& anchor = anchors_.emplace_back();
    anchor.kind = kind;
    anchor.tid = tid;
    anchor.path = at.path;
    return anchor;
  }

  static void Block(Anchor& anchor, const char* code, std::string what,
                    const char* way_out) {
    anchor.movability = Movability::kBlocks;
    anchor.reasons.push_back({code, std::move(what), way_out});
  }

  void AddMapping(const Mapping& mapping) {
    const bool shared = mapping.line.shared && mapping.line.write;
    const bool stays =
        !shared && !written_.contains(mapping.at.ino) && mapping.at.nlink > 0;
    if (!told_.insert({mapping.at.ino, shared ? 1 : 0}).second)
      return;
    Anchor& anchor = Add(AnchorKind::kMapping, holder_.pid, mapping.at);
    anchor.details = shared               ? "shared and writable"
                     : mapping.line.exec  ? "as program text"
                     : mapping.line.write ? "privately"
                                          : "for reading";
    std::string what =
        "it maps " + Quoted(mapping.at) + " " + anchor.details;
    if (!shared && !stays)
      what += mapping.at.nlink == 0 ? ", which has been deleted"
                                    : ", which is being written";
    anchor.movability = stays ? Movability::kStays : Movability::kBlocks;
    anchor.reasons.push_back(
        {"mapping", std::move(what),
         "wait until the process has unmapped it or ended"});
  }

  void AddTask(const Task& task) {
    if (task.cwd) {
      Anchor& cwd = Add(AnchorKind::kCwd, task.tid, *task.cwd);
      if (task.cwd->deleted)
        Block(cwd, "deleted", "its working directory has been deleted",
              "let the process change its directory");
      else if (!task.cwd->path_known)
        Block(cwd, "long-path",
              "its working directory has a path that is too long to be opened "
              "again by name",
              "let the process change its directory");
    }
    if (task.root)
      Block(Add(AnchorKind::kRoot, task.tid, *task.root), "root",
            "its root directory is in the tree (chroot)",
            "stop the process for the move");
    for (const Descriptor& fd : task.fds)
      AddDescriptor(task, fd);
    for (const Watch& watch : task.watches) {
      Anchor& anchor = Add(AnchorKind::kWatch, task.tid, Place());
      anchor.number = watch.number;
      anchor.path = watch.path;
      Block(anchor, "watch",
            std::string(watch.line.fanotify ? "fanotify" : "inotify") +
                " descriptor " + std::to_string(watch.number) + " watches " +
                (watch.path.empty() ? "the tree" : "\"" + watch.path + "\""),
            "stop the watching process for the move");
    }
    for (const Ring& ring : task.rings) {
      Anchor& anchor = Add(AnchorKind::kRing, task.tid, Place());
      anchor.number = ring.number;
      const bool uring = ring.kind == RingKind::kIoUring;
      Block(anchor, uring ? "io_uring" : "aio",
            (uring ? "it has an io_uring instance (descriptor " +
                         std::to_string(ring.number) + ")"
                   : std::string("it has an asynchronous I/O context "
                                 "(io_setup)")) +
                ", whose requests can hold files out of sight",
            "wait until the process has ended");
    }
    for (const BoundSocket& socket : task.sockets) {
      Anchor& anchor = Add(AnchorKind::kSocket, task.tid, Place());
      anchor.number = socket.number;
      anchor.path = socket.name;
      Block(anchor, "socket",
            "it is bound to the UNIX socket \"" + socket.name +
                "\" in the tree",
            "stop the process for the move");
    }
  }

  void AddDescriptor(const Task& task, const Descriptor& fd) {
    Anchor& anchor = Add(AnchorKind::kDescriptor, task.tid, fd.at);
    anchor.number = fd.number;
    anchor.details = Details(fd);
    const std::string it =
        "descriptor " + std::to_string(fd.number) + " (" + Quoted(fd.at) + ")";
    if (!fd.at.path_known)
      Block(anchor, "long-path", it + " cannot be opened again by name",
            "let the process close it");
    if (fd.at.deleted)
      Block(anchor, "deleted", it + " has been deleted or replaced",
            "let the process close it, for example by restarting it");
    if (!S_ISREG(fd.at.mode) && !S_ISDIR(fd.at.mode)) {
      Block(anchor, S_ISFIFO(fd.at.mode) ? "fifo" : "kind",
            it + " is a " + KindName(fd.at.mode), "let the process close it");
    } else if (S_ISDIR(fd.at.mode) && !fd.PathOnly() && fd.pos != 0) {
      Block(anchor, "half-read-directory",
            it + " is a directory read half-way, and the position means "
                 "nothing on another filesystem",
            "wait until the process has closed or rewound it");
    }
    for (const LockLine& lock : fd.locks) {
      // pidfd_getfd(2) gives the leader's descriptors alone.
      if (lock.waiting || lock.kind == LockKind::kPosix ||
          (IsOfDescription(lock) && task.tid == holder_.pid))
        continue;
      const bool lease = lock.kind == LockKind::kLease ||
                         lock.kind == LockKind::kDelegation;
      Block(anchor, lease ? "lease" : "lock",
            it + " holds a " + LockKindName(lock.kind),
            lease ? "let the process give the lease up"
                  : "wait until the process has released the lock");
    }
    if (fd.in_epoll)
      Block(anchor, "epoll", it + " is registered with epoll",
            "let the process close it");
  }

  const Holder& holder_;
  const std::set<uint64_t>& written_;
  std::vector<Anchor> anchors_;
  std::set<std::pair<uint64_t, int>> told_;
};

}  // namespace

const char* AnchorKindName(AnchorKind kind) {
  switch (kind) {
    case AnchorKind::kCwd:
      return "cwd";
    case AnchorKind::kRoot:
      return "root";
    case AnchorKind::kDescriptor:
      return "descriptor";
    case AnchorKind::kMapping:
      return "mapping";
    case AnchorKind::kExe:
      return "exe";
    case AnchorKind::kWatch:
      return "watch";
    case AnchorKind::kRing:
      return "ring";
    case AnchorKind::kSocket:
      return "socket";
  }
  return "descriptor";
}

std::vector<Anchor> AnchorsOf(const Holder& holder,
                              const std::set<uint64_t>& written) {
  return Collector(holder, written).Take();
}

}  // namespace livemv::proc
