#include "migrator/copy/name_proof.h"

#include "core/log.h"

namespace livemv::copy {

std::optional<std::string> WhyNamesAreNotSynced(const NameLane& lane,
                                                TreeScanner* scanner) {
  if (!scanner->Done())
    return fmt::format("{} directories are still to be read",
                       scanner->QueuedDirs());
  const fusefs::Redo::Counters count = lane.redo->Count();
  if (count.owed != 0)
    return fmt::format("{} comparisons are owed", count.owed);
  if (count.set_aside != 0) {
    auto aside = lane.redo->SetAsides(1);
    return fmt::format("{} set aside, the first: {}", count.set_aside,
                       aside.empty() ? "" : aside.front().reason);
  }
  if (count.older_than_barrier != 0)
    return fmt::format("{} redo records are older than the last barrier{}",
                       count.older_than_barrier,
                       count.last_error.empty() ? ""
                                                : ": " + count.last_error);
  return std::nullopt;
}

}  // namespace livemv::copy
