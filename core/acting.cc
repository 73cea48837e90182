#include "core/acting.h"

#include <cstdlib>

#include "core/log.h"

namespace livemv::core {

Acting::Acting(Syscalls* sys, const Identity& who) : sys_(sys) {
  auto former = sys_->ActAs(who);
  if (former)
    former_ = std::move(*former);
  else
    status_ = Fail(std::move(former).error().With(
        fmt::format("act as {}:{}", who.uid, who.gid)));
}

Acting::~Acting() {
  if (!status_)
    return;
  if (auto back = sys_->ActAs(former_); !back) {
    LOG_ERROR("back from acting as another user: {}", back.error().ToString());
    std::abort();
  }
}

}  // namespace livemv::core
