#include "migrator/daemon/worker_parts.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <pthread.h>

#include <utility>

#include "core/as_owner.h"
#include "core/log.h"
#include "core/thread_priority.h"
#include "migrator/daemon/boot.h"
#include "migrator/daemon/channel.h"
#include "migrator/daemon/small_files.h"
#include "migrator/daemon/source_check.h"

namespace livemv::daemon {

using core::Result;
using core::Status;
using core::UniqueFd;
using fusefs::Serving;
using state::MigrationState;

namespace {

// A double write that hangs keeps its thread, and applications wait at most
// the limit for a free one.
constexpr int kDoubleWriters = 8;
constexpr int kAppliers = 4;
constexpr int kScanners = 2;
constexpr int kCopiers = 2;
constexpr std::chrono::milliseconds kFirstSyncAfter(300);

// These write back in their own time, whoever closes the file. Others are taken
// to tell at close, as network filesystems do.
bool IsLocal(int64_t fs_type) {
  switch (fs_type) {
    case EXT4_SUPER_MAGIC:
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
    case TMPFS_MAGIC:
    case OVERLAYFS_SUPER_MAGIC:
    case 0x2fc12fc1:  // ZFS
    case 0xca451a4e:  // bcachefs
    case 0x3153464a:  // JFS
      return true;
    default:
      return false;
  }
}

Serving ModeOf(PhaseKeeper& phase) {
  switch (phase.state()) {
    case MigrationState::kPlanned:
    case MigrationState::kAttaching:
      return Serving::kSourceOnly;
    case MigrationState::kAborting:
    case MigrationState::kAborted:
      return phase.source_is_truth() ? Serving::kSourceOnly
                                     : Serving::kAborting;
    default:
      return phase.target_is_truth() ? Serving::kTargetOnly
                                     : Serving::kRedirect;
  }
}

}  // namespace

Result<std::unique_ptr<WorkerParts>> WorkerParts::Make(
    Handoff& handoff, fusefs::OrphanKeeper* keeper,
    std::vector<std::pair<state::FileId, UniqueFd>> orphans, Past past) {
  std::unique_ptr<WorkerParts> parts(new WorkerParts);
  parts->settings = handoff.settings;
  parts->past = past;
  parts->resumed = past == Past::kOverlay;
  parts->kernel = core::MakeRealSyscalls();
  ASSIGN_OR_RETURN(parts->source_mount, handoff.Take(fd_name::kSource));
  ASSIGN_OR_RETURN(parts->target_mount, handoff.Take(fd_name::kTarget));
  ASSIGN_OR_RETURN(UniqueFd target_root, handoff.Take(fd_name::kTargetRoot));
  parts->sys = core::MakeAsOwner(
      parts->kernel.get(), target_root.Get(),
      [on = parts.get()](
          const core::Stat& object) -> Result<std::shared_ptr<void>> {
        auto id = on->objects->FindByIno(object.stx_ino);
        if (!id || !on->redo)
          return nullptr;  // of the private directory
        ASSIGN_OR_RETURN(fusefs::Redo::Change change,
                         on->redo->Touch({{*id, {}}}));
        return std::make_shared<fusefs::Redo::Change>(std::move(change));
      });
  ASSIGN_OR_RETURN(parts->fuse, handoff.Take(fd_name::kFuse));
  for (size_t i = 0;; i++) {
    const std::string name = fd_name::kPredecessor + std::to_string(i);
    if (handoff.Borrow(name) < 0)
      break;
    ASSIGN_OR_RETURN(UniqueFd predecessor, handoff.Take(name));
    parts->predecessors.push_back(std::move(predecessor));
  }
  // Much of it for a large tree; it goes when everybody has taken his part.
  state::RecoveredState recovered;
  TRY(parts->OpenJournal(&recovered));
  TRY(parts->MakeTrees(recovered, std::move(target_root), keeper));
  // Before the overlay, which asks which inodes are in use without a name.
  for (auto& [id, fd] : orphans)
    parts->source->AdoptOrphan(id, std::move(fd));
  TRY(parts->MakeBytes(recovered));
  TRY(parts->MakeNames(recovered));
  TRY(parts->MakeSession(handoff));
  if (!parts->predecessors.empty())
    parts->ledger->SetPredecessorAlive(true);
  return parts;
}

WorkerParts::~WorkerParts() {
  StopThreads();
  // The one that waits for the target starts others.
  for (;;) {
    std::vector<std::thread> threads;
    {
      std::lock_guard lock(threads_mu_);
      threads.swap(threads_);
    }
    if (threads.empty())
      return;
    for (std::thread& thread : threads)
      thread.join();
  }
}

Status WorkerParts::OpenJournal(state::RecoveredState* recovered) {
  ASSIGN_OR_RETURN(UniqueFd dir,
                   sys->OpenAt(AT_FDCWD, settings.state_dir.c_str(),
                               O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(const Boot boot, ThisBoot(settings.boot));
  state::JournalOptions options;
  options.boot_id = boot.id;
  ASSIGN_OR_RETURN(
      state::JournalFile::Opened opened,
      state::JournalFile::Open(sys.get(), dir.Get(), "journal", options));
  journal = std::move(opened.journal);
  *recovered = std::move(opened.state);
  if (!recovered->migration)
    return Fail(core::ErrorCode::kCorrupt, "the journal names no migration");
  host_went_down = recovered->HostWentDown(boot.id);
  for (const state::Fact& fact : state::FactsOfNewSession(
           *recovered, boot.id, static_cast<uint32_t>(::getpid()))) {
    TRY(journal->Append(fact));
    TRY(recovered->Apply(fact));
  }
  if (past == Past::kMigration) {
    const state::OptionFact due{kOverlayDueOption, "yes"};
    TRY(journal->Append(due));
    TRY(recovered->Apply(due));
  }
  if (auto it = recovered->options.find(kOverlayDueOption);
      it != recovered->options.end())
    overlay_due = it->second == "yes";
  said_alive_ns = LastAliveNs(*recovered).value_or(0);
  TRY(journal->SyncAll());
  phase = std::make_unique<PhaseKeeper>(
      journal.get(), recovered->phase, recovered->reason,
      recovered->target_is_truth, recovered->options.contains(kSourceTruthOption));
  return {};
}

Status WorkerParts::MakeTrees(const state::RecoveredState& recovered,
                              UniqueFd target_root,
                              fusefs::OrphanKeeper* keeper) {
  nodes = std::make_unique<state::NodeTable>(journal.get());
  nodes->SetRoot(recovered.migration->source_root);
  for (const auto& [id, handle] : recovered.nodes)
    TRY(nodes->Adopt(state::NodeFact{id, handle}));
  ASSIGN_OR_RETURN(UniqueFd source_root,
                   sys->OpenAt(source_mount.Get(), ".",
                               O_RDONLY | O_DIRECTORY));
  source = std::make_unique<fusefs::SourceTree>(
      sys.get(), std::move(source_root), nodes.get());
  source->SetKeeper(keeper);
  objects = std::make_unique<fusefs::ObjectStore>(
      sys.get(), std::move(target_root), ".livemv-" + settings.id,
      journal.get());
  for (const auto& [id, file] : recovered.files) {
    if (file.bound)
      objects->Adopt(id, fusefs::Object{file.bound->handle, file.bound->ino,
                                        file.bound->type});
  }
  return {};
}

Status WorkerParts::MakeBytes(const state::RecoveredState& recovered) {
  table = std::make_unique<fusefs::FileTable>();
  table->Adopt(recovered);
  ledger = std::make_unique<fusefs::ByteLedger>(table.get(), source.get(),
                                                objects.get(), journal.get());
  redo = std::make_unique<fusefs::Redo>(sys.get(), journal.get(),
                                        fusefs::Redo::Options{});
  redo->Adopt(recovered);
  engine = std::make_unique<copy::CopyEngine>(ledger.get());
  engine->EnqueueUnfinished(recovered);
  listener = std::make_unique<fusefs::NamesListener>(
      redo.get(), [this](state::FileId id, bool urgent) {
        engine->Enqueue(id, urgent);
      });
  ledger->SetListener(listener.get());
  ledger->SetTellsAtClose(!IsLocal(settings.target_fs_type));
  doubles = std::make_unique<fusefs::DoubleWriter>(objects.get());
  data = std::make_unique<fusefs::DataPath>(ledger.get(), doubles.get());
  cutter = std::make_unique<fusefs::Cutter>(ledger.get());
  // The kernel would write to the object as root, which a server that gives no
  // files away takes for nobody (hazard H32).
  if (settings.holds.gives_owners)
    backing_ids = fusefs::MakeBackingIds(fuse.Get());
  passthrough = std::make_unique<fusefs::Passthrough>(
      ledger.get(), backing_ids.get(), resumed);
  TRY(passthrough->Adopt(recovered));
  if (phase->state() == MigrationState::kAborting ||
      phase->state() == MigrationState::kAborted)
    passthrough->Close();
  passthrough->SetFinal(phase->target_is_truth());
  return {};
}

Status WorkerParts::MakeNames(const state::RecoveredState& recovered) {
  fusefs::OverlayFs::Parts fs_parts;
  fs_parts.source = source.get();
  fs_parts.objects = objects.get();
  fs_parts.redo = redo.get();
  fs_parts.data = data.get();
  fs_parts.passthrough = passthrough.get();
  fs_parts.graveyard = &graveyard;
  fs_parts.journal = journal.get();
  fs_parts.resumed = resumed;
  fs_parts.holds = settings.holds;
  fs = std::make_unique<fusefs::OverlayFs>(fs_parts, ModeOf(*phase));
  data->SetServing(ModeOf(*phase));
  if (ModeOf(*phase) == Serving::kAborting) {
    // Tried again before anything more is brought back.
    if (Status put_back = copy::CopyBack(ledger.get()).PutBackAll(); !put_back)
      LOG_WARN("times of files that were being brought back: {}",
               put_back.error().ToString());
  }

  lane.source = source.get();
  lane.objects = objects.get();
  lane.redo = redo.get();
  lane.files = table.get();
  lane.graveyard = &graveyard;
  lane.journal = journal.get();
  lane.copy_wanted = [this](state::FileId id) { engine->Enqueue(id); };
  lane.host_went_down = host_went_down;
  ASSIGN_OR_RETURN(lane.losses, core::ParseLosses(settings.losses));
  applier = std::make_unique<copy::Applier>(&lane);
  applier->Adopt(recovered);
  scanner = std::make_unique<copy::TreeScanner>(&lane, applier.get(),
                                                host_went_down);
  applier->SetScanner([this](state::FileId dir) { scanner->Want(dir); },
                      [this] { scanner->WantOwed(); });
  copy::Victims::Hooks hooks;
  hooks.in_use = [this](state::FileId id) { return fs->InUse(id); };
  hooks.forget = [this](state::FileId id) {
    engine->Forget(id);
    return ledger->Forget(id);
  };
  hooks.sync_source = [this] { return barrier->Now(); };
  victims = std::make_unique<copy::Victims>(&lane, applier.get(),
                                            std::move(hooks));
  copy::Barrier::Options options;
  options.target_is_durable = settings.target_fs_type == NFS_SUPER_MAGIC;
  barrier = std::make_unique<copy::Barrier>(&lane, ledger.get(), victims.get(),
                                            options);
  return {};
}

Status WorkerParts::MakeSession(Handoff& handoff) {
  ASSIGN_OR_RETURN(UniqueFd init, handoff.Take(fd_name::kSavedInit));
  ASSIGN_OR_RETURN(UniqueFd intents_fd, handoff.Take(fd_name::kIntents));
  ASSIGN_OR_RETURN(UniqueFd beat, handoff.Take(fd_name::kHeartbeat));
  ASSIGN_OR_RETURN(
      SharedMemory init_map,
      SharedMemory::Map(init.Get(), sizeof(fusefs::SavedInit)));
  ASSIGN_OR_RETURN(
      SharedMemory intents_map,
      SharedMemory::Map(intents_fd.Get(), fusefs::IntentTable::Bytes()));
  ASSIGN_OR_RETURN(Heartbeat beating, Heartbeat::Map(beat.Get()));
  init_memory = std::make_unique<SharedMemory>(std::move(init_map));
  intents_memory = std::make_unique<SharedMemory>(std::move(intents_map));
  heartbeat = std::make_unique<Heartbeat>(std::move(beating));
  ASSIGN_OR_RETURN(intents, fusefs::IntentTable::Attach(
                                intents_memory->Get(), intents_memory->size()));
  session = std::make_unique<fusefs::Session>(
      fuse.Get(), fs.get(),
      static_cast<fusefs::SavedInit*>(init_memory->Get()), intents.get());
  fs->SetCanDropCaches(
      [session = session.get()] { return session->CanInvalidateAllEntries(); });
  passthrough->SetDropAttrs([session = session.get()](state::FileId id) {
    if (Status dropped = session->InvalidateAttrs(id); !dropped)
      LOG_WARN("drop the attributes of {:#x}: {}", id,
               dropped.error().ToString());
  });
  return {};
}

void WorkerParts::Thread(const char* name, std::function<void()> body) {
  std::lock_guard lock(threads_mu_);
  threads_.emplace_back([name, body = std::move(body)] {
    ::pthread_setname_np(::pthread_self(), name);
    body();
  });
}

void WorkerParts::AwaitPredecessors() {
  constexpr int kLookMs = 100;  // for the end of this worker
  for (UniqueFd& predecessor : predecessors) {
    struct pollfd p = {predecessor.Get(), POLLIN, 0};
    while (!stop_ && ::poll(&p, 1, kLookMs) <= 0) {
    }
  }
  if (stop_)
    return;
  LOG_INFO("the predecessors have ended");
  ledger->SetPredecessorAlive(false);
}

void WorkerParts::StartServing() {
  if (!predecessors.empty()) {
    LOG_INFO("{} predecessors have not ended: until then nothing is claimed, "
             "cut or made remote", predecessors.size());
    Thread("predecessor", [this] { AwaitPredecessors(); });
  }
  for (int i = 0; i < kDoubleWriters; i++)
    Thread("double", [this] {
      core::ScopedRank rank(core::Rank::kAheadOfApplications);
      doubles->Run(stop_);
    });
}

void WorkerParts::StartCopying() {
  if (copying_.exchange(true))
    return;
  Thread("prepare", [this] {
    PrepareTarget();
    if (!stop_)
      StartCopyingThreads();
  });
}

void WorkerParts::PrepareTarget() {
  bool told = false;
  while (!stop_) {
    Status prepared = objects->Prepare();
    if (prepared)
      return;
    if (!std::exchange(told, true))
      LOG_WARN("prepare the target, tried again every second: {}",
               prepared.error().ToString());
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
}

void WorkerParts::StartCopyingThreads() {
  Thread("survey", [this] {
    if (past != Past::kNone) {
      std::lock_guard lock(victims_mu);
      if (Status surveyed = victims->Survey(); !surveyed)
        LOG_WARN("survey of the private directory: {}",
                 surveyed.error().ToString());
    }
  });
  scanner->Start();
  for (int i = 0; i < kScanners; i++)
    Thread("scanner", [this] {
      core::ScopedRank rank(core::Rank::kBehindApplications);
      scanner->Run(stop_);
    });
  for (int i = 0; i < kAppliers; i++)
    Thread("applier", [this] { applier->Run(stop_); });
  for (int i = 0; i < kCopiers; i++)
    Thread("copier", [this] {
      core::ScopedRank rank(core::Rank::kBehindApplications);
      // What it may not copy yet stays in its queue.
      while (!stop_ && ledger->PredecessorAlive())
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      engine->Run(stop_);
    });
  Thread("cutter", [this] { cutter->Run(stop_); });
  Thread("direct", [this] { passthrough->Run(stop_); });
  // Not at once: every writer's first byte after the redirect waits for the
  // journal, and should not wait behind a sync of whole filesystems.
  Thread("barrier", [this] {
    std::this_thread::sleep_for(kFirstSyncAfter);
    barrier->Run(stop_);
  });
  Thread("burial", [this] {
    std::this_thread::sleep_for(kFirstSyncAfter);
    while (!stop_) {
      {
        std::lock_guard lock(victims_mu);
        if (Status buried = barrier->TargetStep(); !buried)
          LOG_WARN("barrier on the target: {}", buried.error().ToString());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(250));
    }
  });
}

void WorkerParts::StopThreads() {
  stop_ = true;
  if (doubles)
    doubles->Wake();
  if (scanner)
    scanner->WakeAll();
  if (redo)
    redo->WakeAll();
  if (engine)
    engine->Wake();
  if (cutter)
    cutter->Wake();
  if (passthrough)
    passthrough->Wake();
  if (barrier)
    barrier->WakeAll();
}

copy::SyncProof WorkerParts::Proof() {
  return {&lane, scanner.get(), engine.get(), cutter.get()};
}

}  // namespace livemv::daemon
