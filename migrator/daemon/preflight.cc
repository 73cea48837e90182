#include "migrator/daemon/preflight.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "core/as_owner.h"
#include "core/syscalls.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/preflight_doors.h"
#include "migrator/daemon/preflight_findings.h"
#include "migrator/daemon/preflight_holders.h"
#include "migrator/daemon/preflight_kernel.h"
#include "migrator/daemon/preflight_nfs.h"
#include "migrator/daemon/preflight_places.h"
#include "migrator/daemon/small_files.h"
#include "migrator/mount/mount_ops.h"

namespace livemv::daemon {
namespace {

// What a copy is reckoned with: a gigabit server, a local disk; each object
// costs a few round trips or seeks on top of its bytes.
constexpr uint64_t kNfsBytesPerSecond = 100'000'000;
constexpr uint64_t kNfsObjectsPerSecond = 500;
constexpr uint64_t kLocalBytesPerSecond = 250'000'000;
constexpr uint64_t kLocalObjectsPerSecond = 3000;

constexpr int64_t kMountTimeoutNs = 60'000'000'000;

// How long deleted files may be held before they count.
constexpr auto kSettle = std::chrono::seconds(2);
constexpr auto kLookAgain = std::chrono::milliseconds(20);

// The process runs the program that this one runs.
bool IsLivemv(pid_t pid) {
  struct stat own = {};
  struct stat its = {};
  const std::string exe = "/proc/" + std::to_string(pid) + "/exe";
  return pid > 0 && stat("/proc/self/exe", &own) == 0 &&
         stat(exe.c_str(), &its) == 0 && own.st_dev == its.st_dev &&
         own.st_ino == its.st_ino;
}

// Many programs delete a file and close it a moment later: no reason to refuse,
// unless it stays.
core::Result<proc::Snapshot> CaptureSettled(const proc::TreeRef& tree,
                                            const proc::Options& options) {
  const auto until = std::chrono::steady_clock::now() + kSettle;
  for (;;) {
    auto snapshot = proc::Capture(tree, options);
    if (!snapshot || !HoldsDeleted(*snapshot) ||
        std::chrono::steady_clock::now() >= until)
      return snapshot;
    std::this_thread::sleep_for(kLookAgain);
  }
}

int64_t Estimate(const Survey& survey, bool nfs) {
  const uint64_t bytes = nfs ? kNfsBytesPerSecond : kLocalBytesPerSecond;
  const uint64_t objects = nfs ? kNfsObjectsPerSecond : kLocalObjectsPerSecond;
  const double seconds =
      static_cast<double>(std::min(survey.bytes, survey.allocated)) /
          static_cast<double>(bytes) +
      static_cast<double>(survey.Objects()) / static_cast<double>(objects);
  return static_cast<int64_t>(seconds * 1e9);
}

void CheckSurvey(const Survey& survey, Findings* findings) {
  for (const std::string& path : survey.outside_links)
    findings->Block("outside-link",
                    "the file " + Quote(path) +
                        " has a hard link outside the tree, by which it could "
                        "be changed unseen",
                    "find it (find MOUNTPOINT -samefile FILE) and remove it, "
                    "or break the link with cp");
  if (survey.outside_link_count > survey.outside_links.size())
    findings->Block("outside-link",
                    std::to_string(survey.outside_link_count -
                                   survey.outside_links.size()) +
                        " more files have hard links outside the tree",
                    "see the ones named");
  for (const std::string& path : survey.other_devices)
    findings->Block("other-device",
                    Quote(path) +
                        " in the tree is another filesystem or "
                        "subvolume",
                    "unmount it, or move it on its own");
  if (survey.unreadable_count > 0) {
    std::string examples;
    for (const std::string& path : survey.unreadable)
      examples += (examples.empty() ? "" : ", ") + Quote(path);
    findings->Warn("unreadable",
                   std::to_string(survey.unreadable_count) +
                       " objects of the tree could not be read: " + examples,
                   "check the disk: dmesg, fsck; what cannot be read cannot be "
                   "moved");
  }
}

void TakeSurvey(const PlanRequest& request, const SourcePlace& source,
                Plan* plan, Findings* findings) {
  SurveyOptions options;
  options.skip_lost_found = plan->tree->WholeFilesystem();
  options.progress = request.progress;
  auto survey = SurveyTree(source.fd.Get(), options);
  if (!survey) {
    findings->Block(
        "survey",
        "the tree could not be surveyed: " + survey.error().ToString(),
        "check the disk: dmesg, fsck");
    return;
  }
  plan->survey = std::move(*survey);
  CheckSurvey(*plan->survey, findings);
  plan->estimated_ns = Estimate(*plan->survey, plan->target_is_nfs);
}

void CheckHolders(const PlanRequest& request, const SourcePlace& source,
                  const mount::MountTable& mounts, Plan* plan,
                  Findings* findings) {
  proc::Options options;
  options.exclude = request.own;
  options.root_fd = source.fd.Get();
  auto snapshot = CaptureSettled(*plan->tree, options);
  if (!snapshot) {
    findings->Block("holders",
                    "the holders of the tree could not be listed: " +
                        snapshot.error().ToString(),
                    "run livemv as root on the host");
    return;
  }
  // Other migrations' processes keep detached mounts, whose tree the registry
  // tells better.
  std::erase_if(snapshot->uncertain, [](const proc::Uncertain& doubt) {
    return IsLivemv(doubt.pid);
  });
  JudgeHolders(*snapshot, plan, findings);
  CheckDoors(*plan, source, mounts, snapshot->namespaces, request.own,
             findings);
}

// The target's name on its server; a directory may lie below a mount's point.
std::string NfsNameOf(const Plan& plan, const mount::MountTable& mounts) {
  if (plan.target_is_nfs)
    return plan.target;
  const mount::MountEntry* entry = mounts.Walk(plan.target);
  if (entry == nullptr || !IsInside(plan.target, entry->point))
    return plan.target_volume->device;
  const std::string below = Below(plan.target, entry->point);
  return entry->source + (below.empty() || below[0] == '/' ? "" : "/") + below;
}

void CheckNfs(const PlanRequest& request, const mount::MountTable& mounts,
              int root_fd, Plan* plan, Findings* findings) {
  const Volume& volume = *plan->target_volume;
  CheckSoft(volume.options, request.accepted, findings);
  CheckEffective(request.mount_options, volume.options, findings);
  CheckLocks(plan->holders, volume.options, findings);
  struct stat st = {};
  if (fstat(root_fd, &st) == 0)
    CheckOtherMounts(mounts, NfsNameOf(*plan, mounts), volume.options,
                     st.st_dev, findings);
}

// Mounted here and only here: the mount that was tried out is the one that is
// used, since a second mount of an export may get other options.
void MountAndCheck(const PlanRequest& request, const TargetPlace& target,
                   const mount::MountTable& mounts, Plan* plan,
                   Findings* findings) {
  const bool nfs = plan->target_is_nfs;
  if (nfs) {
    if (core::Status made = MakeDirectories(request.scratch, 0700); !made) {
      findings->Block("scratch", made.error().ToString(),
                      "make room in " + Quote(request.scratch));
      return;
    }
  }
  auto mounted = mount::MakeRealMountOps()->MountTarget(
      plan->target, nfs ? request.mount_options : "", request.scratch,
      kMountTimeoutNs);
  if (nfs)
    rmdir(request.scratch.c_str());
  if (!mounted) {
    const core::Error& e = mounted.error();
    plan->target_away =
        e.code == core::ErrorCode::kTimeout || e.sys_errno == ETIMEDOUT ||
        e.sys_errno == EHOSTUNREACH || e.sys_errno == ECONNREFUSED ||
        e.sys_errno == ENETUNREACH;
    findings->Block(plan->target_away ? "target-away" : "target-mount",
                    "TARGET cannot be mounted: " + e.ToString(),
                    nfs ? "see that the server is up, exports it to this host, "
                          "and takes the options"
                        : "see that it is a directory");
    return;
  }
  if (nfs) {
    plan->target_volume.emplace();
    plan->target_volume->type = mounted->fs_type;
    plan->target_volume->device = plan->target;
    plan->target_volume->options = mounted->options;
  }
  auto kernel = core::MakeRealSyscalls();
  auto root = core::MakeAsOwner(kernel.get(), mounted->mount.Get(), nullptr)
                  ->OpenAt(mounted->mount.Get(), ".", O_RDONLY | O_DIRECTORY, 0);
  if (!root) {
    findings->Block("target-unreadable",
                    "TARGET cannot be read: " + root.error().ToString(),
                    "make it readable for root, or for its owner");
    return;
  }
  if (plan->target_volume->type.starts_with("nfs"))
    CheckNfs(request, mounts, root->Get(), plan, findings);
  TargetRequest check;
  check.target_fd = root->Get();
  check.name = plan->target;
  check.survey = plan->survey ? &*plan->survey : nullptr;
  check.accepted = request.accepted;
  check.resumable = request.resumable;
  check.is_root_of_filesystem = target.is_root_of_filesystem || nfs;
  for (Finding& finding :
       CheckTarget(check, &*plan->target_volume, &plan->holds))
    plan->findings.push_back(std::move(finding));
  plan->target_mount = std::move(mounted->mount);
  plan->target_root = std::move(*root);
}

}  // namespace

const char* SeverityName(Severity severity) {
  switch (severity) {
    case Severity::kNote:
      return "note";
    case Severity::kWarning:
      return "warning";
    case Severity::kBlocker:
      return "blocker";
  }
  return "blocker";
}

std::string Quote(const std::string& name) {
  return "\"" + Printable(name) + "\"";
}

bool Plan::Blocked() const {
  return Code() == Exit::kBlocked || Code() == Exit::kUnreachable;
}

Exit Plan::Code() const {
  Exit code = Exit::kDone;
  int blockers = 0;
  for (const Finding& finding : findings) {
    if (finding.severity == Severity::kBlocker)
      blockers++;
    if (finding.severity == Severity::kWarning)
      code = Exit::kWarnings;
  }
  if (blockers > 0)
    return blockers == 1 && target_away ? Exit::kUnreachable : Exit::kBlocked;
  return code;
}

Plan MakePlan(const PlanRequest& request) {
  Plan plan;
  plan.dir = request.dir;
  plan.target = request.target;
  Findings findings(&plan.findings);
  CheckMachine(&plan, &findings);
  const bool powerless = findings.Blocked();
  auto mounts = mount::MountTable::Of(0);
  if (!mounts) {
    findings.Block("mounts", mounts.error().ToString(), "mount /proc");
    return plan;
  }
  const std::optional<SourcePlace> source =
      CheckSource(request, *mounts, &plan, &findings);
  const std::optional<TargetPlace> target = CheckTargetPlace(
      request, *mounts, source ? &*source : nullptr, &plan, &findings);
  // Without privileges the rest would only be wrong.
  if (source && !powerless) {
    CheckKernelUsers(plan, *mounts, &findings);
    CheckOwnFiles(request, plan, &findings);
    CheckHolders(request, *source, *mounts, &plan, &findings);
    TakeSurvey(request, *source, &plan, &findings);
  }
  if (target && !powerless)
    MountAndCheck(request, *target, *mounts, &plan, &findings);
  std::stable_sort(plan.findings.begin(), plan.findings.end(),
                   [](const Finding& a, const Finding& b) {
                     return a.severity > b.severity;
                   });
  return plan;
}

}  // namespace livemv::daemon
