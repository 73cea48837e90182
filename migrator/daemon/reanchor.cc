// The one-shot process that re-anchors holders: attach, cutover, drain and
// the return to the source. The steps are migrator/cutover's; here it gets its
// descriptors and its way to the worker, and reports.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "core/fault_points.h"
#include "core/log.h"
#include "migrator/cutover/attach.h"
#include "migrator/cutover/cutover.h"
#include "migrator/cutover/put_on.h"
#include "migrator/cutover/reopen.h"
#include "migrator/cutover/return_to_source.h"
#include "migrator/daemon/children.h"
#include "migrator/daemon/covers.h"
#include "migrator/daemon/overlay_channel.h"
#include "migrator/daemon/overlay_tree.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/reanchor_report.h"
#include "migrator/daemon/roles.h"
#include "migrator/daemon/small_files.h"

namespace livemv::daemon {

using core::Result;
using core::Status;
using cutover::Outcome;
using nlohmann::json;

namespace {

std::string CommandOf(pid_t pid) {
  Result<std::string> comm =
      ReadSmallFile("/proc/" + std::to_string(pid) + "/comm", 64);
  if (!comm || comm->empty())
    return "";
  return comm->substr(0, comm->find('\n'));
}

struct Job {
  Handoff* handoff = nullptr;
  cutover::Deps deps;
  std::set<pid_t> own, accepted;
};

Result<Outcome> Attach(Job& job) {
  Handoff& h = *job.handoff;
  ASSIGN_OR_RETURN(core::UniqueFd overlay_fd, h.Take(fd_name::kOverlay));
  mount::MountFd overlay(std::move(overlay_fd));
  cutover::AttachRequest request;
  request.dir = h.settings.dir;
  request.overlay = &overlay;
  request.source_dir_fd = h.Borrow(fd_name::kDir);
  ASSIGN_OR_RETURN(request.source,
                   proc::MakeTreeRef(request.source_dir_fd, h.settings.dir));
  ASSIGN_OR_RETURN(request.overlay_tree, cutover::TreeOfOverlay(overlay));
  request.own = job.own;
  request.pause_ns = h.settings.max_pause_ns;
  return cutover::RunAttach(job.deps, request);
}

Result<Outcome> CutOver(Job& job, bool drain) {
  Handoff& h = *job.handoff;
  ASSIGN_OR_RETURN(core::UniqueFd target_fd, h.Take(fd_name::kTarget));
  mount::MountFd target(std::move(target_fd));
  cutover::CutoverRequest request;
  request.dir = h.settings.dir;
  request.target = &target;
  ASSIGN_OR_RETURN(request.overlay_tree,
                   OverlayTree(h.settings.overlay_dev, h.Borrow(fd_name::kDir),
                               h.Borrow(fd_name::kFuse)));
  request.own = job.own;
  request.accepted = job.accepted;
  request.pause_ns = h.settings.max_pause_ns;
  return drain ? cutover::RunDrain(job.deps, request)
               : cutover::RunCutover(job.deps, request);
}

Result<Outcome> Return(Job& job, bool commit_source) {
  Handoff& h = *job.handoff;
  ASSIGN_OR_RETURN(core::UniqueFd target_fd, h.Take(fd_name::kTarget));
  mount::MountFd target(std::move(target_fd));
  cutover::ReturnRequest request;
  request.dir = h.settings.dir;
  request.target = &target;  // a cutover that was put back left it beneath
  request.source_dir_fd = h.Borrow(fd_name::kDir);
  ASSIGN_OR_RETURN(request.source,
                   proc::MakeTreeRef(request.source_dir_fd, h.settings.dir));
  ASSIGN_OR_RETURN(request.overlay_tree,
                   OverlayTree(h.settings.overlay_dev, request.source_dir_fd,
                               h.Borrow(fd_name::kFuse)));
  request.own = job.own;
  request.commit_source = commit_source;
  request.pause_ns = h.settings.max_pause_ns;
  return cutover::RunReturn(job.deps, request);
}

Result<Outcome> PutOn(Job& job) {
  Handoff& h = *job.handoff;
  ASSIGN_OR_RETURN(core::UniqueFd overlay_fd, h.Take(fd_name::kOverlay));
  mount::MountFd overlay(std::move(overlay_fd));
  ASSIGN_OR_RETURN(core::UniqueFd dir_fd, h.Take(fd_name::kDir));
  mount::MountFd dir(std::move(dir_fd));
  struct stat target{};
  if (::fstat(h.Borrow(fd_name::kTarget), &target) != 0)
    return core::FailSys(errno, "stat of the target");
  ASSIGN_OR_RETURN(mount::MountTable table, job.deps.mounts->TableOf(0));
  ASSIGN_OR_RETURN(std::vector<Cover> covers,
                   FindCovers(table, h.settings, target.st_dev));
  cutover::PutOnRequest request;
  request.dir = h.settings.dir;
  request.overlay = &overlay;
  // A mount that was covered cannot be reached any more: the copy that was made
  // of it takes its place.
  if (h.settings.dir_is_mount && !covers.empty())
    request.base = &dir;
  for (const Cover& cover : covers) {
    request.covers.push_back(cover.dev);
    if (cover.kind == Cover::Kind::kOverlay)
      request.dead.push_back(cover.dev);
  }
  request.source_dir_fd = dir.Get();
  ASSIGN_OR_RETURN(request.source,
                   proc::MakeTreeRef(dir.Get(), h.settings.dir));
  request.own = job.own;
  return cutover::RunPutOn(job.deps, request);
}

Result<Outcome> Reopen(Job& job) {
  Handoff& h = *job.handoff;
  core::UniqueFd root(
      ::open(h.settings.dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root)
    return core::FailSys(errno, "open " + h.settings.dir);
  cutover::ReopenRequest request;
  request.overlay_root_fd = root.Get();
  ASSIGN_OR_RETURN(request.overlay_tree,
                   OverlayTree(h.settings.overlay_dev, h.Borrow(fd_name::kDir),
                               h.Borrow(fd_name::kFuse)));
  request.own = job.own;
  request.pause_ns = h.settings.max_pause_ns;
  return cutover::RunReopen(job.deps, request);
}

ReanchorReport ReportOf(const std::string& role, const Outcome& outcome) {
  ReanchorReport report;
  report.froze = outcome.froze;
  report.committed = outcome.committed;
  for (const cutover::Straggler& s : outcome.stragglers) {
    HolderLine line;
    line.pid = s.pid;
    line.command = s.comm;
    line.verdict = s.accepted ? "accepted" : s.may_stay ? "stays" : "blocks";
    line.reason = s.reason;
    report.stayed.push_back(std::move(line));
  }
  for (const trace::Pause& pause : outcome.pauses)
    report.pauses.push_back({role, pause.pid, CommandOf(pause.pid), pause.ns});
  report.unreachable = outcome.unreachable;
  report.redirected = outcome.redirected;
  if (!outcome.status)
    report.reason = outcome.status.error().ToString();
  for (const std::string& warning : outcome.warnings)
    report.reason += (report.reason.empty() ? "" : "; ") + warning;
  using Kind = ReanchorReport::Outcome;
  if (outcome.status)
    report.outcome = Kind::kDone;
  else if (!outcome.froze && !outcome.stragglers.empty())
    report.outcome = Kind::kStraggler;
  else
    report.outcome = Kind::kRolledBack;
  return report;
}

Result<Outcome> RunJob(Job& job) {
  Handoff& h = *job.handoff;
  ASSIGN_OR_RETURN(core::UniqueFd control, h.Take(fd_name::kControl));
  OverlayClient overlay{Channel(std::move(control))};
  std::unique_ptr<cutover::ProcessScanner> scanner =
      cutover::MakeRealProcessScanner();
  std::unique_ptr<cutover::DescriptorOps> files =
      cutover::MakeRealDescriptorOps();
  std::unique_ptr<cutover::Clock> clock = cutover::MakeRealClock();
  std::unique_ptr<mount::MountOps> mounts = mount::MakeRealMountOps();
  job.deps.overlay = &overlay;
  job.deps.scanner = scanner.get();
  job.deps.files = files.get();
  job.deps.mounts = mounts.get();
  job.deps.clock = clock.get();
  job.deps.make_frozen_set = [] { return trace::FrozenSet::Create(); };
  job.own.insert(::getpid());
  if (h.role == "attach")
    return Attach(job);
  if (h.role == "cutover")
    return CutOver(job, false);
  if (h.role == "drain")
    return CutOver(job, true);
  if (h.role == "reopen")
    return Reopen(job);
  if (h.role == "put_on")
    return PutOn(job);
  return Return(job, h.role == "abort");
}

}  // namespace

int ReanchorMain(Handoff handoff, Channel supervisor) {
  ProtectFromPressure();
  LockMemory();
  Job job;
  job.handoff = &handoff;
  json extra = json::parse(handoff.extra, nullptr, false);
  for (const json& pid : extra.value("own", json::array()))
    job.own.insert(pid.get<pid_t>());
  for (const json& pid : extra.value("accepted", json::array()))
    job.accepted.insert(pid.get<pid_t>());
  Result<Outcome> outcome = RunJob(job);
  ReanchorReport report;
  if (outcome) {
    report = ReportOf(handoff.role, *outcome);
  } else {
    report.outcome = ReanchorReport::Outcome::kRolledBack;
    report.reason = outcome.error().ToString();
  }
  LOG_INFO("{}: {}{}", handoff.role,
           report.outcome == ReanchorReport::Outcome::kDone ? "done" : "failed",
           report.reason.empty() ? "" : ": " + report.reason);
  for (const HolderLine& line : report.stayed)
    LOG_INFO("{}: pid {} ({}) {}: {}", handoff.role, line.pid, line.command,
             line.verdict, line.reason);
  // The newest ones tell enough; a message has its limit.
  constexpr size_t kMost = 1000;
  if (report.pauses.size() > kMost)
    report.pauses.erase(report.pauses.begin(), report.pauses.end() - kMost);
  if (report.stayed.size() > 100)
    report.stayed.resize(100);
  Status sent = supervisor.Send(ReportToJson(report));
  if (!sent)
    LOG_ERROR("report to the supervisor: {}", sent.error().ToString());
  // Armed to fail, it has nothing left that could.
  (void)core::FaultPoint("reanchor.reported");
  return sent ? 0 : 1;
}

}  // namespace livemv::daemon
