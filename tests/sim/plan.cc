#include "tests/sim/plan.h"

#include <algorithm>
#include <random>

namespace livemv::sim {

const std::vector<WorldKind>& WorldKinds() {
  //  name        name byte sync  kill die cut target full wb hang abort
  static const std::vector<WorldKind> kAll = {
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
  return kAll;
}

const WorldKind* FindWorld(const std::string& name) {
  for (const WorldKind& w : WorldKinds())
    if (w.name == name)
      return &w;
  return nullptr;
}

namespace {

constexpr Do kNames[] = {Do::kCreate, Do::kCreate, Do::kMkDir,  Do::kSymLink,
                         Do::kUnlink, Do::kUnlink, Do::kRmDir,  Do::kRename,
                         Do::kRename, Do::kRename, Do::kExchange, Do::kLink,
                         Do::kChMod,  Do::kXattr,  Do::kList};
constexpr Do kBytes[] = {Do::kWrite, Do::kWrite, Do::kWrite,    Do::kWrite,
                         Do::kAppend, Do::kTruncate, Do::kTruncate, Do::kPunch,
                         Do::kRead,  Do::kRead,  Do::kStat,     Do::kOpen,
                         Do::kClose, Do::kPause};

}  // namespace

Plan MakePlan(uint64_t seed, const WorldKind* world) {
  // Neighbouring seeds are to have nothing in common.
  std::mt19937_64 rng(seed * 0x9E3779B97F4A7C15ull + 0x1234567);
  auto draw = [&](uint64_t below) { return below == 0 ? 0 : rng() % below; };
  Plan plan;
  plan.seed = seed;
  plan.interleaving = rng();
  plan.world =
      world != nullptr ? world : &WorldKinds()[seed % WorldKinds().size()];
  const WorldKind& w = *plan.world;
  plan.target = draw(4) == 0 ? fake::FakeSyscalls::Kind::kLocal
                             : fake::FakeSyscalls::Kind::kNfs;
  plan.batch_bytes = draw(2) == 0 ? 8192 : 64 << 20;
  plan.verify = draw(4) != 0;
  plan.abort_at_end = w.abort;
  uint64_t count = 3 + draw(10), total = 0;
  for (auto& ops : plan.ops) {
    for (uint64_t i = draw(count + 1); i > 0; i--) {
      Op op;
      const auto sum = static_cast<uint64_t>(w.name_ops + w.byte_ops + w.syncs);
      const auto k = static_cast<int>(draw(sum));
      if (k < w.name_ops)
        op.what = kNames[draw(std::size(kNames))];
      else if (k < w.name_ops + w.byte_ops)
        op.what = kBytes[draw(std::size(kBytes))];
      else
        op.what = draw(4) == 0 ? Do::kFSyncDir : Do::kFSync;
      op.a = draw(1 << 20);
      op.b = draw(1 << 20);
      op.c = draw(1 << 20);
      op.d = draw(1 << 20);
      ops.push_back(op);
      total++;
    }
  }
  auto add = [&](Mishap what, int most) {
    for (uint64_t i = draw(static_cast<uint64_t>(most) + 1); i > 0; i--)
      plan.events.push_back(
          {what, draw(total + 2), draw(draw(3) == 0 ? 1500 : 120), draw(1000)});
  };
  add(Mishap::kKill, w.kills);
  add(Mishap::kKillAll, w.deaths);
  add(Mishap::kPowerCut, w.cuts);
  add(Mishap::kTargetFails, w.target);
  add(Mishap::kSourceFull, w.full);
  add(Mishap::kWriteback, w.writeback);
  add(Mishap::kHang, w.hangs);
  if (w.abort)
    plan.events.push_back({Mishap::kAbort, draw(total + 1), draw(600), 0});
  std::stable_sort(plan.events.begin(), plan.events.end(),
                   [](const Event& x, const Event& y) {
                     return x.after_ops < y.after_ops;
                   });
  return plan;
}

std::string Describe(const Op& op) {
  static const char* const kWords[] = {
      "write", "append", "truncate", "punch", "read", "stat", "fsync", "open",
      "close", "create", "mkdir", "symlink", "unlink", "rmdir", "rename",
      "exchange", "link", "chmod", "xattr", "list", "fsyncdir", "pause"};
  return kWords[static_cast<size_t>(op.what)];
}

std::string Describe(const Event& event) {
  static const char* const kWords[] = {
      "kill the worker", "kill worker and applications", "power cut",
      "target fails", "source refuses writes", "target loses writeback",
      "target hangs", "abort"};
  return std::string(kWords[static_cast<size_t>(event.what)]) + " after " +
         std::to_string(event.after_ops) + " operations and " +
         std::to_string(event.steps) + " steps";
}

}  // namespace livemv::sim
