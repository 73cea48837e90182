#include "core/unique_fd.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace livemv::core {
namespace {

class CountingCloser final : public FdCloser {
 public:
  void CloseFd(int fd) noexcept override { closed.push_back(fd); }
  std::vector<int> closed;
};

TEST(UniqueFd, ClosesOnceThroughTheSeamItCameFrom) {
  CountingCloser closer;
  {
    UniqueFd a(1'000'001, &closer);
    UniqueFd b = std::move(a);
    EXPECT_FALSE(a);
    EXPECT_EQ(b.Get(), 1'000'001);
    b = UniqueFd(1'000'002, &closer);
    EXPECT_EQ(closer.closed, (std::vector<int>{1'000'001}));
  }
  EXPECT_EQ(closer.closed, (std::vector<int>{1'000'001, 1'000'002}));
}

TEST(UniqueFd, AReleasedNumberIsNotClosed) {
  CountingCloser closer;
  {
    UniqueFd fd(1'000'001, &closer);
    EXPECT_EQ(fd.Release(), 1'000'001);
  }
  EXPECT_TRUE(closer.closed.empty());
}

TEST(UniqueFd, AssigningADescriptorToItselfKeepsIt) {
  CountingCloser closer;
  UniqueFd fd(1'000'001, &closer);
  UniqueFd& same = fd;
  fd = std::move(same);
  EXPECT_EQ(fd.Get(), 1'000'001);
  EXPECT_TRUE(closer.closed.empty());
}

TEST(UniqueFd, WithoutASeamTheKernelsIsClosed) {
  int number = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(number, 0);
  { UniqueFd fd(number); }
  EXPECT_EQ(fcntl(number, F_GETFD), -1);
}

}  // namespace
}  // namespace livemv::core
