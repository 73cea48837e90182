#pragma once

// Mounts that are made out of everybody's sight, by a child with a mount
// namespace of its own, which sends back a detached copy: an NFS target, for
// which libmount and mount.nfs run there, and what lies beneath other mounts.
// Nothing is left behind, whatever happens.
//
// Thread contract: forks and allocates in the child: one thread in the process.

#include <cstddef>
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

// A detached copy of the mount that is covered by `covers` mounts on path, as
// if those were not there: a child with a mount namespace of its own takes them
// off. Asks no filesystem.
core::Result<MountFd> CloneCovered(const std::string& path, size_t covers);

}  // namespace livemv::mount
