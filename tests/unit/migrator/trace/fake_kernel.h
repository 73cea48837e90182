#pragma once

// A kernel for the tracer's unit tests: tasks with behaviours instead of
// processes, and a clock that moves only when somebody waits.
//
// Thread contract: one thread.

#include <errno.h>
#include <signal.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "migrator/trace/ptrace_ops.h"
#include "migrator/trace/task_view.h"

namespace livemv::trace {

inline WaitStatus StopStatus(int signal, int event = 0) {
  return WaitStatus((event << 16) | (signal << 8) | 0x7f);
}

struct FakeTask {
  pid_t pid = 0, tid = 0;
  // How long after the interruption it stops; -1: never.
  int64_t stops_after_ns = 10'000;
  int group_stop_signal = 0;  // stopped by job control before
  std::vector<int> signals;   // delivered before it stops
  pid_t traced_by = 0;        // someone else
  bool dead = false;          // a zombie
  pid_t parent = 1;
  bool vfork_parent = false;  // stops only when `vfork_child` runs on
  pid_t vfork_child = 0;
  std::function<void()> on_interrupt;
  Registers regs{};
  uint64_t mask = 0;
  TaskSecurity security;
  // State.
  bool seized = false, stopped = false;
  int64_t stops_at = -1;
  int detached = 0;
};

class FakeKernel final : public PtraceOps, public TaskView {
 public:
  int64_t now = 1'000'000;
  std::map<pid_t, FakeTask> tasks;
  std::vector<std::string> log;

  FakeTask& Add(pid_t pid, pid_t tid) {
    FakeTask& task = tasks[tid];
    task.pid = pid;
    task.tid = tid;
    task.regs.rip = 0x1000;
    task.regs.cs = 0x33;
    return task;
  }

  // ---- PtraceOps
  core::Status Seize(pid_t tid) override {
    auto it = tasks.find(tid);
    if (it == tasks.end())
      return Gone();
    if (it->second.dead || it->second.traced_by != 0)
      return core::FailSys(EPERM, "seize thread " + std::to_string(tid));
    it->second.seized = true;
    return {};
  }
  core::Status Interrupt(pid_t tid) override {
    auto it = tasks.find(tid);
    if (it == tasks.end())
      return Gone();
    FakeTask& task = it->second;
    if (task.stops_after_ns >= 0 && !task.vfork_parent)
      task.stops_at = now + task.stops_after_ns;
    if (auto hook = std::exchange(task.on_interrupt, nullptr))
      hook();
    return {};
  }
  core::Status Resume(pid_t tid, bool, int signal) override {
    if (!tasks.contains(tid))
      return Gone();
    log.push_back("resume " + std::to_string(tid) + " with " +
                  std::to_string(signal));
    tasks[tid].stopped = false;
    return {};
  }
  core::Status Detach(pid_t tid) override {
    auto it = tasks.find(tid);
    if (it == tasks.end() || !it->second.stopped)
      return Gone();
    FakeTask& task = it->second;
    task.seized = task.stopped = false;
    task.stops_at = -1;
    ++task.detached;
    // A vfork child that runs on ends, and its parent goes on.
    for (auto& [other, parent] : tasks) {
      if (parent.vfork_parent && parent.vfork_child == tid) {
        parent.vfork_parent = false;
        parent.stops_at = now + 1000;
        tasks.erase(it);
        break;
      }
    }
    return {};
  }
  core::Result<Registers> GetRegisters(pid_t tid) override {
    if (!tasks.contains(tid))
      return std::unexpected(Gone().error());
    return tasks[tid].regs;
  }
  core::Status SetRegisters(pid_t tid, const Registers& regs) override {
    if (!tasks.contains(tid))
      return Gone();
    log.push_back("registers " + std::to_string(tid));
    tasks[tid].regs = regs;
    return {};
  }
  core::Result<uint64_t> GetSignalMask(pid_t tid) override {
    return tasks[tid].mask;
  }
  core::Status SetSignalMask(pid_t tid, uint64_t mask) override {
    log.push_back("mask " + std::to_string(tid));
    tasks[tid].mask = mask;
    return {};
  }
  core::Status SuspendSeccomp(pid_t) override { return {}; }
  core::Result<RemotePtr> GetRseqArea(pid_t) override { return RemotePtr(); }
  core::Result<SyscallUserDispatch> GetUserDispatch(pid_t) override {
    return SyscallUserDispatch{};
  }
  core::Status SetUserDispatch(pid_t, const SyscallUserDispatch&) override {
    return {};
  }
  core::Result<std::optional<WaitEvent>> Wait(pid_t tid,
                                              int64_t deadline_ns) override {
    bool any = false;
    FakeTask* next = nullptr;
    for (auto& [id, task] : tasks) {
      if (!task.seized || (tid != -1 && tid != id))
        continue;
      any = true;
      if (!task.stopped && task.stops_at >= 0 &&
          (next == nullptr || task.stops_at < next->stops_at))
        next = &task;
    }
    if (!any)
      return std::unexpected(Gone().error());
    if (next == nullptr || next->stops_at > std::max(now, deadline_ns)) {
      now = std::max(now, deadline_ns);
      return std::nullopt;
    }
    now = std::max(now, next->stops_at);
    next->stopped = true;
    if (!next->signals.empty()) {
      int signal = next->signals.front();
      next->signals.erase(next->signals.begin());
      return WaitEvent{next->tid, StopStatus(signal)};
    }
    next->stops_at = -1;
    int signal =
        next->group_stop_signal != 0 ? next->group_stop_signal : SIGTRAP;
    return WaitEvent{next->tid, StopStatus(signal, PTRACE_EVENT_STOP)};
  }

  // ---- TaskView
  core::Result<std::vector<pid_t>> Threads(pid_t pid) override {
    std::vector<pid_t> tids;
    for (auto& [tid, task] : tasks) {
      if (task.pid == pid)
        tids.push_back(tid);
    }
    if (tids.empty())
      return std::unexpected(Gone().error());
    return tids;
  }
  core::Result<TaskStat> Stat(pid_t, pid_t tid) override {
    auto it = tasks.find(tid);
    if (it == tasks.end())
      return std::unexpected(Gone().error());
    TaskStat stat;
    stat.state = it->second.dead ? 'Z'
                 : it->second.stops_after_ns < 0 || it->second.vfork_parent
                     ? 'D'
                     : 'S';
    stat.parent = it->second.parent;
    return stat;
  }
  core::Result<TaskSecurity> Security(pid_t, pid_t tid) override {
    if (!tasks.contains(tid))
      return std::unexpected(Gone().error());
    TaskSecurity security = tasks[tid].security;
    security.tracer = tasks[tid].traced_by;
    return security;
  }
  core::Result<long> CurrentCall(pid_t, pid_t) override { return 0; }
  core::Result<int64_t> LeftCpuNs(pid_t, pid_t) override {
    return core::Fail(core::ErrorCode::kUnsupported, "no scheduler clock");
  }
  std::string WaitsIn(pid_t, pid_t) override { return "fsync"; }
  bool WaitsForVfork(pid_t, pid_t tid) override {
    return tasks[tid].vfork_parent;
  }
  bool SharesMemory(pid_t a, pid_t b) override {
    return tasks[a].vfork_child == b || tasks[b].vfork_child == a;
  }

 private:
  static core::Status Gone() {
    return std::unexpected(
        core::Error{core::ErrorCode::kGone, ESRCH, "no such task"});
  }
};

}  // namespace livemv::trace
