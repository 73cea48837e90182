// The mixtures of operations and mishaps.

#include <algorithm>
#include <iterator>

#include "tests/sim/plan.h"

namespace livemv::sim {
namespace {

constexpr auto kSource = Where::kSource, kTarget = Where::kTarget,
               kJournal = Where::kJournal;

// Worlds that press one place each: few files, few kinds of operations, and
// the calls between which something may go wrong take long.
std::vector<WorldKind> Narrow() {
  using K = fake::FakeSyscalls::Kind;
  std::vector<WorldKind> out;
  // Writes and truncates against a copier that is slow somewhere.
  out.push_back({.name = "race",
                 .byte_ops = 20, .syncs = 1,
                 .bytes = {Do::kWrite, Do::kWrite, Do::kAppend, Do::kTruncate,
                           Do::kPunch, Do::kRead, Do::kPause, Do::kMeet},
                 .files = 1,
                 .stalls = 3,
                 .slow = {{kSource, "PRead"},
                          {kSource, "LSeek"},
                          {kSource, "PWrite"},
                          {kSource, "FTruncate"},
                          {kTarget, "PWrite"}}});
  // The same against copy-back.
  out.push_back({.name = "abort-race",
                 .byte_ops = 20, .syncs = 1, .abort = true,
                 .bytes = {Do::kWrite, Do::kAppend, Do::kTruncate,
                           Do::kTruncate, Do::kRead, Do::kPause, Do::kMeet},
                 .files = 1,
                 .stalls = 2,
                 .slow = {{kSource, "FSync"},
                          {kSource, "PWrite"},
                          {kTarget, "PRead"}}});
  // Writes while both sides are being synced.
  out.push_back({.name = "sync-cut",
                 .byte_ops = 12, .syncs = 3, .cuts = 2,
                 .bytes = {Do::kOverwrite, Do::kOverwrite, Do::kPause,
                           Do::kMeet},
                 .least_ops = 4,
                 .files = 1,
                 .stalls = 3,
                 .slow = {{kSource, "SyncFs"}, {kTarget, "SyncFs"}},
                 .strikes_after = {{kJournal, "FDataSync"},
                                   {kSource, "SyncFs"}}});
  // Shrinking files on a target that forgets truncates.
  out.push_back({.name = "weak-cut",
                 .byte_ops = 10, .syncs = 6, .cuts = 1,
                 .bytes = {Do::kTruncate, Do::kTruncate, Do::kAppend,
                           Do::kWrite, Do::kPause},
                 .files = 1,
                 .target_kind = K::kLocal,
                 .strikes_after = {{kJournal, "FDataSync"},
                                   {kTarget, "FTruncate"},
                                   {kSource, "FSync"}}});
  // Files that only grow, old ones and new ones.
  out.push_back({.name = "grow-cut",
                 .name_ops = 2, .byte_ops = 10, .syncs = 4, .cuts = 2,
                 .names = {Do::kCreate},
                 .bytes = {Do::kAppend, Do::kWrite, Do::kRead, Do::kPause},
                 .files = 2,
                 .strikes_after = {{kTarget, "PWrite"},
                                   {kTarget, "FSync"},
                                   {kJournal, "FDataSync"},
                                   {kSource, "FSync"}}});
  // Writeback errors that meet other fsyncs than the copier's, while it is
  // between the write of a chunk and the end of it.
  out.push_back({.name = "writeback",
                 .byte_ops = 12, .syncs = 6, .writeback = 3,
                 .bytes = {Do::kOverwrite, Do::kOverwrite, Do::kMeet,
                           Do::kPunch},
                 .least_ops = 3,
                 .files = 1,
                 .verify = false,
                 .stalls = 2,
                 .slow = {{kTarget, "StatAt", "copier"},
                          {kTarget, "LSeek", "copier"},
                          {kTarget, "PWrite", "copier"}}});
  // Files that are deleted while somebody has them open.
  out.push_back({.name = "deleted",
                 .name_ops = 6, .byte_ops = 14, .syncs = 1, .kills = 2,
                 .names = {Do::kUnlink, Do::kUnlink, Do::kRename, Do::kCreate},
                 .bytes = {Do::kOpen, Do::kOpen, Do::kAppend, Do::kWrite,
                           Do::kRead, Do::kStat, Do::kClose, Do::kPause},
                 .files = 2,
                 .deleted = true,
                 .strikes_after = {{kSource, "UnlinkAt"},
                                   {kTarget, "RenameAt"},
                                   {kTarget, "UnlinkAt"}}});
  // What is destroyed while the source may still come back to it.
  out.push_back({.name = "burial-cut",
                 .name_ops = 6, .byte_ops = 8, .syncs = 3, .cuts = 2,
                 .names = {Do::kUnlink, Do::kUnlink, Do::kRename, Do::kCreate},
                 .bytes = {Do::kAppend, Do::kWrite, Do::kPause, Do::kMeet},
                 .least_ops = 3,
                 .files = 2,
                 .stalls = 2,
                 .slow = {{kSource, "SyncFs", "barrier"},
                          {kSource, "SyncFs", "burial"}},
                 .strikes_after = {{kTarget, "UnlinkAt", "burial"}}});
  // Files that the kernel reads and writes alone: their begin and end against
  // opens, truncates and deaths.
  WorldKind direct{.name = "direct",
                   .name_ops = 4, .byte_ops = 20, .syncs = 1, .kills = 1,
                   .names = {Do::kCreate, Do::kCreate, Do::kUnlink},
                   .bytes = {Do::kWrite, Do::kAppend, Do::kOverwrite,
                             Do::kTruncate, Do::kRead, Do::kStat, Do::kOpen,
                             Do::kOpen, Do::kClose, Do::kClose, Do::kMeet},
                   .least_ops = 4,
                   .files = 1,
                   .stalls = 3,
                   .slow = {{kTarget, "StatAt", "direct"},
                            {kSource, "UTimens", "direct"},
                            {kSource, "StatAt", "direct"},
                            {kTarget, "FTruncate"},
                            {kJournal, "FDataSync"}}};
  out.push_back(direct);
  direct.name = "direct-abort";
  direct.abort = true;
  out.push_back(direct);
  direct.name = "direct-cut";
  direct.abort = false;
  direct.syncs = 4;
  direct.cuts = 2;
  out.push_back(direct);
  // Names that the source keeps or loses, and the journal does not.
  out.push_back({.name = "hot-cut",
                 .name_ops = 16, .byte_ops = 6, .syncs = 1, .kills = 1, .cuts = 2,
                 .bytes = {Do::kPause, Do::kPause, Do::kWrite},
                 .files = 2,
                 .target_kind = K::kNfs,
                 .strikes_after = {{kSource, "RenameAt"},
                                   {kSource, "UnlinkAt"},
                                   {kSource, "SetXattr"},
                                   {kTarget, "RenameAt"},
                                   {kTarget, "UTimens"},
                                   {kJournal, "FDataSync"}}});
  return out;
}

}  // namespace

const std::vector<WorldKind>& WorldKinds() {
  //  name        name byte sync  kill die cut target full wb hang abort
  static const std::vector<WorldKind> kAll = [] {
    std::vector<WorldKind> all = {
      {"bytes", 1, 20, 2, 0, 0, 0, 0, 0, 0, 0, false},
      {"kill", 6, 10, 2, 2, 0, 0, 0, 0, 0, 0, false},
      {"die", 2, 12, 2, 1, 2, 0, 0, 0, 0, 1, false},
      {"cut", 2, 14, 5, 0, 0, 2, 0, 0, 0, 0, false},
      {"target", 1, 14, 3, 0, 0, 0, 3, 0, 3, 1, false},
      {"full", 1, 14, 2, 1, 0, 0, 0, 3, 0, 0, false},
      {"full-cut", 1, 14, 5, 0, 0, 1, 0, 3, 0, 0, false},
      {"late", 1, 14, 2, 1, 0, 0, 0, 0, 0, 3, false},
      {"abort", 2, 14, 2, 1, 0, 0, 0, 0, 0, 1, true},
      {"abort-cut", 2, 14, 5, 0, 0, 2, 0, 1, 0, 0, true},
      {"names", 16, 3, 1, 2, 0, 0, 0, 0, 0, 0, false},
      {"names-cut", 16, 3, 2, 1, 0, 2, 0, 0, 0, 0, false},
      {"all", 8, 10, 3, 1, 1, 1, 2, 2, 1, 1, false},
      {"all-abort", 8, 10, 3, 1, 1, 1, 0, 1, 0, 1, true},
    };
    std::ranges::move(Narrow(), std::back_inserter(all));
    return all;
  }();
  return kAll;
}

const WorldKind* FindWorld(const std::string& name) {
  for (const WorldKind& w : WorldKinds())
    if (w.name == name)
      return &w;
  return nullptr;
}

}  // namespace livemv::sim
