#pragma once

// `inspect`: what the worker knows of one file, or of a whole tree.
//
// Thread contract: from any thread; blocks on the source, for a tree as long
// as reading all of it takes.

#include <string>

#include "core/result.h"
#include "migrator/daemon/worker_parts.h"

namespace livemv::daemon {

struct InspectRequest {
  std::string path;  // relative to DIR; "" for DIR itself
  bool only_pending = false;
  bool only_remote = false;
};

struct Inspection {
  std::string text;     // for people
  std::string details;  // JSON
};

core::Result<Inspection> Inspect(WorkerParts* parts,
                                 const InspectRequest& request);

}  // namespace livemv::daemon
