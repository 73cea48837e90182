#pragma once

// What the classes of the name lane act on, and whom they tell.

#include <functional>

#include "core/losses.h"
#include "core/state/journal.h"
#include "core/syscalls.h"
#include "fusefs/file_table.h"
#include "fusefs/graveyard.h"
#include "fusefs/object_store.h"
#include "fusefs/redo.h"
#include "fusefs/source_tree.h"

namespace livemv::copy {

using state::FileId;

struct NameLane {
  fusefs::SourceTree* source = nullptr;
  fusefs::ObjectStore* objects = nullptr;
  fusefs::Redo* redo = nullptr;
  // May be null where no file is ever direct (fusefs/passthrough.h).
  fusefs::FileTable* files = nullptr;
  fusefs::Graveyard* graveyard = nullptr;
  state::Journal* journal = nullptr;
  // A bound regular file whose bytes the copier is to look at; often called
  // for files that need nothing. Must not block on the target.
  std::function<void(FileId)> copy_wanted;
  core::Losses losses;
  // This host went down during this migration, so that the target may have
  // objects whose binding record was lost; otherwise an unknown object is
  // somebody else's and is never touched.
  bool host_went_down = false;
};

}  // namespace livemv::copy
