#pragma once

// The name lane put together over any Syscalls, for tests: one worker's life
// from its journal on, which can end at any call (Ending, thrown from the
// fake's on_call) and begin again.
//
// Thread contract: one thread.

#include <fcntl.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/state/journal_writer.h"
#include "core/state/recovery.h"
#include "fusefs/names_listener.h"
#include "fusefs/overlay_fs.h"
#include "migrator/copy/applier.h"
#include "migrator/copy/barrier.h"
#include "migrator/copy/sync_proof.h"
#include "migrator/copy/tree_scanner.h"
#include "migrator/copy/victims.h"

namespace livemv::fake {

using state::FileId;
using state::kRootId;

// Thrown out of a system call: the process is gone.
struct Ending {};

inline std::string Why(const core::Error& e) {
  return e.ToString();
}
template <class T>
T Must(core::Result<T> result) {
  if (!result)
    ADD_FAILURE() << Why(result.error());
  return std::move(result.value());
}
inline void MustDo(core::Status status) {
  if (!status)
    ADD_FAILURE() << Why(status.error());
}

// What outlives a worker: the supervisor's orphans.
class Orphans final : public fusefs::OrphanKeeper {
 public:
  explicit Orphans(std::function<core::UniqueFd(int)> dup)
      : dup_(std::move(dup)) {}
  core::Status Keep(FileId id, int fd) override {
    fds[id] = dup_(fd);
    return {};
  }
  void LetGo(FileId id) override { fds.erase(id); }
  std::map<FileId, core::UniqueFd> fds;

 private:
  std::function<core::UniqueFd(int)> dup_;
};

struct StageRoots {
  std::function<core::UniqueFd()> source, target, journal;
  fusefs::TargetHolds holds = {};
};

// One life of the worker. Members in the order of construction.
struct Worker {
  static constexpr char kPrivate[] = ".livemv-test";

  Worker(core::Syscalls* s, const StageRoots& roots, const std::string& boot,
         bool durable_target)
      : sys(s) {
    core::UniqueFd jdir = roots.journal();
    core::UniqueFd source_root = roots.source();
    auto handle = Must(sys->NameToHandle(source_root.Get(), ""));
    auto opened = state::JournalFile::Open(sys, jdir.Get(), "journal", Small());
    if (!opened) {
      resumed = false;
      journal = Must(state::JournalFile::Create(
          sys, jdir.Get(), "journal",
          state::MigrationFact{"test", "/s", "/t", handle}, Small()));
    } else {
      resumed = true;
      journal = std::move(opened->journal);
      recovered = std::move(opened->state);
    }
    for (const state::Fact& fact :
         state::FactsOfNewSession(recovered, boot, 1)) {
      Must(journal->Append(fact));
      MustDo(recovered.Apply(fact));
    }
    MustDo(journal->SyncAll());
    nodes = std::make_unique<state::NodeTable>(journal.get());
    nodes->SetRoot(handle);
    for (const auto& [id, node] : recovered.nodes)
      MustDo(nodes->Adopt(state::NodeFact{id, node}));
    source = std::make_unique<fusefs::SourceTree>(sys, std::move(source_root),
                                                  nodes.get(), 16);
    source->Hide(kPrivate);
    objects = std::make_unique<fusefs::ObjectStore>(sys, roots.target(),
                                                    kPrivate, journal.get(), 8);
    for (const auto& [id, file] : recovered.files) {
      if (file.bound)
        objects->Adopt(id, {file.bound->handle, file.bound->ino,
                            file.bound->type});
    }
    MustDo(objects->Prepare());
    // One thread here is the applications and the applier.
    redo = std::make_unique<fusefs::Redo>(
        sys, journal.get(),
        fusefs::Redo::Options{.longest_hold_ns = 0, .settle_ns = 0});
    redo->Adopt(recovered);
    table = std::make_unique<fusefs::FileTable>();
    table->Adopt(recovered);
    ledger = std::make_unique<fusefs::ByteLedger>(table.get(), source.get(),
                                                  objects.get(), journal.get());
    listener = std::make_unique<fusefs::NamesListener>(
        redo.get(), [this](FileId id, bool) { WantCopy(id); });
    ledger->SetListener(listener.get());
    writer = std::make_unique<fusefs::InlineTargetWriter>(objects.get());
    data = std::make_unique<fusefs::DataPath>(ledger.get(), writer.get());
    lane.source = source.get();
    lane.objects = objects.get();
    lane.redo = redo.get();
    lane.graveyard = &graveyard;
    lane.journal = journal.get();
    lane.copy_wanted = [this](FileId id) { WantCopy(id); };
    lane.host_went_down = recovered.HostWentDown(boot);
    fs = std::make_unique<fusefs::OverlayFs>(
        fusefs::OverlayFs::Parts{source.get(), objects.get(), redo.get(),
                                 data.get(), nullptr, &graveyard, journal.get(),
                                 resumed, roots.holds},
        fusefs::Serving::kRedirect);
    applier = std::make_unique<copy::Applier>(&lane);
    applier->Adopt(recovered);
    scanner = std::make_unique<copy::TreeScanner>(&lane, applier.get(),
                                                  lane.host_went_down);
    applier->SetScanner([this](FileId id) { scanner->Want(id); },
                        [this] { scanner->WantOwed(); });
    victims = std::make_unique<copy::Victims>(
        &lane, applier.get(),
        copy::Victims::Hooks{[this](FileId id) { return fs->InUse(id); },
                             [this](FileId id) { return ledger->Forget(id); },
                             [this] { return barrier->Now(); }});
    copy::Barrier::Options options;
    options.target_is_durable = durable_target;
    barrier = std::make_unique<copy::Barrier>(&lane, ledger.get(),
                                              victims.get(), options);
    scanner->Start();
    MustDo(victims->Survey());
  }

  static state::JournalOptions Small() {
    state::JournalOptions o;
    o.reserve_bytes = 64 << 10;
    o.step_bytes = 64 << 10;
    return o;
  }

  void WantCopy(FileId id) {
    core::MutexLock lock(copy_mu);
    copy_wanted.insert(id);
  }

  // Everything that is due, until nothing is.
  void Settle() {
    for (int round = 0; round < 200; ++round) {
      redo->RetryAll(true);
      bool did = false;
      while (applier->Step() || scanner->Step())
        did = true;
      did |= Must(victims->Bury()) != 0;
      if (did)
        continue;
      auto count = redo->Count();
      if (scanner->Done() && count.pending == count.set_aside &&
          count.owed == 0)
        break;
    }
    MustDo(barrier->Now());
  }

  copy::SyncProof Proof() { return {&lane, scanner.get(), nullptr, nullptr}; }

  core::Syscalls* sys;
  bool resumed = false;
  state::RecoveredState recovered;
  std::unique_ptr<state::JournalFile> journal;
  std::unique_ptr<state::NodeTable> nodes;
  std::unique_ptr<fusefs::SourceTree> source;
  std::unique_ptr<fusefs::ObjectStore> objects;
  std::unique_ptr<fusefs::Redo> redo;
  std::unique_ptr<fusefs::FileTable> table;
  std::unique_ptr<fusefs::ByteLedger> ledger;
  std::unique_ptr<fusefs::NamesListener> listener;
  std::unique_ptr<fusefs::InlineTargetWriter> writer;
  std::unique_ptr<fusefs::DataPath> data;
  fusefs::Graveyard graveyard;
  copy::NameLane lane;
  std::unique_ptr<fusefs::OverlayFs> fs;
  std::unique_ptr<copy::Applier> applier;
  std::unique_ptr<copy::TreeScanner> scanner;
  std::unique_ptr<copy::Barrier> barrier;
  std::unique_ptr<copy::Victims> victims;
  core::Mutex copy_mu;
  std::set<FileId> copy_wanted;  // guarded by copy_mu
};

// --- comparing trees through the seam

struct Seen {
  core::Stat st;
  std::string link;
  std::map<std::string, std::string> xattrs;
};

inline void WalkInto(core::Syscalls* sys, int at, const std::string& prefix,
                     const std::string& skip,
                     std::map<std::string, Seen>* out) {
  auto fd = Must(sys->OpenAt(at, ".", O_RDONLY | O_DIRECTORY));
  std::vector<std::string> names;
  for (int64_t offset = 0;;) {
    auto entries = Must(sys->ReadDir(fd.Get(), offset, 4096));
    if (entries.empty())
      break;
    offset = entries.back().next_offset;
    for (auto& e : entries) {
      if (e.name != "." && e.name != ".." && e.name != skip &&
          e.name != "lost+found")
        names.push_back(e.name);
    }
  }
  for (const std::string& name : names) {
    auto one = Must(sys->OpenAt(at, name.c_str(), O_PATH | O_NOFOLLOW));
    Seen seen;
    seen.st = Must(sys->StatAt(one.Get(), ""));
    if (S_ISLNK(seen.st.stx_mode))
      seen.link = Must(sys->ReadLinkAt(one.Get(), ""));
    if (auto list = sys->ListXattr(one.Get()); list) {
      for (const std::string& x : *list) {
        if (x != fusefs::kMarkXattr && x != "security.selinux")
          seen.xattrs[x] = Must(sys->GetXattr(one.Get(), x.c_str()));
      }
    }
    (*out)[prefix + name] = seen;
    if (S_ISDIR(seen.st.stx_mode))
      WalkInto(sys, one.Get(), prefix + name + "/", "", out);
  }
}

// What differs between the worker's two trees; empty if nothing.
inline std::string Differences(Worker& w, bool times = true) {
  std::map<std::string, Seen> source, target;
  WalkInto(w.sys, w.source->RootFd(), "", "", &source);
  WalkInto(w.sys, w.objects->RootFd(), "", Worker::kPrivate, &target);
  std::string out;
  std::map<uint64_t, uint64_t> links;  // source ino -> target ino
  for (const auto& [path, s] : source) {
    auto it = target.find(path);
    if (it == target.end()) {
      out += "missing: " + path + "\n";
      continue;
    }
    const Seen& t = it->second;
    auto differs = [&](const char* what, uint64_t a, uint64_t b) {
      if (a != b)
        out += path + ": " + what + " " + std::to_string(a) + " against " +
               std::to_string(b) + "\n";
    };
    differs("mode", s.st.stx_mode, t.st.stx_mode);
    differs("uid", s.st.stx_uid, t.st.stx_uid);
    differs("gid", s.st.stx_gid, t.st.stx_gid);
    differs("rdev", s.st.stx_rdev_minor, t.st.stx_rdev_minor);
    if (!S_ISDIR(s.st.stx_mode))
      differs("nlink", s.st.stx_nlink, t.st.stx_nlink);
    if (times) {
      differs("mtime", static_cast<uint64_t>(s.st.stx_mtime.tv_sec),
              static_cast<uint64_t>(t.st.stx_mtime.tv_sec));
      differs("mtime ns", s.st.stx_mtime.tv_nsec, t.st.stx_mtime.tv_nsec);
    }
    if (s.link != t.link)
      out += path + ": link text\n";
    if (s.xattrs != t.xattrs)
      out += path + ": xattrs\n";
    auto [known, fresh] = links.try_emplace(s.st.stx_ino, t.st.stx_ino);
    if (!fresh && known->second != t.st.stx_ino)
      out += path + ": hard link of another file\n";
  }
  for (const auto& [path, t] : target) {
    if (!source.contains(path))
      out += "extra: " + path + "\n";
  }
  return out;
}

inline std::vector<std::string> NamesIn(core::Syscalls* sys, int at) {
  std::map<std::string, Seen> seen;
  WalkInto(sys, at, "", "", &seen);
  std::vector<std::string> names;
  for (const auto& [name, s] : seen)
    names.push_back(name);
  return names;
}

}  // namespace livemv::fake
