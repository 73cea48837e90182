#include "migrator/daemon/worker.h"

#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/fault_points.h"
#include "core/log.h"
#include "migrator/daemon/children.h"
#include "migrator/daemon/exit_code.h"
#include "migrator/daemon/inspect.h"
#include "migrator/daemon/overlay_channel.h"
#include "migrator/daemon/overlay_tree.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/private_dir.h"
#include "migrator/daemon/roles.h"
#include "migrator/daemon/source_check.h"
#include "migrator/daemon/state_dir.h"
#include "migrator/mount/mount_ops.h"
#include "migrator/mount/mount_table.h"
#include "migrator/proc/process_snapshot.h"
#include "migrator/proc/verdict.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::Result;
using core::Status;
using core::UniqueFd;
using fusefs::StopReason;
using nlohmann::json;
using state::Event;
using state::MigrationState;

namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kTickNs = kSecond / 10;
constexpr int64_t kStatusEveryNs = kSecond / 5;
constexpr auto kBeatEvery = std::chrono::milliseconds(250);
constexpr auto kAliveEvery = std::chrono::nanoseconds(kAliveEveryNs);
constexpr auto kWatchEvery = std::chrono::seconds(2);
constexpr auto kOverlayLookEvery = std::chrono::milliseconds(20);
// How long a synced tree may be unproved (a chunk that is being written again)
// before the state says so.
constexpr int64_t kUnsyncedAfterNs = 2 * kSecond;
constexpr int64_t kReopenEveryNs = 2'000'000'000;
// Brought back in the pause of an abort rather than before it.
constexpr uint64_t kLittleBytes = 1 << 20;
constexpr uint64_t kFewFiles = 256;
// More files than this are not summed up one by one.
constexpr size_t kMaxSummed = 200'000;

std::string Dump(const json& j) {
  return j.dump(-1, ' ', false, json::error_handler_t::replace);
}

void Detached(const char* name, std::function<void()> body) {
  std::thread([name, body = std::move(body)] {
    ::pthread_setname_np(::pthread_self(), name);
    body();
  }).detach();
}

// No worker can serve this migration (final), or this one cannot.
void SayRefused(SupervisorLink* link, const std::string& state_dir, bool final,
                const core::Error& why) {
  LOG_ERROR("{}", why.ToString());
  Status said = link->Say(
      Dump({{"op", "refused"},
            {"final", final},
            {"exit", static_cast<int>(Exit::kBlocked)},
            {"reason", why.ToString()},
            {"recovery", "The journal in " + Printable(state_dir) +
                             " and both trees must be kept."}}));
  if (!said)
    LOG_ERROR("{}", said.error().ToString());
}

}  // namespace

Status SupervisorLink::Say(const std::string& text,
                           const std::vector<int>& fds) {
  std::lock_guard lock(mu_);
  return channel_.Send(text, fds, 0);
}

Status SupervisorLink::Keep(state::FileId id, int fd) {
  return Say(Dump({{"op", "orphan"}, {"id", id}}), {fd});
}

void SupervisorLink::LetGo(state::FileId id) {
  // A descriptor too many in the supervisor does no harm but to hold space.
  if (Status said = Say(Dump({{"op", "orphan_gone"}, {"id", id}})); !said)
    LOG_WARN("orphan {:#x}: {}", id, said.error().ToString());
}

Worker::Worker(std::unique_ptr<WorkerParts> parts, SupervisorLink* link)
    : parts_(std::move(parts)), link_(link), overlay_(parts_.get()) {}

Status Worker::Begin() {
  const bool resume = parts_->resumed;
  PhaseKeeper& phase = *parts_->phase;
  // Whoever starts wants to know that the target takes the move. A successor
  // serves what the source has at once; the target may be away.
  if (parts_->past == WorkerParts::Past::kNone) {
    if (Status prepared = parts_->objects->Prepare(); !prepared) {
      core::Error why = std::move(prepared).error().With("prepare the target");
      SayRefused(link_, parts_->settings.state_dir, true, why);
      return Fail(std::move(why));
    }
    // For `recover`, which must find the same one.
    ASSIGN_OR_RETURN(const core::FileHandle root,
                     parts_->sys->NameToHandle(parts_->objects->RootFd(), ""));
    TRY(parts_->journal->Append(
        state::OptionFact{kTargetRootOption, HandleText(root)}));
  }
  if (phase.state() == MigrationState::kPlanned)
    TRY(phase.Advance(Event::kAttach, ""));
  if (phase.state() == MigrationState::kCuttingOver)
    TRY(phase.target_is_truth()
            ? phase.Advance(Event::kCommitted, "the worker was replaced")
            : phase.Advance(Event::kCutoverGivenUp,
                            "the worker died during the cutover"));
  // Nothing is prepared on a target that is the truth, and yet all names
  // begin there. Who cannot ask it can serve nothing.
  if (phase.target_is_truth())
    TRY(parts_->objects->BindRoot());
  if (!parts_->overlay_due)
    TRY(SayAlive());
  parts_->StartServing();
  TRY(parts_->session->Start(resume));
  if (resume && !parts_->session->resent())
    LOG_WARN("this kernel cannot resend requests (Linux 6.9 can): those that "
             "the predecessor had read stay unanswered");
  const MigrationState state = phase.state();
  if (state == MigrationState::kPaused || state == MigrationState::kAborting)
    parts_->engine->Pause();
  if (parts_->overlay_due)
    Detached("overlay", [this] { AwaitOverlay(); });
  else
    Move();
  if (state == MigrationState::kAborting && phase.source_is_truth())
    TRY(link_->Say(R"({"op":"abort_ready"})"));
  return link_->Say(R"({"op":"ready"})");
}

// What changes source or target without being asked to.
void Worker::Move() {
  PhaseKeeper& phase = *parts_->phase;
  const MigrationState state = phase.state();
  if (state != MigrationState::kAttaching && !phase.target_is_truth() &&
      !phase.source_is_truth())
    parts_->StartCopying();
  if (state == MigrationState::kAborting && !phase.source_is_truth())
    Detached("copyback", [this] { CopyBackMain(); });
}

void Worker::AwaitOverlay() {
  const std::unique_ptr<mount::MountOps> ops = mount::MakeRealMountOps();
  const Settings& settings = parts_->settings;
  bool told = false;
  while (!done_) {
    Status on = [&]() -> Status {
      ASSIGN_OR_RETURN(mount::MountTable table, ops->TableOf(0));
      const mount::MountEntry* top = table.TopAt(settings.dir);
      if (top == nullptr || top->point != settings.dir ||
          top->dev != settings.overlay_dev)
        return Fail(ErrorCode::kTimeout, "the overlay is not on yet");
      TRY(SayAlive());
      return parts_->journal->AppendDurable(
          state::OptionFact{kOverlayDueOption, "no"});
    }();
    if (on) {
      LOG_INFO("the overlay is on {}", Printable(settings.dir));
      parts_->overlay_due = false;
      return Move();
    }
    if (on.error().code != ErrorCode::kTimeout && !std::exchange(told, true))
      LOG_WARN("look for the overlay: {}", on.error().ToString());
    std::this_thread::sleep_for(kOverlayLookEvery);
  }
}

int Worker::Run() {
  Detached("heartbeat", [this] {
    for (;;) {
      parts_->heartbeat->Beat();
      std::this_thread::sleep_for(kBeatEvery);
    }
  });
  if (Status begun = Begin(); !begun) {
    const std::string why = begun.error().ToString();
    LOG_ERROR("{}", why);
    return 1;
  }
  Detached("watch", [this] { WatchMain(); });
  Detached("alive", [this] { AliveMain(); });
  Detached("session", [this] {
    StopReason reason = parts_->session->Wait();
    OverlayEnded(reason);
  });
  Loop();
  parts_->StopThreads();
  return exit_;
}

void Worker::Loop() {
  int64_t next_status = 0;
  while (!done_) {
    if (supervisor_gone_) {
      // The overlay has users: it is served for as long as it is there.
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      LetOpensIn();
      Prove();
      continue;
    }
    Result<Message> message = link_->Receive(MonotonicNs() + kTickNs);
    if (message) {
      OnMessage(std::move(*message));
    } else if (message.error().code != ErrorCode::kTimeout) {
      LOG_ERROR("the supervisor is gone: {}; the overlay is served on",
                message.error().ToString());
      supervisor_gone_ = true;
    }
    Prove();
    if (MonotonicNs() >= next_status) {
      PushStatus();
      next_status = MonotonicNs() + kStatusEveryNs;
    }
  }
}

void Worker::OnMessage(Message message) {
  json j = json::parse(message.text, nullptr, false);
  if (!j.is_object())
    return;
  const std::string op = j.value("op", "");
  if (op == "overlay_control" && message.fds.size() == 1)
    ServeReanchorer(std::move(message.fds[0]));
  else if (op == "ask")
    OnAsk(message.text);
  else if (op == "reanchorer_over")
    EndReanchorer();
  else if (op == "stop")
    Stop();
  else
    LOG_WARN("the supervisor said '{}', which nobody understands", op);
}

void Worker::ServeReanchorer(UniqueFd fd) {
  Detached("reanchor", [this, raw = fd.Release()] {
    Channel channel{UniqueFd(raw)};
    std::lock_guard lock(overlay_mu_);
    {
      std::lock_guard one(channel_mu_);
      channel_fd_ = channel.Fd();
    }
    Status served = ServeOverlayControl(channel, overlay_);
    {
      std::lock_guard one(channel_mu_);
      channel_fd_ = -1;
    }
    if (!served)
      LOG_ERROR("re-anchorer: {}", served.error().ToString());
    overlay_.PeerGone();
  });
}

// Nobody is left who would take the overlay off first.
void Worker::LetOpensIn() {
  std::unique_lock lock(overlay_mu_, std::try_to_lock);
  if (!lock || !overlay_.OpensWait())
    return;  // a re-anchorer is at work yet
  if (Status opened = overlay_.OpenGate(); !opened)
    LOG_ERROR("open the gate: {}", opened.error().ToString());
}

// Its guardian has its end of the channel too, and may wait for a process that
// hangs in a call for as long as the target is away.
void Worker::EndReanchorer() {
  std::lock_guard one(channel_mu_);
  if (channel_fd_ >= 0)
    ::shutdown(channel_fd_, SHUT_RDWR);
}

void Worker::Answer(uint64_t n, Exit exit, const std::string& text) {
  Status said = link_->Say(Dump({{"op", "answer"},
                                 {"n", n},
                                 {"exit", static_cast<int>(exit)},
                                 {"message", text}}));
  if (!said)
    LOG_WARN("answer: {}", said.error().ToString());
}

void Worker::OnAsk(const std::string& text) {
  json j = json::parse(text);
  const auto n = j.value("n", uint64_t{0});
  const std::string verb = j.value("verb", "");
  if (verb == "pause" || verb == "resume") {
    const bool pause = verb == "pause";
    const MigrationState state = parts_->phase->state();
    if ((state == MigrationState::kPaused) == pause &&
        (pause || state == MigrationState::kCopying))
      return Answer(n, Exit::kDone, "the copier is " +
                                        std::string(pause ? "paused" :
                                                            "running") +
                                        " already");
    Status advanced = parts_->phase->Advance(
        pause ? Event::kPause : Event::kResume, pause ? "by the operator" : "");
    if (!advanced)
      return Answer(n, Exit::kBlocked,
                    "the migration is " +
                        std::string(state::StateName(state)) + "; '" + verb +
                        "' is for " +
                        (pause ? "one that is copying" : "a paused one"));
    if (pause)
      parts_->engine->Pause();
    else
      parts_->engine->Resume();
    PushStatus();
    return Answer(n, Exit::kDone,
                  pause ? "the copier is paused; new data goes on to the target"
                        : "the copier runs again");
  }
  if (verb == "abort")
    return BeginAbort(n);
  if (verb == "inspect") {
    InspectRequest request{j.value("path", ""), j.value("pending", false),
                           j.value("remote", false)};
    return Detached("inspect", [this, n, request] {
      Result<Inspection> got = Inspect(parts_.get(), request);
      if (!got)
        return Answer(n, Exit::kBlocked, got.error().ToString());
      Status said = link_->Say(Dump({{"op", "answer"},
                                     {"n", n},
                                     {"exit", 0},
                                     {"message", got->text},
                                     {"details", json::parse(got->details)}}));
      if (!said)
        Answer(n, Exit::kBlocked, "the answer is too long; name a file");
    });
  }
  Answer(n, Exit::kUsage, "the worker does not know '" + verb + "'");
}

void Worker::Prove() {
  PhaseKeeper& phase = *parts_->phase;
  const MigrationState state = phase.state();
  if (state != MigrationState::kCopying && state != MigrationState::kSynced)
    return;
  why_not_synced_ = parts_->Proof().WhyNotSynced().value_or("");
  const int64_t now = MonotonicNs();
  if (why_not_synced_.empty())
    unproved_since_ns_ = 0;
  else if (unproved_since_ns_ == 0)
    unproved_since_ns_ = now;
  // A re-anchorer may advance the state meanwhile: then the table refuses.
  Status advanced;
  if (state == MigrationState::kCopying && why_not_synced_.empty())
    advanced = phase.Advance(Event::kSynced, "");
  else if (state == MigrationState::kSynced && unproved_since_ns_ != 0 &&
           now - unproved_since_ns_ > kUnsyncedAfterNs)
    advanced = phase.Advance(Event::kUnsynced, why_not_synced_);
  if (!advanced && advanced.error().code != ErrorCode::kConflict)
    LOG_ERROR("{}", advanced.error().ToString());
}

MigrationStatus Worker::MakeStatus() {
  MigrationStatus s;
  const MigrationState state = parts_->phase->state();
  s.id = parts_->settings.id;
  s.source = parts_->settings.dir;
  s.target = parts_->settings.target;
  s.state = state::StateName(state);
  s.max_pause_ns = parts_->settings.max_pause_ns;
  s.worker_pid = ::getpid();
  copy::CopyEngine::Progress progress = parts_->engine->GetProgress();
  copy::TreeScanner::Totals tree = parts_->scanner->totals();
  fusefs::Redo::Counters redo = parts_->redo->Count();
  std::string abort_trouble;
  {
    std::lock_guard lock(watch_mu_);
    s.holders = holders_;
    s.bytes.remote = remote_bytes_;
    s.files.remote = remote_files_;
    abort_trouble = abort_trouble_;
  }
  s.scanned = parts_->scanner->Done();
  s.bytes.copied = progress.bytes_copied;
  s.bytes.total =
      std::max(tree.bytes, progress.bytes_total) + s.bytes.remote;
  s.files.total = std::max(tree.files, progress.files_total);
  s.files.copied = progress.files_copied;
  s.rate = progress.bytes_per_second;
  s.redo_left = redo.pending;
  if (state == MigrationState::kSynced ||
      state == MigrationState::kCuttingOver ||
      state == MigrationState::kDraining || state == MigrationState::kMoved) {
    // What was proved counts, whatever the order in which it was met.
    s.bytes.copied = s.bytes.total - s.bytes.remote;
    s.files.copied = s.files.total - std::min(s.files.total, s.files.remote);
  }
  if (state == MigrationState::kAborting) {
    s.bytes.copied = overlay_.BroughtBack();
    s.bytes.total = s.bytes.copied + s.bytes.remote;
    s.rate = 0;
  }
  if (s.scanned && s.rate >= 1) {
    uint64_t done = std::min(s.bytes.total, s.bytes.copied + s.bytes.remote);
    s.eta_s = static_cast<int64_t>(
        static_cast<double>(s.bytes.total - done) / s.rate);
  }
  s.reason = parts_->phase->reason();
  auto add = [&s](const std::string& text) {
    if (!text.empty())
      s.reason += (s.reason.empty() ? "" : "; ") + text;
  };
  if (state == MigrationState::kCopying && s.scanned)
    add(why_not_synced_);
  if (state == MigrationState::kCopying || state == MigrationState::kSynced) {
    add(progress.reason);
    add(redo.last_error);
    if (redo.behind)
      add(fmt::format("names and attributes change faster than the target "
                      "takes them, so changes wait a little ({} to go)",
                      redo.pending));
    add(parts_->barrier->last_error());
  }
  if (redo.set_aside > 0)
    add(std::to_string(redo.set_aside) +
        " names or attributes were refused by the target");
  if (state == MigrationState::kAborting)
    add(abort_trouble);
  std::vector<copy::CopyEngine::VerifyFailure> bad =
      parts_->engine->VerifyFailures();
  if (!bad.empty()) {
    s.problem = static_cast<int>(Exit::kMismatch);
    add(std::to_string(bad.size()) +
        " chunks read back differently from the target twice; the source has "
        "them whole. Check the target's storage, then abort and start again");
  }
  if (supervisor_gone_)
    add("the supervisor is gone");
  return s;
}

void Worker::PushStatus() {
  MigrationStatus status = MakeStatus();
  constexpr size_t kMostHolders = 300;
  if (status.holders.size() > kMostHolders)
    status.holders.resize(kMostHolders);
  // A full channel means a newer status will do.
  Status said = link_->Say(
      "{\"op\":\"status\",\"status\":" + StatusToJson(status) + "}");
  if (!said && said.error().code != ErrorCode::kTimeout &&
      said.error().code != ErrorCode::kGone)
    LOG_WARN("status: {}", said.error().ToString());
}

void Worker::BeginAbort(uint64_t n) {
  if (abort_running_.exchange(true))
    return Answer(n, Exit::kDone, "the abort is under way");
  Detached("abort", [this, n] {
    Status begun = overlay_.BeginAbort("by the operator");
    if (!begun) {
      abort_running_ = false;
      return Answer(n, Exit::kBlocked, begun.error().ToString());
    }
    PushStatus();
    Answer(n, Exit::kDone, "aborting: new data is brought back to the source");
    CopyBackMain();
  });
}

void Worker::CopyBackMain() {
  abort_running_ = true;
  bool told = false;
  int64_t backoff_ms = 100, look_at_ns = 0, reopen_at_ns = 0;
  while (!done_ && !parts_->phase->source_is_truth()) {
    // What the kernel writes alone must be seen before it is brought back.
    const bool direct = !parts_->passthrough->Direct().empty();
    if (direct && MonotonicNs() >= reopen_at_ns) {
      // Again and again: a nameless one may be given a name at any time.
      reopen_at_ns = MonotonicNs() + kReopenEveryNs;
      told = false;
      if (Status said = link_->Say(R"({"op":"reopen_due"})"); !said)
        LOG_WARN("abort: {}", said.error().ToString());
    }
    Result<bool> more = overlay_.CopyBackStep();
    {
      std::lock_guard lock(watch_mu_);
      abort_trouble_ = more ? "" : more.error().ToString();
    }
    if (!more) {
      LOG_WARN("copy back: {}", more.error().ToString());
      std::this_thread::sleep_for(std::chrono::milliseconds(backoff_ms));
      backoff_ms = std::min<int64_t>(backoff_ms * 2, 5000);
      continue;
    }
    backoff_ms = 100;
    // Where somebody always writes there is always more; a little of it fits
    // into the pause.
    bool little = !*more && !direct;
    if (*more && !direct && !told && MonotonicNs() >= look_at_ns) {
      const int64_t began_ns = MonotonicNs();
      Result<WorkerOverlay::Left> left = overlay_.LeftToDo();
      // The look takes longer the more files there are: most of the time is for
      // bringing them back.
      const int64_t now_ns = MonotonicNs();
      look_at_ns = now_ns + std::max(kStatusEveryNs, 10 * (now_ns - began_ns));
      little = left && left->ready && left->lack.bytes <= kLittleBytes &&
               left->lack.files <= kFewFiles;
    }
    if (!little) {
      if (!*more)
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      continue;
    }
    if (!told) {
      told = true;
      if (Status said = link_->Say(R"({"op":"abort_ready"})"); !said) {
        LOG_WARN("abort: {}", said.error().ToString());
        told = false;
      }
    }
    if (!*more)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

void Worker::WatchMain() {
  Result<proc::TreeRef> tree =
      OverlayTree(parts_->settings.overlay_dev, parts_->source->RootFd(),
                  parts_->fuse.Get());
  if (!tree)
    LOG_WARN("holders are not counted: {}", tree.error().ToString());
  proc::Options options;
  options.exclude.insert(::getpid());
  options.descriptions = false;
  while (!done_) {
    std::vector<HolderLine> holders;
    if (Result<proc::Snapshot> snapshot =
            tree ? proc::Capture(*tree, options)
                 : Result<proc::Snapshot>(proc::Snapshot())) {
      const std::set<uint64_t> written =
          proc::WrittenInodes(snapshot->holders);
      for (const proc::Holder& holder : snapshot->holders) {
        proc::Verdict verdict = proc::Judge(holder, written);
        HolderLine line;
        line.pid = holder.pid;
        line.command = holder.comm;
        line.verdict = proc::MovabilityName(verdict.movability);
        line.reason = verdict.Line();
        for (const proc::Task& task : holder.tasks)
          line.cwds += task.cwd.has_value();
        line.fds = static_cast<uint32_t>(holder.FdCount());
        line.maps = static_cast<uint32_t>(holder.mappings.size());
        holders.push_back(std::move(line));
      }
    }
    uint64_t bytes = 0, files = 0;
    std::vector<state::FileId> known = parts_->table->UnsettledFiles();
    if (known.size() > kMaxSummed)
      known.clear();
    for (state::FileId id : known) {
      fusefs::FileRef record = parts_->table->Find(id);
      if (!record)
        continue;
      core::MutexLock lock(record->mu);
      const fusefs::FileFacts& facts = record->facts;
      if (!facts.size_known || facts.size <= facts.map.local_end())
        continue;
      bytes += facts.size - facts.map.local_end();
      files++;
    }
    {
      std::lock_guard lock(watch_mu_);
      holders_ = std::move(holders);
      remote_bytes_ = bytes;
      remote_files_ = files;
    }
    std::this_thread::sleep_for(kWatchEvery);
  }
}

Status Worker::SayAlive() {
  // A clock that was set back takes nothing back of what was ours.
  const int64_t now =
      std::max(parts_->said_alive_ns.load(), parts_->sys->RealtimeNs());
  parts_->said_alive_ns = now;
  return parts_->journal->AppendDurable(
      state::OptionFact{kAliveOption, std::to_string(now)});
}

// What the source has of a later time is not by us (source_check.h).
void Worker::AliveMain() {
  bool told = false;
  while (!done_) {
    std::this_thread::sleep_for(kAliveEvery);
    Status said = done_ || parts_->overlay_due ? Status() : SayAlive();
    if (!said && !std::exchange(told, true))
      LOG_WARN("say in the journal that we are alive: {}",
               said.error().ToString());
  }
}

void Worker::OverlayEnded(StopReason reason) {
  if (done_)
    return;
  if (reason != StopReason::kUnmounted) {
    LOG_ERROR("the FUSE session ended: {}", parts_->session->error());
    // The supervisor starts a successor, which gets the unanswered requests.
    ::_exit(1);
  }
  if (Status passed = core::FaultPoint("worker.overlay_gone"); !passed)
    LOG_WARN("{}", passed.error().ToString());
  // A re-anchorer that is just finishing may still advance the state.
  std::lock_guard lock(overlay_mu_);
  PhaseKeeper& phase = *parts_->phase;
  std::string ended = "lost";
  Status advanced;
  const MigrationState state = phase.state();
  if (state == MigrationState::kCuttingOver && phase.target_is_truth())
    advanced = phase.Advance(Event::kCommitted, "");
  if (phase.state() == MigrationState::kDraining) {
    std::lock_guard victims(parts_->victims_mu);
    // Moved is what a power cut cannot take back: names that were put in their
    // places in the freeze, too. Where it fails a crash is looked into by
    // `recover`.
    if (Status synced = parts_->ledger->SyncTarget(); !synced)
      LOG_WARN("sync the target: {}", synced.error().ToString());
    if (Status removed = parts_->victims->RemovePrivate(); !removed)
      LOG_WARN("{}", removed.error().ToString());
    advanced = phase.Advance(Event::kDrained, "");
    ended = "moved";
  } else if (state == MigrationState::kAborting && phase.source_is_truth()) {
    advanced = phase.Advance(Event::kAbortDone, "");
    ended = "aborted";
  } else if (state == MigrationState::kAttaching) {
    ended = "detached";
  }
  if (!advanced)
    LOG_ERROR("{}", advanced.error().ToString());
  LOG_INFO("the overlay has no user left: {}", ended);
  PushStatus();
  Status said = link_->Say(Dump({{"op", "ended"}, {"state", ended}}));
  if (!said)
    LOG_WARN("{}", said.error().ToString());
  done_ = true;
}

void Worker::Stop() {
  if (parts_->phase->state() == MigrationState::kAttaching) {
    if (Status removed = parts_->objects->RemovePrivate(); !removed)
      LOG_WARN("{}", removed.error().ToString());
  }
  done_ = true;
}

int WorkerMain(Handoff handoff, Channel channel) {
  ProtectFromPressure();
  // What a peak leaves free in the heap of some threads is of no use to others,
  // and locked memory is not given back.
  ::mallopt(M_ARENA_MAX, 1);
  // What applications make has the mode that they ask for from the start;
  // everything else is made with a mode of its own.
  ::umask(0);
  SupervisorLink link(std::move(channel));
  json extra = json::parse(handoff.extra, nullptr, false);
  using Past = WorkerParts::Past;
  const Past past = extra.value("resume", false)      ? Past::kOverlay
                    : extra.value("recovered", false) ? Past::kMigration
                                                      : Past::kNone;
  std::vector<std::pair<state::FileId, UniqueFd>> orphans;
  const auto expected = extra.value("orphans", uint64_t{0});
  while (orphans.size() < expected) {
    Result<Message> message = link.Receive(MonotonicNs() + 10 * kSecond);
    const json ids = message ? json::parse(message->text, nullptr, false)
                                   .value("ids", json::array())
                             : json::array();
    if (!message || ids.empty() || ids.size() != message->fds.size()) {
      LOG_ERROR("of {} orphans' descriptors {} arrived", expected,
                orphans.size());
      return 1;
    }
    for (size_t i = 0; i < ids.size(); i++)
      orphans.emplace_back(ids[i].get<state::FileId>(),
                           std::move(message->fds[i]));
  }
  Result<std::unique_ptr<WorkerParts>> parts =
      WorkerParts::Make(handoff, &link, std::move(orphans), past);
  if (!parts) {
    SayRefused(&link, handoff.settings.state_dir,
               past != Past::kOverlay || parts.error().code == ErrorCode::kCorrupt,
               parts.error());
    return 1;
  }
  LockMemory();
  Worker worker(std::move(*parts), &link);
  int code = worker.Run();
  spdlog::shutdown();
  // Threads may be waiting for a target that does not answer; nothing of
  // theirs is lost, the journal has it.
  ::_exit(code);
}

}  // namespace livemv::daemon
