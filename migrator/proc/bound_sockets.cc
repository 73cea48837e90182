#include "migrator/proc/bound_sockets.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "core/unique_fd.h"

namespace livemv::proc {
namespace {

core::Result<core::UniqueFd> OpenDiag() {
  core::UniqueFd fd(
      socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  if (!fd)
    return core::FailSys(errno, "socket NETLINK_SOCK_DIAG");
  return fd;
}

// The socket keeps the namespace in which it was made.
core::Result<core::UniqueFd> OpenDiagIn(int proc_dir) {
  core::UniqueFd ns(openat(proc_dir, "ns/net", O_RDONLY | O_CLOEXEC));
  if (!ns)
    return core::FailSys(errno, "open ns/net");
  core::Result<core::UniqueFd> result =
      core::Fail(core::ErrorCode::kUnsupported, "enter network namespace");
  std::thread([&] {
    if (setns(ns.Get(), CLONE_NEWNET) != 0)
      result = core::FailSys(errno, "setns network namespace");
    else
      result = OpenDiag();
  }).join();
  return result;
}

void AddSocket(const nlmsghdr* header, dev_t sb_dev,
               std::map<uint64_t, SocketName>* sockets) {
  if (header->nlmsg_len < NLMSG_LENGTH(sizeof(unix_diag_msg)))
    return;
  const auto* diag = static_cast<const unix_diag_msg*>(NLMSG_DATA(header));
  size_t left = header->nlmsg_len - NLMSG_LENGTH(sizeof *diag);
  SocketName socket;
  bool on_device = false;
  const auto* attr = reinterpret_cast<const rtattr*>(
      reinterpret_cast<const char*>(diag) + NLMSG_ALIGN(sizeof *diag));
  for (; RTA_OK(attr, left); attr = RTA_NEXT(attr, left)) {
    if (attr->rta_type == UNIX_DIAG_NAME) {
      socket.name.assign(static_cast<const char*>(RTA_DATA(attr)),
                         RTA_PAYLOAD(attr));
      // The kernel gives the name with or without its NUL.
      socket.name.resize(strnlen(socket.name.data(), socket.name.size()));
    } else if (attr->rta_type == UNIX_DIAG_VFS &&
               RTA_PAYLOAD(attr) >= sizeof(unix_diag_vfs)) {
      unix_diag_vfs vfs;
      memcpy(&vfs, RTA_DATA(attr), sizeof vfs);
      // net/unix/diag.c gives the kernel's own dev_t.
      on_device = makedev(vfs.udiag_vfs_dev >> 20,
                          vfs.udiag_vfs_dev & 0xfffff) == sb_dev;
      socket.file_ino = vfs.udiag_vfs_ino;
    }
  }
  if (on_device)
    sockets->insert_or_assign(diag->udiag_ino, std::move(socket));
}

}  // namespace

core::Status BoundSockets(int proc_dir, dev_t sb_dev,
                          std::map<uint64_t, SocketName>* sockets) {
  core::UniqueFd fd;
  if (proc_dir < 0) {
    ASSIGN_OR_RETURN(fd, OpenDiag());
  } else {
    ASSIGN_OR_RETURN(fd, OpenDiagIn(proc_dir));
  }
  struct {
    nlmsghdr header;
    unix_diag_req request;
  } ask = {};
  ask.header.nlmsg_len = sizeof ask;
  ask.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  ask.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  ask.request.sdiag_family = AF_UNIX;
  ask.request.udiag_states = ~0u;
  ask.request.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS;
  if (send(fd.Get(), &ask, sizeof ask, 0) != sizeof ask)
    return core::FailSys(errno, "send to NETLINK_SOCK_DIAG");
  alignas(nlmsghdr) char buffer[32768];
  while (true) {
    const ssize_t n = recv(fd.Get(), buffer, sizeof buffer, 0);
    if (n < 0) {
      if (errno == EINTR)
        continue;
      return core::FailSys(errno, "recv from NETLINK_SOCK_DIAG");
    }
    auto left = static_cast<size_t>(n);
    const auto* header = reinterpret_cast<const nlmsghdr*>(buffer);
    for (; NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) {
      if (header->nlmsg_type == NLMSG_DONE)
        return {};
      if (header->nlmsg_type == NLMSG_ERROR) {
        // unix_diag is a module that may be absent: ENOENT.
        nlmsgerr error = {};
        if (header->nlmsg_len >= NLMSG_LENGTH(sizeof error))
          memcpy(&error, NLMSG_DATA(header), sizeof error);
        return core::FailSys(error.error != 0 ? -error.error : EPROTO,
                             "list UNIX sockets through sock_diag");
      }
      AddSocket(header, sb_dev, sockets);
    }
  }
}

}  // namespace livemv::proc
