#pragma once

// "Synced is proved, not assumed": the two questions, of which the first is
// asked while applications go on and the second when they cannot.
//
// Thread contract: from any thread; blocks on nothing.

#include <optional>
#include <string>

#include "fusefs/cutter.h"
#include "migrator/copy/copy_engine.h"
#include "migrator/copy/name_lane.h"
#include "migrator/copy/tree_scanner.h"

namespace livemv::copy {

struct SyncProof {
  const NameLane* lane = nullptr;
  TreeScanner* scanner = nullptr;
  CopyEngine* engine = nullptr;     // null: names alone are proved
  fusefs::Cutter* cutter = nullptr;  // null with engine

  // Why the target is not synced; nothing if it is: every directory was read
  // to its end, no comparison is owed, no redo record is older than the last
  // barrier, nothing is set aside, every byte below the local ends is copied.
  std::optional<std::string> WhyNotSynced() const;

  // Why the target is not complete: nothing if it is, with nothing in flight
  // and nothing put off. An answer of nothing stays true for as long as no
  // request is served and no sync of the target fails.
  std::optional<std::string> WhyNotComplete() const;

 private:
  std::optional<std::string> WhyBytesAreNot() const;
};

}  // namespace livemv::copy
