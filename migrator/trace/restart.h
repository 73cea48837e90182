#pragma once

// Calls that the interruption ended and that are made again with the time that
// is left, or that the kernel restarts with the time it noted at the stop.
//
// Thread contract: the thread that traces the tracee; nothing here waits.

#include <cstdint>

#include "core/result.h"
#include "migrator/trace/arch_x86_64.h"
#include "migrator/trace/remote_memory.h"

namespace livemv::trace {

// Registers with which a thread makes its call again. passed_ns: how long the
// call has waited already, 0 if that is not known. A timeout in memory is put
// below the stack; where that cannot be written it begins anew.
Registers MadeAgainAfter(const Registers& own, const RemoteMemory& memory,
                         int64_t passed_ns);

// Shortens what the kernel noted as remaining for select, pselect6 and ppoll.
// True if there was something and it was shortened.
bool ShortenRemaining(const Registers& own, const RemoteMemory& memory,
                      int64_t passed_ns);

}  // namespace livemv::trace
