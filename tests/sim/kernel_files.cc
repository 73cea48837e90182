#include "tests/sim/kernel_files.h"

#include <fcntl.h>

#include <cerrno>

namespace livemv::sim {

core::Result<uint32_t> KernelFiles::Open(int fd) {
  auto object = std::make_shared<core::UniqueFd>(sys_->Dup(fd));
  if (!*object)
    return core::FailSys(EBADF, "backing");
  objects_.insert(object);
  numbers_[++last_] = std::move(object);
  return last_;
}

void KernelFiles::Close(uint32_t id) {
  if (numbers_.erase(id) == 0)
    wrong_("backing number " + std::to_string(id) + " is closed twice");
}

std::shared_ptr<OpenFile> KernelFiles::Opened(const Node& node, int flags,
                                              bool second,
                                              const fusefs::OpenReply& reply) {
  auto file = std::make_shared<OpenFile>();
  file->fh = reply.fh;
  file->second = second;
  file->flags = flags;
  const std::string who = "open of " + std::to_string(node.id);
  if (reply.backing != 0) {
    auto it = numbers_.find(reply.backing);
    if (it == numbers_.end())
      wrong_(who + ": EIO, no backing number " + std::to_string(reply.backing));
    else
      file->backing = it->second;
  }
  for (const auto& other : node.opens) {
    if (other->second != second)
      continue;
    if (other->backing && !file->backing)
      wrong_(who + ": EINVAL, others have it direct");
    else if (other->backing && other->backing != file->backing)
      wrong_(who + ": EBUSY, others have another object");
    else if (!other->backing && file->backing)
      wrong_(who + ": ETXTBSY, others have it from the worker");
  }
  return file;
}

std::set<int> KernelFiles::Held() const {
  std::set<int> fds;
  for (const auto& object : objects_)
    if (auto fd = object.lock())
      fds.insert(fd->Get());
  return fds;
}

}  // namespace livemv::sim
