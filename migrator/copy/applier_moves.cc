// How objects get into their places and out of them.

#include <fcntl.h>
#include <linux/magic.h>

#include <cerrno>

#include "core/fault_points.h"
#include "core/log.h"
#include "migrator/copy/applier.h"

namespace livemv::copy {

using fusefs::ObjectStore;
using fusefs::SharedFd;

namespace {

constexpr size_t kListBytes = 64 << 10;

core::Error Describe(core::Error error, const char* what,
                     const std::string& name) {
  return std::move(error).With(fmt::format("{} \"{}\"", what, name));
}

}  // namespace

void Applier::DropLostObjects(const state::RecoveredState& state) {
  auto fs = sys_->FStatFs(lane_->objects->RootFd());
  // A server answers after it has made an object durable.
  if (fs && static_cast<unsigned long>(fs->f_type) == NFS_SUPER_MAGIC)
    return;
  for (const auto& [id, file] : state.files) {
    if (!file.bound || id == state::kRootId)
      continue;
    auto fd = sys_->OpenByHandle(lane_->objects->RootFd(), file.bound->handle,
                                 O_PATH | O_NOFOLLOW);
    if (fd || fd.error().sys_errno != ESTALE)
      continue;
    // Claims follow a sync of the object, so this one was taken by somebody
    // else. Left as it is: its file cannot be served, and nobody is told that
    // the bytes were zeros.
    if (file.map &&
        (file.map->CopiedBytes() != 0 || file.map->RemoteBytes() != 0)) {
      LOG_ERROR("the object of inode {:x} is gone from the target", id);
      continue;
    }
    LOG_INFO("the object of inode {:x} went with the host's crash", id);
    lane_->objects->Forget(id);
    ForgetPlace(id);
  }
}

core::Status Applier::SetSpot(FileId dir, Spot spot) {
  {
    core::MutexLock lock(mu_);
    spots_[dir] = spot;
  }
  TRY(lane_->journal->Append(state::PlacedFact{dir, spot.dir, spot.name}));
  return {};
}

void Applier::ForgetPlace(FileId id) {
  core::MutexLock lock(mu_);
  spots_.erase(id);
}

core::Result<bool> Applier::Place(PlaceLocks::Hold* hold, FileId dir,
                                  const std::string& name, int dirfd,
                                  const SourceEntry& source) {
  const bool is_dir = S_ISDIR(source.st.stx_mode);
  if (is_dir) {
    ASSIGN_OR_RETURN(bool placed, PlaceDir(hold, dir, name, dirfd, source.id));
    if (!placed)
      return false;
    TRY(core::FaultPoint("applier.placed"));
    if (scan_wanted_)
      scan_wanted_(source.id);
    return true;
  }
  auto moved = sys_->RenameAt(lane_->objects->SlotsFd(),
                              ObjectStore::SlotName(source.id).c_str(), dirfd,
                              name.c_str(), 0);
  if (!moved && moved.error().sys_errno == ENOENT) {
    // It has another name already: a further link, by handle.
    ASSIGN_OR_RETURN(SharedFd fd, lane_->objects->Path(source.id));
    moved = sys_->LinkFd(fd->Get(), dirfd, name.c_str());
  }
  if (!moved)
    return core::Fail(Describe(std::move(moved).error(), "place", name));
  TRY(core::FaultPoint("applier.placed"));
  if (S_ISREG(source.st.stx_mode) && lane_->copy_wanted)
    lane_->copy_wanted(source.id);
  return true;
}

core::Result<bool> Applier::PlaceDir(PlaceLocks::Hold* hold, FileId dir,
                                     const std::string& name, int dirfd,
                                     FileId id) {
  const std::string slot = ObjectStore::SlotName(id);
  for (int attempt = 0; attempt < 2; ++attempt) {
    auto moved = sys_->RenameAt(lane_->objects->SlotsFd(), slot.c_str(), dirfd,
                                name.c_str(), 0);
    if (!moved && moved.error().sys_errno == ENOENT) {
      ASSIGN_OR_RETURN(Spot spot, FindSpot(id));
      if (spot.dir == state::kNoFile)
        return core::Fail(core::ErrorCode::kGone,
                          "the object of directory \"" + name +
                              "\" is nowhere on the target");
      if (!hold->TryAdd(PlaceLocks::KeyOf(spot.dir, spot.name)))
        return false;
      ASSIGN_OR_RETURN(SharedFd from, lane_->objects->Path(spot.dir));
      // With the entry held: is it still there?
      ASSIGN_OR_RETURN(TargetEntry there,
                       LookAtTarget(from->Get(), spot.name));
      if (there.id != id) {
        hold->Release();
        return false;
      }
      // Where it lies may be clean: our look at the source is older than this
      // hold, and meanwhile it may have come back there.
      TRY(lane_->redo->Mark({spot.dir, spot.name}));
      TRY(lane_->redo->Mark({spot.dir, {}}));
      moved = sys_->RenameAt(from->Get(), spot.name.c_str(), dirfd,
                             name.c_str(), 0);
      if (!moved && moved.error().sys_errno == EACCES) {
        // Of two owners, each of whom may change names in one of the two
        // directories (core/as_owner.h). Over its slot both can.
        TRY(MoveToSlot(from->Get(), spot.name, id));
        moved = sys_->RenameAt(lane_->objects->SlotsFd(), slot.c_str(), dirfd,
                               name.c_str(), 0);
      }
    }
    if (moved) {
      TRY(SetSpot(id, Spot{dir, name}));
      return true;
    }
    if (moved.error().sys_errno != EINVAL || attempt > 0)
      return core::Fail(Describe(std::move(moved).error(), "place", name));
    // The place lies inside the directory itself (model N4): the source has
    // moved on. The destination leaves first.
    ASSIGN_OR_RETURN(bool parked, Park(hold, dir));
    if (!parked)
      return false;
  }
  return core::Fail(core::ErrorCode::kConflict, "place \"" + name + "\"");
}

core::Result<bool> Applier::Park(PlaceLocks::Hold* hold, FileId dir) {
  if (!hold->TryAdd(PlaceLocks::KeyOf(dir)))
    return false;
  ASSIGN_OR_RETURN(Spot spot, FindSpot(dir));
  if (spot.dir == state::kNoFile)
    return core::FailSys(EINVAL, "a directory in its slot holds its parent");
  if (!hold->TryAdd(PlaceLocks::KeyOf(spot.dir, spot.name)))
    return false;
  ASSIGN_OR_RETURN(SharedFd from, lane_->objects->Path(spot.dir));
  ASSIGN_OR_RETURN(TargetEntry there, LookAtTarget(from->Get(), spot.name));
  if (there.id != dir) {
    hold->Release();
    return false;
  }
  // No record names its place.
  TRY(OwePlace(dir));
  TRY(MoveToSlot(from->Get(), spot.name, dir));
  TRY(lane_->redo->Mark({spot.dir, {}}));
  if (owed_)
    owed_();
  return true;
}

core::Status Applier::SeekPlace(FileId dir) {
  TRY(OwePlace(dir));
  if (owed_)
    owed_();
  return {};
}

core::Status Applier::OwePlace(FileId dir) {
  auto fd = lane_->source->Path(dir);
  if (!fd) {
    ASSIGN_OR_RETURN(bool dead, lane_->source->IsDead(dir));
    if (dead)
      return {};
    return core::Fail(std::move(fd).error());
  }
  auto parent = sys_->OpenAt((*fd)->Get(), "..", O_PATH | O_DIRECTORY);
  if (!parent && parent.error().sys_errno == ENOENT)
    return {};
  if (!parent)
    return core::Fail(std::move(parent).error());
  ASSIGN_OR_RETURN(FileId parent_id, lane_->source->IdOf(parent->Get(), ""));
  return lane_->redo->Owe(parent_id);
}

core::Status Applier::MoveToSlot(int from, const std::string& name,
                                 FileId dir) {
  auto moved =
      sys_->RenameAt(from, name.c_str(), lane_->objects->SlotsFd(),
                     ObjectStore::SlotName(dir).c_str(), 0);
  if (!moved)
    return core::Fail(Describe(std::move(moved).error(), "park", name));
  lane_->graveyard->Add(dir);
  return SetSpot(dir, Spot{});
}

core::Result<Applier::Spot> Applier::FindSpot(FileId dir) {
  {
    core::MutexLock lock(mu_);
    auto it = spots_.find(dir);
    if (it != spots_.end() && it->second.dir != state::kNoFile) {
      Spot spot = it->second;
      lock.unlock();
      auto at = lane_->objects->Path(spot.dir);
      if (at) {
        ASSIGN_OR_RETURN(TargetEntry entry,
                         LookAtTarget((*at)->Get(), spot.name));
        if (entry.id == dir)
          return spot;
      }
    }
  }
  // The hint is stale (a kill between the move and its record): ask the
  // object itself where it lies.
  ASSIGN_OR_RETURN(SharedFd self, lane_->objects->Path(dir));
  ASSIGN_OR_RETURN(core::Stat st, sys_->StatAt(self->Get(), ""));
  ASSIGN_OR_RETURN(core::Stat up, sys_->StatAt(self->Get(), ".."));
  auto parent = lane_->objects->FindByIno(up.stx_ino);
  if (!parent)
    return Spot{};  // in the private directory
  ASSIGN_OR_RETURN(SharedFd at, lane_->objects->Path(*parent));
  ASSIGN_OR_RETURN(core::UniqueFd listing,
                   sys_->OpenAt(at->Get(), ".", O_RDONLY | O_DIRECTORY));
  for (int64_t offset = 0;;) {
    ASSIGN_OR_RETURN(std::vector<core::DirEntry> entries,
                     sys_->ReadDir(listing.Get(), offset, kListBytes));
    if (entries.empty())
      return Spot{};
    for (const core::DirEntry& entry : entries) {
      if (entry.ino == st.stx_ino && entry.name != "." && entry.name != "..")
        return Spot{*parent, entry.name};
    }
    offset = entries.back().next_offset;
  }
}

core::Status Applier::Detach(FileId dir, const std::string& name, FileId id,
                             const core::Stat& st) {
  ASSIGN_OR_RETURN(SharedFd dirfd, lane_->objects->Path(dir));
  const int victims = lane_->objects->VictimsFd();
  if (id == state::kNoFile) {
    if (!lane_->host_went_down)
      return core::Fail(core::ErrorCode::kConflict,
                        "the target's \"" + name +
                            "\" was not made by this migration");
    // Ours, but its binding went with the power: what it held was not fsynced.
    auto moved = sys_->RenameAt(dirfd->Get(), name.c_str(), victims,
                                lane_->objects->NewVictimName().c_str(), 0);
    if (!moved)
      return core::Fail(Describe(std::move(moved).error(), "remove", name));
    return {};
  }
  lane_->graveyard->Add(id);
  uint32_t names = 1;
  if (!S_ISDIR(st.stx_mode)) {
    // Counted again now that the object is held: st was taken before, and what
    // was its other name then may have been taken away since.
    ASSIGN_OR_RETURN(core::Stat now,
                     sys_->StatAt(dirfd->Get(), name.c_str(), STATX_NLINK));
    names = now.stx_nlink;
  }
  if (names > 1) {
    // Other names hold it. Unlinked elsewhere: where one of our descriptors
    // makes the NFS client keep a silly name, it must not be in the tree.
    const std::string victim = lane_->objects->NewVictimName();
    auto moved = sys_->RenameAt(dirfd->Get(), name.c_str(), victims,
                                victim.c_str(), 0);
    if (moved)
      moved = sys_->UnlinkAt(victims, victim.c_str(), 0);
    if (!moved)
      return core::Fail(Describe(std::move(moved).error(), "unlink", name));
    return {};
  }
  auto moved = sys_->RenameAt(dirfd->Get(), name.c_str(),
                              lane_->objects->SlotsFd(),
                              ObjectStore::SlotName(id).c_str(), 0);
  if (!moved)
    return core::Fail(Describe(std::move(moved).error(), "take away", name));
  TRY(core::FaultPoint("applier.detached"));
  if (S_ISDIR(st.stx_mode))
    TRY(SetSpot(id, Spot{}));
  return {};
}

core::Status Applier::DropVictim(const std::string& name) {
  const int victims = lane_->objects->VictimsFd();
  auto st = sys_->StatAt(victims, name.c_str());
  if (!st && st.error().sys_errno == ENOENT)
    return {};
  if (!st)
    return core::Fail(std::move(st).error());
  ASSIGN_OR_RETURN(
      std::optional<FileId> id,
      lane_->objects->Identify(victims, name.c_str(), *st, true));
  if (!id)
    return sys_->UnlinkAt(victims, name.c_str(), 0);
  PlaceLocks::Hold hold(&locks_);
  hold.Acquire({PlaceLocks::KeyOf(*id)});
  st = sys_->StatAt(victims, name.c_str());
  // Who detached it has unlinked it meanwhile.
  if (!st && st.error().sys_errno == ENOENT)
    return {};
  if (!st)
    return core::Fail(std::move(st).error());
  if (st->stx_nlink > 1)
    return sys_->UnlinkAt(victims, name.c_str(), 0);
  lane_->graveyard->Add(*id);
  return sys_->RenameAt(victims, name.c_str(), lane_->objects->SlotsFd(),
                        ObjectStore::SlotName(*id).c_str(), 0);
}

core::Status Applier::TidySlot(FileId id) {
  PlaceLocks::Hold hold(&locks_);
  // Held, nobody takes the other name away between the look and the act.
  hold.Acquire({PlaceLocks::KeyOf(id)});
  const std::string slot = ObjectStore::SlotName(id);
  auto st = sys_->StatAt(lane_->objects->SlotsFd(), slot.c_str());
  if (!st && st.error().sys_errno == ENOENT) {
    lane_->graveyard->Remove(id);
    return {};
  }
  if (!st)
    return core::Fail(std::move(st).error());
  if (S_ISDIR(st->stx_mode) || st->stx_nlink < 2)
    return {};
  return sys_->UnlinkAt(lane_->objects->SlotsFd(), slot.c_str(), 0);
}

core::Status Applier::EmptyDir(FileId dir) {
  ASSIGN_OR_RETURN(SharedFd at, lane_->objects->Path(dir));
  ASSIGN_OR_RETURN(core::UniqueFd listing,
                   sys_->OpenAt(at->Get(), ".", O_RDONLY | O_DIRECTORY));
  std::vector<std::string> names;
  for (int64_t offset = 0;;) {
    ASSIGN_OR_RETURN(std::vector<core::DirEntry> entries,
                     sys_->ReadDir(listing.Get(), offset, kListBytes));
    if (entries.empty())
      break;
    for (core::DirEntry& entry : entries) {
      if (entry.name != "." && entry.name != ".." && !IsSillyName(entry.name))
        names.push_back(std::move(entry.name));
    }
    offset = entries.back().next_offset;
  }
  for (const std::string& name : names) {
    for (bool again = true; again;) {
      again = false;
      PlaceLocks::Hold hold(&locks_);
      hold.Acquire({PlaceLocks::KeyOf(dir, name)});
      ASSIGN_OR_RETURN(TargetEntry entry, LookAtTarget(at->Get(), name));
      if (!entry.there)
        continue;
      if (entry.id != state::kNoFile &&
          !hold.TryAdd(PlaceLocks::KeyOf(entry.id))) {
        again = true;
        continue;
      }
      TRY(Detach(dir, name, entry.id, entry.st));
    }
  }
  return {};
}

}  // namespace livemv::copy
