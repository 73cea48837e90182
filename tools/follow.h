#pragma once

// Waiting for a migration on a terminal: `--wait` and `status --watch`.
//
// Thread contract: one thread, the program's only one.

#include <string>

#include "migrator/daemon/exit_code.h"
#include "migrator/daemon/migration_status.h"
#include "migrator/daemon/registry.h"

namespace livemv::tools {

enum class Goal {
  kMoved,    // start --wait
  kSynced,   // start --wait --cutover=wait
  kCutover,  // cutover --wait: the target is the truth
  kAborted,  // abort --wait
  kNever,    // status --watch
};

// Whether a status ends the wait for goal, and how. Pure.
struct Verdict {
  bool over = false;
  daemon::Exit exit = daemon::Exit::kDone;
  std::string text;  // for the user; may be empty
};
Verdict Judge(Goal goal, const daemon::MigrationStatus& status);

// Shows progress until the goal is reached or cannot be. On SIGINT and SIGTERM
// it says how to go on and dies of the signal; the migration goes on.
daemon::Exit Follow(daemon::Registry& registry,
                    const daemon::Registration& entry, Goal goal, bool as_json);

// What Ctrl-C leaves behind, in words.
std::string GoesOn(const std::string& id);

// SIGINT, SIGTERM and SIGHUP interrupt waits from here on; Interrupted says
// which came, 0: none.
void CatchInterrupts();
int Interrupted();
// Dies of the signal, as a shell expects.
[[noreturn]] void DieOf(int signal);

}  // namespace livemv::tools
