#include "migrator/daemon/supervisor.h"

#include <poll.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/log.h"
#include "core/state/migration_state.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/roles.h"
#include "migrator/daemon/small_files.h"
#include "migrator/daemon/state_dir.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {

using core::Result;
using core::Status;
using core::UniqueFd;
using nlohmann::json;
using Outcome = ReanchorReport::Outcome;

namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kDrainEveryNs = kSecond;
constexpr int64_t kReturnRetryNs = kSecond;
constexpr int kWorkerEndMs = 5000;
constexpr int64_t kGuardianNs = 5 * kSecond;

// A large report does not fit into one message; the reader asks no more than
// this of it.
constexpr size_t kMaxPauses = 10'000;

}  // namespace

Supervisor::Supervisor(Handoff handoff, Channel starter)
    : handoff_(std::move(handoff)),
      settings_(handoff_.settings),
      registry_(settings_.registry),
      starter_(std::move(starter)),
      auto_cutover_(settings_.auto_cutover) {
  status_.id = settings_.id;
  status_.source = settings_.dir;
  status_.target = settings_.target;
  status_.state = "attaching";
  status_.max_pause_ns = settings_.max_pause_ns;
  status_.supervisor_pid = ::getpid();
  const json extra = json::parse(handoff_.extra, nullptr, false);
  if (!extra.is_object())
    return;
  recovering_ = true;
  status_.state = extra.value("state", "");
  auto_cutover_ = extra.value("auto_cutover", false);
  starter_pid_ = extra.value("starter", 0);
}

Supervisor::~Supervisor() = default;

int Supervisor::Run() {
  if (Status begun = Begin(); !begun) {
    TellStarter(Exit::kBlocked, begun.error().ToString());
    registry_.Remove(settings_.id);
    return static_cast<int>(Exit::kBlocked);
  }
  if (Status ran = loop_.Run(); !ran)
    LOG_ERROR("the supervisor's loop ended: {}", ran.error().ToString());
  LOG_INFO("the supervisor ends");
  return exit_;
}

Status Supervisor::Begin() {
  TRY(registry_.SetPid(settings_.id, ::getpid()));
  ASSIGN_OR_RETURN(Heartbeat heartbeat,
                   Heartbeat::Map(Fd(fd_name::kHeartbeat)));
  heartbeat_.emplace(std::move(heartbeat));
  TRY(Listen());
  WriteStateFile();
  if (recovering_ && status_.state == "moved") {
    // DIR shows the target already, and no overlay is to be served.
    recovering_ = false;
    live_ = committed_ = worker_stopping_ = true;
    OverlayGone("moved");
    TellStarter(Exit::kDone, "");
    return {};
  }
  StartWorker();
  CheckHeartbeat();
  return {};
}

void Supervisor::WriteStateFile() {
  json j = {{"version", 1},
            {"settings", json::parse(SettingsToJson(settings_))},
            {"state", status_.state},
            {"live", live_},
            {"supervisor_pid", ::getpid()},
            {"worker_pid", worker_.pid},
            {"cutover", auto_cutover_ ? "auto" : "wait"},
            {"accepted", accepted_}};
  Status written =
      ReplaceFile(settings_.state_dir + "/supervisor.json",
                  j.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
  if (!written)
    LOG_WARN("supervisor.json: {}", written.error().ToString());
}

void Supervisor::TellStarter(Exit exit, const std::string& message) {
  if (!starter_)
    return;
  // The command line may be gone: Ctrl-C leaves the migration running.
  if (Status sent = starter_.Send(MakeReply(exit, message), {}, 0); !sent)
    LOG_INFO("the command that started this is gone: {}",
             sent.error().ToString());
  starter_.Close();
}

void Supervisor::StartReanchor(const std::string& role) {
  Result<std::pair<Channel, Channel>> control = Channel::Pair();
  if (!control) {
    LOG_ERROR("{}: {}", role, control.error().ToString());
    return TryAgainAt(MonotonicNs() + kSecond);
  }
  json own = {::getpid(), worker_.pid};
  for (const auto& [pid, predecessor] : predecessors_)
    own.push_back(pid);
  if (recovering_ && starter_pid_ != 0)
    own.push_back(starter_pid_);
  json extra = {{"accepted", accepted_}, {"own", own}};
  std::vector<std::pair<std::string, int>> fds = {
      {fd_name::kSource, Fd(fd_name::kSource)},
      {fd_name::kDir, Fd(fd_name::kDir)},
      {fd_name::kTarget, Fd(fd_name::kTarget)},
      {fd_name::kControl, control->first.Fd()}};
  for (const char* name :
       {fd_name::kOverlay, fd_name::kFuse, fd_name::kStateLock})
    if (Fd(name) >= 0)
      fds.emplace_back(name, Fd(name));
  if (Status told = TellWorker(R"({"op":"overlay_control"})",
                               {control->second.Fd()});
      !told) {
    LOG_ERROR("{}: {}", role, told.error().ToString());
    return TryAgainAt(MonotonicNs() + kSecond);
  }
  Result<Child> child = Spawn({role, &settings_, extra.dump(), fds}, false);
  if (!child) {
    LOG_ERROR("{}", child.error().ToString());
    return TryAgainAt(MonotonicNs() + kSecond);
  }
  LOG_INFO("{}: re-anchorer {} started", role, child->pid);
  reanchorer_ = std::move(*child);
  reanchor_role_ = role;
  reanchor_reported_ = reanchor_silent_ = reanchor_ended_ = false;
  loop_.Watch(reanchorer_.channel.Fd(), POLLIN,
              [this] { OnReanchorMessage(); });
  loop_.Watch(reanchorer_.pidfd.Get(), POLLIN, [this] { OnReanchorEnd(); });
}

void Supervisor::OnReanchorMessage() {
  Result<Message> message = reanchorer_.channel.Receive(0);
  if (!message) {
    if (message.error().code == core::ErrorCode::kTimeout)
      return;
    // Its guardian has its descriptors, and so this end of the channel.
    loop_.Forget(reanchorer_.channel.Fd());
    reanchor_silent_ = true;
    if (reanchor_ended_)
      ReanchorGone();
    return;
  }
  Result<ReanchorReport> report = ReportFromJson(message->text);
  if (!report) {
    LOG_ERROR("{}: {}", reanchor_role_, report.error().ToString());
    return;
  }
  ReanchorReported(*report);
}

// The next one may take a thread that is parked yet for one that runs its own
// code: so it waits for the guardian to have let go of all. Not without an end:
// a process may hang in a call, and whatever is begun then is put back.
void Supervisor::OnReanchorEnd() {
  loop_.Forget(reanchorer_.pidfd.Get());
  reanchor_ended_ = true;
  if (reanchor_silent_)
    return ReanchorGone();
  loop_.At(MonotonicNs() + kGuardianNs, [this, pid = reanchorer_.pid] {
    if (!reanchorer_ || reanchorer_.pid != pid)
      return;
    LOG_WARN("{}: its guardian has not let go of all yet", reanchor_role_);
    if (Status told = TellWorker(R"({"op":"reanchorer_over"})"); !told)
      LOG_WARN("{}", told.error().ToString());
    loop_.Forget(reanchorer_.channel.Fd());
    ReanchorGone();
  });
}

void Supervisor::ReanchorGone() {
  Result<Ended> ended = Reap(reanchorer_);
  const std::string how = ended ? ended->ToString() : ended.error().ToString();
  reanchorer_ = Child();
  LOG_INFO("{}: re-anchorer {}", reanchor_role_, how);
  if (!reanchor_reported_) {
    // Its guardian finishes or undoes what it had begun, and the worker has
    // seen the channel close and acts by what the journal says.
    ReanchorReport report;
    report.froze = true;
    report.committed = reanchor_role_ == "attach";
    report.reason = "the re-anchorer " + how + " before it reported";
    ReanchorReported(report);
  }
  if (!gone_state_.empty() && !over_)
    OverlayGone(gone_state_);
  HandlePutOff();
  Consider();
}

void Supervisor::ReanchorReported(const ReanchorReport& report) {
  reanchor_reported_ = true;
  LOG_INFO("{}: outcome {}{}{}", reanchor_role_,
           static_cast<int>(report.outcome),
           report.reason.empty() ? "" : ", ", report.reason);
  if (pauses_.size() < kMaxPauses)
    pauses_.insert(pauses_.end(), report.pauses.begin(), report.pauses.end());
  if (reanchor_role_ == "attach")
    AttachEnded(report);
  else if (reanchor_role_ == "cutover")
    CutoverEnded(report);
  else if (reanchor_role_ == "drain")
    DrainEnded(report);
  else if (reanchor_role_ == "reopen")
    ReopenEnded(report);
  else if (reanchor_role_ == "put_on")
    PutOnEnded(report);
  else
    ReturnEnded(report);
  if (!over_) {
    WriteStateFile();
    Push();
  }
}

namespace {

std::string Named(const std::vector<HolderLine>& holders) {
  std::string out;
  for (const HolderLine& h : holders)
    out += (out.empty() ? "" : "; ") + std::string("pid ") +
           std::to_string(h.pid) + " (" + Printable(h.command) + ")" +
           (h.reason.empty() ? "" : ": " + h.reason);
  return out;
}

std::string Joined(const std::string& a, const std::string& b) {
  return a.empty() ? b : b.empty() ? a : a + ": " + b;
}

}  // namespace

void Supervisor::RedirectIsLive(const std::string& remarks) {
  live_ = true;
  // Of attempts to take it back.
  abort_ready_ = reopen_due_ = returned_ = false;
  next_try_ns_ = 0;
  // The worker has journaled it; its next status says so.
  if (status_.state == "planned" || status_.state == "attaching")
    status_.state = "copying";
  // A mount lives as long as a descriptor of it does: from here on it is the
  // directory tree that keeps the overlay.
  handoff_.fds.erase(fd_name::kOverlay);
  LOG_INFO("redirect is live");
  reason_ = remarks;
  TellStarter(Exit::kDone, remarks);
}

void Supervisor::AttachEnded(const ReanchorReport& report) {
  if (report.outcome == Outcome::kDone)
    return RedirectIsLive(report.reason);
  const std::string text = Joined(report.reason, Named(report.stayed));
  if (report.committed) {
    // The overlay is on DIR, or may be; if it serves the source only, nobody
    // sees a difference until it is off again. Whether it does the worker tells
    // before anything is taken off.
    undo_attach_ = true;
    attach_failure_ = text;
    next_try_ns_ = 0;
    reason_ = text;
    return;
  }
  Exit exit = report.outcome == Outcome::kStraggler ? Exit::kBlocked
                                                    : Exit::kRolledBack;
  Finished(exit, text + "\n" + Printable(settings_.dir) +
                     " is as it was before; nothing was moved.");
}

void Supervisor::PutOnEnded(const ReanchorReport& report) {
  const std::string text = Joined(report.reason, Named(report.stayed));
  if (report.outcome != Outcome::kDone)
    return NotRecovered(Exit::kHuman, text);
  live_ = true;
  recovering_ = false;
  handoff_.fds.erase(fd_name::kOverlay);
  LOG_INFO("the overlay is back");
  TellStarter(Exit::kDone, text);
}

void Supervisor::CutoverEnded(const ReanchorReport& report) {
  const int64_t now = MonotonicNs();
  reason_ = Joined(report.reason, Named(report.stayed));
  unreachable_ = report.unreachable;
  if (report.outcome == Outcome::kDone) {
    stayed_ = report.stayed;
    schedule_.Reset();
    committed_ = true;
    next_try_ns_ = now + kDrainEveryNs;
    if (!report.stayed.empty())
      reason_ = "still on the overlay: " + reason_;
    return;
  }
  if (report.outcome == Outcome::kStraggler) {
    schedule_.Blocked(now);
    reason_ = "cutover waits: " + reason_;
    return;
  }
  schedule_.Failed(now, report.froze);
  if (schedule_.GivenUp()) {
    auto_cutover_ = false;
    reason_ = "cutover given up after " + std::to_string(schedule_.failed()) +
              " attempts: " + reason_;
  } else {
    reason_ = "cutover " +
              std::string(report.froze ? "put back" : "not begun") +
              ", to be tried again: " + reason_;
  }
}

void Supervisor::DrainEnded(const ReanchorReport& report) {
  stayed_ = report.stayed;
  next_try_ns_ = MonotonicNs() + kDrainEveryNs;
  reason_ = Joined(report.reason, Named(report.stayed));
  if (!report.stayed.empty())
    reason_ = "still on the overlay: " + reason_;
}

void Supervisor::ReturnEnded(const ReanchorReport& report) {
  if (undo_attach_ && report.redirected) {
    undo_attach_ = false;
    return RedirectIsLive("the redirect is live, although its end was not heard "
                          "of: " + attach_failure_);
  }
  reason_ = Joined(report.reason, Named(report.stayed));
  if (report.outcome == Outcome::kDone) {
    returned_ = true;
    if (undo_attach_) {
      undo_attach_ = false;
      Finished(Exit::kRolledBack,
               attach_failure_ + "\n" + Printable(settings_.dir) +
                   " is as it was before; nothing was moved.");
    }
    return;
  }
  // Also with some of them left on the overlay: they may have become movable.
  abort_ready_ = true;
  next_try_ns_ = MonotonicNs() + kReturnRetryNs;
}

// The worker goes on by itself once all are.
void Supervisor::ReopenEnded(const ReanchorReport& report) {
  reason_ = Joined(report.reason, Named(report.stayed));
  if (report.outcome == Outcome::kDone)
    return;
  reopen_due_ = true;
  next_try_ns_ = MonotonicNs() + kReturnRetryNs;
}

std::string Supervisor::RoleDue() const {
  const std::string& state = status_.state;
  if (undo_attach_)
    return "undo_attach";
  if (recovering_)
    return "put_on";
  if (!live_)
    return returned_ ? "" : "attach";
  if (state == "aborting")
    return reopen_due_ ? "reopen" : abort_ready_ ? "abort" : "";
  if (state == "draining")
    return "drain";
  // A status that the worker sent before the commit may come after it.
  if (state == "synced" && auto_cutover_ && !committed_ && schedule_.NextAt())
    return "cutover";
  return "";
}

void Supervisor::Consider() {
  if (reanchorer_ || !worker_ready_ || over_ || !recovery_.empty())
    return;
  const std::string role = RoleDue();
  if (role.empty())
    return;
  const int64_t due = role == "cutover" ? *schedule_.NextAt() : next_try_ns_;
  if (MonotonicNs() < due)
    return TryAgainAt(due);
  if (role == "reopen")
    reopen_due_ = false;
  else if (role == "abort")
    abort_ready_ = false;
  StartReanchor(role);
}

void Supervisor::TryAgainAt(int64_t when_ns) {
  if (try_timer_ != 0)
    loop_.Cancel(try_timer_);
  try_timer_ = loop_.At(when_ns, [this] {
    try_timer_ = 0;
    Consider();
  });
}

void Supervisor::OverlayGone(const std::string& state) {
  if (!live_ || over_)
    return;  // attach took its own overlay off again, and says so itself
  status_.state = state;
  status_.worker_pid = 0;
  if (state == "moved") {
    LOG_INFO("moved");
    status_.reason.clear();
    status_.holders.clear();  // of the overlay, and that is gone
    stayed_.clear();
    reason_.clear();
    // The target has its place; the overlay's device ends with the last
    // descriptor of it.
    for (const char* name : {fd_name::kFuse, fd_name::kOverlay,
                             fd_name::kTarget, fd_name::kTargetRoot,
                             fd_name::kDir})
      handoff_.fds.erase(name);
    WriteStateFile();
    Push();
    return;
  }
  if (state == "aborted") {
    Finished(Exit::kDone, "aborted; " + Printable(settings_.dir) +
                              " is the source again. The incomplete copy was "
                              "left on " + Printable(settings_.target) + ".");
    return;
  }
  reason_ = "the overlay was unmounted by somebody else";
  recovery_ = "New data of " + Printable(settings_.dir) + " is on " +
              Printable(settings_.target) + " in part (bytes in its .livemv-" +
              settings_.id + " directory included). The journal in " +
              Printable(settings_.state_dir) + " says which. Keep both, stop "
              "what writes to " + Printable(settings_.dir) +
              ", and compare the two trees.";
  status_.state = "stuck";
  status_.problem = static_cast<int>(Exit::kHuman);
  WriteStateFile();
  Push();
}

// The migration is over: everything of it goes but the source and the target.
void Supervisor::Finished(Exit exit, const std::string& message) {
  End(exit, message, true);
}

void Supervisor::NotRecovered(Exit exit, const std::string& why) {
  End(exit, why + "\nNothing was lost: the journal in " +
                Printable(settings_.state_dir) +
                " and both trees are as they were. When the cause is gone: "
                "livemv recover " + settings_.id,
      false);
}

void Supervisor::End(Exit exit, const std::string& message, bool forget) {
  if (over_)
    return;
  over_ = true;
  LOG_INFO("finished: {}", message);
  exit_ = static_cast<int>(exit);
  worker_stopping_ = true;
  if (worker_) {
    if (Status told = TellWorker(R"({"op":"stop"})"); !told)
      LOG_WARN("stop the worker: {}", told.error().ToString());
    // It takes its private directory from the target. A target that hangs may
    // hold it in the kernel; it is not waited for longer.
    struct pollfd p = {worker_.pidfd.Get(), POLLIN, 0};
    if (::poll(&p, 1, kWorkerEndMs) <= 0)
      LOG_WARN("worker {} has not ended yet", worker_.pid);
  }
  // Detached mounts go with their descriptors.
  for (const char* name : {fd_name::kOverlay, fd_name::kFuse, fd_name::kTarget,
                           fd_name::kTargetRoot, fd_name::kDir,
                           fd_name::kSource})
    handoff_.fds.erase(name);
  if (!live_ && forget)
    status_.state = "aborted";
  if (forget) {
    if (Status removed = ForgetState(settings_); !removed)
      LOG_WARN("{}", removed.error().ToString());
  }
  registry_.Remove(settings_.id);
  handoff_.fds.erase(fd_name::kAlive);
  // Of a worker that has not ended yet the lock is held on.
  handoff_.fds.erase(fd_name::kStateLock);
  TellStarter(exit, message);
  json last = json::parse(StatusToJson(CurrentStatus()));
  last["final"] = true;
  last["exit"] = exit_;
  last["message"] = message;
  const std::string line =
      last.dump(-1, ' ', false, json::error_handler_t::replace);
  std::vector<ClientId> ids;
  for (auto& [id, client] : clients_)
    ids.push_back(id);
  for (ClientId id : ids) {
    Client& client = clients_[id];
    if (client.follows)
      client.out += line + "\n";
    else if (client.busy)
      client.out += MakeReply(exit, message) + "\n";
    client.closing = true;
    Flush(id);
  }
  loop_.Stop();
}

int SupervisorMain(Handoff handoff, Channel starter) {
  ProtectFromPressure();
  LockMemory();
  LOG_INFO("migration {}: {} -> {}", handoff.settings.id,
           Printable(handoff.settings.dir),
           Printable(handoff.settings.target));
  Supervisor supervisor(std::move(handoff), std::move(starter));
  return supervisor.Run();
}

}  // namespace livemv::daemon
