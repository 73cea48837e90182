#include "migrator/proc/process_snapshot.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <memory>
#include <utility>

#include "core/unique_fd.h"
#include "migrator/proc/bound_sockets.h"
#include "migrator/proc/proc_files.h"
#include "migrator/proc/tree_locator.h"

namespace livemv::proc {
namespace {

int64_t NowNs() {
  struct timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

bool Gone(const core::Error& error) {
  return error.code == core::ErrorCode::kGone;
}

bool Denied(const core::Error& error) {
  return error.sys_errno == EACCES || error.sys_errno == EPERM;
}

bool SameTable(pid_t a, pid_t b, int type) {
  return syscall(SYS_kcmp, a, b, type, 0, 0) == 0;
}

// One pass. Holds what the processes of the pass have in common.
class Scan {
 public:
  Scan(const TreeRef& tree, const Options& options)
      : tree_(tree), options_(options), locator_(tree, options.root_fd) {}

  core::Status Begin();
  // Looks at one process; *holder is Empty() if it holds nothing. kGone if it
  // ended; kUnsupported for a kernel thread.
  core::Status Process(pid_t pid, Holder* holder);
  core::Status AddSocketsOf(int proc_dir);

  std::vector<Namespace>& namespaces() { return namespaces_; }
  std::vector<Uncertain>& uncertain() { return uncertain_; }

 private:
  // A process under scan.
  struct Subject {
    core::UniqueFd dir;  // /proc/TID of the thread that stands for it
    pid_t tid = 0;
    Holder* holder = nullptr;
    Viewer viewer;
  };
  // A descriptor that is no object of the tree but may tell of some.
  struct Tables {
    std::vector<EpollLine> epoll;
    std::vector<Ring> rings;
  };

  core::Status Look(pid_t pid, Subject* subject);
  core::Status OpenSubject(pid_t pid, const ProcStat& stat, Subject* subject);
  core::Result<std::vector<pid_t>> ThreadsToScan(const Subject& subject,
                                                 int64_t threads);
  core::Status ScanTask(Subject* subject, int proc_dir, bool files, bool fs,
                        Task* task);
  core::Status ScanFd(Subject* subject, int fd_dir, int proc_dir, int number,
                      Task* task, Tables* tables);
  void ScanAnonymous(const Subject& subject, int proc_dir, int number,
                     const std::string& link, Task* task, Tables* tables);
  void ScanSocket(Subject* subject, int proc_dir, int number, uint64_t ino,
                  Task* task);
  core::Status ScanMappings(Subject* subject, bool* aio);
  void Describe(const Subject& subject);

  void Doubt(const Subject& subject, std::string what, bool harmless = false) {
    uncertain_.push_back(
        {subject.holder->pid, subject.holder->comm, std::move(what), harmless});
  }

  const TreeRef& tree_;
  const Options& options_;
  TreeLocator locator_;
  dev_t anonymous_dev_ = 0;  // of epoll, inotify, ... descriptors
  std::string text_;         // reused by reads
  std::map<uint64_t, SocketName> sockets_;
  std::set<uint64_t> net_namespaces_;
  std::vector<Namespace> namespaces_;
  std::vector<Uncertain> uncertain_;
};

core::Status Scan::Begin() {
  core::UniqueFd event(eventfd(0, EFD_CLOEXEC));
  if (!event)
    return core::FailSys(errno, "eventfd");
  ASSIGN_OR_RETURN(struct statx st, PeekAt(event.Get(), ""));
  anonymous_dev_ = DevOf(st);
  return locator_.Begin();
}

core::Status Scan::AddSocketsOf(int proc_dir) {
  auto link = ReadLink(proc_dir, "ns/net");
  if (!link)
    return Gone(link.error()) ? core::Status() : core::Fail(link.error());
  if (!net_namespaces_.insert(NamespaceNumber(*link)).second)
    return {};
  core::Status added = BoundSockets(proc_dir, tree_.sb_dev, &sockets_);
  if (!added && added.error().sys_errno == ENOENT &&
      added.error().code == core::ErrorCode::kSystem) {
    uncertain_.push_back(
        {0, "",
         "the kernel has no unix_diag: sockets bound in the tree "
         "cannot be listed",
         false});
    return {};
  }
  return added;
}

core::Status Scan::OpenSubject(pid_t pid, const ProcStat& stat,
                               Subject* subject) {
  // A zombie leader has neither tables nor memory; while other threads live
  // the first of them stands for the process.
  if (stat.state != 'Z' && stat.state != 'X') {
    subject->tid = pid;
    return {};
  }
  ASSIGN_OR_RETURN(std::vector<int> tids,
                   ListNumbers(subject->dir.Get(), "task"));
  for (pid_t tid : tids) {
    const std::string name = "/proc/" + std::to_string(tid);
    auto dir = OpenDir(AT_FDCWD, name.c_str());
    if (!dir || !ReadShortFileAt(dir->Get(), "stat", &text_))
      continue;
    auto other = ParseStat(text_);
    if (!other || other->state == 'Z' || other->state == 'X')
      continue;
    subject->dir = std::move(*dir);
    subject->tid = tid;
    subject->holder->leader_gone = true;
    return {};
  }
  return core::Fail(core::ErrorCode::kGone,
                    "process " + std::to_string(pid) + " has ended");
}

core::Result<std::vector<pid_t>> Scan::ThreadsToScan(const Subject& subject,
                                                     int64_t threads) {
  std::vector<pid_t> extra;
  if (threads <= 1)
    return extra;
  ASSIGN_OR_RETURN(std::vector<int> tids,
                   ListNumbers(subject.dir.Get(), "task"));
  for (pid_t tid : tids) {
    if (tid != subject.tid && !(SameTable(tid, subject.tid, KCMP_FILES) &&
                                SameTable(tid, subject.tid, KCMP_FS)))
      extra.push_back(tid);
  }
  return extra;
}

core::Status Scan::Process(pid_t pid, Holder* holder) {
  Subject subject;
  subject.holder = holder;
  holder->pid = pid;
  core::Status looked = Look(pid, &subject);
  for (std::string& doubt : subject.viewer.doubts)
    Doubt(subject, std::move(doubt));
  return looked;
}

core::Status Scan::Look(pid_t pid, Subject* subject) {
  const std::string name = "/proc/" + std::to_string(pid);
  Holder* holder = subject->holder;
  ASSIGN_OR_RETURN(subject->dir, OpenDir(AT_FDCWD, name.c_str()));
  TRY(ReadShortFileAt(subject->dir.Get(), "stat", &text_));
  auto stat = ParseStat(text_);
  if (!stat)
    return core::Fail(core::ErrorCode::kCorrupt,
                      name + "/stat is not readable");
  if ((stat->flags & kPfKernelThread) != 0)
    return core::Fail(core::ErrorCode::kUnsupported,
                      name + " is in the kernel");
  holder->comm = stat->comm;
  holder->ppid = stat->ppid;
  holder->start_time = stat->start_time;
  holder->threads = stat->threads;
  TRY(OpenSubject(pid, *stat, subject));
  ASSIGN_OR_RETURN(std::string ns, ReadLink(subject->dir.Get(), "ns/mnt"));
  holder->mnt_ns = NamespaceNumber(ns);
  subject->viewer.mnt_ns = holder->mnt_ns;
  subject->viewer.proc_dir = subject->dir.Get();
  if (std::none_of(
          namespaces_.begin(), namespaces_.end(),
          [&](const Namespace& n) { return n.inode == holder->mnt_ns; }))
    namespaces_.push_back({holder->mnt_ns, pid});
  if (options_.sockets)
    TRY(AddSocketsOf(subject->dir.Get()));

  Task leader;
  leader.tid = subject->tid;
  TRY(ScanTask(subject, subject->dir.Get(), true, true, &leader));
  holder->tasks.push_back(std::move(leader));
  ASSIGN_OR_RETURN(std::vector<pid_t> extra,
                   ThreadsToScan(*subject, stat->threads));
  std::vector<std::pair<pid_t, Task>> others;
  for (size_t i = 0; i < extra.size(); ++i) {
    const pid_t tid = extra[i];
    bool files = !SameTable(tid, subject->tid, KCMP_FILES);
    bool fs = !SameTable(tid, subject->tid, KCMP_FS);
    for (size_t j = 0; j < i; ++j) {
      files = files && !SameTable(tid, extra[j], KCMP_FILES);
      fs = fs && !SameTable(tid, extra[j], KCMP_FS);
    }
    Task task;
    task.tid = tid;
    const std::string path = "/proc/" + std::to_string(tid);
    auto dir = OpenDir(AT_FDCWD, path.c_str());
    if (!dir)
      continue;  // the thread ended
    core::Status scanned = ScanTask(subject, dir->Get(), files, fs, &task);
    if (!scanned && !Gone(scanned.error()))
      return scanned;
    if (!task.Empty())
      holder->tasks.push_back(std::move(task));
  }

  bool aio = false;
  auto exe = locator_.LocateLink(&subject->viewer, subject->dir.Get(), "exe");
  if (exe)
    holder->exe = std::move(*exe);
  else if (!Gone(exe.error()))
    return core::Fail(exe.error());
  if (options_.mappings) {
    core::Status mapped = ScanMappings(subject, &aio);
    if (!mapped && !Gone(mapped.error()))
      return mapped;
  }

  // Rings count for holders only.
  bool holds = holder->exe || !holder->mappings.empty();
  for (const Task& task : holder->tasks) {
    holds = holds || task.cwd || task.root || !task.fds.empty() ||
            !task.watches.empty() || !task.sockets.empty();
    for (const Ring& ring : task.rings)
      holds = holds || !ring.tree_files.empty();
  }
  if (!holds) {
    holder->tasks.clear();
    return {};
  }
  if (aio)
    holder->tasks.front().rings.push_back({RingKind::kAio, -1, {}});
  if (!options_.frozen)
    Describe(*subject);
  return {};
}

void Scan::Describe(const Subject& subject) {
  Holder* holder = subject.holder;
  if (ReadShortFileAt(subject.dir.Get(), "status", &text_)) {
    if (auto status = ParseStatus(text_)) {
      holder->uid = status->euid;
      holder->tracer = status->tracer;
      holder->seccomp = status->seccomp;
    }
  }
  // Threads can be traced one by one; the leader's line tells only of itself.
  if (holder->tracer == 0 && holder->threads > 1) {
    auto tids = ListNumbers(subject.dir.Get(), "task");
    for (size_t i = 0; tids && i < tids->size() && holder->tracer == 0; ++i) {
      const std::string path = "task/" + std::to_string((*tids)[i]) + "/status";
      if (!ReadShortFileAt(subject.dir.Get(), path.c_str(), &text_))
        continue;
      if (auto status = ParseStatus(text_))
        holder->tracer = status->tracer;
    }
  }
  if (ReadFileAt(subject.dir.Get(), "cmdline", &text_)) {
    while (text_.ends_with('\0'))
      text_.pop_back();
    std::replace(text_.begin(), text_.end(), '\0', ' ');
    holder->cmdline = text_;
  }
}

core::Status Scan::ScanTask(Subject* subject, int proc_dir, bool files, bool fs,
                            Task* task) {
  task->own_files = files;
  task->own_fs = fs;
  if (fs) {
    auto cwd = locator_.LocateLink(&subject->viewer, proc_dir, "cwd");
    if (!cwd)
      return core::Fail(cwd.error());
    task->cwd = std::move(*cwd);
    auto root = locator_.LocateLink(&subject->viewer, proc_dir, "root");
    if (!root)
      return core::Fail(root.error());
    task->root = std::move(*root);
  }
  if (!files)
    return {};
  ASSIGN_OR_RETURN(core::UniqueFd fd_dir, OpenDir(proc_dir, "fd"));
  ASSIGN_OR_RETURN(std::vector<int> numbers, ListNumbers(fd_dir.Get(), "."));
  Tables tables;
  for (int number : numbers) {
    core::Status scanned =
        ScanFd(subject, fd_dir.Get(), proc_dir, number, task, &tables);
    if (!scanned && !Gone(scanned.error()))
      return scanned;
  }
  for (Descriptor& fd : task->fds) {
    for (const EpollLine& line : tables.epoll)
      fd.in_epoll =
          fd.in_epoll || (line.fd == fd.number && line.ino == fd.at.ino &&
                          line.sdev == tree_.sb_dev);
  }
  task->rings = std::move(tables.rings);
  return {};
}

core::Status Scan::ScanFd(Subject* subject, int fd_dir, int proc_dir,
                          int number, Task* task, Tables* tables) {
  char name[16];
  snprintf(name, sizeof name, "%d", number);
  ASSIGN_OR_RETURN(struct statx st, PeekAt(fd_dir, name));
  const dev_t dev = DevOf(st);
  if (dev == anonymous_dev_) {
    if (!options_.watches)
      return {};
    ASSIGN_OR_RETURN(std::string link, ReadLink(fd_dir, name));
    ScanAnonymous(*subject, proc_dir, number, link, task, tables);
    return {};
  }
  if (S_ISSOCK(st.stx_mode) && dev != tree_.dev) {
    ScanSocket(subject, proc_dir, number, st.stx_ino, task);
    return {};
  }
  if (dev != tree_.dev)
    return {};
  ASSIGN_OR_RETURN(std::optional<Place> place,
                   locator_.Locate(&subject->viewer, fd_dir, name, st));
  if (!place)
    return {};
  Descriptor fd;
  fd.number = number;
  fd.at = std::move(*place);
  const std::string info_name = "fdinfo/" + std::to_string(number);
  TRY(ReadShortFileAt(proc_dir, info_name.c_str(), &text_));
  auto info = ParseFdInfo(text_);
  if (!info)
    return core::Fail(core::ErrorCode::kCorrupt,
                      info_name + " of process " +
                          std::to_string(subject->tid) + " is not readable");
  fd.flags = info->flags & ~O_CLOEXEC;
  fd.cloexec = (info->flags & O_CLOEXEC) != 0;
  fd.pos = info->pos;
  fd.locks = std::move(info->locks);
  task->fds.push_back(std::move(fd));
  return {};
}

void Scan::ScanAnonymous(const Subject& subject, int proc_dir, int number,
                         const std::string& link, Task* task, Tables* tables) {
  const bool notify =
      link == "anon_inode:inotify" || link == "anon_inode:[fanotify]";
  const bool epoll = link == "anon_inode:[eventpoll]";
  const bool ring = link == "anon_inode:[io_uring]";
  if (!notify && !epoll && !ring)
    return;
  const std::string info_name = "fdinfo/" + std::to_string(number);
  if (!ReadShortFileAt(proc_dir, info_name.c_str(), &text_))
    return;  // closed meanwhile
  auto info = ParseFdInfo(text_);
  if (!info)
    return;
  tables->epoll.insert(tables->epoll.end(), info->epoll.begin(),
                       info->epoll.end());
  for (WatchLine& line : info->watches) {
    Watch watch;
    watch.number = number;
    watch.line = std::move(line);
    if (!locator_.LocateWatch(&watch))
      continue;
    if (watch.certain && !(watch.line.fanotify && watch.line.ino == 0))
      task->watches.push_back(std::move(watch));
    else
      Doubt(subject,
            watch.line.fanotify && watch.line.ino == 0
                ? "watches the whole filesystem or mount (fanotify)"
                : "watches an object of this filesystem whose path "
                  "cannot be told",
            true);
  }
  if (!ring)
    return;
  Ring found;
  found.number = number;
  for (const std::string& file : info->ring_files) {
    if (auto path = locator_.LocatePath(file))
      found.tree_files.push_back(*path);
  }
  tables->rings.push_back(std::move(found));
}

void Scan::ScanSocket(Subject* subject, int proc_dir, int number, uint64_t ino,
                      Task* task) {
  auto it = sockets_.find(ino);
  if (it == sockets_.end())
    return;
  BoundSocket socket;
  socket.number = number;
  socket.name = it->second.name;
  socket.ino = it->second.file_ino;
  if (tree_.WholeFilesystem()) {
    task->sockets.push_back(std::move(socket));
    return;
  }
  // The name was looked up from the binder's root or directory of that time.
  const std::string path =
      (socket.name.starts_with('/') ? "root" : "cwd/") + socket.name;
  core::UniqueFd file(
      openat(proc_dir, path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  const std::string link = "/proc/self/fd/" + std::to_string(file.Get());
  std::optional<Place> place;
  if (file) {
    auto st = PeekAt(file.Get(), "");
    if (st && DevOf(*st) == tree_.dev &&
        static_cast<uint32_t>(st->stx_ino) == it->second.file_ino) {
      auto located =
          locator_.Locate(&subject->viewer, AT_FDCWD, link.c_str(), *st);
      if (located && !*located)
        return;  // outside the tree, for certain
      if (located)
        place = std::move(*located);
    }
  }
  if (place)
    task->sockets.push_back(std::move(socket));
  else
    Doubt(*subject, "has a UNIX socket bound on this filesystem as \"" +
                        socket.name + "\", which leads elsewhere now");
}

core::Status Scan::ScanMappings(Subject* subject, bool* aio) {
  TRY(ReadFileAt(subject->dir.Get(), "maps", &text_));
  *aio = MapsShowAio(text_);
  const std::vector<MapLine> lines = ParseMaps(text_, tree_.sb_dev);
  std::map<std::pair<uint64_t, std::string>, std::optional<Place>> seen;
  for (const MapLine& line : lines) {
    auto [it, fresh] = seen.try_emplace({line.ino, line.path});
    if (fresh) {
      char name[64];
      snprintf(name, sizeof name, "map_files/%" PRIx64 "-%" PRIx64, line.start,
               line.end);
      auto place =
          locator_.LocateLink(&subject->viewer, subject->dir.Get(), name);
      if (place) {
        it->second = std::move(*place);
      } else if (Gone(place.error())) {
        seen.erase(it);  // unmapped meanwhile
        continue;
      } else {
        return core::Fail(place.error());
      }
    }
    if (it->second)
      subject->holder->mappings.push_back({line, *it->second});
  }
  return {};
}

}  // namespace

bool Descriptor::PathOnly() const {
  return (flags & O_PATH) != 0;
}

bool Descriptor::Writable() const {
  return !PathOnly() && (flags & O_ACCMODE) != O_RDONLY;
}

size_t Holder::FdCount() const {
  size_t count = 0;
  for (const Task& task : tasks)
    count += task.fds.size();
  return count;
}

bool Holder::Empty() const {
  return !exe && mappings.empty() &&
         std::all_of(tasks.begin(), tasks.end(),
                     [](const Task& task) { return task.Empty(); });
}

core::Result<Snapshot> Capture(const TreeRef& tree, const Options& options) {
  const int64_t begin = NowNs();
  Snapshot snapshot;
  Scan scan(tree, options);
  TRY(scan.Begin());
  std::vector<int> pids(options.only.begin(), options.only.end());
  if (pids.empty()) {
    ASSIGN_OR_RETURN(pids, ListNumbers(AT_FDCWD, "/proc"));
  }
  for (pid_t pid : pids) {
    if (options.exclude.contains(pid))
      continue;
    Holder holder;
    core::Status scanned = scan.Process(pid, &holder);
    if (scanned) {
      ++snapshot.scanned;
      if (!holder.Empty())
        snapshot.holders.push_back(std::move(holder));
      continue;
    }
    const core::Error& error = scanned.error();
    if (Gone(error) || error.code == core::ErrorCode::kUnsupported)
      continue;
    if (!Denied(error))
      return core::Fail(
          core::Error(error).With("look at process " + std::to_string(pid)));
    snapshot.unreadable.push_back({pid, holder.comm, error.ToString(), false});
  }
  if (options.descriptions)
    TRY(IdentifyDescriptions(&snapshot.holders, options.frozen));
  if (!tree.Lives())
    snapshot.holders.clear();  // of another filesystem
  snapshot.namespaces = std::move(scan.namespaces());
  snapshot.uncertain = std::move(scan.uncertain());
  snapshot.took_ns = NowNs() - begin;
  return snapshot;
}

core::Result<Holder> CaptureOne(const TreeRef& tree, pid_t pid,
                                const Options& options) {
  Options one = options;
  one.sockets = false;
  Scan scan(tree, one);
  TRY(scan.Begin());
  if (options.sockets) {
    const std::string name = "/proc/" + std::to_string(pid);
    ASSIGN_OR_RETURN(core::UniqueFd dir, OpenDir(AT_FDCWD, name.c_str()));
    TRY(scan.AddSocketsOf(dir.Get()));
  }
  std::vector<Holder> holders(1);
  TRY(scan.Process(pid, &holders.front()));
  if (options.descriptions)
    TRY(IdentifyDescriptions(&holders, options.frozen));
  if (!tree.Lives()) {
    Holder nothing;
    nothing.pid = pid;
    return nothing;
  }
  return std::move(holders.front());
}

}  // namespace livemv::proc
