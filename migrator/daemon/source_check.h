#pragma once

// Whether somebody changed the source while no worker served it (rule 10).
//
// Every change of an inode moves its ctime, which nobody can set, and every
// change of names that of their directory. Workers say in the journal every few
// seconds that they live, so what is younger than the last such word by more
// than that, or than the boot, was not done through the overlay. Sizes alone
// prove nothing after a power cut: a truncate that the source had not made
// durable is undone by it.
//
// What this cannot see: a change within kAliveSlackNs after the last worker's
// end in a boot before this one or beside an overlay that died, and any if the
// clock was set back meanwhile.
//
// Thread contract: one thread; reads every inode of the source.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/state/journal.h"
#include "core/state/recovery.h"
#include "core/syscalls.h"
#include "migrator/daemon/boot.h"

namespace livemv::daemon {

// How often a worker says that it lives, and what the last word may be late by.
inline constexpr int64_t kAliveEveryNs = 5'000'000'000;
inline constexpr int64_t kAliveSlackNs = 30'000'000'000;

// "yes": the worker that recovered the migration has not seen its overlay on DIR
// yet, so that none of its kind has changed anything or given a word.
inline constexpr char kOverlayDueOption[] = "overlay_due";

// CLOCK_REALTIME; nothing if the journal has no word of any worker.
std::optional<int64_t> LastAliveNs(const state::RecoveredState& state);
// No change after this time is ours. covered: by the overlay of that worker, so
// that nobody else can have got at the source in this boot; without it the last
// word is the limit, and what the worker did in the seconds after it looks like
// another's.
std::optional<int64_t> LastOwnChangeNs(const state::RecoveredState& state,
                                       const Boot& boot, bool covered);

struct ForeignChange {
  std::string path;  // below the source's root; "." is the root
  std::string what;  // for a person
  core::FileHandle handle;
  bool directory = false;
  // A file that is shorter than the bytes of it that the source has are: its
  // local end would have to follow, and what the target has past it.
  bool cut = false;
};

struct ForeignChanges {
  std::vector<ForeignChange> list;  // at most kMostListed, unless all is set
  uint64_t count = 0;
};
inline constexpr size_t kMostListed = 1000;

// What lies below root_fd (a directory, readable) and was changed after
// since_ns.
core::Result<ForeignChanges> FindForeignChanges(
    core::Syscalls* sys, int root_fd, int64_t since_ns,
    const state::RecoveredState& state, bool all);

// Takes what is on the source as it is: everything of it is to be compared with
// the target and copied again. The facts to append.
core::Result<std::vector<state::Fact>> FactsOfAcceptance(
    const ForeignChanges& changes, const state::RecoveredState& state,
    state::Journal* journal);

}  // namespace livemv::daemon
