// The system calls that the overlay and the copier make, where a filesystem does
// not do what is expected. Needs root and loop devices.

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <string>

#include "core/syscalls.h"
#include "core/unique_fd.h"
#include "tests/support/loop_volumes.h"

namespace livemv::core {
namespace {

class RealSyscalls : public LoopVolumes {};

// What a listing is asked for after the overlay has closed the directory in
// between: first the end, then from the beginning.
TEST_F(RealSyscalls, ADirectoryReadAtItsEndFirstIsListedFromTheBeginning) {
  ASSERT_NO_FATAL_FAILURE(Volume("disk", 16));
  const std::string dir = base_ + "/disk/dir";
  std::filesystem::create_directory(dir);
  for (const char* name : {"a", "b", "c"})
    std::ofstream(dir + "/" + name) << name;
  auto sys = MakeRealSyscalls();
  UniqueFd fd(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  auto end = sys->ReadDir(fd.Get(), INT64_MAX, 4096);
  ASSERT_TRUE(end);
  EXPECT_TRUE(end->empty());
  for (int i = 0; i < 2; ++i) {
    auto all = sys->ReadDir(fd.Get(), 0, 4096);
    ASSERT_TRUE(all);
    EXPECT_EQ(all->size(), 5u) << "look " << i;
  }
}

}  // namespace
}  // namespace livemv::core
