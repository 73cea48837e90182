#pragma once

// What happens in one schedule, drawn from its seed before it runs, so that it
// can be repeated, and shrunk by leaving parts out.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/support/fake_syscalls.h"

namespace livemv::sim {

enum class Do : uint8_t {
  kWrite, kAppend, kTruncate, kPunch, kRead, kStat, kFSync, kOpen, kClose,
  kCreate, kMkDir, kSymLink, kUnlink, kRmDir, kRename, kExchange, kLink, kChMod,
  kXattr, kList, kFSyncDir, kPause,
  kMeet,       // waits until a call stalls
  kOverwrite,  // a write that does not make the file longer
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
  kStall,        // a call of the worker takes a while
};
// A call that the worker makes somewhere.
enum class Where : uint8_t { kSource, kTarget, kJournal };
struct CallAt {
  Where where = Where::kSource;
  const char* name = "";  // as of core::Syscalls
  const char* who = "";   // of which fiber; empty: any
};
struct Event {
  Mishap what = Mishap::kKill;
  uint64_t after_ops = 0;  // operations begun
  uint64_t steps = 0;      // and then steps of the scheduler
  uint64_t a = 0;
  // Null: at once. Of a stall: what stalls. Else the mishap waits for this
  // call to happen, and `steps` are counted from there.
  const CallAt* call = nullptr;
  uint64_t times = 1;     // that it has to happen
  bool in_stall = false;  // waits until a call stalls
};

// A mixture of operations and mishaps that stresses something.
struct WorldKind {
  const char* name = "";
  int name_ops = 0, byte_ops = 0, syncs = 0;  // weights
  int kills = 0, deaths = 0, cuts = 0, target = 0, full = 0, writeback = 0,
      hangs = 0;  // at most
  bool abort = false;
  // Of a world that presses one place. Empty: all of them.
  std::vector<Do> names = {}, bytes = {};
  uint64_t least_ops = 0;  // of each application
  int files = 3;         // that are there at the beginning, at most
  bool deleted = false;  // operations also on files deleted while open
  std::optional<fake::FakeSyscalls::Kind> target_kind = {};
  bool verify = true;    // the copies may be verified
  // One of these calls takes a while, or is what a kill or a power cut waits
  // for. Empty: neither happens.
  int stalls = 0;  // at most
  std::vector<CallAt> slow = {}, strikes_after = {};
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
