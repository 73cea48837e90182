#pragma once

// What a re-anchorer tells the supervisor last.
//
// Thread contract: plain values, pure functions.

#include <sys/types.h>

#include <string>
#include <vector>

#include "core/result.h"
#include "migrator/daemon/migration_status.h"

namespace livemv::daemon {

struct ReanchorReport {
  enum class Outcome {
    kDone,        // committed
    kStraggler,   // a process is in the way; nobody was frozen
    kRolledBack,  // not done; committed says what holds now
  };
  Outcome outcome = Outcome::kRolledBack;
  std::string reason;              // empty for kDone
  bool froze = false;              // holders were frozen: counts as an attempt
  // attach: the overlay is on DIR although it failed. Returns: DIR shows the
  // source, although some holders are on the overlay yet.
  bool committed = false;
  bool redirected = false;         // nothing was taken back: it is live
  bool unreachable = false;        // because the target does not answer
  std::vector<PauseLine> pauses;
  std::vector<HolderLine> stayed;  // on the overlay (or in the way)
  bool operator==(const ReanchorReport&) const = default;
};

std::string ReportToJson(const ReanchorReport& report);
core::Result<ReanchorReport> ReportFromJson(const std::string& text);

}  // namespace livemv::daemon
