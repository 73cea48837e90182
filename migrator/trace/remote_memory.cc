#include "migrator/trace/remote_memory.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "core/unique_fd.h"
#include "migrator/trace/arch_x86_64.h"

namespace livemv::trace {
namespace {

using core::ErrorCode;
using core::Fail;
using core::FailSys;

core::Status Failed(int err, const char* act, pid_t tid, RemotePtr at) {
  char address[32];
  std::snprintf(address, sizeof address, "0x%lx", at.address());
  std::string what = std::string(act) + " memory of thread " +
                     std::to_string(tid) + " at " + address;
  if (err == ESRCH)
    return std::unexpected(core::Error{ErrorCode::kGone, err, what});
  return FailSys(err, what);
}

// Start and length of the mapping called [vdso] in a maps file; length 0 if
// there is none.
struct Range {
  uint64_t start = 0, len = 0;
};
Range VdsoInMaps(const std::string& path) {
  core::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd)
    return {};
  std::string text;
  char buf[16384];
  for (ssize_t n; (n = ::read(fd.Get(), buf, sizeof buf)) > 0;)
    text.append(buf, static_cast<size_t>(n));
  size_t name = text.find(" [vdso]\n");
  if (name == std::string::npos)
    return {};
  size_t line = text.rfind('\n', name);
  line = line == std::string::npos ? 0 : line + 1;
  unsigned long start = 0, end = 0;
  if (std::sscanf(text.c_str() + line, "%lx-%lx", &start, &end) != 2)
    return {};
  return {start, end - start};
}

// Our own vdso. One kernel gives every 64-bit process the same image, so a
// comparison with ours tells for certain what lies at an address.
const std::string& OwnVdso() {
  static const std::string image = [] {
    Range range = VdsoInMaps("/proc/self/maps");
    return std::string(reinterpret_cast<const char*>(range.start), range.len);
  }();
  return image;
}

bool IsVdso(const RemoteMemory& memory, RemotePtr at) {
  const std::string& own = OwnVdso();
  if (own.size() <= Gadget().size() || !at)
    return false;
  std::string there(own.size() - Gadget().size(), '\0');
  return memory.Read(at, there.data(), there.size()) &&
         own.compare(0, there.size(), there) == 0;
}

}  // namespace

core::Status RemoteMemory::Read(RemotePtr from, void* to, size_t len) const {
  struct iovec local = {to, len};
  struct iovec remote = {reinterpret_cast<void*>(from.address()), len};
  ssize_t n = ::process_vm_readv(tid_, &local, 1, &remote, 1, 0);
  if (n == static_cast<ssize_t>(len))
    return {};
  return Failed(n < 0 ? errno : EFAULT, "read", tid_, from);
}

core::Status RemoteMemory::Write(RemotePtr to, const void* from,
                                 size_t len) const {
  struct iovec local = {const_cast<void*>(from), len};
  struct iovec remote = {reinterpret_cast<void*>(to.address()), len};
  ssize_t n = ::process_vm_writev(tid_, &local, 1, &remote, 1, 0);
  if (n == static_cast<ssize_t>(len))
    return {};
  return Failed(n < 0 ? errno : EFAULT, "write", tid_, to);
}

core::Status RemoteMemory::WriteForced(RemotePtr to, const void* from,
                                       size_t len) const {
  std::string path = "/proc/" + std::to_string(pid_) + "/task/" +
                     std::to_string(tid_) + "/mem";
  core::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd)
    return FailSys(errno, "open " + path);
  ssize_t n = ::pwrite(fd.Get(), from, len, static_cast<off_t>(to.address()));
  if (n == static_cast<ssize_t>(len))
    return {};
  return Failed(n < 0 ? errno : EFAULT, "write", tid_, to);
}

core::Result<RemotePtr> RemoteMemory::FindVdso() const {
  std::string task =
      "/proc/" + std::to_string(pid_) + "/task/" + std::to_string(tid_);
  core::UniqueFd fd(::open((task + "/auxv").c_str(), O_RDONLY | O_CLOEXEC));
  if (fd) {
    Elf64_auxv_t entries[64];
    ssize_t n = ::read(fd.Get(), entries, sizeof entries);
    for (size_t i = 0; i < static_cast<size_t>(n > 0 ? n : 0) / sizeof *entries;
         ++i) {
      RemotePtr at(entries[i].a_un.a_val);
      if (entries[i].a_type == AT_SYSINFO_EHDR && IsVdso(*this, at))
        return at;
    }
  }
  // A restored or sandboxed process may have moved it.
  RemotePtr at(VdsoInMaps(task + "/maps").start);
  if (IsVdso(*this, at))
    return at;
  return Fail(ErrorCode::kUnsupported,
              "process " + std::to_string(pid_) +
                  " has no vdso of this kernel (a 32-bit program?)");
}

core::Result<RemotePtr> RemoteMemory::PutTrampoline() const {
  ASSIGN_OR_RETURN(RemotePtr vdso, FindVdso());
  std::span<const uint8_t> gadget = Gadget();
  RemotePtr at = vdso + (OwnVdso().size() - gadget.size());
  std::vector<uint8_t> there(gadget.size());
  TRY(Read(at, there.data(), there.size()));
  // Present already after an earlier move, or inherited by fork.
  if (!std::ranges::equal(there, gadget)) {
    if (std::ranges::any_of(there, [](uint8_t byte) { return byte != 0; }))
      return Fail(ErrorCode::kUnsupported,
                  "the vdso of process " + std::to_string(pid_) +
                      " has no unused bytes at its end");
    TRY(WriteForced(at, gadget.data(), gadget.size()));
  }
  return at + TrampolineOffset();
}

}  // namespace livemv::trace
