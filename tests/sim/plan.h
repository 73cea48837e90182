#pragma once

// What happens in one schedule, drawn from its seed before it runs, so that it
// can be repeated, and shrunk by leaving parts out.

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/fake_syscalls.h"

namespace livemv::sim {

enum class Do : uint8_t {
  kWrite, kAppend, kTruncate, kPunch, kRead, kStat, kFSync, kOpen, kClose,
  kCreate, kMkDir, kSymLink, kUnlink, kRmDir, kRename, kExchange, kLink, kChMod,
  kXattr, kList, kFSyncDir, kPause,
};
struct Op {
  Do what = Do::kPause;
  // Draws that the operation is made of, given what exists when it runs.
  uint64_t a = 0, b = 0, c = 0, d = 0;
};

enum class Mishap : uint8_t {
  kKill,         // the worker; its requests are repeated
  kKillAll,      // the worker and the applications; nothing is repeated
  kPowerCut,
  kTargetFails,  // some calls on the target
  kSourceFull,   // some writes to the source
  kWriteback,    // the target loses unsynced bytes, and says so once
  kHang,         // a write or fsync on the target takes seconds
  kAbort,        // the migration turns back (once)
};
struct Event {
  Mishap what = Mishap::kKill;
  uint64_t after_ops = 0;  // operations begun
  uint64_t steps = 0;      // and then steps of the scheduler
  uint64_t a = 0;
};

// A mixture of operations and mishaps that stresses something.
struct WorldKind {
  const char* name;
  int name_ops, byte_ops, syncs;  // weights
  int kills, deaths, cuts, target, full, writeback, hangs;  // at most
  bool abort;
};
const std::vector<WorldKind>& WorldKinds();
const WorldKind* FindWorld(const std::string& name);

struct Plan {
  uint64_t seed = 0;
  uint64_t interleaving = 0;  // of the scheduler
  const WorldKind* world = nullptr;
  fake::FakeSyscalls::Kind target = fake::FakeSyscalls::Kind::kNfs;
  uint64_t batch_bytes = 0;
  bool verify = true;
  bool abort_at_end = false;
  std::vector<Op> ops[2];
  std::vector<Event> events;
};

// world null: the seed chooses.
Plan MakePlan(uint64_t seed, const WorldKind* world);
std::string Describe(const Op& op);
std::string Describe(const Event& event);

}  // namespace livemv::sim
