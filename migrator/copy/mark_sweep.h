#pragma once

// Abort: takes the marks (trusted.livemv) off the placeholders on the source,
// before it becomes the truth and the overlay, which hides them, goes.
//
// Thread contract: one thread.

#include <cstdint>
#include <deque>
#include <vector>

#include "core/result.h"
#include "fusefs/source_tree.h"

namespace livemv::copy {

class MarkSweep {
 public:
  // files: those that a journal record or this worker's life knows, once no
  // placeholder is marked any more (Serving::kAborting). whole_tree: looks at
  // every file of the source as well, for marks whose records were lost.
  MarkSweep(fusefs::SourceTree* source, std::vector<state::FileId> files,
            bool whole_tree);

  // A few files or one directory; false if nothing is left. After an error it
  // may be called again.
  core::Result<bool> Step();

  uint64_t Swept() const { return swept_; }

 private:
  core::Status Unmark(int fd);
  core::Status UnmarkFile(state::FileId id);
  core::Status SweepDirectory(state::FileId dir);

  fusefs::SourceTree* const source_;
  std::deque<state::FileId> files_;
  std::deque<state::FileId> directories_;
  uint64_t swept_ = 0;
};

}  // namespace livemv::copy
