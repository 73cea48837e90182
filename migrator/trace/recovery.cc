#include "migrator/trace/recovery.h"

#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "core/log.h"
#include "migrator/trace/descriptor_swap.h"

namespace livemv::trace {
namespace {

constexpr int64_t kRoundNs = 20'000'000;
constexpr int64_t kCallNs = 1'000'000'000;
// How long all are kept together for the sake of those that do not stop yet.
constexpr int64_t kTogetherNs = 1'000'000'000;

bool IsGone(const core::Error& error) {
  return error.code == core::ErrorCode::kGone;
}

}  // namespace

bool Recovery::MoveOwed(const MoveRecord& move) const {
  if (escrow_.header().committed)
    return false;
  return move.state == MoveState::kMoving || move.state == MoveState::kMoved ||
         move.state == MoveState::kReturning;
}

void Recovery::Run() {
  while (!Round()) {
  }
}

bool Recovery::Round() {
  if (began_ns_ == 0)
    began_ns_ = MonotonicNs();
  stuck_ = false;
  SeizeOwed();
  WaitForStops();
  UndoMoves();
  LetGo();
  if (stuck_) {
    struct timespec nap = {0, kRoundNs};
    ::nanosleep(&nap, nullptr);
  }
  return std::ranges::none_of(escrow_.threads(),
                              [this](auto& t) { return Owed(t); });
}

void Recovery::SeizeOwed() {
  auto threads = escrow_.threads();
  for (uint32_t i = 0; i < threads.size(); ++i) {
    ThreadRecord& record = threads[i];
    if (!Owed(record) || held_.contains(record.tid))
      continue;
    auto stat = tasks_.Stat(record.pid, record.tid);
    int pidfd = escrow_.processes()[record.process].pidfd;
    // The number may belong to another process by now; the pidfd never does.
    bool gone = stat ? stat->Dead() : IsGone(stat.error());
    if (gone || ::syscall(SYS_pidfd_send_signal, pidfd, 0, nullptr, 0) != 0) {
      record.state = ThreadState::kRestored;
      continue;
    }
    // EPERM while the dying tracer has not let go of it: the next round.
    if (!ops_.Seize(record.tid))
      continue;
    // Its death shows in the wait.
    (void)ops_.Interrupt(record.tid);
    Held held{i, false, std::make_unique<InjectedCalls>(ops_, tasks_, record)};
    held_.emplace(record.tid, std::move(held));
  }
}

void Recovery::WaitForStops() {
  int64_t until = MonotonicNs() + kRoundNs;
  for (;;) {
    bool all = std::ranges::all_of(
        held_, [](auto& entry) { return entry.second.stopped; });
    // With nothing to wait for and something that could not be seized, this
    // is the pause between two rounds.
    bool idle = held_.empty() &&
                std::ranges::any_of(escrow_.threads(),
                                    [this](auto& t) { return Owed(t); });
    if (all && !idle)
      return;
    if (idle) {
      struct timespec nap = {0, 200'000};
      ::nanosleep(&nap, nullptr);
      return;
    }
    auto event = ops_.Wait(-1, until);
    if (!event || !*event)
      return;
    auto found = held_.find((*event)->tid);
    if (found == held_.end())
      continue;
    const WaitStatus& status = (*event)->status;
    if (status.Ended()) {
      Forget(found->second);
      held_.erase(found);
    } else if (status.EventStop()) {
      found->second.stopped = true;
    } else {
      // Signals are blocked but for SIGSTOP, or act where the thread runs its
      // own code.
      (void)ops_.Resume((*event)->tid, false,
                        status.SignalStop() ? status.Signal() : 0);
    }
  }
}

void Recovery::UndoMoves() {
  for (MoveRecord& move : escrow_.moves()) {
    if (!MoveOwed(move))
      continue;
    ThreadRecord& record = escrow_.threads()[move.thread];
    if (!Owed(record)) {
      move.state = MoveState::kReturned;  // the process is gone
      continue;
    }
    auto held = held_.find(record.tid);
    if (held == held_.end() || !held->second.stopped)
      continue;
    auto undone = DescriptorSwap(*held->second.calls, escrow_, move)
                      .To(Side::kOld, MonotonicNs() + kCallNs);
    if (undone)
      continue;
    if (IsGone(undone.error())) {
      move.state = MoveState::kReturned;
      Forget(held->second);
      held_.erase(held);
    } else if (stuck_ = true; complained_.insert(record.tid).second) {
      LOG_ERROR("process {} cannot be put back yet: {}", record.pid,
                undone.error().ToString());
    }
  }
}

void Recovery::LetGo() {
  bool together = MonotonicNs() - began_ns_ < kTogetherNs;
  auto moves = escrow_.moves();
  if (together &&
      std::ranges::any_of(moves, [this](auto& m) { return MoveOwed(m); }))
    return;
  // Those that wait are not let go while their registers are not theirs.
  std::vector<pid_t> free;
  for (auto& [tid, held] : held_) {
    ThreadRecord& record = escrow_.threads()[held.record];
    bool owed = std::ranges::any_of(moves, [&](auto& m) {
      return m.process == record.process && MoveOwed(m);
    });
    if (owed || !held.stopped || held.calls->hung())
      continue;
    auto fresh = held.calls->ToFreshStop(MonotonicNs() + kCallNs);
    if (!fresh && !IsGone(fresh.error()))
      continue;
    auto restored = parking_.RestoreAfterDeath(record, MonotonicNs());
    if (!restored && !IsGone(restored.error())) {
      stuck_ = true;
      if (complained_.insert(tid).second)
        LOG_ERROR("thread {} cannot be restored yet: {}", tid,
                  restored.error().ToString());
      continue;
    }
    record.state = ThreadState::kRestored;
    free.push_back(tid);
  }
  for (pid_t tid : free) {
    // An error means that it was killed.
    if (!ops_.Detach(tid))
      (void)ops_.Wait(tid, MonotonicNs() + kRoundNs);
    held_.erase(tid);
  }
}

void Recovery::Forget(Held& held) {
  escrow_.threads()[held.record].state = ThreadState::kRestored;
}

}  // namespace livemv::trace
