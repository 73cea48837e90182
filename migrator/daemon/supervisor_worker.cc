// The supervisor's side of the worker's process.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/log.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/supervisor.h"
#include "migrator/proc/dying.h"
#include "migrator/proc/proc_files.h"

namespace livemv::daemon {

using core::Result;
using core::Status;
using core::UniqueFd;
using nlohmann::json;

namespace {

constexpr int64_t kSecond = 1'000'000'000;
// The worker beats four times a second, from a thread that waits for nothing.
constexpr int64_t kNoBeatNs = 10 * kSecond;
// One that misses this many has perhaps been killed, and cannot end.
constexpr int64_t kSilentNs = kSecond;
constexpr int64_t kLookEveryNs = kSecond / 4;
constexpr size_t kOrphansAtOnce = 100;
// Each holds what it had open on the target.
constexpr size_t kMostPredecessors = 8;
constexpr int64_t kFirstBackoffNs = kSecond / 20;
constexpr int64_t kLongestBackoffNs = 5 * kSecond;

}  // namespace

void Supervisor::StartWorker() {
  json extra = {{"resume", worker_was_ready_},
                {"recovered", recovering_ && !worker_was_ready_},
                {"orphans", orphans_.size()}};
  std::vector<std::pair<std::string, int>> fds;
  for (const char* name :
       {fd_name::kFuse, fd_name::kSource, fd_name::kTarget,
        fd_name::kTargetRoot, fd_name::kSavedInit, fd_name::kIntents,
        fd_name::kHeartbeat, fd_name::kStateLock})
    fds.emplace_back(name, Fd(name));
  size_t dying = 0;
  for (const auto& [pid, predecessor] : predecessors_)
    fds.emplace_back(fd_name::kPredecessor + std::to_string(dying++),
                     predecessor.pidfd.Get());
  worker_started_ns_ = MonotonicNs();
  worker_killed_ = false;
  last_beat_ns_ = worker_started_ns_;
  Result<Child> child =
      Spawn({"worker", &settings_, extra.dump(), fds}, false);
  if (!child) {
    LOG_ERROR("{}", child.error().ToString());
    worker_backoff_ns_ = std::clamp(worker_backoff_ns_ * 2, kFirstBackoffNs,
                                    kLongestBackoffNs);
    loop_.At(MonotonicNs() + worker_backoff_ns_, [this] { StartWorker(); });
    return;
  }
  worker_ = std::move(*child);
  // Many in a message: a channel holds some hundred that nobody has read yet,
  // and the supervisor waits for nobody.
  for (auto it = orphans_.begin(); it != orphans_.end();) {
    json ids = json::array();
    std::vector<int> batch;
    for (; it != orphans_.end() && batch.size() < kOrphansAtOnce; ++it) {
      ids.push_back(it->first);
      batch.push_back(it->second.Get());
    }
    if (Status told = TellWorker(json({{"ids", ids}}).dump(), batch); !told) {
      LOG_ERROR("{} orphans: {}", batch.size(), told.error().ToString());
      break;  // it sees that they did not all arrive, and ends
    }
  }
  LOG_INFO("worker {} started{}", worker_.pid,
           worker_was_ready_ ? ", to go on where its predecessor ended" : "");
  loop_.Watch(worker_.channel.Fd(), POLLIN, [this] { OnWorkerMessage(); });
  loop_.Watch(worker_.pidfd.Get(), POLLIN, [this] { OnWorkerEnd(); });
  WriteStateFile();
}

Status Supervisor::TellWorker(const std::string& text,
                              const std::vector<int>& fds) {
  if (!worker_)
    return Fail(core::ErrorCode::kGone, "the worker is being restarted");
  // A worker that does not read is found by its heartbeat, not waited for.
  return worker_.channel.Send(text, fds, 0);
}

void Supervisor::TakeStatus(MigrationStatus status) {
  if (live_ && status.state == "attaching")
    return;  // sent before the redirect, and overtaken by the report of it
  const bool changed = status.state != status_.state;
  status_ = std::move(status);
  if (!changed)
    return;
  LOG_INFO("state: {}{}{}", status_.state, status_.reason.empty() ? "" : ", ",
           status_.reason);
  if (status_.state == "copying" || status_.state == "paused") {
    schedule_.Reset();
    reason_.clear();
  }
  WriteStateFile();
}

void Supervisor::OnWorkerMessage() {
  // Everything that is there: a report of the end may follow a status.
  for (;;) {
    Result<Message> message = worker_.channel.Receive(0);
    if (!message) {
      if (message.error().code != core::ErrorCode::kTimeout)
        loop_.Forget(worker_.channel.Fd());  // its end is seen by the pidfd
      return;
    }
    json j = json::parse(message->text, nullptr, false);
    if (!j.is_object())
      continue;
    const std::string op = j.value("op", "");
    if (op == "ready") {
      if (worker_was_ready_)
        reason_.clear();
      worker_ready_ = true;
      worker_was_ready_ = true;
      worker_backoff_ns_ = 0;
      // Killed in the middle of a re-anchoring: that process has seen its
      // channel close and puts everything back.
      Consider();
    } else if (op == "status") {
      Result<MigrationStatus> status =
          StatusFromJson(j.value("status", json::object()).dump());
      if (!status) {
        LOG_ERROR("{}", status.error().ToString());
        continue;
      }
      TakeStatus(std::move(*status));
      Push();
      Consider();
    } else if (op == "answer") {
      auto it = asked_.find(j.value("n", uint64_t{0}));
      if (it == asked_.end())
        continue;
      ClientId client = it->second;
      asked_.erase(it);
      j.erase("op");
      j.erase("n");
      Answer(client,
             j.dump(-1, ' ', false, json::error_handler_t::replace));
    } else if (op == "reopen_due" || op == "abort_ready") {
      (op == "abort_ready" ? abort_ready_ : reopen_due_) = true;
      next_try_ns_ = 0;
      Consider();
    } else if (op == "orphan") {
      if (message->fds.size() == 1)
        orphans_[j.value("id", uint64_t{0})] = std::move(message->fds[0]);
    } else if (op == "orphan_gone") {
      orphans_.erase(j.value("id", uint64_t{0}));
    } else if (op == "refused" && !j.value("final", false)) {
      reason_ = j.value("reason", "");
    } else if (op == "refused") {
      // No worker can serve this migration.
      recovery_ = j.value("recovery", "");
      reason_ = j.value("reason", "");
      status_.problem = static_cast<int>(Exit::kHuman);
      if (recovering_)
        return NotRecovered(Exit::kHuman, reason_);
      if (!live_) {
        Finished(static_cast<Exit>(j.value("exit", 4)),
                 reason_ + "\n" + Printable(settings_.dir) +
                     " is as it was before; nothing was moved.");
        return;
      }
      status_.state = "stuck";
      worker_stopping_ = true;
      Push();
    } else if (op == "ended") {
      worker_stopping_ = true;
      gone_state_ = j.value("state", "");
      // The re-anchorer that took the overlay off has its report to give yet.
      if (!reanchorer_)
        OverlayGone(gone_state_);
      return;
    }
  }
}

void Supervisor::HearLastWords() {
  if (worker_.channel) {
    OnWorkerMessage();
    loop_.Forget(worker_.channel.Fd());
  }
  loop_.Forget(worker_.pidfd.Get());
}

void Supervisor::OnWorkerEnd() {
  HearLastWords();
  // The whole thread group is gone: no reply and no write of it can come any
  // more, and what is unanswered may be resent.
  Result<Ended> ended = Reap(worker_);
  worker_ = Child();
  WorkerIsOver(ended ? ended->ToString() : ended.error().ToString());
}

// Its exit waits for a target that does not answer, and may do so for as long
// as that is so (hazard H30). Nothing of it runs the program any more, so no
// reply of it can come, and it changes nothing: what is unanswered may be
// resent. The successor gets its pidfd, and claims and cuts nothing until it
// has ended (rule 1).
void Supervisor::LeaveWorkerBehind() {
  HearLastWords();
  const pid_t pid = worker_.pid;
  Child child = std::move(worker_);
  worker_ = Child();
  child.channel.Close();
  loop_.Watch(child.pidfd.Get(), POLLIN, [this, pid] { OnPredecessorEnd(pid); });
  predecessors_.emplace(pid, std::move(child));
  WorkerIsOver("is dead; what ends it waits for the target");
}

void Supervisor::OnPredecessorEnd(pid_t pid) {
  auto it = predecessors_.find(pid);
  if (it == predecessors_.end())
    return;
  loop_.Forget(it->second.pidfd.Get());
  Result<Ended> ended = Reap(it->second);
  LOG_INFO("worker {}, left behind, {}", pid,
           ended ? ended->ToString() : ended.error().ToString());
  predecessors_.erase(it);
}

void Supervisor::WorkerIsOver(const std::string& how) {
  worker_ready_ = false;
  status_.worker_pid = 0;
  dying_.clear();
  LOG_INFO("worker {}", how);
  for (const auto& [n, client] : asked_)
    Answer(client, worker_stopping_
                       ? MakeReply(Exit::kBlocked, TooLate())
                       : MakeReply(Exit::kHuman,
                                   "the worker died while it worked on this; "
                                   "it is being restarted, try again"));
  asked_.clear();
  if (worker_stopping_)
    return;
  // What it has read of this overlay is not known to a successor.
  if (recovering_ && !worker_was_ready_)
    return NotRecovered(Exit::kHuman,
                        "the worker " + how + " before it served" +
                            (reason_.empty() ? "" : ": " + reason_));
  if (MonotonicNs() - worker_started_ns_ > 60 * kSecond)
    worker_backoff_ns_ = 0;
  int64_t wait = worker_backoff_ns_;
  worker_backoff_ns_ = std::clamp(worker_backoff_ns_ * 2, kFirstBackoffNs,
                                  kLongestBackoffNs);
  if (wait == 0)
    StartWorker();
  else
    loop_.At(MonotonicNs() + wait, [this] {
      if (!worker_ && !worker_stopping_)
        StartWorker();
    });
}

// Killed, by us or by somebody else, and not ended yet; or stopped, or in
// trouble of its own.
void Supervisor::LookAtSilentWorker() {
  UniqueFd dir(::open(("/proc/" + std::to_string(worker_.pid)).c_str(),
                      O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  Result<proc::Ending> ending =
      dir ? proc::LookAtEnding(dir.Get())
          : Result<proc::Ending>(core::FailSys(errno, "open its /proc"));
  if (!ending) {
    LOG_WARN("look at worker {}: {}", worker_.pid, ending.error().ToString());
    return;
  }
  std::string why;
  if (ending->kind == proc::Ending::Kind::kMayAct)
    why = ending->call + " may still change the target";
  else if (ending->kind == proc::Ending::Kind::kActsNoMore &&
           predecessors_.size() >= kMostPredecessors)
    why = std::to_string(predecessors_.size()) +
          " before it have not ended either";
  else if (ending->kind == proc::Ending::Kind::kActsNoMore)
    return LeaveWorkerBehind();
  else
    return dying_.clear();
  const std::string said =
      "worker " + std::to_string(worker_.pid) +
      " is dead and cannot end before the target answers, and has no successor "
      "before that: " + why + ". Requests wait";
  if (said != dying_)
    LOG_WARN("{}", said);
  dying_ = said;
}

void Supervisor::CheckHeartbeat() {
  loop_.At(MonotonicNs() + kLookEveryNs, [this] { CheckHeartbeat(); });
  if (!worker_)
    return;
  const int64_t now = MonotonicNs();
  const uint64_t beats = heartbeat_->Beats();
  if (beats != last_beat_) {
    last_beat_ = beats;
    last_beat_ns_ = now;
    dying_.clear();
    return;
  }
  const int64_t silent_ns = now - last_beat_ns_;
  if (silent_ns < kSilentNs || worker_stopping_)
    return;
  if (silent_ns >= kNoBeatNs && !worker_killed_) {
    LOG_ERROR("worker {} has had no heartbeat for {} s: replaced", worker_.pid,
              silent_ns / kSecond);
    worker_killed_ = true;
    ::syscall(SYS_pidfd_send_signal, worker_.pidfd.Get(), SIGKILL, nullptr, 0);
    return;
  }
  LookAtSilentWorker();
}

}  // namespace livemv::daemon
