#include "migrator/trace/freezer.h"

#include <errno.h>

#include <algorithm>
#include <string>
#include <unordered_set>

#include "migrator/trace/restart.h"

namespace livemv::trace {
namespace {

using core::ErrorCode;
using core::Fail;

// How long to wait before looking whether something other than time is needed.
constexpr int64_t kPatienceNs = 5'000'000;

bool IsGone(const core::Error& error) {
  return error.code == ErrorCode::kGone;
}

}  // namespace

core::Status Freezer::Stop(std::span<TracedProcess> processes,
                           int64_t deadline_ns,
                           std::vector<Unstopped>* unstopped) {
  processes_ = processes;
  places_.clear();
  waiting_for_ = 0;
  int quiet = 0;
  while (quiet < 2) {
    size_t fresh = 0;
    TRY(SeizeNew(&fresh, unstopped));
    TRY(WaitForAll(deadline_ns, unstopped));
    bool let_go = std::ranges::any_of(
        processes_, [](auto& p) { return p.let_go_for != 0 && !p.gone; });
    quiet = fresh == 0 && !let_go ? quiet + 1 : 0;
  }
  return {};
}

core::Status Freezer::SeizeNew(size_t* fresh,
                               std::vector<Unstopped>* unstopped) {
  size_t refused = unstopped->size();
  for (size_t p = 0; p < processes_.size(); ++p) {
    TracedProcess& process = processes_[p];
    if (process.gone)
      continue;
    if (process.let_go_for != 0) {
      auto parent = places_.find(process.let_go_for);
      if (parent != places_.end() &&
          At(parent->second).state == Tracee::State::kSeized)
        continue;
      process.let_go_for = 0;
      ++*fresh;
    }
    auto tids = tasks_.Threads(process.pid);
    if (!tids && IsGone(tids.error())) {
      process.gone = true;
      for (Tracee& thread : process.threads)
        MarkGone(thread);
      continue;
    }
    TRY(tids);
    for (pid_t tid : *tids) {
      if (places_.contains(tid))
        continue;
      ++*fresh;
      TRY(Seize(p, tid, unstopped));
    }
    // A thread that is no longer listed ended, or took the leader's number
    // when it executed a program.
    if (process.threads.size() > tids->size()) {
      std::unordered_set<pid_t> listed(tids->begin(), tids->end());
      for (Tracee& thread : process.threads) {
        if (!listed.contains(thread.tid))
          MarkGone(thread);
      }
    }
  }
  if (unstopped->size() > refused)
    return Fail(ErrorCode::kConflict, "a process cannot be traced");
  return {};
}

core::Status Freezer::Seize(size_t p, pid_t tid,
                            std::vector<Unstopped>* unstopped) {
  TracedProcess& process = processes_[p];
  Tracee thread;
  thread.tid = tid;
  auto seized = ops_.Seize(tid);
  if (seized) {
    // ESRCH: it ended in between; the wait will say so.
    auto interrupted = ops_.Interrupt(tid);
    if (!interrupted && !IsGone(interrupted.error()))
      return interrupted;
    ++waiting_for_;
  } else {
    // A thread that is ending is refused with EPERM or ESRCH.
    auto stat = tasks_.Stat(process.pid, tid);
    if (stat && !stat->Dead() && !IsGone(seized.error())) {
      auto security = tasks_.Security(process.pid, tid);
      bool traced = security && security->tracer != 0;
      unstopped->push_back(
          {process.pid, tid,
           traced ? "traced by " + std::to_string(security->tracer)
                  : seized.error().ToString()});
    }
    thread.state = Tracee::State::kGone;
  }
  places_[tid] = {p, process.threads.size()};
  process.threads.push_back(thread);
  return {};
}

void Freezer::MarkGone(Tracee& thread) {
  if (thread.state == Tracee::State::kSeized)
    --waiting_for_;
  thread.state = Tracee::State::kGone;
}

core::Status Freezer::WaitForAll(int64_t deadline_ns,
                                 std::vector<Unstopped>* unstopped) {
  while (waiting_for_ > 0) {
    int64_t step = std::min(deadline_ns, now_ns_() + kPatienceNs);
    auto event = ops_.Wait(-1, step);
    if (!event && IsGone(event.error())) {
      // No tracee is left at all.
      for (auto& [tid, place] : places_)
        MarkGone(At(place));
      return {};
    }
    TRY(event);
    if (*event) {
      TRY(Handle(**event));
      continue;
    }
    LookAtLate();
    if (now_ns_() < deadline_ns)
      continue;
    for (TracedProcess& process : processes_) {
      for (Tracee& thread : process.threads) {
        if (thread.state != Tracee::State::kSeized)
          continue;
        auto stat = tasks_.Stat(process.pid, thread.tid);
        std::string where = tasks_.WaitsIn(process.pid, thread.tid);
        bool uninterruptible = stat && stat->state == 'D';
        unstopped->push_back({process.pid, thread.tid,
                              (uninterruptible ? "in an uninterruptible wait ("
                                               : "did not stop in time (") +
                                  where + ")"});
      }
    }
    if (waiting_for_ > 0)
      return Fail(ErrorCode::kTimeout,
                  std::to_string(waiting_for_) + " threads did not stop");
  }
  return {};
}

core::Status Freezer::Handle(const WaitEvent& event) {
  auto found = places_.find(event.tid);
  if (found == places_.end())
    return {};
  TracedProcess& process = processes_[found->second.process];
  Tracee& thread = At(found->second);
  if (event.status.Ended()) {
    MarkGone(thread);
    return {};
  }
  if (event.status.EventStop()) {
    if (thread.state == Tracee::State::kStopped)
      return {};
    if (thread.state == Tracee::State::kSeized)
      --waiting_for_;
    // Not seized: another thread executed a program and is the leader now.
    thread.state = Tracee::State::kStopped;
    return OnStop(process, thread);
  }
  // A signal on its way: it is delivered, and the stop that was asked for
  // comes after it.
  auto resumed = ops_.Resume(
      event.tid, false, event.status.SignalStop() ? event.status.Signal() : 0);
  if (!resumed && !IsGone(resumed.error()))
    return resumed;
  return {};
}

core::Status Freezer::OnStop(TracedProcess& process, Tracee& thread) {
  thread.stopped_ns = now_ns_();
  if (process.first_stop_ns == 0)
    process.first_stop_ns = thread.stopped_ns;
  auto regs = ops_.GetRegisters(thread.tid);
  if (!regs && IsGone(regs.error()))
    return {};  // killed; the parking will see it
  TRY(regs);
  thread.registers = *regs;
  if (regs->rip == 0) {
    auto stat = tasks_.Stat(process.pid, thread.tid);
    thread.kernel_worker = stat && stat->KernelWorker();
  }
  if (!EndedByInterruption(*regs))
    return {};
  // First of all, so that the program sees no EINTR if we die right after.
  auto task = tasks_.Security(process.pid, thread.tid);
  if (!task)
    return {};
  bool signalled = Deliverable(*task, task->pending | task->shared_pending,
                               task->blocked) != 0;
  if (HasOwnSignalMask(*regs)) {
    // Away with the call's temporary mask: under it a signal would be handled
    // before the call is made again, which would then not end for it.
    auto mask = ops_.GetSignalMask(thread.tid);
    if (!mask || !ops_.SetSignalMask(thread.tid, *mask))
      return {};  // killed; the parking will see it
  } else if (signalled) {
    return {};
  }
  auto sleep = process.sleeps.find(thread.tid);
  bool known = sleep != process.sleeps.end() &&
               task->voluntary_switches == sleep->second.switches + 1;
  auto set = ops_.SetRegisters(
      thread.tid,
      MadeAgainAfter(*regs, RemoteMemory(process.pid, thread.tid),
                     known ? thread.stopped_ns - sleep->second.since_ns : 0));
  if (!set && !IsGone(set.error()))
    return set;
  thread.made_again = true;
  return {};
}

void Freezer::LookAtLate() {
  for (TracedProcess& process : processes_) {
    for (Tracee& thread : process.threads) {
      if (thread.state != Tracee::State::kSeized)
        continue;
      auto stat = tasks_.Stat(process.pid, thread.tid);
      // A dead leader of living threads is not reported by wait.
      if (stat ? stat->Dead() : IsGone(stat.error()))
        MarkGone(thread);
      else if (tasks_.WaitsForVfork(process.pid, thread.tid))
        LetGoOfVforkChildren(process, thread.tid);
    }
  }
}

// The parent stops only when the child has executed a program or ended, and a
// child that we hold never will.
void Freezer::LetGoOfVforkChildren(const TracedProcess& parent,
                                   pid_t waiting_tid) {
  for (TracedProcess& child : processes_) {
    if (child.pid == parent.pid || child.gone || child.let_go_for != 0 ||
        child.threads.empty())
      continue;
    auto stat = tasks_.Stat(child.pid, child.pid);
    if (!stat || stat->parent != parent.pid ||
        !tasks_.SharesMemory(child.pid, parent.pid))
      continue;
    bool stopped = std::ranges::all_of(child.threads, [](auto& t) {
      return t.state != Tracee::State::kSeized;
    });
    if (!stopped)
      continue;
    for (Tracee& thread : child.threads) {
      // An error means that the thread is gone.
      if (thread.state == Tracee::State::kStopped)
        (void)ops_.Detach(thread.tid);
      places_.erase(thread.tid);
    }
    child.threads.clear();
    child.first_stop_ns = 0;
    child.let_go_for = waiting_tid;
  }
}

void Freezer::Release(std::span<TracedProcess> processes) {
  for (TracedProcess& process : processes) {
    for (Tracee& thread : process.threads) {
      if (thread.state == Tracee::State::kSeized) {
        auto event = ops_.Wait(thread.tid, 0);
        if (!event || !*event || !(*event)->status.EventStop())
          continue;
        thread.state = Tracee::State::kStopped;
        // Its only purpose here is to hide the EINTR; a failure means that
        // the thread is gone.
        (void)OnStop(process, thread);
      }
      // An error means that the thread is gone.
      if (thread.state == Tracee::State::kStopped)
        (void)ops_.Detach(thread.tid);
      thread.state = Tracee::State::kGone;
    }
  }
}

}  // namespace livemv::trace
