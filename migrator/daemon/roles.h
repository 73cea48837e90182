#pragma once

// livemv's own processes: which main each role has.

#include <string>

#include "migrator/daemon/channel.h"
#include "migrator/daemon/handoff.h"

namespace livemv::daemon {

// True if the program was executed by Spawn.
bool IsChild(int argc, char** argv);
// Takes the hand-over, becomes the role, returns the process's exit code.
int ChildMain();

int SupervisorMain(Handoff handoff, Channel starter);
int WorkerMain(Handoff handoff, Channel supervisor);
// "attach", "cutover", "drain", "reopen", "abort", "undo_attach" and "put_on".
int ReanchorMain(Handoff handoff, Channel supervisor);
// Deletes the contents of the covered source.
int ReclaimMain(Handoff handoff, Channel supervisor);

}  // namespace livemv::daemon
