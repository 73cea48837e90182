#pragma once

// Everything that the worker is made of, in the order in which it depends on
// each other, and the threads that drive it.
//
// Thread contract: made by one thread; see the parts for the rest.

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/result.h"
#include "core/state/journal_writer.h"
#include "core/state/node_table.h"
#include "core/syscalls.h"
#include "fusefs/byte_ledger.h"
#include "fusefs/cutter.h"
#include "fusefs/data_path.h"
#include "fusefs/double_writer.h"
#include "fusefs/file_table.h"
#include "fusefs/graveyard.h"
#include "fusefs/intents.h"
#include "fusefs/names_listener.h"
#include "fusefs/object_store.h"
#include "fusefs/overlay_fs.h"
#include "fusefs/passthrough.h"
#include "fusefs/redo.h"
#include "fusefs/session.h"
#include "fusefs/source_tree.h"
#include "migrator/copy/applier.h"
#include "migrator/copy/barrier.h"
#include "migrator/copy/copy_back.h"
#include "migrator/copy/copy_engine.h"
#include "migrator/copy/name_lane.h"
#include "migrator/copy/sync_proof.h"
#include "migrator/copy/tree_scanner.h"
#include "migrator/copy/victims.h"
#include "migrator/daemon/handoff.h"
#include "migrator/daemon/heartbeat.h"
#include "migrator/daemon/phase_keeper.h"

namespace livemv::daemon {

struct WorkerParts {
  // How much there was before this worker.
  enum class Past {
    kNone,       // the migration begins
    kOverlay,    // another worker has served this very overlay
    kMigration,  // another overlay was served, which is gone with its users
  };
  // keeper: may be null. orphans: what a predecessor had pinned. Asks nothing
  // of the target, whose server may be away.
  static core::Result<std::unique_ptr<WorkerParts>> Make(
      Handoff& handoff, fusefs::OrphanKeeper* keeper,
      std::vector<std::pair<state::FileId, core::UniqueFd>> orphans,
      Past past);
  ~WorkerParts();

  // Threads that the overlay needs even while it serves the source only.
  void StartServing();
  // Threads that bring names and bytes to the target, as soon as it has
  // answered; once, at redirect.
  void StartCopying();
  // Asks every thread to end; does not wait.
  void StopThreads();

  copy::SyncProof Proof();

  Settings settings;
  Past past = Past::kNone;
  bool resumed = false;  // by kernel and users of the overlay: kOverlay
  // Of a recovered migration whose overlay has not been on DIR yet: nothing is
  // changed and no word of life given, or what others did to the bare source
  // would pass for ours.
  std::atomic<bool> overlay_due{false};
  std::atomic<int64_t> said_alive_ns{0};  // the last word in the journal
  bool host_went_down = false;

  std::unique_ptr<core::Syscalls> kernel;
  std::unique_ptr<core::Syscalls> sys;  // on the target as owners, if need be
  core::UniqueFd source_mount, target_mount, fuse;
  // pidfds of dead workers that have not ended: readable when one has.
  std::vector<core::UniqueFd> predecessors;
  std::unique_ptr<SharedMemory> init_memory, intents_memory;
  std::unique_ptr<Heartbeat> heartbeat;
  std::unique_ptr<state::JournalFile> journal;
  std::unique_ptr<PhaseKeeper> phase;
  std::unique_ptr<state::NodeTable> nodes;
  std::unique_ptr<fusefs::SourceTree> source;
  std::unique_ptr<fusefs::ObjectStore> objects;
  std::unique_ptr<fusefs::FileTable> table;
  std::unique_ptr<fusefs::ByteLedger> ledger;
  std::unique_ptr<fusefs::Redo> redo;
  std::unique_ptr<fusefs::DoubleWriter> doubles;
  std::unique_ptr<fusefs::DataPath> data;
  std::unique_ptr<fusefs::BackingIds> backing_ids;  // null: no file is direct
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
  std::unique_ptr<fusefs::IntentTable> intents;
  std::unique_ptr<fusefs::Session> session;

  // One user of the victims at a time (their contract).
  std::mutex victims_mu;

 private:
  WorkerParts() = default;
  // recovered: as found, and the new session's facts taken.
  core::Status OpenJournal(state::RecoveredState* recovered);
  core::Status MakeTrees(const state::RecoveredState& recovered,
                         core::UniqueFd target_root,
                         fusefs::OrphanKeeper* keeper);
  core::Status MakeBytes(const state::RecoveredState& recovered);
  core::Status MakeNames(const state::RecoveredState& recovered);
  core::Status MakeSession(Handoff& handoff);
  void Thread(const char* name, std::function<void()> body);
  void PrepareTarget();  // until it has answered, or the end
  void AwaitPredecessors();
  void StartCopyingThreads();

  std::atomic<bool> stop_{false};
  std::atomic<bool> copying_{false};
  std::mutex threads_mu_;
  std::vector<std::thread> threads_;  // guarded by threads_mu_
};

}  // namespace livemv::daemon
