#pragma once

// A machine for the drivers of migrator/cutover: processes with descriptors
// and directories on three trees, mount namespaces, a worker, a tracer. What
// each step did is in acts; any step can be made to fail or to be followed by
// something that happens elsewhere.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "migrator/cutover/attach.h"
#include "migrator/cutover/cutover.h"
#include "migrator/cutover/opener.h"
#include "migrator/cutover/return_to_source.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

using core::Error;
using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;
using core::UniqueFd;

inline constexpr dev_t kSource = 1, kOverlay = 2, kTarget = 3;
inline constexpr uint64_t kOwnNs = 100;
inline constexpr int kSourceDirFd = 500;

struct FakeDescription {
  dev_t dev = kSource;
  std::string path;
  int flags = O_RDWR;
  int64_t pos = 0;
  uint64_t ns = kOwnNs;  // of the mount it lies on
  std::string shown = {};  // by /proc, if not path
  bool deleted = false;
  Locks locks = {};
};

inline Locks Posix() {
  proc::LockLine lock;
  lock.kind = proc::LockKind::kPosix;
  lock.write = true;
  return {lock};
}

inline Locks Flock(bool write = true) {
  proc::LockLine lock;
  lock.kind = proc::LockKind::kFlock;
  lock.write = write;
  return {lock};
}

struct FakeProcess {
  std::string comm = "writer";
  pid_t ppid = 1;
  uint64_t ns = kOwnNs;
  pid_t tracer = 0;
  bool locked = false;    // holds a lease on each descriptor, which blocks
  std::map<int, Locks> posix;  // by descriptor, as long as that is not replaced
  bool text_only = false; // only runs a program of the tree
  bool frozen = false;
  std::map<int, int> fds;  // number -> description
  std::set<int> cloexec;
  int cwd = -1;            // description
};

class FakeMachine : public ProcessScanner,
                    public DescriptorOps,
                    public Clock,
                    public OverlayControl,
                    public mount::MountOps,
                    public core::FdCloser {
 public:
  FakeMachine() {
    mounts_[kOwnNs] = {{1, 0, kSource, "/", "/"}};
  }

  // ---- the scene
  std::map<std::string, uint64_t> files{{".", 2}};  // inode numbers
  std::map<pid_t, FakeProcess> processes;
  std::map<int, FakeDescription> descriptions;
  std::map<uint64_t, bool> follows;  // namespaces that get our mounts
  bool has_beneath = true;
  int64_t now = 1'000'000'000;

  int Open(const std::string& path, int flags, int64_t pos = 0,
           dev_t dev = kSource) {
    files.try_emplace(path, 10 + files.size());
    int id = next_description_++;
    descriptions[id] = {dev, path, flags, pos, kOwnNs};
    return id;
  }
  // A process with a working directory and one descriptor.
  FakeProcess& Writer(pid_t pid, dev_t dev = kSource) {
    FakeProcess& p = processes[pid];
    p.cwd = Open(".", O_PATH | O_DIRECTORY, 0, dev);
    p.fds[3] = Open("f" + std::to_string(pid), O_WRONLY | O_APPEND, pid, dev);
    return p;
  }
  void AddNamespace(uint64_t ns, bool follow) {
    mounts_[ns] = {{next_mount_++, 0, kSource, "/", "/"}};
    follows[ns] = follow;
  }
  void PutOverlayOn() {
    ASSERT_TRUE(AttachAt(overlay_, {nullptr, "/data"}));
    acts.clear();
  }

  // ---- what tests look at
  std::vector<std::string> acts;
  std::map<std::string, Error> fail;                     // by act
  std::map<std::string, std::function<void()>> then;     // by act
  bool gate_closed = false;
  bool opens_closed = false;
  dev_t truth = kSource;  // who has been made the truth, durably
  bool redirect = false;
  std::vector<state::Event> events;
  std::vector<FlushReport> flush_reports;  // next answers of FlushRound
  FlushReport drain_report;
  std::set<std::string> not_on_target;
  int open_on_target_in_freeze = 0;

  int Acts(const std::string& name) const {
    return static_cast<int>(std::count(acts.begin(), acts.end(), name));
  }
  // Which tree /data shows in a namespace.
  dev_t Shown(uint64_t ns = kOwnNs) { return Top(ns, "/data").dev; }
  // Everything that must be as before after a rollback.
  std::string Picture() {
    std::string all;
    for (const auto& [pid, p] : processes) {
      all += std::to_string(pid) + (p.frozen ? " frozen" : " runs");
      auto add = [&](const std::string& name, int id) {
        const FakeDescription& d = descriptions.at(id);
        all += " " + name + "=" + std::to_string(d.dev) + ":" + d.path + "@" +
               std::to_string(d.pos) + "/" + std::to_string(d.flags);
      };
      if (p.cwd >= 0)
        add("cwd", p.cwd);
      for (auto [number, id] : p.fds)
        add(std::to_string(number) + (p.cloexec.contains(number) ? "c" : "") +
                (p.posix.contains(number) ? "locked" : ""),
            id);
      all += "\n";
    }
    for (const auto& [ns, entries] : mounts_)
      all += "ns " + std::to_string(ns) + " shows " +
             std::to_string(Shown(ns)) + "\n";
    all += std::string("gate ") +
           (gate_closed ? "closed" : opens_closed ? "ajar" : "open") +
           " truth " + std::to_string(truth) + "\n";
    return all;
  }
  int OpenFakeFds() const { return static_cast<int>(fake_fds_.size()); }
  const mount::MountFd& overlay() const { return overlay_; }
  const mount::MountFd& target() const { return target_; }

  Deps MakeDeps();
  proc::TreeRef SourceTree() const { return {kSource, kSource, 2, "/data"}; }
  proc::TreeRef OverlayTree() const { return {kOverlay, kOverlay, 2, "/"}; }

  Status Act(const std::string& name) {
    acts.push_back(name);
    auto hook = then.find(name);
    if (hook != then.end()) {
      auto run = std::move(hook->second);
      then.erase(hook);
      run();
    }
    auto broken = fail.find(name);
    if (broken == fail.end())
      return {};
    Error error = broken->second;
    if (!fail_always.contains(name))
      fail.erase(broken);
    return Fail(std::move(error));
  }
  std::set<std::string> fail_always;

  // ---- ProcessScanner
  Result<proc::Snapshot> Capture(const proc::TreeRef& tree,
                                 const proc::Options& options) override {
    TRY(Act("Capture"));
    proc::Snapshot snapshot;
    std::set<uint64_t> seen;
    for (const auto& [pid, p] : processes) {
      if (seen.insert(p.ns).second)
        snapshot.namespaces.push_back({p.ns, pid});
      proc::Holder holder = HolderOf(tree.dev, pid, p);
      if (!options.exclude.contains(pid) && !holder.Empty() && tree.Lives())
        snapshot.holders.push_back(std::move(holder));
    }
    return snapshot;
  }
  Result<proc::Holder> CaptureOne(const proc::TreeRef& tree, pid_t pid,
                                  const proc::Options&) override {
    auto p = processes.find(pid);
    if (p == processes.end())
      return Fail(ErrorCode::kGone, "no such process");
    if (!tree.Lives())
      return proc::Holder();
    proc::Holder holder = HolderOf(tree.dev, pid, p->second);
    if (p->second.frozen)
      holder.tracer = 4711;
    return holder;
  }
  Status Identify(std::vector<proc::Holder>*, bool) override {
    return Act("Identify");
  }
  Status LetOpensPass(const std::set<pid_t>&, int64_t) override {
    return Act("LetOpensPass");
  }
  std::vector<pid_t> ChildrenOf(pid_t pid) override {
    std::vector<pid_t> children;
    for (const auto& [child, p] : processes)
      if (p.ppid == pid)
        children.push_back(child);
    return children;
  }
  Result<uint64_t> OwnMountNamespace() override { return kOwnNs; }

  // ---- DescriptorOps
  Result<ObjectRef> ObjectAt(const Seat& seat) override {
    TRY(Act("ObjectAt"));
    const FakeDescription* d = At(seat);
    if (d == nullptr)
      return Fail(ErrorCode::kGone, "closed");
    uint64_t ino = files.at(d->path);
    uint32_t words[3] = {0, static_cast<uint32_t>(ino), 1};
    return ObjectRef{
        ObjectName(d->dev == kOverlay ? 0x81 : 1, words, sizeof words), ino};
  }
  Result<UniqueFd> OpenBeneath(int dirfd, const std::string& path, int flags,
                               uint64_t ino) override {
    TRY(Act("OpenBeneath"));
    auto file = files.find(path);
    if (file == files.end())
      return core::FailSys(ENOENT, "open " + path);
    if (file->second != ino)
      return Fail(ErrorCode::kConflict, path + " is another inode");
    auto [dev, ns] = TreeAt(dirfd);
    return NewFd({dev, path, flags, 0, ns});
  }
  Result<UniqueFd> OpenObject(int dirfd, const core::FileHandle& handle,
                              int flags, uint64_t ino) override {
    TRY(Act("OpenObject"));
    EXPECT_EQ(handle.bytes, std::to_string(ino));
    for (const auto& [path, number] : files)
      if (number == ino) {
        auto [dev, ns] = TreeAt(dirfd);
        return NewFd({dev, path, flags, 0, ns});
      }
    return core::FailSys(ESTALE, "open inode " + std::to_string(ino));
  }
  Result<uint64_t> InodeOf(int fd) override {
    return files.at(fake_fds_.at(fd).description.path);
  }
  Result<UniqueFd> DirectoryIn(pid_t pid, const std::string& path) override {
    uint64_t ns = processes.at(pid).ns;
    return NewFd({Top(ns, path).dev, ".", O_PATH, 0, ns});
  }
  Status SetPosition(int fd, int64_t position) override {
    TRY(Act("SetPosition"));
    fake_fds_.at(fd).description.pos = position;
    return {};
  }
  bool HasOwner(const Seat&) override { return owners; }
  Status CopyOwner(const Seat&, int) override { return Act("CopyOwner"); }
  Status Verify(const Seat& seat, int fd) override {
    TRY(Act("Verify"));
    const FakeProcess& p = processes.at(seat.pid);
    int id = seat.number < 0 ? p.cwd : p.fds.at(seat.number);
    return id == fake_fds_.at(fd).id
               ? Status{}
               : Fail(ErrorCode::kConflict, "it is something else");
  }
  bool owners = false;
  Result<UniqueFd> Duplicate(int fd) override {
    int copy = next_fd_++;
    fake_fds_[copy] = fake_fds_.at(fd);
    return UniqueFd(copy, this);
  }
  Result<UniqueFd> Share(const Seat& seat) override {
    TRY(Act("Share"));
    const int id = processes.at(seat.pid).fds.at(seat.number);
    int fd = next_fd_++;
    fake_fds_[fd] = {id, descriptions.at(id)};
    return UniqueFd(fd, this);
  }
  Status SetLocks(int fd, const Locks& have, const Locks& want) override {
    if (SameLocks(have, want))
      return {};
    TRY(Act("SetLocks"));
    FakeFd& mine = fake_fds_.at(fd);
    EXPECT_TRUE(SameLocks(mine.description.locks, have));
    for (const auto& [number, other] : fake_fds_)
      for (const proc::LockLine& a : other.description.locks)
        for (const proc::LockLine& b : want)
          if (other.id != mine.id && (a.write || b.write) &&
              other.description.dev == mine.description.dev &&
              other.description.path == mine.description.path)
            return Fail(ErrorCode::kConflict, "another process holds it");
    mine.description.locks = want;
    return {};
  }
  Result<Locks> AllOfProcesses() override {
    TRY(Act("AllOfProcesses"));
    Locks all;
    for (const auto& [pid, p] : processes)
      for (const auto& [number, locks] : p.posix)
        for (proc::LockLine lock : locks) {
          lock.pid = pid;
          lock.ino = files.at(descriptions.at(p.fds.at(number)).path);
          all.push_back(lock);
        }
    return all;
  }
  // Whether one of our own descriptors of that description has locks.
  bool SharedLocks(int id) const {
    for (const auto& [fd, fake] : fake_fds_)
      if (fake.id == id && !fake.description.locks.empty())
        return true;
    return false;
  }
  // Whether one of our own descriptors is of that description.
  bool IsShared(int id) const {
    for (const auto& [fd, fake] : fake_fds_)
      if (fake.id == id)
        return true;
    return false;
  }

  // ---- Clock
  int64_t NowNs() override { return now; }
  void WaitNs(int64_t ns) override { now += ns; }

  // ---- OverlayControl
  Status Advance(state::Event event, const std::string&) override {
    TRY(Act("Advance"));
    events.push_back(event);
    return {};
  }
  Status StartRedirect(int64_t) override {
    TRY(Act("StartRedirect"));
    redirect = true;
    return Act("Redirected");
  }
  Status GiveUpAttach() override {
    TRY(Act("GiveUpAttach"));
    return redirect ? Fail(ErrorCode::kConflict, "it has begun") : Status{};
  }
  Result<std::vector<UniqueFd>> OpenOnTarget(const std::vector<OpenAsk>& asks,
                                             int64_t) override {
    TRY(Act("OpenOnTarget"));
    for (const auto& [pid, p] : processes)
      open_on_target_in_freeze += p.frozen ? 1 : 0;
    std::vector<UniqueFd> fds;
    for (const OpenAsk& ask : asks) {
      std::string path;
      for (const auto& [name, ino] : files)
        if (ino == ask.id)
          path = name;
      if (path.empty() || not_on_target.contains(path))
        fds.emplace_back();
      else
        fds.push_back(NewFd({kTarget, path, ask.flags, 0, kOwnNs}));
    }
    return fds;
  }
  Result<std::vector<core::FileHandle>> SourceHandles(
      const std::vector<state::FileId>& ids, int64_t) override {
    TRY(Act("SourceHandles"));
    std::vector<core::FileHandle> handles;
    for (state::FileId id : ids)
      handles.push_back({1, std::to_string(id)});
    return handles;
  }
  // Inode numbers of files that the kernel writes by itself.
  std::set<state::FileId> direct;
  Result<std::vector<bool>> AreDirect(const std::vector<state::FileId>& nodes,
                                      int64_t) override {
    TRY(Act("AreDirect"));
    std::vector<bool> out;
    for (state::FileId node : nodes)
      out.push_back(direct.contains(node));
    return out;
  }
  Status LeaveDirect(int64_t) override { return Act("LeaveDirect"); }
  Result<FlushReport> FlushRound(int64_t) override {
    TRY(Act("FlushRound"));
    if (flush_reports.empty())
      return FlushReport{};
    FlushReport next = flush_reports.front();
    flush_reports.erase(flush_reports.begin());
    return next;
  }
  Result<FlushReport> DrainAndGate(int64_t) override {
    TRY(Act("DrainAndGate"));
    gate_closed = true;
    return drain_report;
  }
  Status RefuseOpens() override {
    gate_closed = opens_closed = false;
    return Act("RefuseOpens");
  }
  Status GateOpens(int64_t) override {
    TRY(Act("GateOpens"));
    opens_closed = true;
    return {};
  }
  Status OpenGate() override {
    gate_closed = opens_closed = false;
    return Act("OpenGate");
  }
  Status CommitTarget(int64_t) override {
    EXPECT_TRUE(gate_closed);
    TRY(Act("CommitTarget"));
    truth = kTarget;
    return {};
  }
  Status RevokeTarget(int64_t) override {
    TRY(Act("RevokeTarget"));
    truth = kSource;
    return {};
  }
  Status CommitSource(int64_t) override {
    EXPECT_TRUE(gate_closed);
    TRY(Act("CommitSource"));
    return {};
  }

  // ---- MountOps
  struct Entry {
    uint64_t id, parent;
    dev_t dev;
    std::string root, point;
  };
  Status ForgetNames(const mount::MountFd&) override {
    return Act("ForgetNames");
  }
  Result<mount::MountFd> CloneTree(int dirfd, const std::string&) override {
    TRY(Act("CloneTree"));
    uint64_t id = mount_fds_.at(dirfd);
    if (dead_.contains(id))
      return core::FailSys(EINVAL, "copy a mount that is nowhere");
    return mount::MountFd(UniqueFd(NewMount(dev_of_mount_.at(id)), this));
  }
  Result<mount::MountFd> MakeOverlay(const mount::OverlaySpec&) override {
    return Fail(ErrorCode::kUnsupported, "not here");
  }
  Result<mount::TargetMount> MountTarget(const std::string&, const std::string&,
                                         const std::string&, int64_t) override {
    return Fail(ErrorCode::kUnsupported, "not here");
  }
  Status AttachAt(const mount::MountFd& m,
                  const mount::MountPoint& at) override {
    TRY(Act("AttachAt"));
    return Put(m, at, false);
  }
  Status SlideBeneath(const mount::MountFd& m,
                      const mount::MountPoint& at) override {
    TRY(Act("SlideBeneath"));
    return Put(m, at, true);
  }
  Status DetachTop(const mount::MountPoint& at, dev_t dev) override {
    TRY(Act("DetachTop"));
    uint64_t ns = NsOf(at);
    if (Top(ns, at.path).dev != dev)
      return Fail(ErrorCode::kConflict, "the top is another");
    Remove(ns, at.path);
    if (ns == kOwnNs)
      for (auto [other, follow] : follows)
        if (follow && Top(other, at.path).dev == dev)
          Remove(other, at.path);
    return {};
  }
  Result<mount::MountTable> TableOf(pid_t pid) override {
    return Table(pid == 0 ? kOwnNs : processes.at(pid).ns);
  }
  Result<mount::MountTable> TableIn(const mount::MountNamespace& ns) override {
    return Table(ns.inode());
  }
  Result<uint64_t> IdOf(const mount::MountFd& m) override {
    return mount_fds_.at(m.Get());
  }
  Result<mount::MountNamespace> NamespaceOf(pid_t pid) override {
    return mount::MountNamespace(UniqueFd(), UniqueFd(), processes.at(pid).ns,
                                 pid);
  }
  bool HasBeneath() override { return has_beneath; }
  size_t MountsAt(uint64_t ns, const std::string& path) {
    return Table(ns)->DepthAt(path);
  }

  // ---- FdCloser
  void CloseFd(int fd) noexcept override {
    fake_fds_.erase(fd);
    mount_fds_.erase(fd);
  }

 private:
  friend class FakeFrozenSet;
  struct FakeFd {
    int id;  // of the description it makes
    FakeDescription description;
  };

  UniqueFd NewFd(FakeDescription d) {
    int fd = next_fd_++;
    fake_fds_[fd] = {next_description_++, std::move(d)};
    return UniqueFd(fd, this);
  }
  int NewMount(dev_t dev) {
    int fd = next_fd_++;
    mount_fds_[fd] = next_mount_;
    dev_of_mount_[next_mount_++] = dev;
    return fd;
  }
  std::pair<dev_t, uint64_t> TreeAt(int dirfd) {
    if (dirfd == kSourceDirFd)
      return {kSource, kOwnNs};
    auto m = mount_fds_.find(dirfd);
    if (m != mount_fds_.end())
      return {dev_of_mount_.at(m->second), kOwnNs};
    const FakeDescription& d = fake_fds_.at(dirfd).description;
    return {d.dev, d.ns};
  }
  const FakeDescription* At(const Seat& seat) const {
    auto p = processes.find(seat.pid);
    if (p == processes.end())
      return nullptr;
    if (seat.number < 0)
      return p->second.cwd < 0 ? nullptr : &descriptions.at(p->second.cwd);
    auto fd = p->second.fds.find(seat.number);
    return fd == p->second.fds.end() ? nullptr : &descriptions.at(fd->second);
  }
  proc::Place PlaceOf(const FakeDescription& d) {
    proc::Place place;
    place.dev = d.dev;
    place.ino = files.at(d.path);
    place.mode = (d.flags & O_DIRECTORY) != 0 ? S_IFDIR : S_IFREG;
    place.nlink = d.deleted ? 0 : 1;
    place.deleted = d.deleted;
    place.path = d.shown.empty() ? d.path : d.shown;
    return place;
  }
  proc::Holder HolderOf(dev_t dev, pid_t pid, const FakeProcess& p) {
    proc::Holder holder;
    holder.pid = pid;
    holder.ppid = p.ppid;
    holder.comm = p.comm;
    holder.tracer = p.tracer;
    holder.mnt_ns = p.ns;
    proc::Task task;
    task.tid = pid;
    if (p.cwd >= 0 && descriptions.at(p.cwd).dev == dev)
      task.cwd = PlaceOf(descriptions.at(p.cwd));
    for (auto [number, id] : p.fds) {
      const FakeDescription& d = descriptions.at(id);
      if (d.dev != dev)
        continue;
      proc::Descriptor fd;
      fd.number = number;
      fd.at = PlaceOf(d);
      fd.flags = d.flags;
      fd.pos = d.pos;
      fd.cloexec = p.cloexec.contains(number);
      fd.description = id;
      fd.locks = d.locks;
      if (p.locked) {
        proc::LockLine lock;
        lock.kind = proc::LockKind::kLease;
        lock.pid = pid;
        fd.locks.push_back(lock);
      }
      if (auto posix = p.posix.find(number); posix != p.posix.end())
        fd.locks.insert(fd.locks.end(), posix->second.begin(),
                        posix->second.end());
      task.fds.push_back(std::move(fd));
    }
    if (p.text_only)
      holder.exe = PlaceOf({dev, ".", O_DIRECTORY, 0, kOwnNs});
    holder.tasks.push_back(std::move(task));
    return holder;
  }

  // ---- mounts
  uint64_t NsOf(const mount::MountPoint& at) {
    return at.ns != nullptr ? at.ns->inode() : kOwnNs;
  }
  Result<mount::MountTable> Table(uint64_t ns) {
    std::string text;
    for (const Entry& e : mounts_.at(ns))
      text += std::to_string(e.id) + " " + std::to_string(e.parent) + " 0:" +
              std::to_string(e.dev) + " " + e.root + " " + e.point +
              " rw - fs src rw\n";
    return mount::MountTable::Parse(text);
  }
  Entry& Top(uint64_t ns, const std::string& path) {
    uint64_t id = Table(ns)->Walk(path)->id;
    for (Entry& e : mounts_.at(ns))
      if (e.id == id)
        return e;
    throw std::logic_error("no mount");
  }
  void Remove(uint64_t ns, const std::string& path) {
    uint64_t id = Top(ns, path).id;
    dead_.insert(id);
    std::erase_if(mounts_.at(ns), [&](const Entry& e) { return e.id == id; });
  }
  void PutId(uint64_t id, uint64_t ns, const std::string& path, bool beneath) {
    Entry& top = Top(ns, path);
    if (beneath) {
      Entry below{id, top.parent, dev_of_mount_.at(id), "/", path};
      top.parent = id;
      mounts_.at(ns).push_back(below);
    } else {
      mounts_.at(ns).push_back({id, top.id, dev_of_mount_.at(id), "/", path});
    }
  }
  Status Put(const mount::MountFd& m, const mount::MountPoint& at,
             bool beneath) {
    uint64_t id = mount_fds_.at(m.Get());
    for (const auto& [ns, entries] : mounts_)
      for (const Entry& e : entries)
        if (e.id == id)
          return core::FailSys(EINVAL, "attached already");
    if (dead_.contains(id))
      return core::FailSys(EINVAL, "taken off once, never again");
    uint64_t ns = NsOf(at);
    PutId(id, ns, at.path, beneath);
    if (ns == kOwnNs)
      for (auto [other, follow] : follows)
        if (follow) {
          uint64_t copy = next_mount_++;
          dev_of_mount_[copy] = dev_of_mount_.at(id);
          PutId(copy, other, at.path, beneath);
        }
    return {};
  }

  int next_description_ = 1;
  int next_fd_ = 1000;
  uint64_t next_mount_ = 10;
  std::map<int, FakeFd> fake_fds_;
  std::map<int, uint64_t> mount_fds_;
  std::map<uint64_t, dev_t> dev_of_mount_;
  std::set<uint64_t> dead_;
  std::map<uint64_t, std::vector<Entry>> mounts_;

 public:
  // After the maps they close into.
  mount::MountFd overlay_{UniqueFd(NewMount(kOverlay), this)};
  mount::MountFd target_{UniqueFd(NewMount(kTarget), this)};
};

class FakeFrozenSet : public trace::FrozenSet {
 public:
  explicit FakeFrozenSet(FakeMachine* machine) : m_(machine) {}
  ~FakeFrozenSet() override {
    for (pid_t pid : pids_)
      EXPECT_FALSE(m_->processes[pid].frozen) << pid << " left frozen";
  }
  Status Freeze(const std::vector<pid_t>& pids, int64_t,
                std::vector<trace::Unstopped>* unstopped) override {
    if (Status act = m_->Act("Freeze"); !act) {
      unstopped->push_back({pids.front(), pids.front(), "in a long fsync"});
      return act;
    }
    for (pid_t pid : pids)
      if (m_->processes.contains(pid)) {
        m_->processes[pid].frozen = true;
        pids_.push_back(pid);
      }
    if (Status act = m_->Act("Frozen"); !act)
      return act;
    return {};
  }
  Status Swap(const std::vector<trace::Move>& moves) override {
    before_ = m_->processes;
    for (const trace::Move& move : moves) {
      FakeProcess& p = m_->processes.at(move.pid);
      EXPECT_TRUE(p.frozen) << move.pid << " swapped while it runs";
      for (const trace::FdMove& fd : move.fds) {
        // As the kernel does: all of the file's go with any of its descriptors.
        const FakeDescription old = m_->descriptions.at(p.fds.at(fd.at));
        std::erase_if(p.posix, [&](const auto& held) {
          const FakeDescription& d = m_->descriptions.at(p.fds.at(held.first));
          return d.dev == old.dev && d.path == old.path;
        });
        p.fds[fd.at] = Install(fd.with);
        if (fd.cloexec)
          p.cloexec.insert(fd.at);
        else
          p.cloexec.erase(fd.at);
      }
      if (move.cwd)
        p.cwd = Install(*move.cwd);
      for (const trace::PosixLock& lock : move.locks) {
        proc::LockLine line;
        line.kind = proc::LockKind::kPosix;
        line.write = lock.write;
        line.start = lock.start;
        line.end = lock.end;
        p.posix[lock.at].push_back(line);
      }
    }
    Status act = m_->Act("Swap");
    if (!act) {
      for (auto& [pid, p] : before_)
        m_->processes[pid] = p;
      before_.clear();
    }
    return act;
  }
  Status Undo() override {
    EXPECT_FALSE(committed_);
    for (auto& [pid, p] : before_)
      m_->processes[pid] = p;
    before_.clear();
    return m_->Act("Undo");
  }
  void Commit() override {
    committed_ = true;
    EXPECT_TRUE(m_->Act("Commit"));
  }
  Result<std::vector<trace::Pause>> Thaw() override {
    std::vector<trace::Pause> pauses;
    for (pid_t pid : pids_) {
      m_->processes[pid].frozen = false;
      pauses.push_back({pid, 1000});
    }
    pids_.clear();
    TRY(m_->Act("Thaw"));
    return pauses;
  }

 private:
  int Install(int fd) {
    const FakeMachine::FakeFd& f = m_->fake_fds_.at(fd);
    m_->descriptions[f.id] = f.description;
    return f.id;
  }
  FakeMachine* m_;
  std::vector<pid_t> pids_;
  std::map<pid_t, FakeProcess> before_;
  bool committed_ = false;
};

inline Deps FakeMachine::MakeDeps() {
  Deps deps;
  deps.overlay = this;
  deps.scanner = this;
  deps.files = this;
  deps.mounts = this;
  deps.clock = this;
  deps.make_frozen_set =
      [this]() -> Result<std::unique_ptr<trace::FrozenSet>> {
    TRY(Act("MakeFrozenSet"));
    return std::make_unique<FakeFrozenSet>(this);
  };
  return deps;
}

inline Error Broken(ErrorCode code = ErrorCode::kSystem) {
  return Error{code, code == ErrorCode::kSystem ? EIO : 0, "broken on purpose"};
}

}  // namespace livemv::cutover
