#pragma once

// Acting as somebody else, for a stretch of code.
//
// Thread contract: lives and dies on one thread.

#include <utility>

#include "core/result.h"
#include "core/syscalls.h"

namespace livemv::core {

class Acting {
 public:
  // sys must outlive this. See status() before acting.
  Acting(Syscalls* sys, const Identity& who);
  // Back to what the thread was; ends the process if that fails, since nobody
  // knows any more whose rights it uses.
  ~Acting();
  Acting(const Acting&) = delete;
  Acting& operator=(const Acting&) = delete;

  const Status& status() const { return status_; }

 private:
  Syscalls* const sys_;
  Identity former_;
  Status status_;
};

}  // namespace livemv::core
