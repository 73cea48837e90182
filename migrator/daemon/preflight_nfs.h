#pragma once

// What is asked of a target on NFS alone: that it is a hard mount, that the
// options that were asked for are those in effect, and that no other mount of
// the export has a cache of its own beside it (hazard H35).
//
// Thread contract: plain functions; nothing is asked of the server.

#include <sys/types.h>

#include <string>

#include "core/losses.h"
#include "migrator/daemon/preflight_findings.h"
#include "migrator/mount/mount_table.h"

namespace livemv::daemon {

// Whoever writes to a soft mount is told of success before the server has the
// data, and a server that is away for long makes the kernel drop them.
// options: those in effect.
void CheckSoft(const std::string& options, const core::Losses& accepted,
               Findings* findings);

// asked: what -o said. options: those in effect, as mountinfo shows them
// (fs/nfs/super.c, nfs_show_mount_options). The kernel takes some of them from
// an earlier mount of the same server without a word.
void CheckEffective(const std::string& asked, const std::string& options,
                    Findings* findings);

// NFS version 4 takes a flock only through a descriptor that could read (a
// shared one) or write (fs/nfs/nfs4proc.c, nfs4_proc_lock), which elsewhere is
// no matter; and flocks are ranges of the whole file to the server
// (fs/nfs/file.c, nfs_flock), so that they conflict with the others. Says how
// many POSIX locks the freeze asks the server for. options: those in effect.
void CheckLocks(const std::vector<PlannedHolder>& holders,
                 const std::string& options, Findings* findings);

// name: the target as host:/path. options: of its mount, in effect. dev: its
// superblock; mounts that share it share its cache too and do no harm.
void CheckOtherMounts(const mount::MountTable& mounts, const std::string& name,
                      const std::string& options, dev_t dev,
                      Findings* findings);

}  // namespace livemv::daemon
