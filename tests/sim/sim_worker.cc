#include "tests/sim/sim_worker.h"

#include <fcntl.h>

namespace livemv::sim {

using core::Result;
using core::Status;
using fusefs::Serving;

Result<state::Seq> SimJournal::Append(const state::Fact& fact) {
  const bool hot = std::holds_alternative<state::MetaHotFact>(fact);
  const bool redo = std::holds_alternative<state::EntryDirtyFact>(fact) ||
                    std::holds_alternative<state::AttrsDirtyFact>(fact);
  if ((hot && !on_->meta_hot) || (redo && !on_->redo_records))
    return last_;
  ASSIGN_OR_RETURN(last_, inner_->Append(fact));
  if (hot && !on_->meta_hot_durable)
    lazy_ = last_;
  return last_;
}

Status SimJournal::Sync(state::Seq seq) {
  if (seq != 0 && seq == lazy_)
    return {};
  return inner_->Sync(seq);
}

Result<std::unique_ptr<SimWorker>> SimWorker::Make(const Host& host) {
  std::unique_ptr<SimWorker> w(new SimWorker);
  w->host = host;
  TRY(w->OpenJournal());
  TRY(w->MakeTrees());
  for (auto& [id, fd] : host.orphans->fds)
    w->source->AdoptOrphan(id, host.sys->Dup(fd.Get()));
  TRY(w->MakeBytes());
  w->MakeNames();
  ASSIGN_OR_RETURN(w->intents,
                   fusefs::IntentTable::Attach(host.intents,
                                               fusefs::IntentTable::Bytes()));
  return w;
}

Status SimWorker::OpenJournal() {
  state::JournalOptions options;
  options.reserve_bytes = options.step_bytes = 16 << 10;
  core::UniqueFd dir = host.sys->OpenRoot(host.journal);
  ASSIGN_OR_RETURN(state::JournalFile::Opened opened,
                   state::JournalFile::Open(host.sys, dir.Get(), "journal",
                                            options));
  file = std::move(opened.journal);
  recovered = std::move(opened.state);
  journal = std::make_unique<SimJournal>(file.get(), host.on);
  host_went_down = recovered.HostWentDown(host.boot_id);
  for (const state::Fact& fact :
       state::FactsOfNewSession(recovered, host.boot_id, 1)) {
    if ((std::holds_alternative<state::WithdrawnFact>(fact) &&
         !host.on->recopy_hot) ||
        (std::holds_alternative<state::OwedFact>(fact) &&
         !host.on->owed_facts))
      continue;
    TRY(journal->Append(fact));
    TRY(recovered.Apply(fact));
  }
  return journal->SyncAll();
}

Status SimWorker::MakeTrees() {
  nodes = std::make_unique<state::NodeTable>(journal.get());
  nodes->SetRoot(recovered.migration->source_root);
  for (const auto& [id, handle] : recovered.nodes)
    TRY(nodes->Adopt(state::NodeFact{id, handle}));
  source = std::make_unique<fusefs::SourceTree>(
      host.sys, host.sys->OpenRoot(host.source), nodes.get(), 8);
  if (host.on->orphans_kept)
    source->SetKeeper(host.orphans);
  objects = std::make_unique<fusefs::ObjectStore>(
      host.sys, host.sys->OpenRoot(host.target), kPrivate, journal.get(), 8);
  for (const auto& [id, known] : recovered.files)
    if (known.bound)
      objects->Adopt(id, fusefs::Object{known.bound->handle, known.bound->ino,
                                        known.bound->type});
  return objects->Prepare();
}

Status SimWorker::MakeBytes() {
  table = std::make_unique<fusefs::FileTable>();
  table->Adopt(recovered);
  ledger = std::make_unique<fusefs::ByteLedger>(table.get(), source.get(),
                                                objects.get(), journal.get());
  ledger->switches() = host.on->bytes;
  // Settling would only spread the races.
  redo = std::make_unique<fusefs::Redo>(
      host.sys, journal.get(), fusefs::Redo::Options{.settle_ns = 0});
  redo->Adopt(recovered);
  copy::CopyEngine::Options options;
  options.batch_bytes = host.batch_bytes;
  options.verify = host.verify;
  engine = std::make_unique<copy::CopyEngine>(ledger.get(), options);
  listener = std::make_unique<fusefs::NamesListener>(
      redo.get(),
      [this](FileId id, bool urgent) { engine->Enqueue(id, urgent); });
  ledger->SetListener(listener.get());
  ledger->SetPredecessorAlive(host.predecessor_alive &&
                              host.on->wait_predecessor);
  doubles = std::make_unique<fusefs::DoubleWriter>(objects.get());
  data = std::make_unique<fusefs::DataPath>(ledger.get(), doubles.get());
  cutter = std::make_unique<fusefs::Cutter>(ledger.get());
  passthrough = std::make_unique<fusefs::Passthrough>(
      ledger.get(), host.backing_ids, host.same_mount);
  TRY(passthrough->Adopt(recovered));
  if (host.aborting)
    passthrough->Close();
  back = std::make_unique<copy::CopyBack>(ledger.get());
  return {};
}

void SimWorker::MakeNames() {
  fusefs::OverlayFs::Parts parts;
  parts.source = source.get();
  parts.objects = objects.get();
  parts.redo = redo.get();
  parts.data = data.get();
  parts.passthrough = passthrough.get();
  parts.graveyard = &graveyard;
  parts.journal = journal.get();
  parts.resumed = host.resume;
  const Serving mode = host.aborting ? Serving::kAborting : Serving::kRedirect;
  fs = std::make_unique<fusefs::OverlayFs>(parts, mode);
  data->SetServing(mode);
  lane.source = source.get();
  lane.objects = objects.get();
  lane.redo = redo.get();
  lane.files = table.get();
  lane.graveyard = &graveyard;
  lane.journal = journal.get();
  lane.copy_wanted = [this](FileId id) {
    if (host.on->copy_on_bind)
      engine->Enqueue(id);
  };
  lane.host_went_down = host_went_down;
  applier = std::make_unique<copy::Applier>(&lane);
  applier->Adopt(recovered);
  scanner = std::make_unique<copy::TreeScanner>(
      &lane, applier.get(), host_went_down && host.on->thorough);
  applier->SetScanner(
      [this](FileId dir) {
        if (host.on->scan_on_place)
          scanner->Want(dir);
      },
      [this] { scanner->WantOwed(); });
  copy::Victims::Hooks hooks;
  hooks.in_use = [this](FileId id) {
    return host.on->burial_in_use && fs->InUse(id);
  };
  hooks.forget = [this](FileId id) {
    engine->Forget(id);
    return ledger->Forget(id);
  };
  hooks.sync_source = [this]() -> Status {
    return host.on->burial_sync ? barrier->Now() : Status{};
  };
  victims = std::make_unique<copy::Victims>(&lane, applier.get(),
                                            std::move(hooks));
  copy::Barrier::Options options;
  options.target_is_durable = host.durable_target;
  barrier = std::make_unique<copy::Barrier>(&lane, ledger.get(), victims.get(),
                                            options);
}

void SimWorker::Loop(const char* name, std::function<void()> body) {
  host.fibers->Spawn(name, host.group, std::move(body));
}

void SimWorker::Start() {
  for (int i = 0; i < 2; i++)
    Loop("double", [this] { doubles->Run(stop_); });
  if (host.resume)
    Loop("survey", [this] {
      core::MutexLock lock(victims_mu_);
      // A survey that failed is made good by the one before the end.
      (void)victims->Survey();
    });
  engine->EnqueueUnfinished(recovered);
  // On a target that may lose names the whole tree is compared in any case.
  const bool whole =
      host.on->full_scan || !host.scanned || !host.durable_target;
  scanner->Start(whole);
  // Names are left out, attributes are not: they are `thorough`.
  if (!whole && host_went_down)
    for (const auto& [id, known] : recovered.files)
      if (known.bound)
        (void)redo->Mark({id, {}});
  Loop("scanner", [this] { scanner->Run(stop_); });
  for (int i = 0; i < 2; i++)
    Loop("applier", [this] { applier->Run(stop_); });
  for (int i = 0; i < 2; i++)
    Loop("copier", [this] { engine->Run(stop_); });
  Loop("cutter", [this] { cutter->Run(stop_); });
  Loop("direct", [this] { passthrough->Run(stop_); });
  Loop("barrier", [this] { barrier->Run(stop_); });
  Loop("burial", [this] {
    while (!stop_) {
      {
        core::MutexLock lock(victims_mu_);
        (void)barrier->TargetStep();  // it is due again later
      }
      // One barrier may have begun before the end of the scan.
      if (scanned_at_ == 0 && scanner->Done())
        scanned_at_ = barrier->finished() + 2;
      host.fibers->Sleep(250'000'000);
    }
  });
  if (host.aborting) {
    engine->Pause();
    BackLoop();
  }
}

void SimWorker::BackLoop() {
  Loop("copy-back", [this] {
    while (!stop_) {
      Result<bool> more = false;
      {
        core::MutexLock lock(back_mu_);
        more = back->Step();
      }
      back_done = more && !*more;
      if (!more || !*more)
        host.fibers->Sleep(50'000'000);
    }
  });
}

bool SimWorker::Scanned() {
  return scanned_at_ != 0 && barrier->finished() >= scanned_at_ &&
         scanner->Done();
}

Status SimWorker::BeginAbort() {
  engine->Pause();
  TRY(fs->SetServing(Serving::kAborting, -1, [this]() -> Status {
    passthrough->Close();
    return {};
  }));
  host.aborting = true;
  BackLoop();
  return {};
}

Status SimWorker::LeaveDirect() {
  core::MutexLock lock(back_mu_);
  return passthrough->LeaveAll(host.sys->MonotonicNs() + 10'000'000'000);
}

void SimWorker::Stop() {
  stop_ = true;
  doubles->Wake();
  scanner->WakeAll();
  redo->WakeAll();
  engine->Wake();
  cutter->Wake();
  passthrough->Wake();
  barrier->WakeAll();
}

copy::SyncProof SimWorker::Proof() {
  return {&lane, scanner.get(), engine.get(), cutter.get()};
}

Status SimWorker::Commit() {
  TRY(applier->Drain(host.sys->MonotonicNs() + 60'000'000'000, true));
  TRY(ledger->SyncTarget());
  TRY(applier->Drain(host.sys->MonotonicNs() + 60'000'000'000, true));
  if (auto why = Proof().WhyNotComplete())
    return core::Fail(core::ErrorCode::kConflict, *why);
  core::MutexLock lock(victims_mu_);
  TRY(victims->RemovePrivate());
  TRY(fs->SetServing(Serving::kTargetOnly));
  passthrough->SetFinal(true);
  return {};
}

Status SimWorker::CommitSource() {
  core::MutexLock lock(back_mu_);
  if (!passthrough->Direct().empty())
    return core::Fail(core::ErrorCode::kConflict, "files are direct");
  TRY(back->Finish(-1));
  return fs->SetServing(Serving::kSourceOnly);
}

}  // namespace livemv::sim
