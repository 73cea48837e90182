#pragma once

// A test with small ext4 filesystems on loop devices, taken away afterwards.
// Skips where there is no root and where there are no loop devices.
//
// Thread contract: one thread.

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

namespace livemv {

// Exit code; -1 if it did not exit.
inline int RunTool(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& word : words)
    argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid == 0) {
    execvp(argv[0], argv.data());
    _exit(127);
  }
  int status = -1;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Standard output without the newlines at its end.
inline std::string Output(const std::string& command) {
  std::string text;
  FILE* pipe = popen(command.c_str(), "r");
  char buffer[256];
  while (pipe != nullptr && fgets(buffer, sizeof buffer, pipe) != nullptr)
    text += buffer;
  if (pipe != nullptr)
    pclose(pipe);
  while (text.ends_with('\n'))
    text.pop_back();
  return text;
}

class LoopVolumes : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0)
      GTEST_SKIP() << "SKIPPED for want of: root (mounts)";
    if (access("/dev/loop-control", F_OK) != 0)
      GTEST_SKIP() << "SKIPPED for want of: loop devices (/dev/loop-control)";
    char name[] = "/tmp/livemv-volumes-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    base_ = name;
  }
  void TearDown() override {
    for (auto it = mounts_.rbegin(); it != mounts_.rend(); ++it)
      umount2(it->c_str(), MNT_DETACH);
    for (const std::string& loop : loops_)
      RunTool({"losetup", "-d", loop});
    if (!base_.empty())
      std::filesystem::remove_all(base_);
  }
  // A new filesystem at base_/name.
  void Volume(const std::string& name, int mb) {
    const std::string image = base_ + "/" + name + ".img";
    ASSERT_EQ(RunTool({"truncate", "-s", std::to_string(mb) + "M", image}), 0);
    ASSERT_EQ(RunTool({"mkfs.ext4", "-q", "-F", "-b", "1024", image}), 0);
    const std::string loop = Output("losetup --show -f " + image);
    ASSERT_TRUE(loop.starts_with("/dev/")) << loop;
    loops_.push_back(loop);
    const std::string point = base_ + "/" + name;
    std::filesystem::create_directory(point);
    ASSERT_EQ(::mount(loop.c_str(), point.c_str(), "ext4", 0, ""), 0);
    mounts_.push_back(point);
  }
  void Mounted(const std::string& point) { mounts_.push_back(point); }

  std::string base_;
  std::vector<std::string> mounts_;
  std::vector<std::string> loops_;
};

}  // namespace livemv
