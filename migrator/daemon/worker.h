#pragma once

// The worker's process: parts, threads, its conversation with the supervisor.
//
// Thread contract: one thread runs Run; see the members.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/result.h"
#include "migrator/daemon/channel.h"
#include "migrator/daemon/exit_code.h"
#include "migrator/daemon/handoff.h"
#include "migrator/daemon/migration_status.h"
#include "migrator/daemon/worker_overlay.h"
#include "migrator/daemon/worker_parts.h"

namespace livemv::daemon {

// The supervisor's channel, for every thread. Sends never wait for it: a full
// channel drops what can be said again later.
class SupervisorLink final : public fusefs::OrphanKeeper {
 public:
  explicit SupervisorLink(Channel channel) : channel_(std::move(channel)) {}
  core::Status Say(const std::string& json, const std::vector<int>& fds = {});
  core::Result<Message> Receive(int64_t deadline_ns) {
    return channel_.Receive(deadline_ns);  // the main thread's alone
  }
  int Fd() const { return channel_.Fd(); }

  core::Status Keep(state::FileId id, int fd) override;
  void LetGo(state::FileId id) override;

 private:
  std::mutex mu_;
  Channel channel_;  // Send guarded by mu_
};

class Worker {
 public:
  Worker(std::unique_ptr<WorkerParts> parts, SupervisorLink* link);
  // Does not return before the worker may end; the exit code.
  int Run();

 private:
  core::Status Begin();
  void Move();
  void AwaitOverlay();
  core::Status SayAlive();  // in the journal
  void AliveMain();
  void Loop();
  void OnMessage(Message message);
  void OnAsk(const std::string& text);
  void Answer(uint64_t n, Exit exit, const std::string& text);
  void ServeReanchorer(core::UniqueFd channel);
  void Prove();        // synced or not, a look every tick
  void PushStatus();
  MigrationStatus MakeStatus();
  void BeginAbort(uint64_t n);
  void CopyBackMain();
  void WatchMain();    // holders and what the target alone has
  void OverlayEnded(fusefs::StopReason reason);
  void Stop();         // rolled back before redirect: leave no trace

  const std::unique_ptr<WorkerParts> parts_;
  SupervisorLink* const link_;
  WorkerOverlay overlay_;
  void EndReanchorer();
  void LetOpensIn();
  std::mutex channel_mu_;
  int channel_fd_ = -1;    // of the one that is served; guarded by channel_mu_
  std::mutex overlay_mu_;  // one re-anchorer at a time uses overlay_

  std::atomic<bool> done_{false};
  std::atomic<bool> supervisor_gone_{false};
  int exit_ = 0;
  int64_t unproved_since_ns_ = 0;
  std::string why_not_synced_;
  std::atomic<bool> abort_running_{false};

  std::mutex watch_mu_;  // guards the next four
  std::vector<HolderLine> holders_;
  uint64_t remote_bytes_ = 0;
  uint64_t remote_files_ = 0;
  std::string abort_trouble_;
};

}  // namespace livemv::daemon
