#pragma once

// What `plan` says and `start` insists on: whether DIR can be moved to TARGET,
// who holds it, what it costs, and everything in the way, each with the way
// out. Changes nothing but, for a moment, the target: an export is mounted out
// of everybody's sight, and a directory whose name begins with .livemv-probe
// tells what it can store.
//
// The registry is the caller's: it passes the running migrations and holds
// the lock under which two starts exclude each other.
//
// Thread contract: one thread; MakePlan blocks for the survey of the tree
// (seconds for 100,000 files) and while the target answers; it forks to mount an
// export, so the process has no other thread.

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/losses.h"
#include "core/unique_fd.h"
#include "fusefs/target_holds.h"
#include "migrator/daemon/exit_code.h"
#include "migrator/daemon/tree_survey.h"
#include "migrator/mount/mount_fd.h"
#include "migrator/proc/process_snapshot.h"
#include "migrator/proc/anchors.h"
#include "migrator/proc/verdict.h"

namespace livemv::daemon {

enum class Severity { kNote, kWarning, kBlocker };
const char* SeverityName(Severity severity);

struct Finding {
  Severity severity = Severity::kNote;
  std::string code;     // stable, for programs: "nested-mount"
  std::string what;     // a sentence; names are made printable
  std::string way_out;  // what the operator can do; may be empty for a note
};

struct RunningMigration {
  std::string id;
  std::string dir;     // normal form
  std::string target;  // "host:/path", or a directory in normal form
};

struct PlanRequest {
  std::string dir;            // as typed
  std::string target;         // as typed
  std::string mount_options;  // -o
  core::Losses accepted;
  // Made, mounted on and removed again, for an export.
  std::string scratch;
  // Where this migration's state would go; must not be in the tree.
  std::string state_dir = "/var/lib/livemv";
  std::vector<RunningMigration> running;
  // IDs of interrupted runs of this very move: their leavings may be in the
  // target.
  std::set<std::string> resumable;
  // Processes of ours, left out of the holders.
  std::set<pid_t> own;
  // Called during the survey; false gives up.
  std::function<bool(const Survey&)> progress;
};

struct PlannedHolder {
  proc::Holder holder;
  proc::Verdict verdict;
  std::vector<proc::Anchor> anchors;
  size_t cwds = 0;  // tasks with a working directory or root in the tree
  size_t fds = 0;
  size_t maps = 0;
};

// A filesystem as far as it was asked.
struct Volume {
  std::string type;    // as in mountinfo
  std::string device;  // its source
  std::string options;  // effective ones; of NFS only
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;   // for root
  uint64_t total_files = 0;  // 0: the filesystem does not say
  uint64_t free_files = 0;
};

struct Plan {
  std::string dir;  // normal form, as typed if there is none
  std::string target;
  bool target_is_nfs = false;
  std::string kernel;  // its release
  std::optional<proc::TreeRef> tree;
  std::optional<Survey> survey;
  std::optional<Volume> source_volume;
  std::optional<Volume> target_volume;
  // The very mount that DIR is to get, detached; none if it is not there or
  // something blocks.
  mount::MountFd target_mount;
  core::UniqueFd target_root;  // its root, readable
  fusefs::TargetHolds holds;
  bool target_away = false;  // its server does not answer
  std::vector<PlannedHolder> holders;   // by pid
  int64_t estimated_ns = 0;  // of the copy, by assumed rates; 0: not estimated
  std::vector<Finding> findings;  // blockers first

  bool Blocked() const;
  // kDone, kWarnings, kBlocked, or kUnreachable if that is all that blocks.
  Exit Code() const;
};

// Never fails: what could not be found out is a finding.
Plan MakePlan(const PlanRequest& request);

// What is asked of a target that can be opened. target_fd: its root (readable).
struct TargetRequest {
  int target_fd = -1;
  std::string name;  // for messages
  const Survey* survey = nullptr;
  core::Losses accepted;
  std::set<std::string> resumable;
  bool is_root_of_filesystem = false;  // lost+found does not count
};
std::vector<Finding> CheckTarget(const TargetRequest& request, Volume* volume,
                                 fusefs::TargetHolds* holds);

}  // namespace livemv::daemon
