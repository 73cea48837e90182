#pragma once

// Who may do what on a target: which owners of the tree it gives files to, and
// whether its own directory can become what DIR is. A server that squashes root
// (exports(5)) lets only the owners make files of theirs, and change them.
//
// Thread contract: one thread, which acts as others meanwhile; blocks as long
// as the target does.

#include <functional>

#include "core/losses.h"
#include "core/syscalls.h"
#include "migrator/daemon/preflight_findings.h"

namespace livemv::daemon {

// What the tree has and the target does not store: blocks, unless the loss
// (the word of --allow-loss) is accepted.
void ReportLoss(Findings* findings, bool accepted, const char* loss,
                std::string code, std::string what, std::string way_out);

// Whom to try the target out as: root, or where that is nobody there, an owner
// of most of the tree. probe_fd: a directory that root has made.
core::Identity WhoProbes(int probe_fd, const Survey& survey);

// call, which returns 0 or sets errno, as this thread and, where that is
// denied, as the owner of fd.
bool AsRootOrOwner(core::Syscalls* sys, int fd, const std::function<int()>& call);

// In the directory probe_fd, where everybody may make names; remove(name) is
// told of each before it is made. Whether root gives files away.
bool ProbeOwners(core::Syscalls* sys, int probe_fd, const Survey& survey,
                 const core::Losses& accepted,
                 const std::function<void(const std::string&)>& remove,
                 Findings* findings);

// The target's own directory: may it be given DIR's owner, mode and times?
void ProbeRoot(core::Syscalls* sys, int target_fd, const Survey& survey,
               const core::Losses& accepted, Findings* findings);

}  // namespace livemv::daemon
