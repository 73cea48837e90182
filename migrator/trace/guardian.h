#pragma once

// The process that watches a tracer. If the tracer dies, it does what the
// escrow says and ends. It shares the tracer's descriptor table, so that every
// descriptor the tracer took from a process or was to give to one is at hand
// without being sent, and stays open as long as it is needed. A consequence:
// a socket of the tracer shows its end of file when both have ended, that is,
// when nothing is half done any more.
//
// Thread contract: one thread; Start while the process has no other threads.

#include <sys/types.h>

#include <memory>

#include "core/result.h"
#include "core/unique_fd.h"
#include "migrator/trace/escrow.h"

namespace livemv::trace {

class Guardian {
 public:
  static core::Result<std::unique_ptr<Guardian>> Start(Escrow& escrow);
  // Lets the guardian end. It first does what is left in the escrow, and then
  // this does not wait for it.
  ~Guardian();
  Guardian(const Guardian&) = delete;
  Guardian& operator=(const Guardian&) = delete;

  pid_t pid() const { return pid_; }

 private:
  explicit Guardian(Escrow& escrow) : escrow_(escrow) {}
  [[noreturn]] void Watch();

  Escrow& escrow_;
  core::UniqueFd tracer_;     // a pidfd of ours
  core::UniqueFd dismissed_;  // an eventfd
  pid_t pid_ = -1;
};

// What tracer and guardian do so that nothing holds them up in a freeze: memory
// locked, never chosen by the OOM killer, working directory /, room for
// descriptors. All as far as it is permitted.
void PrepareProcessForFreeze();

}  // namespace livemv::trace
