#include "migrator/daemon/heartbeat.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace livemv::daemon {

using core::FailSys;
using core::Result;
using core::UniqueFd;

Result<UniqueFd> MakeMemFd(const char* name, size_t bytes) {
  UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd)
    return FailSys(errno, std::string("memfd ") + name);
  if (::ftruncate(fd.Get(), static_cast<off_t>(bytes)) != 0)
    return FailSys(errno, std::string("size of memfd ") + name);
  // A mapping past the end would be SIGBUS in another process.
  if (::fcntl(fd.Get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
    return FailSys(errno, std::string("seal memfd ") + name);
  return fd;
}

Result<SharedMemory> SharedMemory::Map(int fd, size_t bytes) {
  void* at =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED)
    return FailSys(errno, "mmap shared memory");
  return SharedMemory(at, bytes);
}

SharedMemory::~SharedMemory() {
  if (at_ != nullptr)
    ::munmap(at_, bytes_);
}

Result<Heartbeat> Heartbeat::Map(int fd) {
  ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Map(fd, kBytes));
  return Heartbeat(std::move(memory));
}

}  // namespace livemv::daemon
