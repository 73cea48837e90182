#include "migrator/daemon/poll_loop.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include "core/unique_fd.h"

namespace livemv::daemon {
namespace {

using core::UniqueFd;

// A callback that closes another watched descriptor, whose number is then
// another one's: what poll saw is not of that.
TEST(PollLoop, WhatWasSeenIsNotOfTheNextOwnerOfTheNumber) {
  int a[2], b[2], c[2];
  ASSERT_EQ(::pipe(a), 0);
  ASSERT_EQ(::pipe(b), 0);
  ASSERT_LT(a[0], b[0]);
  PollLoop loop;
  bool wrong = false, right = false;
  loop.Watch(a[0], POLLIN, [&] {
    char byte;
    EXPECT_EQ(::read(a[0], &byte, 1), 1);
    loop.Forget(b[0]);
    ASSERT_EQ(::pipe(c), 0);
    ASSERT_EQ(::dup2(c[0], b[0]), b[0]);
    loop.Watch(b[0], POLLIN, [&] { (right ? right : wrong) = true; });
  });
  loop.Watch(b[0], POLLIN, [&] { wrong = true; });
  ASSERT_EQ(::write(a[1], "x", 1), 1);
  ASSERT_EQ(::write(b[1], "x", 1), 1);
  ASSERT_TRUE(loop.Step(0));
  EXPECT_FALSE(wrong) << "the new pipe is empty";
  loop.Watch(b[0], POLLIN, [&] { right = true; });
  ASSERT_EQ(::write(c[1], "x", 1), 1);
  ASSERT_TRUE(loop.Step(0));
  EXPECT_TRUE(right);
  for (int fd : {a[0], a[1], b[0], b[1], c[0], c[1]})
    ::close(fd);
}

}  // namespace
}  // namespace livemv::daemon
