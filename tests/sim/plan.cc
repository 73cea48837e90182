#include "tests/sim/plan.h"

#include <algorithm>
#include <random>

namespace livemv::sim {

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
  if (w.target_kind)
    plan.target = *w.target_kind;
  plan.batch_bytes = draw(2) == 0 ? 8192 : 64 << 20;
  plan.verify = draw(4) != 0 && w.verify;
  plan.abort_at_end = w.abort;
  uint64_t count = 3 + draw(10), total = 0;
  for (auto& ops : plan.ops) {
    for (uint64_t i = w.least_ops + draw(count + 1); i > 0; i--) {
      Op op;
      const auto sum = static_cast<uint64_t>(w.name_ops + w.byte_ops + w.syncs);
      const auto k = static_cast<int>(draw(sum));
      if (k < w.name_ops)
        op.what = w.names.empty() ? kNames[draw(std::size(kNames))]
                                  : w.names[draw(w.names.size())];
      else if (k < w.name_ops + w.byte_ops)
        op.what = w.bytes.empty() ? kBytes[draw(std::size(kBytes))]
                                  : w.bytes[draw(w.bytes.size())];
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
  auto in_stall = [&](Event* event, bool yes) {
    event->in_stall = yes;
    if (yes)
      event->steps = draw(8);
  };
  // As above, but more often than not right after a call.
  auto strike = [&](Mishap what, int most) {
    const size_t before = plan.events.size();
    add(what, most);
    for (size_t i = before; i < plan.events.size(); i++) {
      if (!w.slow.empty())
        in_stall(&plan.events[i], draw(3) == 0);
      if (w.strikes_after.empty() || draw(4) == 0)
        continue;
      plan.events[i].call = &w.strikes_after[draw(w.strikes_after.size())];
      plan.events[i].steps = draw(draw(2) == 0 ? 3 : 30);
      plan.events[i].times = 1 + (draw(2) == 0 ? draw(4) : 0);
    }
  };
  strike(Mishap::kKill, w.kills);
  strike(Mishap::kKillAll, w.deaths);
  strike(Mishap::kPowerCut, w.cuts);
  add(Mishap::kTargetFails, w.target);
  add(Mishap::kSourceFull, w.full);
  const size_t before = plan.events.size();
  add(Mishap::kWriteback, w.writeback);
  for (size_t i = before; !w.slow.empty() && i < plan.events.size(); i++)
    in_stall(&plan.events[i], draw(3) != 0);
  add(Mishap::kHang, w.hangs);
  for (uint64_t i = w.slow.empty() ? 0 : draw(static_cast<uint64_t>(w.stalls) + 1);
       i > 0; i--)
    plan.events.push_back({Mishap::kStall, draw(total + 1), draw(20),
                           draw(1000), &w.slow[draw(w.slow.size())]});
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
      "exchange", "link", "chmod", "xattr", "list", "fsyncdir", "pause", "meet", "overwrite"};
  return kWords[static_cast<size_t>(op.what)];
}

std::string Describe(const Event& event) {
  static const char* const kWheres[] = {"source", "target", "journal"};
  static const char* const kWords[] = {
      "kill the worker", "kill worker and applications", "power cut",
      "target fails", "source refuses writes", "target loses writeback",
      "target hangs", "abort", "stall"};
  std::string call;
  if (event.call != nullptr)
    call = std::string(event.what == Mishap::kStall ? " " : " at ") +
           kWheres[static_cast<size_t>(event.call->where)] + " " +
           event.call->name;
  if (event.in_stall)
    call += " in a stall";
  return kWords[static_cast<size_t>(event.what)] + call + " after " +
         std::to_string(event.after_ops) + " operations and " +
         std::to_string(event.steps) + " steps";
}

}  // namespace livemv::sim
