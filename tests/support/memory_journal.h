#pragma once

// A journal in memory: appended facts survive a kill, synced ones a power cut.
// Under a core::Scheduler each call is a step of the interleaving.

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/state/journal.h"
#include "core/state/recovery.h"
#include "core/sync.h"

namespace livemv::fake {

class MemoryJournal final : public state::Journal {
 public:
  core::Result<state::Seq> Append(const state::Fact& fact) override {
    if (fail_appends > 0 && fail_appends-- > 0)
      return core::FailSys(ENOSPC, "journal");
    facts.push_back(fact);
    return facts.size();
  }
  core::Status Sync(state::Seq seq) override {
    Yield();
    if (seq > durable) {
      durable = facts.size();
      syncs++;
    }
    return {};
  }
  core::Status SyncAll() override { return Sync(facts.size()); }

  // Keeps what is durable and, of the rest, a prefix.
  void PowerCut(std::mt19937_64& rng) {
    facts.resize(durable + rng() % (facts.size() - durable + 1));
    durable = facts.size();
  }

  // What a successor starts from, its session's facts appended and synced.
  state::RecoveredState Recover(const std::string& boot_id, uint32_t pid) {
    state::RecoveredState out;
    for (const state::Fact& fact : facts)
      if (auto applied = out.Apply(fact); !applied)
        std::abort();
    for (const state::Fact& fact :
         state::FactsOfNewSession(out, boot_id, pid)) {
      facts.push_back(fact);
      if (auto applied = out.Apply(fact); !applied)
        std::abort();
    }
    durable = facts.size();
    return out;
  }

  template <class T>
  size_t Count() const {
    size_t n = 0;
    for (const state::Fact& fact : facts)
      n += std::holds_alternative<T>(fact) ? 1 : 0;
    return n;
  }
  // The place of the last fact of a kind; npos if there is none.
  static constexpr size_t npos = static_cast<size_t>(-1);
  template <class T>
  size_t Last() const {
    for (size_t i = facts.size(); i-- > 0;)
      if (std::holds_alternative<T>(facts[i]))
        return i;
    return npos;
  }

  std::vector<state::Fact> facts;
  size_t durable = 0;
  size_t syncs = 0;
  int fail_appends = 0;

 private:
  static void Yield() {
    if (core::Scheduler* s = core::Scheduler::Current()) {
      bool asked = false;
      s->WaitUntil([&asked] { return std::exchange(asked, true); }, -1);
    }
  }
};

}  // namespace livemv::fake
