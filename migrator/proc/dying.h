#pragma once

// What a process that was killed may still do. A task that the kernel is ending
// runs none of the program any more; one that waits in the kernel finishes the
// call it is in, and no other, when what it waits for is there. The exit of a
// process with dirty files of a server that is gone may take as long as the
// server is (hazard H30), and so may a call of it that writes them back.
//
// Thread contract: free functions without state. They read below /proc/PID and
// wait for nothing: neither for a filesystem nor for the process.

#include <string>
#include <string_view>

#include "core/result.h"

namespace livemv::proc {

struct Ending {
  enum class Kind {
    kLives,       // some task of it may run the program again
    kMayAct,      // none will, but a call that is not finished may change files
    kActsNoMore,  // nothing of it will change any file's bytes, size or name
  };
  Kind kind = Kind::kLives;
  // Of kMayAct: the task and its call, for a human.
  std::string call;
  // Of kActsNoMore: how many tasks wait in a call that changes nothing.
  int waiting = 0;
};

// dirfd: /proc/PID of a process that is not reaped yet, so that the number is
// still its own. Once kMayAct or kActsNoMore, a process never lives again.
core::Result<Ending> LookAtEnding(int dirfd);

// Of /proc/PID/task/TID/syscall: true if the task waits in a call that changes
// no file's bytes, size, attributes or name: it reads, writes back what was
// written before, or closes.
bool CallChangesNothing(std::string_view text);

}  // namespace livemv::proc
