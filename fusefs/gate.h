#pragma once

// Counts the requests in flight and can hold new ones back: between the read
// from /dev/fuse and the dispatcher.
//
// While the gate is closed readers go on reading. FLUSH, RELEASE and
// RELEASEDIR are answered at once without touching source or target (hazard
// H29: the re-anchorer's dup3 over an overlay descriptor sends FLUSH, and a
// server call there would hang the tracee); everything else is kept in memory,
// no thread waits. Open gives it all back: what was kept is run then, and so is
// what a RELEASE that was answered early still owes. It can also be closed to
// opens alone: nobody new gets a descriptor, everything else is served.
//
// Thread contract: all methods from any thread. Only DrainAndClose blocks.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "core/sync.h"

namespace livemv::fusefs {

// One request as read, header included.
struct RawRequest {
  std::string bytes;
  bool answered = false;  // a reply was sent; only its effects are due
  bool stale = false;     // to be answered with ESTALE and nothing else
};

class Gate {
 public:
  enum class Admission {
    kRun,     // dispatch it; Leave after the reply
    kAnswer,  // reply success now, do nothing else; Leave after the reply
    kKept,    // the gate has a copy; Leave now
  };

  // Before a look at the device, so that no request is ever read and not
  // counted. Leave when nothing was there or the request is dealt with.
  void Enter();
  void Leave();
  // What to do with a request, between Enter and Leave.
  Admission Admit(uint32_t opcode, std::string_view bytes);

  // Serves until nothing is in flight and the device is empty, twice in a row,
  // and closes. OK: everything that had been asked before the close has been
  // answered; what came after it is kept. kTimeout at the deadline
  // (now_ns's clock): the gate is open as before.
  // device_empty: whether a read would find nothing (poll); must not block.
  core::Status DrainAndClose(int64_t deadline_ns,
                             const std::function<int64_t()>& now_ns,
                             const std::function<bool()>& device_empty);
  // Closes to OPEN and CREATE; those in flight finish on their own.
  void CloseToOpens();
  // Closes at once; in-flight requests finish on their own.
  void Close();
  // Opens; the caller runs what comes back, each as if Entered (they count as
  // in flight already), Leaving after each.
  // stale_opens: kept OPENs and CREATEs are not to be served: the kernel walks
  // their paths once more (fs/namei.c, do_filp_open), which lead elsewhere now.
  [[nodiscard]] std::vector<RawRequest> Open(bool stale_opens = false);

  // While on, FLUSH is answered without touching anything although the gate
  // may be open: from the freeze to the thaw.
  void SetInFreeze(bool on);

  bool closed();
  size_t in_flight();
  size_t kept();

 private:
  core::Mutex mu_;
  core::CondVar idle_;
  size_t in_flight_ = 0;          // guarded by mu_
  bool closed_ = false;           // guarded by mu_
  bool opens_closed_ = false;     // guarded by mu_
  bool draining_ = false;         // guarded by mu_
  bool in_freeze_ = false;        // guarded by mu_
  std::vector<RawRequest> kept_;  // guarded by mu_
};

}  // namespace livemv::fusefs
