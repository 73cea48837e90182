#pragma once

// `explain`: what a process holds in the tree that a directory shows.
//
// Thread contract: one thread; blocks as long as a look at all processes takes.

#include <sys/types.h>

#include <nlohmann/json.hpp>
#include <string>

#include "core/result.h"
#include "migrator/daemon/exit_code.h"

namespace livemv::daemon {

struct Explanation {
  bool holds = false;  // anything in the tree; else the rest is empty
  // kDone: all of it can be moved; kWarnings: some stays; kBlocked.
  Exit exit = Exit::kDone;
  std::string text;              // for people
  nlohmann::ordered_json json;  // dir, pid, command, verdict, reasons, anchors
};

// migrating: dir is an overlay, whose names the kernel may forget.
core::Result<Explanation> Explain(pid_t pid, const std::string& dir,
                                  bool migrating);

}  // namespace livemv::daemon
