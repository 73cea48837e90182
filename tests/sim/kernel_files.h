#pragma once

// The kernel's side of FUSE passthrough: numbers for open objects, and which
// inode is open in which mode (fs/fuse/backing.c, fs/fuse/iomode.c).
//
// Thread contract: fibers of one thread.

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "fusefs/fs_core.h"
#include "fusefs/passthrough.h"
#include "tests/sim/model.h"
#include "tests/support/fake_syscalls.h"

namespace livemv::sim {

class KernelFiles final : public fusefs::BackingIds {
 public:
  // wrong: told of what the kernel would refuse.
  KernelFiles(fake::FakeSyscalls* sys,
              std::function<void(const std::string&)> wrong)
      : sys_(sys), wrong_(std::move(wrong)) {}
  core::Result<uint32_t> Open(int fd) override;
  void Close(uint32_t id) override;

  // An open of node was answered: under its second number, or the first.
  std::shared_ptr<OpenFile> Opened(const Node& node, int flags, bool second,
                                   const fusefs::OpenReply& reply);
  // Descriptors that outlive the worker.
  std::set<int> Held() const;
  // The connection is gone.
  void Clear() { numbers_.clear(); }

 private:
  fake::FakeSyscalls* const sys_;
  const std::function<void(const std::string&)> wrong_;
  std::map<uint32_t, std::shared_ptr<core::UniqueFd>> numbers_;
  // All that ever had a number, which open files or mappings may hold still.
  std::set<std::weak_ptr<core::UniqueFd>, std::owner_less<>> objects_;
  uint32_t last_ = 0;
};

}  // namespace livemv::sim
