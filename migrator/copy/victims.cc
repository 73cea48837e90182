#include "migrator/copy/victims.h"

#include <fcntl.h>

#include <cerrno>
#include <optional>

#include "core/fault_points.h"
#include "core/log.h"

namespace livemv::copy {

using fusefs::ObjectStore;

namespace {

constexpr size_t kListBytes = 64 << 10;

}  // namespace

Victims::Victims(const NameLane* lane, Applier* applier, Hooks hooks)
    : lane_(lane), applier_(applier), hooks_(std::move(hooks)),
      sys_(lane->source->sys()) {}

core::Result<std::vector<core::DirEntry>> Victims::List(int dirfd) {
  ASSIGN_OR_RETURN(core::UniqueFd fd,
                   sys_->OpenAt(dirfd, ".", O_RDONLY | O_DIRECTORY));
  std::vector<core::DirEntry> all;
  for (int64_t offset = 0;;) {
    ASSIGN_OR_RETURN(std::vector<core::DirEntry> piece,
                     sys_->ReadDir(fd.Get(), offset, kListBytes));
    if (piece.empty())
      return all;
    offset = piece.back().next_offset;
    for (core::DirEntry& entry : piece) {
      if (entry.name != "." && entry.name != "..")
        all.push_back(std::move(entry));
    }
  }
}

core::Status Victims::Survey() {
  ASSIGN_OR_RETURN(std::vector<core::DirEntry> slots,
                   List(lane_->objects->SlotsFd()));
  for (const core::DirEntry& slot : slots) {
    if (auto id = ObjectStore::IdOfSlot(slot.name))
      lane_->graveyard->Add(*id);
  }
  return {};
}

core::Result<bool> Victims::IsDead(FileId id) {
  // A deleted directory is empty and served by the source alone, so whoever
  // stands in it does not need its object.
  auto object = lane_->objects->Find(id);
  const bool dir = object && object->type == S_IFDIR;
  // In this order: what has no name is not opened any more, but what is not
  // open may be opened and deleted before the next look.
  ASSIGN_OR_RETURN(bool dead, lane_->source->IsDead(id));
  return dead && (dir || !hooks_.in_use(id));
}

core::Result<uint64_t> Victims::Bury() {
  // The target is the truth; nothing is left of what was ours.
  if (lane_->objects->SlotsFd() < 0)
    return uint64_t{0};
  uint64_t count = 0;
  for (;;) {
    ASSIGN_OR_RETURN(uint64_t more, BuryOnce(true));
    count += more;
    if (more == 0)
      return count;
  }
}

core::Result<uint64_t> Victims::BuryOnce(bool sync) {
  // Dead before the sync begins: then the sync makes their end durable.
  std::vector<FileId> dead;
  for (FileId id : lane_->graveyard->All()) {
    ASSIGN_OR_RETURN(bool is_dead, IsDead(id));
    if (is_dead) {
      dead.push_back(id);
      continue;
    }
    if (hooks_.in_use(id))
      continue;
    // Alive: it only passed through its slot, unless it still lies there.
    TRY(applier_->TidySlot(id));
  }
  ASSIGN_OR_RETURN(std::vector<core::DirEntry> unknown,
                   List(lane_->objects->VictimsFd()));
  if (dead.empty() && unknown.empty())
    return 0;
  if (sync)
    TRY(hooks_.sync_source());
  uint64_t count = 0;
  for (FileId id : dead) {
    bool gone = false;
    TRY(Destroy(id, &gone));
    if (gone)
      count++;
  }
  TRY(EmptyVictims(&count));
  return count;
}

core::Status Victims::Destroy(FileId id, bool* gone) {
  const std::string slot = ObjectStore::SlotName(id);
  const int slots = lane_->objects->SlotsFd();
  auto object = lane_->objects->Find(id);
  if (object) {
    if (object->type == S_IFDIR) {
      auto emptied = applier_->EmptyDir(id);
      // Destroyed by a predecessor whose last records are lost.
      if (!emptied && emptied.error().sys_errno != ESTALE)
        return emptied;
    }
    // Our descriptors would leave a .nfs name behind.
    lane_->objects->Drop(id);
  }
  auto st = sys_->StatAt(slots, slot.c_str());
  if (!st && st.error().sys_errno != ENOENT)
    return core::Fail(std::move(st).error());
  if (st) {
    const bool dir = S_ISDIR(st->stx_mode);
    // Said before it is done: a binding that outlives its object may meet
    // another one under the same inode number.
    if (dir || st->stx_nlink == 1) {
      TRY(lane_->journal->Append(state::DeadFact{id}));
      TRY(core::FaultPoint("victims.dead"));
    }
    auto removed =
        sys_->UnlinkAt(slots, slot.c_str(), dir ? AT_REMOVEDIR : 0);
    // Its binding went with the power, and so nobody has emptied it. What it
    // holds is looked at among the victims.
    if (!removed && dir && !object &&
        (removed.error().sys_errno == ENOTEMPTY ||
         removed.error().sys_errno == EEXIST))
      return sys_->RenameAt(slots, slot.c_str(), lane_->objects->VictimsFd(),
                            lane_->objects->NewVictimName().c_str(), 0);
    // A silly name in it, or an applier took it to a name that is to go again:
    // the next barrier tries again.
    if (!removed && (removed.error().sys_errno == ENOTEMPTY ||
                     removed.error().sys_errno == EEXIST ||
                     removed.error().sys_errno == ENOENT))
      return {};
    if (!removed)
      return core::Fail(std::move(removed).error().With("destroy " + slot));
    if (!dir && st->stx_nlink > 1)
      return {};  // names of it are in the tree still; their records are dirty
  } else if (object) {
    // Not in its slot: its last name on the target has not been taken away
    // yet. That will bring it here.
    auto fd = lane_->objects->Path(id);
    if (fd) {
      ASSIGN_OR_RETURN(core::Stat left, sys_->StatAt((*fd)->Get(), ""));
      fd->reset();
      lane_->objects->Drop(id);
      if (left.stx_nlink > 0)
        return {};
    } else if (fd.error().sys_errno != ESTALE &&
               fd.error().sys_errno != ENOENT) {
      return core::Fail(std::move(fd).error());
    }
  }
  TRY(core::FaultPoint("victims.destroyed"));
  TRY(hooks_.forget(id));
  lane_->graveyard->Remove(id);
  lane_->objects->Forget(id);
  applier_->ForgetPlace(id);
  if (!hooks_.in_use(id))
    lane_->source->Forget(id);
  *gone = true;
  return {};
}

core::Status Victims::EmptyVictims(uint64_t* count) {
  const int victims = lane_->objects->VictimsFd();
  ASSIGN_OR_RETURN(std::vector<core::DirEntry> entries, List(victims));
  for (const core::DirEntry& entry : entries) {
    if (Applier::IsSillyName(entry.name))
      continue;  // goes with its last descriptor
    auto st = sys_->StatAt(victims, entry.name.c_str());
    if (!st && st.error().sys_errno == ENOENT)
      continue;
    if (!st)
      return core::Fail(std::move(st).error());
    if (!S_ISDIR(st->stx_mode)) {
      TRY(applier_->DropVictim(entry.name));
      ++*count;
      continue;
    }
    auto dir = sys_->OpenAt(victims, entry.name.c_str(),
                            O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (!dir && dir.error().sys_errno == ENOENT)
      continue;
    if (!dir)
      return core::Fail(std::move(dir).error());
    ASSIGN_OR_RETURN(std::vector<core::DirEntry> inner, List(dir->Get()));
    for (const core::DirEntry& child : inner) {
      if (Applier::IsSillyName(child.name))
        continue;
      // An applier may have taken it since the listing, and at each step below.
      auto child_st = sys_->StatAt(dir->Get(), child.name.c_str());
      if (!child_st && child_st.error().sys_errno == ENOENT)
        continue;
      if (!child_st)
        return core::Fail(std::move(child_st).error());
      auto known = lane_->objects->Identify(dir->Get(), child.name.c_str(),
                                            *child_st, true);
      if (!known && known.error().sys_errno == ENOENT)
        continue;
      ASSIGN_OR_RETURN(std::optional<FileId> id, std::move(known));
      // The last name of what is bound goes to its slot, since it may be
      // alive; the rest comes up one level and is met in the next round.
      const bool to_slot =
          id && (S_ISDIR(child_st->stx_mode) || child_st->stx_nlink == 1);
      const std::string name = to_slot ? ObjectStore::SlotName(*id)
                                       : lane_->objects->NewVictimName();
      auto moved = sys_->RenameAt(
          dir->Get(), child.name.c_str(),
          to_slot ? lane_->objects->SlotsFd() : victims, name.c_str(), 0);
      if (!moved && moved.error().sys_errno == ENOENT)
        continue;
      if (!moved)
        return core::Fail(std::move(moved).error().With(child.name));
      if (id)
        lane_->graveyard->Add(*id);
    }
    dir->Reset();
    auto removed = sys_->UnlinkAt(victims, entry.name.c_str(), AT_REMOVEDIR);
    if (removed)
      ++*count;
    else if (removed.error().sys_errno != ENOTEMPTY &&
             removed.error().sys_errno != EEXIST &&
             removed.error().sys_errno != ENOENT)
      return removed;
  }
  return {};
}

core::Result<std::optional<FileId>> Victims::WithoutPlace() {
  const int slots = lane_->objects->SlotsFd();
  // RemovePrivate has found none left; a silly name among the victims stopped
  // it after that.
  if (slots < 0)
    return std::nullopt;
  ASSIGN_OR_RETURN(std::vector<core::DirEntry> all, List(slots));
  for (const core::DirEntry& slot : all) {
    const std::optional<FileId> id = ObjectStore::IdOfSlot(slot.name);
    if (!id)
      continue;  // a silly name
    ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(slots, slot.name.c_str()));
    const bool dir = S_ISDIR(st.stx_mode);
    if (!dir && st.stx_nlink > 1)
      continue;  // its other names are its places
    ASSIGN_OR_RETURN(bool dead, lane_->source->IsDead(*id));
    if (dead)
      continue;
    if (dir)
      TRY(applier_->SeekPlace(*id));
    return id;
  }
  return std::nullopt;
}

core::Status Victims::RemovePrivate() {
  if (lane_->objects->SlotsFd() < 0)  // not made, or gone already
    return lane_->objects->RemovePrivate();
  TRY(Survey());
  for (;;) {
    ASSIGN_OR_RETURN(uint64_t count, BuryOnce(false));
    if (count == 0)
      break;
  }
  ASSIGN_OR_RETURN(std::vector<core::DirEntry> slots,
                   List(lane_->objects->SlotsFd()));
  if (!slots.empty())
    return core::FailSys(
        ENOTEMPTY, fmt::format("{} objects have no place in the tree, the "
                               "first: {}",
                               slots.size(), slots.front().name));
  return lane_->objects->RemovePrivate();
}

}  // namespace livemv::copy
