#pragma once

// The command line as a value: what the user typed, understood or refused.
// Only here is CLI11 used. Nothing here looks at the system.
//
// Thread contract: pure functions.

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/losses.h"
#include "migrator/daemon/exit_code.h"
#include "migrator/daemon/persist.h"

namespace livemv::tools {

enum class Verb {
  kPlan,
  kStart,
  kStatus,
  kList,
  kCutover,
  kPause,
  kResume,
  kAbort,
  kFinish,
  kInspect,
  kExplain,
  kRecover,
  kJournalDump,
};

struct Command {
  Verb verb = Verb::kList;
  std::string dir;     // plan, start, explain
  std::string target;  // plan, start
  std::string which;   // DIR, ID or PATH of the other verbs; may be empty
  bool json = false;
  bool wait = false;
  bool watch = false;
  bool yes = false;
  bool reclaim = false;
  daemon::Persist persist = daemon::Persist::kNone;  // finish
  bool all = false;             // recover
  bool accept_changes = false;  // recover
  bool auto_cutover = true;
  int64_t max_pause_ns = 200'000'000;
  std::string mount_options;
  core::Losses accepted;
  std::string state_dir;  // parent of the migration's own; empty: default
  std::vector<pid_t> accept;
  bool only_pending = false;
  bool only_remote = false;
  pid_t pid = 0;  // explain
};

// Either a command, or a text and the code to exit with: help and version go
// to standard output with kDone, everything else to standard error.
struct Parsed {
  bool run = false;
  Command command;
  std::string text;
  daemon::Exit exit = daemon::Exit::kDone;
};

Parsed Parse(const std::vector<std::string>& args);  // without the program

std::string_view VerbName(Verb verb);
// The verb that unknown was probably meant to be; empty if none is near.
std::string Nearest(const std::string& unknown);

}  // namespace livemv::tools
