#include "fusefs/names_listener.h"

#include "core/log.h"

namespace livemv::fusefs {

// A failure to journal is told by the operation's own records, which fail the
// same way, and by the journal's state; the place is dirty in memory anyway.
void NamesListener::AttrsTouching(FileId id) {
  if (auto marked = redo_->BeginWrite(id); !marked)
    LOG_WARN("times of {:x}: {}", id, marked.error().ToString());
}

void NamesListener::AttrsTouched(FileId id) {
  if (auto marked = redo_->EndWrite(id); !marked)
    LOG_WARN("times of {:x}: {}", id, marked.error().ToString());
}

void NamesListener::TimesDisturbed(FileId id) {
  if (auto marked = redo_->MarkLazily(id); !marked)
    LOG_WARN("times of {:x}: {}", id, marked.error().ToString());
}

}  // namespace livemv::fusefs
