#include "core/thread_priority.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>

#include "core/log.h"
#include "core/result.h"

namespace livemv::core {
namespace {

// Of this thread alone, whatever POSIX says: setpriority(2), "C library/kernel
// differences".
void SetNice(int nice) {
  if (::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), nice) != 0)
    LOG_DEBUG("setpriority: {}", ErrnoName(errno));
}

}  // namespace

ScopedRank::ScopedRank(Rank rank)
    : before_(::getpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()))) {
  SetNice(rank == Rank::kAheadOfApplications ? -10 : 5);
}

ScopedRank::~ScopedRank() { SetNice(before_); }

}  // namespace livemv::core
