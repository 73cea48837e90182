#pragma once

// Other ways into the tree than DIR, and users of it that are no processes:
// bind mounts, second mounts of its filesystem, other mount namespaces, swap
// areas, loop devices, NFS exports, and livemv's own files (hazards H17, H20).
//
// Thread contract: one thread; namespaces without processes are looked into
// by a thread of its own, which is joined.

#include <set>
#include <string>

#include "migrator/daemon/preflight_findings.h"
#include "migrator/daemon/preflight_places.h"
#include "migrator/mount/mount_table.h"
#include "migrator/proc/process_snapshot.h"

namespace livemv::daemon {

// namespaces: those with processes, from a snapshot.
void CheckDoors(const Plan& plan, const SourcePlace& source,
                const mount::MountTable& mounts,
                const std::vector<proc::Namespace>& namespaces,
                const std::set<pid_t>& own, Findings* findings);

void CheckKernelUsers(const Plan& plan, const mount::MountTable& mounts,
                      Findings* findings);

// That neither the program, its libraries nor its state are in the tree.
void CheckOwnFiles(const PlanRequest& request, const Plan& plan,
                   Findings* findings);

// The doors of one namespace's table, as findings. where: "" for our own
// namespace, else how to call it. dir: DIR in our own namespace, whose mount
// is the one right door; "" elsewhere. Pure, for tests.
void JudgeDoors(const proc::TreeRef& tree, const mount::MountTable& mounts,
                const std::string& where, const std::string& dir,
                Findings* findings);

}  // namespace livemv::daemon
