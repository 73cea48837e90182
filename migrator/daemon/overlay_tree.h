#pragma once

// What to look for when one looks for the holders of the overlay.
//
// Thread contract: a free function, from any thread.

#include "core/result.h"
#include "migrator/proc/process_snapshot.h"

namespace livemv::daemon {

// source_dir_fd: the source's root. fuse_fd: the overlay's /dev/fuse, which
// has to stay open for as long as the result is used. Asks no filesystem but
// the source.
core::Result<proc::TreeRef> OverlayTree(dev_t overlay_dev, int source_dir_fd,
                                        int fuse_fd);

}  // namespace livemv::daemon
