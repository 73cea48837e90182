#pragma once

// What `status` shows of one migration: pushed by the worker, completed by the
// supervisor, printed by the command line. The JSON form is an interface:
// fields are added, never renamed (doc/livemv.8).
//
// Thread contract: plain values, pure functions.

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/result.h"

namespace livemv::daemon {

struct Totals {
  uint64_t total = 0;   // known so far: grows while the tree is first read
  uint64_t copied = 0;  // on the target, from the source
  uint64_t remote = 0;  // the target alone has it
  // While aborting `copied` is what was brought back to the source, by this
  // worker, and `total` that with what is left to bring.
  bool operator==(const Totals&) const = default;
};

struct HolderLine {
  pid_t pid = 0;
  std::string command;
  std::string verdict;  // "movable", "stays", "blocks"
  std::string reason;
  uint32_t cwds = 0, fds = 0, maps = 0;
  bool operator==(const HolderLine&) const = default;
};

struct PauseLine {
  std::string phase;  // "attach", "cutover", "abort"
  pid_t pid = 0;
  std::string command;
  int64_t ns = 0;
  bool operator==(const PauseLine&) const = default;
};

struct MigrationStatus {
  std::string id, source, target;
  std::string state = "planned";
  std::string reason;
  std::vector<std::string> verbs;
  Totals bytes, files;
  std::vector<HolderLine> holders;
  // After the cutover: those that are on the overlay still, and why.
  std::vector<HolderLine> stayed;
  std::vector<PauseLine> pauses;
  pid_t supervisor_pid = 0;
  pid_t worker_pid = 0;  // 0: none
  double rate = 0;       // bytes a second, over the last seconds
  int64_t eta_s = -1;    // until synced; -1: not known
  bool auto_cutover = false;
  uint64_t redo_left = 0;  // names and attributes not yet on the target
  uint32_t attempts = 0;   // freezes of the current cutover that failed
  int64_t max_pause_ns = 0;
  bool scanned = false;    // the tree was read to its end once
  // Exit code for those who wait, when waiting longer has no point: 5 given
  // up, 7 verification, 9 needs a human; 0: none.
  int problem = 0;
  bool operator==(const MigrationStatus&) const = default;
};

std::string StatusToJson(const MigrationStatus& status, int indent = -1);
core::Result<MigrationStatus> StatusFromJson(const std::string& text);

// Several lines for `status`.
std::string RenderStatus(const MigrationStatus& status);
// One line for `list`.
std::string RenderListLine(const MigrationStatus& status);
// One line for `start --wait`; no line end.
std::string RenderProgress(const MigrationStatus& status);

}  // namespace livemv::daemon
