#include "migrator/mount/target_mount.h"

#include <fcntl.h>
#include <libmount/libmount.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "migrator/mount/mount_ops_calls.h"
#include "migrator/mount/mount_table.h"

namespace livemv::mount {

using core::ErrorCode;
using core::Fail;
using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;

namespace {

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// One message: text, and a descriptor if fd >= 0.
void Send(int socket, const std::string& text, int fd) {
  iovec iov{const_cast<char*>(text.data()), text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  if (fd >= 0) {
    msg.msg_control = control;
    msg.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&msg);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  // A parent that does not listen any more has given up on us.
  if (::sendmsg(socket, &msg, MSG_NOSIGNAL) < 0)
    ::_exit(1);
}

// The child: its mounts are its own, so what it mounts ends with it.
[[noreturn]] void MountAndSend(int socket, const std::string& target,
                               const std::string& options,
                               const std::string& scratch) {
  int err = CallUnshareMounts();
  if (err == 0)
    err = CallMakePrivate(AT_FDCWD, "/", true);
  if (err < 0) {
    Send(socket, std::string("own mount namespace: ") + std::strerror(-err),
         -1);
    ::_exit(1);
  }
  libmnt_context* context = mnt_new_context();
  if (context == nullptr)
    ::_exit(1);
  // Nobody else sees this mount, so no utab entry is to be made for it.
  mnt_context_disable_mtab(context, 1);
  mnt_context_set_fstype(context, "nfs");
  mnt_context_set_source(context, target.c_str());
  mnt_context_set_target(context, scratch.c_str());
  if (!options.empty() &&
      mnt_context_set_options(context, options.c_str()) != 0) {
    Send(socket, "the options cannot be read: " + options, -1);
    ::_exit(1);
  }
  int result = mnt_context_mount(context);
  char why[512] = "";
  int code = mnt_context_get_excode(context, result, why, sizeof why);
  if (code != 0) {
    Send(socket, why[0] != '\0' ? why : "mount.nfs gave exit code " +
                                            std::to_string(code),
         -1);
    ::_exit(1);
  }
  int mount = CallCloneTree(AT_FDCWD, scratch.c_str());
  if (mount >= 0)
    err = CallMakePrivate(mount, "", false);
  if (mount < 0 || err < 0) {
    Send(socket,
         std::string("copy of the mount: ") +
             std::strerror(mount < 0 ? -mount : -err),
         -1);
    ::_exit(1);
  }
  // The copy is in no table, the original is in ours.
  std::string shown;
  if (auto table = MountTable::Of(0))
    if (const MountEntry* entry = table->TopAt(scratch))
      shown = entry->fs_type + " " + entry->super_options;
  Send(socket, shown, mount);
  ::_exit(0);
}

// What the helper printed, on one line.
std::string Drain(int pipe) {
  std::string text;
  char buf[1024];
  ssize_t n;
  while (text.size() < 4096 && (n = ::read(pipe, buf, sizeof buf)) > 0)
    text.append(buf, static_cast<size_t>(n));
  while (!text.empty() && text.back() == '\n')
    text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ';');
  return text;
}

// What the helper says in words only: 0 unless it could not reach the server.
int ErrnoIn(const std::string& text) {
  for (int err : {ETIMEDOUT, EHOSTUNREACH, ECONNREFUSED, ENETUNREACH, EHOSTDOWN})
    if (text.find(::strerrordesc_np(err)) != std::string::npos)
      return err;
  return 0;
}

struct Answer {
  std::string text;
  UniqueFd fd;
};

Result<Answer> Receive(int socket) {
  char text[1024];
  iovec iov{text, sizeof text};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof control;
  ssize_t n = ::recvmsg(socket, &msg, MSG_CMSG_CLOEXEC);
  if (n < 0)
    return FailSys(errno, "recvmsg");
  Answer answer;
  answer.text.assign(text, static_cast<size_t>(n));
  cmsghdr* header = CMSG_FIRSTHDR(&msg);
  if (header != nullptr && header->cmsg_type == SCM_RIGHTS) {
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    answer.fd = UniqueFd(fd);
  }
  return answer;
}

}  // namespace

bool IsNfsName(const std::string& target) {
  if (target.empty() || target[0] == '/' || target[0] == '.')
    return false;
  // A ':' inside the brackets of an IPv6 address is never followed by '/'.
  size_t colon = target.find(":/");
  return colon != std::string::npos && colon > 0 &&
         target.find('/') == colon + 1;
}

Status HasNfsClient() {
  // fsopen loads the module if there is one.
  int fd = CallFsOpen("nfs4");
  if (fd < 0)
    fd = CallFsOpen("nfs");
  if (fd < 0)
    return Fail(ErrorCode::kUnsupported,
                "this kernel has no NFS client (fsopen nfs4: " +
                    core::ErrnoName(-fd) +
                    "); use a kernel that has one, or mount the target "
                    "yourself and name its directory");
  ::close(fd);
  for (const char* path : {"/sbin/mount.nfs", "/usr/sbin/mount.nfs"})
    if (::access(path, X_OK) == 0)
      return {};
  return Fail(ErrorCode::kUnsupported,
              "mount.nfs is not installed; on Debian: apt install nfs-common");
}

Result<TargetMount> MountNfs(const std::string& target,
                             const std::string& options,
                             const std::string& scratch, int64_t timeout_ns) {
  int sockets[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
    return FailSys(errno, "socketpair");
  UniqueFd ours(sockets[0]);
  UniqueFd theirs(sockets[1]);
  int pipes[2];
  if (::pipe2(pipes, O_CLOEXEC | O_NONBLOCK) < 0)
    return FailSys(errno, "pipe");
  UniqueFd said(pipes[0]);
  UniqueFd says(pipes[1]);
  pid_t child = ::fork();
  if (child < 0)
    return FailSys(errno, "fork");
  if (child == 0) {
    ::setpgid(0, 0);
    ::dup2(says.Get(), STDOUT_FILENO);
    ::dup2(says.Get(), STDERR_FILENO);
    ::setenv("LC_ALL", "C", 1);  // its words are read
    MountAndSend(theirs.Get(), target, options, scratch);
  }
  ::setpgid(child, child);  // whichever of the two comes first
  theirs.Reset();
  says.Reset();

  int64_t deadline = NowNs() + timeout_ns;
  pollfd wait_for{ours.Get(), POLLIN, 0};
  int ready = 0;
  for (;;) {
    int64_t left_ms = (deadline - NowNs()) / 1'000'000;
    ready = ::poll(&wait_for, 1,
                   static_cast<int>(std::clamp<int64_t>(left_ms, 0, 60'000)));
    if (ready > 0 || (ready < 0 && errno != EINTR) || NowNs() >= deadline)
      break;
  }
  if (ready <= 0) {
    // The group: mount.nfs too. It may be in an uninterruptible wait, so it
    // is not waited for; the supervisor reaps it when it ends.
    ::kill(-child, SIGKILL);
    std::string text = Drain(said.Get());
    return Fail(ErrorCode::kTimeout,
                "mount " + target + ": no answer in " +
                    std::to_string(timeout_ns / 1'000'000'000) + " s" +
                    (text.empty() ? "" : " (" + text + ")"));
  }
  auto answer = Receive(ours.Get());
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!answer)
    return Fail(std::move(answer).error().With("mount " + target));
  if (!answer->fd) {
    std::string text = Drain(said.Get());
    std::string why = answer->text;
    if (!text.empty())
      why += (why.empty() ? "" : "; ") + text;
    core::Error error = core::Error::Of(
        ErrorCode::kInvalid,
        "mount " + target + ": " +
            (why.empty() ? "the mounting process died" : why));
    error.sys_errno = ErrnoIn(why);
    return Fail(std::move(error));
  }
  const size_t space = answer->text.find(' ');
  TargetMount mounted;
  mounted.mount = MountFd(std::move(answer->fd));
  if (space != std::string::npos) {
    mounted.fs_type = answer->text.substr(0, space);
    mounted.options = answer->text.substr(space + 1);
  }
  return mounted;
}

Result<MountFd> CloneCovered(const std::string& path, size_t covers) {
  int sockets[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
    return FailSys(errno, "socketpair");
  UniqueFd ours(sockets[0]);
  UniqueFd theirs(sockets[1]);
  pid_t child = ::fork();
  if (child < 0)
    return FailSys(errno, "fork");
  if (child == 0) {
    int err = CallUnshareMounts();
    if (err == 0)
      err = CallMakePrivate(AT_FDCWD, "/", true);
    for (size_t i = 0; i < covers && err == 0; i++)
      err = CallDetach(path.c_str());
    int mount = err == 0 ? CallCloneTree(AT_FDCWD, path.c_str()) : err;
    if (mount >= 0 && (err = CallMakePrivate(mount, "", false)) < 0)
      mount = err;
    Send(theirs.Get(), mount < 0 ? std::strerror(-mount) : "", mount);
    ::_exit(0);
  }
  theirs.Reset();
  auto answer = Receive(ours.Get());
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!answer)
    return Fail(std::move(answer).error().With("what is beneath " + path));
  if (!answer->fd)
    return Fail(ErrorCode::kInvalid,
                "copy what is mounted beneath " + path + ": " +
                    (answer->text.empty() ? "the process for it died"
                                          : answer->text));
  return MountFd(std::move(answer->fd));
}

}  // namespace livemv::mount
