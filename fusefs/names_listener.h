#pragma once

// Joins the data path to the name lane: times that the data path disturbed
// become redo records, and wishes for the copier are passed on.
//
// Thread contract: as BytesListener.

#include <functional>

#include "fusefs/byte_ledger.h"
#include "fusefs/redo.h"

namespace livemv::fusefs {

class NamesListener final : public BytesListener {
 public:
  // redo must outlive this. copy_wanted: as BytesListener::CopyWanted.
  NamesListener(Redo* redo, std::function<void(FileId, bool)> copy_wanted)
      : redo_(redo), copy_wanted_(std::move(copy_wanted)) {}

  void AttrsTouching(FileId id) override;
  void AttrsTouched(FileId id) override;
  void TimesDisturbed(FileId id) override;
  void CopyWanted(FileId id, bool urgent) override { copy_wanted_(id, urgent); }
  void PredecessorAlive(bool alive) override { redo_->HoldAttributes(alive); }

 private:
  Redo* const redo_;
  const std::function<void(FileId, bool)> copy_wanted_;
};

}  // namespace livemv::fusefs
