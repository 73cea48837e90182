#pragma once

// One life of the worker in the simulator: the parts that
// migrator/daemon/worker_parts.cc puts together, over the in-memory kernel,
// with fibers instead of threads. Make is a worker's start; it may be cut
// short anywhere.
//
// Thread contract: fibers of one thread.

#include <atomic>
#include <map>
#include <memory>
#include <string>

#include "core/state/journal_writer.h"
#include "fusefs/cutter.h"
#include "fusefs/data_path.h"
#include "fusefs/double_writer.h"
#include "fusefs/graveyard.h"
#include "fusefs/intents.h"
#include "fusefs/names_listener.h"
#include "fusefs/overlay_fs.h"
#include "fusefs/passthrough.h"
#include "migrator/copy/applier.h"
#include "migrator/copy/barrier.h"
#include "migrator/copy/copy_back.h"
#include "migrator/copy/copy_engine.h"
#include "migrator/copy/sync_proof.h"
#include "migrator/copy/tree_scanner.h"
#include "migrator/copy/victims.h"
#include "tests/sim/fibers.h"
#include "tests/sim/mechanisms.h"
#include "tests/support/fake_syscalls.h"

namespace livemv::sim {

using state::FileId;

// The supervisor's descriptors of deleted inodes.
class Orphans final : public fusefs::OrphanKeeper {
 public:
  explicit Orphans(fake::FakeSyscalls* sys) : sys_(sys) {}
  core::Status Keep(FileId id, int fd) override {
    fds[id] = sys_->Dup(fd);
    return {};
  }
  void LetGo(FileId id) override { fds.erase(id); }
  std::map<FileId, core::UniqueFd> fds;

 private:
  fake::FakeSyscalls* const sys_;
};

// The journal, of which some facts or syncs can be taken away.
class SimJournal final : public state::Journal {
 public:
  SimJournal(state::Journal* inner, const Switches* on)
      : inner_(inner), on_(on) {}
  core::Result<state::Seq> Append(const state::Fact& fact) override;
  core::Status Sync(state::Seq seq) override;
  core::Status SyncAll() override { return inner_->SyncAll(); }

 private:
  state::Journal* const inner_;
  const Switches* const on_;
  state::Seq last_ = 0;
  state::Seq lazy_ = 0;  // a record whose Sync is skipped
};

// What the host has and a worker is started on.
struct Host {
  fake::FakeSyscalls* sys = nullptr;
  fake::FakeSyscalls::FsId source = 0, target = 0, journal = 0;
  Fibers* fibers = nullptr;
  const Switches* on = nullptr;
  Orphans* orphans = nullptr;
  fusefs::BackingIds* backing_ids = nullptr;
  void* intents = nullptr;  // memory of IntentTable::Bytes()
  std::string boot_id;
  int group = 0;            // of the worker's fibers
  bool resume = false;      // another worker has served before
  bool same_mount = false;  // and this very mount
  bool aborting = false;    // the journaled phase
  bool durable_target = false;
  bool predecessor_alive = false;
  uint64_t batch_bytes = 64 << 20;
  bool verify = true;
  bool scanned = false;     // a predecessor had compared the whole tree
};

class SimWorker {
 public:
  static constexpr char kPrivate[] = ".livemv-sim";
  static core::Result<std::unique_ptr<SimWorker>> Make(const Host& host);

  // The fibers that worker_parts.cc has threads for.
  void Start();
  void Stop();
  // As WorkerOverlay::BeginAbort.
  core::Status BeginAbort();
  // As WorkerOverlay::LeaveDirect.
  core::Status LeaveDirect();
  copy::SyncProof Proof();
  // The whole tree was compared, and a barrier has been since.
  bool Scanned();
  // As WorkerOverlay::DrainAndGate and CommitTarget, nothing being in flight.
  core::Status Commit();
  // As WorkerOverlay::CommitSource, when copy-back has nothing left.
  core::Status CommitSource();

  Host host;
  bool host_went_down = false;
  state::RecoveredState recovered;
  std::unique_ptr<state::JournalFile> file;
  std::unique_ptr<SimJournal> journal;
  std::unique_ptr<state::NodeTable> nodes;
  std::unique_ptr<fusefs::SourceTree> source;
  std::unique_ptr<fusefs::ObjectStore> objects;
  std::unique_ptr<fusefs::FileTable> table;
  std::unique_ptr<fusefs::ByteLedger> ledger;
  std::unique_ptr<fusefs::Redo> redo;
  std::unique_ptr<fusefs::DoubleWriter> doubles;
  std::unique_ptr<fusefs::DataPath> data;
  std::unique_ptr<fusefs::Passthrough> passthrough;
  fusefs::Graveyard graveyard;
  std::unique_ptr<fusefs::OverlayFs> fs;
  copy::NameLane lane;
  std::unique_ptr<copy::CopyEngine> engine;
  std::unique_ptr<fusefs::NamesListener> listener;
  std::unique_ptr<copy::Applier> applier;
  std::unique_ptr<copy::TreeScanner> scanner;
  std::unique_ptr<copy::Victims> victims;
  std::unique_ptr<copy::Barrier> barrier;
  std::unique_ptr<fusefs::Cutter> cutter;
  std::unique_ptr<copy::CopyBack> back;
  std::unique_ptr<fusefs::IntentTable> intents;
  bool back_done = false;  // copy-back found nothing left

 private:
  SimWorker() = default;
  core::Status OpenJournal();
  core::Status MakeTrees();
  core::Status MakeBytes();
  void MakeNames();
  void Loop(const char* name, std::function<void()> body);
  void BackLoop();

  uint64_t scanned_at_ = 0;  // barriers, when the scan will be durable
  core::Mutex victims_mu_;
  core::Mutex back_mu_;
  std::atomic<bool> stop_{false};
};

}  // namespace livemv::sim
