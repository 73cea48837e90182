#pragma once

// libfuse's operations as trampolines to FsCore; used by dispatch.cc alone.
// Thread contract: the table is constant.

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>

namespace livemv::fusefs {

// The session's userdata must be a Dispatcher.
const fuse_lowlevel_ops& DispatchOps();

}  // namespace livemv::fusefs
