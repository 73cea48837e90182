#pragma once

// The exit codes of the command line, as doc/livemv.8 documents them. The
// supervisor sends them in its replies, so that an answer and its code are
// decided in one place.

namespace livemv::daemon {

enum class Exit : int {
  kDone = 0,         // what was asked is done
  kWarnings = 2,     // plan: nothing blocks, but there are warnings
  kBlocked = 3,      // preflight or the migration's state forbids it
  kRolledBack = 4,   // undone; the source is live and intact
  kGivenUp = 5,      // cutover given up for now; still live and synced
  kAborted = 6,      // the migration waited for was aborted by another
  kMismatch = 7,     // verification found a difference
  kUnreachable = 8,  // the target does not answer
  kHuman = 9,        // needs a human; the message has the exact recovery
  kUsage = 64,       // the command line cannot be understood
};

}  // namespace livemv::daemon
