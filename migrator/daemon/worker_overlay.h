#pragma once

// OverlayControl as the worker itself carries it out, and the parts of an
// abort that belong to it. Called by the thread that serves a re-anchorer.
//
// Thread contract: the OverlayControl methods from one thread at a time; the
// rest as said.

#include <future>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "migrator/copy/mark_sweep.h"
#include "migrator/cutover/overlay_control.h"
#include "migrator/daemon/worker_parts.h"

namespace livemv::daemon {

class WorkerOverlay final : public cutover::OverlayControl {
 public:
  explicit WorkerOverlay(WorkerParts* parts);

  core::Status Advance(state::Event event, const std::string& reason) override;
  core::Status StartRedirect(int64_t deadline_ns) override;
  core::Status GiveUpAttach() override;
  core::Result<std::vector<core::UniqueFd>> OpenOnTarget(
      const std::vector<cutover::OpenAsk>& asks, int64_t deadline_ns) override;
  core::Result<std::vector<core::FileHandle>> SourceHandles(
      const std::vector<state::FileId>& ids, int64_t deadline_ns) override;
  core::Result<std::vector<bool>> AreDirect(
      const std::vector<state::FileId>& nodes, int64_t deadline_ns) override;
  core::Status LeaveDirect(int64_t deadline_ns) override;
  core::Result<cutover::FlushReport> FlushRound(int64_t deadline_ns) override;
  core::Result<cutover::FlushReport> DrainAndGate(int64_t deadline_ns) override;
  core::Status GateOpens(int64_t deadline_ns) override;
  core::Status RefuseOpens() override;
  // Whether GateOpens has closed it and nobody has opened it.
  bool OpensWait() const { return opens_gated_; }
  core::Status OpenGate() override;
  core::Status CommitTarget(int64_t deadline_ns) override;
  core::Status RevokeTarget(int64_t deadline_ns) override;
  core::Status CommitSource(int64_t deadline_ns) override;

  // The re-anchorer's channel was closed, by its end or by its death: leaves
  // nothing half done. What is the truth by the journal stays it.
  void PeerGone();

  // --- abort, from any thread
  // Refuses, naming the numbers, if what the source lacks does not fit there.
  // Otherwise the state is aborting and CopyBackStep may be called.
  core::Status BeginAbort(const std::string& reason);
  // One piece; false if nothing is left for now.
  core::Result<bool> CopyBackStep();
  // What the pause of the abort would have to do now.
  struct Left {
    copy::CopyBack::Lack lack;
    bool ready = false;  // what is done once for each file is done
  };
  core::Result<Left> LeftToDo();
  uint64_t BroughtBack() const { return copy_back_.BytesBroughtBack(); }

 private:
  core::Status Ungate(bool stale_opens);
  core::Result<core::UniqueFd> OpenOne(const cutover::OpenAsk& ask);
  core::Result<core::UniqueFd> OpenByHint(const cutover::OpenAsk& ask,
                                          uint64_t target_ino);
  core::Result<cutover::FlushReport> FlushOnce(int64_t deadline_ns);
  void DropCaches();
  // Takes the marks off some placeholders; false if none is left. Both
  // with copy_back_mu_ held.
  core::Result<bool> SweepMarks();
  // What is done once for each file is done.
  bool ReadyToEnd() const;

  WorkerParts* const parts_;
  std::future<core::Result<cutover::FlushReport>> flush_;  // valid: under way
  bool gated_ = false;
  bool opens_gated_ = false;
  bool private_removed_ = false;
  bool attach_given_up_ = false;  // of the one re-anchorer at a time
  std::timed_mutex copy_back_mu_;
  copy::CopyBack copy_back_;       // guarded by copy_back_mu_
  // Made once no placeholder is marked any more. Guarded by copy_back_mu_.
  std::optional<copy::MarkSweep> mark_sweep_;
  bool marks_swept_ = false;       // guarded by copy_back_mu_
  bool source_committed_ = false;  // guarded by copy_back_mu_
};

}  // namespace livemv::daemon
