#pragma once

// Mounting an NFS target out of everybody's sight: libmount and mount.nfs run
// in a child with a mount namespace of its own, which sends back a detached
// copy of what they mounted. Nothing is left behind, whatever happens.
//
// Thread contract: forks and allocates in the child: one thread in the process.

#include <cstdint>
#include <string>

#include "core/result.h"
#include "migrator/mount/mount_ops.h"

namespace livemv::mount {

// See MountOps::MountTarget. kTimeout leaves no process behind that can end;
// one that waits for the server uninterruptibly goes when it is answered.
core::Result<TargetMount> MountNfs(const std::string& target,
                                   const std::string& options,
                                   const std::string& scratch,
                                   int64_t timeout_ns);

}  // namespace livemv::mount
