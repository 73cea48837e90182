#include "migrator/daemon/preflight_kernel.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "core/unique_fd.h"
#include "migrator/mount/mount_ops.h"
#include "migrator/proc/proc_files.h"

namespace livemv::daemon {
namespace {

struct Need {
  int capability;
  const char* name;
  const char* why;
};
constexpr Need kNeeds[] = {
    {CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "mount"},
    {CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "move the holders"},
    {CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE", "write every file"},
    {CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "open files by handle"},
    {CAP_CHOWN, "CAP_CHOWN", "give files their owners"},
    {CAP_FOWNER, "CAP_FOWNER", "set modes and times of others' files"},
    {CAP_FSETID, "CAP_FSETID", "keep set-id bits"},
    {CAP_MKNOD, "CAP_MKNOD", "make device nodes"},
};

uint64_t EffectiveCapabilities() {
  auto status = proc::ReadFile("/proc/self/status");
  if (!status)
    return 0;
  const size_t at = status->find("\nCapEff:");
  if (at == std::string::npos)
    return 0;
  return strtoull(status->c_str() + at + 8, nullptr, 16);
}

void CheckPrivileges(Findings* findings) {
  if (geteuid() != 0) {
    findings->Block("not-root", "livemv is not run by root",
                    "run it with sudo");
    return;
  }
  const uint64_t have = EffectiveCapabilities();
  std::string missing;
  for (const Need& need : kNeeds) {
    if ((have >> need.capability & 1) != 0)
      continue;
    if (!missing.empty())
      missing += ", ";
    missing += std::string(need.name) + " (to " + need.why + ")";
  }
  if (!missing.empty())
    findings->Block("capabilities", "root lacks " + missing,
                    "run it outside the container or service that drops them");
  auto map = proc::ReadFile("/proc/self/uid_map");
  unsigned long inside = 1, outside = 1, count = 0;
  if (map &&
      sscanf(map->c_str(), "%lu %lu %lu", &inside, &outside, &count) == 3 &&
      !(inside == 0 && outside == 0 && count == 4294967295ul))
    findings->Block("user-namespace",
                    "this is the root of a user namespace, not of the host",
                    "run it on the host");
  auto pids = proc::ReadLink(AT_FDCWD, "/proc/self/ns/pid");
  // include/linux/proc_ns.h: PROC_PID_INIT_INO.
  if (pids && *pids != "pid:[4026531836]")
    findings->Warn("pid-namespace",
                   "livemv runs in a process namespace of its own and sees "
                   "only the holders inside it",
                   "run it on the host if others use the directory");
}

void CheckFuse(Findings* findings) {
  core::UniqueFd fuse(open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (fuse)
    return;
  if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
    findings->Block("no-fuse", "there is no usable /dev/fuse",
                    "load the module: modprobe fuse");
  else
    findings->Block("no-fuse",
                    "/dev/fuse cannot be opened: " + core::ErrnoName(errno),
                    "allow root to open /dev/fuse (device cgroup, sandbox)");
}

void CheckTracing(Findings* findings) {
  if (syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILES, 0, 0) != 0)
    findings->Block(
        "no-kcmp",
        "the kernel does not answer kcmp(2): " + core::ErrnoName(errno) +
            ", so shared descriptors cannot be told",
        "use a kernel with CONFIG_KCMP");
  core::UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  if (!pidfd)
    findings->Block(
        "no-pidfd",
        "the kernel does not answer pidfd_open(2): " + core::ErrnoName(errno),
        "use Linux 5.6 or later");
  auto scope = proc::ReadFile("/proc/sys/kernel/yama/ptrace_scope");
  if (scope && scope->starts_with('3'))
    findings->Block("ptrace-off",
                    "kernel.yama.ptrace_scope is 3: no process can be traced "
                    "until the next boot",
                    "boot with another ptrace_scope");
}

void CheckWeaker(const Plan& plan, Findings* findings) {
  int major = 0;
  int minor = 0;
  if (!ParseKernelRelease(plan.kernel, &major, &minor))
    return;
  auto before = [&](int a, int b) {
    return major < a || (major == a && minor < b);
  };
  if (before(6, 1))
    findings->Warn("old-kernel",
                   "Linux " + plan.kernel +
                       " is older than the oldest "
                       "supported one, 6.1",
                   "use Linux 6.1 or later");
  if (before(6, 6))
    findings->Note("weaker-mmap",
                   "Linux before 6.6 has no shared mappings of uncached files: "
                   "while attaching, files are cached and invalidated when the "
                   "redirect starts");
  if (before(6, 9))
    findings->Note("weaker-passthrough",
                   "Linux before 6.9 has no FUSE passthrough: files made during "
                   "the migration are served by livemv's worker too, which "
                   "costs tens of microseconds a write");
  if (before(6, 9))
    findings->Note("weaker-resend",
                   "Linux before 6.9 does not resend requests: if livemv's "
                   "worker is killed, the calls that it had taken and not "
                   "answered wait until the overlay is gone");
}

}  // namespace

bool ParseKernelRelease(const std::string& release, int* major, int* minor) {
  return sscanf(release.c_str(), "%d.%d", major, minor) == 2;
}

void CheckMachine(Plan* plan, Findings* findings) {
  struct utsname name = {};
  if (uname(&name) == 0)
    plan->kernel = name.release;
  CheckPrivileges(findings);
  // The rest cannot be told without privileges.
  if (findings->Blocked())
    return;
  CheckFuse(findings);
  CheckTracing(findings);
  if (!mount::HasFsopen())
    findings->Block("no-fsopen",
                    "the kernel lacks fsopen(2) or mount_setattr(2)",
                    "use Linux 5.12 or later");
  if (!mount::MakeRealMountOps()->HasBeneath())
    findings->Note("weaker-swap",
                   "the kernel cannot mount beneath a mount (Linux 6.5): at "
                   "cutover the target is mounted over the overlay while all "
                   "holders stand still, and a process that comes anew in "
                   "that moment sees the target before it is committed");
  CheckWeaker(*plan, findings);
}

}  // namespace livemv::daemon
