#pragma once

// OverlayControl over a Channel: the re-anchorer's end is a client, the
// worker's end serves any OverlayControl. Calls are numbered, so that the
// answer to a call that was given up at its deadline is not taken for the
// answer to the next.
//
// Thread contract: a client and a serving loop are each used by one thread.

#include <cstdint>
#include <memory>

#include "migrator/cutover/overlay_control.h"
#include "migrator/daemon/channel.h"

namespace livemv::daemon {

class OverlayClient final : public cutover::OverlayControl {
 public:
  explicit OverlayClient(Channel channel) : channel_(std::move(channel)) {}

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
  core::Status OpenGate() override;
  core::Status CommitTarget(int64_t deadline_ns) override;
  core::Status RevokeTarget(int64_t deadline_ns) override;
  core::Status CommitSource(int64_t deadline_ns) override;

 private:
  struct Piece {
    Message answer;
    size_t asked = 0;  // numbers that it is about
  };
  core::Result<Message> Call(const std::string& json, int64_t deadline_ns);
  core::Result<std::vector<Piece>> AskAbout(
      const char* op, const std::vector<state::FileId>& ids,
      int64_t deadline_ns);

  Channel channel_;
  uint64_t calls_ = 0;
};

// Answers calls until the other end is closed (OK) or the channel fails.
core::Status ServeOverlayControl(Channel& channel,
                                 cutover::OverlayControl& control);

}  // namespace livemv::daemon
