#include "migrator/copy/sync_proof.h"

#include "core/log.h"

namespace livemv::copy {
namespace {

std::string SetAside(const NameLane& lane, uint64_t count) {
  auto aside = lane.redo->SetAsides(1);
  return fmt::format("{} names or attributes set aside, the first: {}", count,
                     aside.empty() ? "" : aside.front().reason);
}

}  // namespace

std::optional<std::string> SyncProof::WhyBytesAreNot() const {
  if (engine != nullptr && !engine->Idle())
    return "bytes are being copied";
  if (cutter != nullptr && !cutter->Idle())
    return "a file is to be cut on the target";
  return std::nullopt;
}

std::optional<std::string> SyncProof::WhyNotSynced() const {
  if (!scanner->Done())
    return fmt::format("{} directories are still to be read",
                       scanner->QueuedDirs());
  const fusefs::Redo::Counters count = lane->redo->Count();
  if (count.owed != 0)
    return fmt::format("{} comparisons are owed", count.owed);
  if (count.set_aside != 0)
    return SetAside(*lane, count.set_aside);
  if (count.older_than_barrier != 0)
    return fmt::format("{} redo records are older than the last barrier{}",
                       count.older_than_barrier,
                       count.last_error.empty() ? ""
                                                : ": " + count.last_error);
  return WhyBytesAreNot();
}

// Work is handed on before it is called done: from a redo record to the
// scanner, from there to the copier, and from both to a new record. Looked at
// in this order, and with no record made in between, nothing can have slipped
// by.
std::optional<std::string> SyncProof::WhyNotComplete() const {
  const fusefs::Redo::Counters before = lane->redo->Count();
  if (before.set_aside != 0)
    return SetAside(*lane, before.set_aside);
  if (before.dirty != 0)
    return fmt::format("{} names or attributes are not on the target yet{}",
                       before.dirty,
                       before.last_error.empty() ? ""
                                                 : ": " + before.last_error);
  if (before.owed != 0 || !scanner->Done())
    return "a directory is to be compared again";
  if (auto why = WhyBytesAreNot())
    return why;
  if (lane->redo->Count().made != before.made)
    return "names or attributes have become due again";
  return std::nullopt;
}

}  // namespace livemv::copy
