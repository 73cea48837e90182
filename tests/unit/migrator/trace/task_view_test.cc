#include "migrator/trace/task_view.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace livemv::trace {
namespace {

// It ends in a message.
TEST(TaskViewTest, WhereAThreadWaitsIsOneLine) {
  auto tasks = MakeTaskView();
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  pid_t child = ::fork();
  if (child == 0) {
    char byte;
    ::close(ends[1]);
    (void)!::read(ends[0], &byte, 1);
    ::_exit(0);
  }
  while (tasks->Stat(child, child)->state != 'S')
    ::sched_yield();
  EXPECT_TRUE(tasks->WaitsIn(child, child).starts_with("system call 0"));
  EXPECT_EQ(tasks->WaitsIn(child, child).find('\n'), std::string::npos);
  ::close(ends[1]);
  ::waitpid(child, nullptr, 0);
  child = ::fork();
  while (child == 0) {
  }
  while (tasks->CurrentCall(child, child))
    ::sched_yield();
  EXPECT_EQ(tasks->WaitsIn(child, child), "in no system call");
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(ends[0]);
}

}  // namespace
}  // namespace livemv::trace
