#pragma once

// Who is in the middle of open(2) has no descriptor that a scan could see, but
// may have walked past a mount that is not there any more, or have been answered
// before a gate was closed.
//
// Thread contract: free function; waits.

#include <sys/types.h>

#include <cstdint>
#include <set>

#include "core/result.h"

namespace livemv::proc {

// Waits until every thread of the machine that may be inside an open(2) has
// left it, so that a scan from now on sees its descriptor. A thread that runs has
// left it when it has had some time on a processor; one that wants to run and
// gets none is judged by its kernel stack (/proc/PID/stack); one that waits in it
// uninterruptibly is waited for, except where it waits for an answer of FUSE,
// which a gate may keep. exclude: processes that stand still.
// kTimeout at the deadline (CLOCK_MONOTONIC, ns), naming one of them.
//
// Not seen: opens that io_uring makes in its own threads.
core::Status LetOpensPass(const std::set<pid_t>& exclude, int64_t deadline_ns);

}  // namespace livemv::proc
