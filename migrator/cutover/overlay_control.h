#pragma once

// The worker as attach, cutover and abort see it. The daemon implements it
// over a socket; tests have a fake. Every call is bounded: it returns kTimeout
// at its deadline, and the worker stays as it was or becomes it soon after.
//
// Deadlines are CLOCK_MONOTONIC in ns. Thread contract: one thread.

#include <cstdint>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/state/ids.h"
#include "core/state/migration_state.h"
#include "core/syscalls.h"
#include "core/unique_fd.h"

namespace livemv::cutover {

// One description to open on the target in place of one on the overlay.
struct OpenAsk {
  state::FileId id = state::kNoFile;  // from the overlay's file handle
  int flags = 0;                      // open(2), without O_CREAT/O_EXCL/O_TRUNC
  std::string path_hint;  // relative to DIR; tried first, then the handle
};

struct FlushReport {
  int64_t took_ns = 0;
  uint64_t redo_left = 0;    // redo records not yet applied
  uint64_t bytes_left = 0;   // below the local end and not copied
};

class OverlayControl {
 public:
  virtual ~OverlayControl() = default;

  // Journals the event; kConflict if the table does not have it.
  virtual core::Status Advance(state::Event event,
                               const std::string& reason) = 0;
  // Redirect begins (rule 10): from kSourceOnly, in one step that journals
  // Event::kAttached too.
  virtual core::Status StartRedirect(int64_t deadline_ns) = 0;
  // Attach is given up: OK if the redirect has not begun, and from then on it
  // will not. kConflict if it has, whatever StartRedirect answered: the source
  // alone is not the truth any more, and the overlay must stay.
  virtual core::Status GiveUpAttach() = 0;
  // The target's counterparts of overlay descriptions, in the order asked. An
  // object that cannot be opened (it was removed meanwhile) gives an empty
  // UniqueFd at its place and is no error. They lie on the mount that ends up
  // on DIR. Also answered after CommitTarget, when an id may be one of
  // kTargetBit.
  virtual core::Result<std::vector<core::UniqueFd>> OpenOnTarget(
      const std::vector<OpenAsk>& asks, int64_t deadline_ns) = 0;
  // What the source's filesystem calls these objects, for open_by_handle_at(2),
  // in the order asked; empty for what it has not. No filesystem is asked.
  virtual core::Result<std::vector<core::FileHandle>> SourceHandles(
      const std::vector<state::FileId>& ids, int64_t deadline_ns) = 0;
  // Which of these nodeids the kernel reads and writes by itself
  // (fusefs/passthrough.h), in the order asked; none that is known by another
  // number now, or deleted. No filesystem is asked.
  virtual core::Result<std::vector<bool>> AreDirect(
      const std::vector<state::FileId>& nodes, int64_t deadline_ns) = 0;
  // In kAborting, once nobody holds such a descriptor any more: the worker sees
  // every change from here on. kConflict if one is left.
  virtual core::Status LeaveDirect(int64_t deadline_ns) = 0;
  // Applies redo records and fsyncs the target once, while serving. Its first
  // call is the check of the target's health: kTimeout if it does not answer.
  virtual core::Result<FlushReport> FlushRound(int64_t deadline_ns) = 0;
  // With all holders frozen: answers until /dev/fuse is empty and nothing is
  // in flight, then closes the gate: later requests wait, but FLUSH and
  // RELEASE are answered without touching source or target (hazard H29).
  // Then applies what redo is left. OK means: the target is complete; any
  // error leaves the gate as it was. In kAborting and kSourceOnly nothing is
  // applied, the target is not touched, and nothing is reported as left.
  virtual core::Result<FlushReport> DrainAndGate(int64_t deadline_ns) = 0;
  // With all holders frozen, before anybody else can walk onto the overlay:
  // later opens wait (nobody gets a descriptor), all else is served. OpenGate
  // ends it.
  // Its end without a word does not, while the source alone is served: opens
  // wait for RefuseOpens then.
  virtual core::Status GateOpens(int64_t deadline_ns) = 0;
  // As OpenGate, when the overlay is off again: the opens that wait are told to
  // walk their paths once more.
  virtual core::Status RefuseOpens() = 0;
  // OK also if the gate is open.
  virtual core::Status OpenGate() = 0;
  // With the gate closed: TruthFact{target} durable, serving kTargetOnly once
  // the gate is opened. The state stays cutting_over; the caller advances it
  // to draining after the thaw.
  virtual core::Status CommitTarget(int64_t deadline_ns) = 0;
  // Takes a commit back before the first thaw (its TruthFact is replaced,
  // durably), serving kRedirect again.
  virtual core::Status RevokeTarget(int64_t deadline_ns) = 0;
  // Abort: with the gate closed brings the last growth back, makes
  // TruthFact{source} durable, serving kSourceOnly. The state stays aborting.
  virtual core::Status CommitSource(int64_t deadline_ns) = 0;
};

}  // namespace livemv::cutover
