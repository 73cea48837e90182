#pragma once

// livemv's own processes as children: started by executing this very program
// again (/proc/self/exe) with a channel as its only inherited descriptor, and
// watched by a pidfd.
//
// Thread contract: one thread. Spawn forks; the caller has no other thread.

#include <sys/types.h>

#include <string>

#include "core/result.h"
#include "core/unique_fd.h"
#include "migrator/daemon/channel.h"
#include "migrator/daemon/handoff.h"

namespace livemv::daemon {

// argv[0] of every such process, followed by the role; argv[1] marks it.
inline constexpr char kChildMark[] = "@livemv";

struct Child {
  pid_t pid = 0;
  core::UniqueFd pidfd;
  Channel channel;
  explicit operator bool() const { return pid != 0; }
};

// Starts a process of view.role and hands over. new_session: it leaves the
// terminal and the caller's process group (setsid).
core::Result<Child> Spawn(const HandoffView& view, bool new_session);

struct Ended {
  bool by_signal = false;
  int code = 0;  // exit status or signal
  std::string ToString() const;
};
// Waits for the child; blocks until it is dead.
core::Result<Ended> Reap(Child& child);

// What every such process does first: closes everything but the standard
// descriptors and the channel, goes to /, ignores what a terminal sends.
void BecomeDaemon(int channel_fd);
// Not to be killed for memory: the overlay's pages may have to be written
// through this process to make room. Before any thread is started.
void ProtectFromPressure();
// Nor to be swapped. After what takes much memory for a short time, before the
// first request is read.
void LockMemory();

}  // namespace livemv::daemon
