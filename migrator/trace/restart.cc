#include "migrator/trace/restart.h"

#include <algorithm>

namespace livemv::trace {
namespace {

// Shortens a timeout in memory (seconds and a fraction of unit_ns) at *where
// by passed_ns, writing it to `to`.
core::Status Shorten(const RemoteMemory& memory, RemotePtr from, RemotePtr to,
                     int64_t unit_ns, int64_t passed_ns) {
  struct {
    int64_t seconds, fraction;
  } value;
  ASSIGN_OR_RETURN(value, memory.Read<decltype(value)>(from));
  // Beyond a century nothing needs correcting, and nothing may overflow.
  if (value.seconds < 0 || value.seconds > 3'000'000'000)
    return memory.Write(to, value);
  int64_t left = std::max<int64_t>(
      0, value.seconds * 1'000'000'000 + value.fraction * unit_ns - passed_ns);
  value.seconds = left / 1'000'000'000;
  value.fraction = left % 1'000'000'000 / unit_ns;
  return memory.Write(to, value);
}

int64_t UnitNs(Timeout::Kind kind) {
  return kind == Timeout::Kind::kTimeval ? 1000 : 1;
}

}  // namespace

bool ShortenRemaining(const Registers& own, const RemoteMemory& memory,
                      int64_t passed_ns) {
  Timeout left = RemainingTimeout(own);
  RemotePtr at(left.where != nullptr ? own.*left.where : 0);
  // Memory that cannot be written keeps the longer timeout.
  return at &&
         Shorten(memory, at, at, UnitNs(left.kind), passed_ns).has_value();
}

Registers MadeAgainAfter(const Registers& own, const RemoteMemory& memory,
                         int64_t passed_ns) {
  Registers again = MadeAgain(own);
  Timeout full = FullTimeout(again);
  if (full.kind == Timeout::Kind::kNone || passed_ns <= 0)
    return again;
  auto& where = again.*full.where;
  if (full.kind == Timeout::Kind::kMilliseconds) {
    int64_t ms = static_cast<int32_t>(where);
    if (ms > 0) {
      int64_t left = std::max<int64_t>(0, ms * 1'000'000 - passed_ns);
      where = static_cast<uint64_t>((left + 500'000) / 1'000'000);
    }
  } else if (where != 0) {
    // Of two places the one that is not read: what is read, the timeout at the
    // last time the call was made again, may be needed once more.
    RemotePtr below = BelowRedZone(own);
    if (below.address() == where)
      below = RemotePtr(where - 16);
    if (Shorten(memory, RemotePtr(where), below, UnitNs(full.kind), passed_ns))
      where = below.address();
  }
  return again;
}

}  // namespace livemv::trace
