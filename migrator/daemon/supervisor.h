#pragma once

// The supervisor of one migration: keeps the descriptors that must outlive a
// worker, runs the worker and the re-anchorers, and answers the control
// socket. It has no data path, never opens anything in source or target, and
// has one thread, so that nothing can hang it.
//
// The worker owns the journal and with it the state; the supervisor passes
// requests on and shows the last status that the worker pushed.
//
// Thread contract: one thread, which Run occupies until the migration is
// finished, aborted or rolled back.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/unique_fd.h"
#include "migrator/cutover/cutover_schedule.h"
#include "migrator/daemon/children.h"
#include "migrator/daemon/control.h"
#include "migrator/daemon/handoff.h"
#include "migrator/daemon/heartbeat.h"
#include "migrator/daemon/migration_status.h"
#include "migrator/daemon/poll_loop.h"
#include "migrator/daemon/reanchor_report.h"
#include "migrator/daemon/registry.h"

namespace livemv::daemon {

class Supervisor {
 public:
  // starter: told once whether the redirect is live, as a control reply.
  Supervisor(Handoff handoff, Channel starter);
  ~Supervisor();
  // The process's exit code.
  int Run();

 private:
  struct Client {
    core::UniqueFd fd;
    LineSplitter lines;
    std::string out;     // not yet sent
    bool follows = false;
    bool closing = false;  // after out is sent
    bool busy = false;     // a request of it is being worked on
  };
  using ClientId = uint64_t;

  // --- supervisor.cc: life of the migration
  core::Status Begin();
  void StartReanchor(const std::string& role);
  void OnReanchorMessage();
  void OnReanchorEnd();
  void ReanchorGone();
  void ReanchorReported(const ReanchorReport& report);
  void RedirectIsLive(const std::string& remarks);
  void AttachEnded(const ReanchorReport& report);
  void CutoverEnded(const ReanchorReport& report);
  void DrainEnded(const ReanchorReport& report);
  void ReturnEnded(const ReanchorReport& report);
  void ReopenEnded(const ReanchorReport& report);
  void PutOnEnded(const ReanchorReport& report);
  void TryAgainAt(int64_t when_ns);
  std::string RoleDue() const;  // "": none
  void TellStarter(Exit exit, const std::string& message);
  void Consider();       // starts a cutover or an abort's re-anchorer if due
  void OverlayGone(const std::string& state);
  void Finished(Exit exit, const std::string& message);
  // A recovery that did not come about: all that is on disk stays as it is.
  void NotRecovered(Exit exit, const std::string& why);
  void End(Exit exit, const std::string& message, bool forget);
  void WriteStateFile();

  // --- supervisor_worker.cc: the worker's process
  void StartWorker();
  void OnWorkerMessage();
  void OnWorkerEnd();
  void CheckHeartbeat();
  void LookAtSilentWorker();
  void LeaveWorkerBehind();
  void OnPredecessorEnd(pid_t pid);
  void HearLastWords();
  void WorkerIsOver(const std::string& how);
  core::Status TellWorker(const std::string& json,
                          const std::vector<int>& fds = {});
  void TakeStatus(MigrationStatus status);

  // --- supervisor_control.cc: requests
  core::Status Listen();
  void Accept();
  void OnClient(ClientId id);
  void Handle(ClientId id, const std::string& line);
  void AskWorker(ClientId id, const std::string& json);
  void HandlePutOff();
  void Answer(ClientId id, const std::string& reply);
  void Flush(ClientId id);
  void Push();            // the status to those who follow
  std::string TooLate() const;
  void HandleCutover(ClientId id, const std::string& line);
  void HandleFinish(ClientId id, bool reclaim);
  MigrationStatus CurrentStatus() const;
  void DropClient(ClientId id);

  int Fd(const std::string& name) const { return handoff_.Borrow(name); }

  PollLoop loop_;
  Handoff handoff_;
  Settings settings_;
  Registry registry_;
  Channel starter_;
  core::UniqueFd listener_;
  std::map<ClientId, Client> clients_;
  ClientId next_client_ = 1;

  Child worker_;
  // Dead workers whose exit waits for the target (hazard H30), by pid.
  std::map<pid_t, Child> predecessors_;
  std::string dying_;  // why a dead worker has no successor yet; "": it has
  std::optional<Heartbeat> heartbeat_;
  bool worker_ready_ = false;
  bool worker_was_ready_ = false;    // some worker has served this overlay
  bool worker_stopping_ = false;     // its end is expected
  uint64_t last_beat_ = 0;
  int64_t last_beat_ns_ = 0;
  bool worker_killed_ = false;       // for want of a heartbeat
  int64_t worker_started_ns_ = 0;
  int64_t worker_backoff_ns_ = 0;
  std::map<uint64_t, ClientId> asked_;  // by number of the question
  // Requests that wait for the end of the re-anchorer.
  std::vector<std::pair<ClientId, std::string>> put_off_;
  // Deleted while open; kept for the worker's successor, by FileId.
  std::map<uint64_t, core::UniqueFd> orphans_;
  std::string gone_state_;  // the overlay is gone, and the migration is this
  uint64_t questions_ = 0;

  Child reanchorer_;
  std::string reanchor_role_;
  bool reanchor_reported_ = false;
  bool reanchor_ended_ = false;   // the process itself
  bool reanchor_silent_ = false;  // and whoever shares its descriptors
  Child reclaimer_;
  ClientId reclaim_client_ = 0;
  std::string finish_text_;

  MigrationStatus status_;
  std::vector<PauseLine> pauses_;
  bool live_ = false;          // redirect has begun
  // The migration is older than this supervisor, and its overlay is new: it is
  // put on DIR when the worker serves it. Until live_.
  bool recovering_ = false;
  pid_t starter_pid_ = 0;      // of `recover`; 0: none is waiting
  bool committed_ = false;     // the target is the truth
  bool unreachable_ = false;   // the target, at the last cutover
  bool over_ = false;          // Finished was called
  bool returned_ = false;      // DIR shows the source, nobody is on the overlay
  bool auto_cutover_ = true;
  bool abort_ready_ = false;   // the worker waits for the abort's re-anchorer
  bool reopen_due_ = false;    // and before, for descriptors to be opened again
  bool undo_attach_ = false;   // the overlay is on, attach failed
  std::string attach_failure_;
  std::set<pid_t> accepted_;
  cutover::CutoverSchedule schedule_;
  int64_t next_try_ns_ = 0;    // of the roles that have no schedule
  PollLoop::TimerId try_timer_ = 0;
  std::string reason_;         // of the supervisor, before the worker's
  std::vector<HolderLine> stayed_;  // on the overlay after the cutover
  std::string recovery_;       // for a human, when nothing can go on
  int exit_ = 0;
};

}  // namespace livemv::daemon
