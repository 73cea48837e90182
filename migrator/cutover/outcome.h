#pragma once

// How an attach, a cutover or a return to the source went, for reports.
//
// Thread contract: plain values.

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

#include "core/result.h"
#include "migrator/cutover/seams.h"
#include "migrator/trace/frozen_set.h"

namespace livemv::cutover {

// A holder that was not, or not wholly, moved.
struct Straggler {
  pid_t pid = 0;
  std::string comm;
  std::string reason;
  bool may_stay = false;    // it can only read what nobody writes (rule 7)
  bool accepted = false;    // the operator said so
  // What is in the way are only files that no name leads to, so that nobody
  // else can reach them.
  bool only_deleted = false;
};

struct Outcome {
  core::Status status;         // OK: done, down to the last step
  bool froze = false;          // processes were stopped: an attempt that counts
  bool committed = false;      // the view has changed; nothing is taken back
  // An attach that was to be taken back had begun the redirect: it is live.
  bool redirected = false;
  bool unreachable = false;    // the target did not answer, before any freeze
  size_t processes_moved = 0;  // distinct
  size_t seats_moved = 0;      // descriptors and working directories
  int rounds = 0;              // freezes
  std::vector<trace::Pause> pauses;  // of every round, in order
  // Why something of a process was left where it was, by the last round that
  // left it.
  std::map<pid_t, std::string> left;
  std::vector<Straggler> stragglers;
  // Went wrong after the commit, or is less than one would wish: for the log
  // and the status.
  std::vector<std::string> warnings;
  std::vector<KeptOld> kept;  // see RoundReport; of committed rounds
};

}  // namespace livemv::cutover
