#include "core/fault_points.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>

namespace livemv::core {
namespace {

class FaultPoints : public testing::Test {
 protected:
  void TearDown() override { EXPECT_TRUE(ArmFaults("")); }
};

TEST_F(FaultPoints, AnUnarmedPointIsOk) {
  EXPECT_TRUE(FaultPoint("nobody.armed.this"));
  ASSERT_TRUE(ArmFaults("other=error:5"));
  EXPECT_TRUE(FaultPoint("nobody.armed.this"));
}

TEST_F(FaultPoints, AnErrorComesAtEveryPassage) {
  ASSERT_TRUE(ArmFaults("a.b=error:28;c=error:5"));
  for (int i = 0; i < 3; i++) {
    auto status = FaultPoint("a.b");
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().sys_errno, ENOSPC);
    EXPECT_NE(status.error().what.find("a.b"), std::string::npos);
  }
  EXPECT_EQ(FaultPoint("c").error().sys_errno, EIO);
}

TEST_F(FaultPoints, OrAtTheNthPassageOnly) {
  ASSERT_TRUE(ArmFaults("a=error:5@3"));
  EXPECT_TRUE(FaultPoint("a"));
  EXPECT_TRUE(FaultPoint("a"));
  EXPECT_FALSE(FaultPoint("a"));
  EXPECT_TRUE(FaultPoint("a"));
}

TEST_F(FaultPoints, ArmingReplacesWhatWasArmed) {
  ASSERT_TRUE(ArmFaults("a=error:5"));
  ASSERT_TRUE(ArmFaults("b=error:5"));
  EXPECT_TRUE(FaultPoint("a"));
  EXPECT_FALSE(FaultPoint("b"));
}

TEST_F(FaultPoints, OnceInAllProcessesAndNotBeforeItsDirectoryExists) {
  const std::string dir =
      testing::TempDir() + "once-" + std::to_string(::getpid());
  const std::string spec = "a=error:5@2;b=error:28;once=" + dir;
  ASSERT_TRUE(ArmFaults(spec));
  for (int i = 0; i < 3; i++)
    EXPECT_TRUE(FaultPoint("a"));
  ASSERT_TRUE(std::filesystem::create_directory(dir));
  EXPECT_TRUE(FaultPoint("a"));
  EXPECT_FALSE(FaultPoint("a"));
  ASSERT_TRUE(ArmFaults(spec));  // as a successor does
  for (int i = 0; i < 3; i++)
    EXPECT_TRUE(FaultPoint("a"));
  EXPECT_FALSE(FaultPoint("b"));
  EXPECT_TRUE(FaultPoint("b"));
  EXPECT_TRUE(std::filesystem::exists(dir + "/a"));
  std::filesystem::remove_all(dir);
}

TEST_F(FaultPoints, ADelayWaitsThatLong) {
  ASSERT_TRUE(ArmFaults("a=delay:20"));
  auto begin = std::chrono::steady_clock::now();
  EXPECT_TRUE(FaultPoint("a"));
  EXPECT_GE(std::chrono::steady_clock::now() - begin,
            std::chrono::milliseconds(20));
}

TEST_F(FaultPoints, ASpecThatCannotBeReadIsRefusedAndArmsNothing) {
  ASSERT_TRUE(ArmFaults("a=error:5"));
  for (const char* bad :
       {"a", "a=explode", "=error:5", "a=error:", "a=error:x", "a=error:0",
        "a=error:5@", "a=error:5@0", "a=error:5@x", "a=delay:-1",
        "a=delay:", "a=kill9", "a=error:5x"}) {
    auto status = ArmFaults(bad);
    ASSERT_FALSE(status) << bad;
    EXPECT_EQ(status.error().code, ErrorCode::kInvalid) << bad;
    EXPECT_FALSE(FaultPoint("a")) << "what was armed stays";
  }
}

TEST(FaultPointsDeathTest, KillIsSigkill) {
  EXPECT_EXIT(
      {
        (void)ArmFaults("a=kill@2");
        (void)FaultPoint("a");
        (void)FaultPoint("a");
        exit(0);
      },
      testing::KilledBySignal(SIGKILL), "");
}

TEST(FaultPointsDeathTest, AMisspeltEnvironmentStopsTheProgram) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        setenv("LIVEMV_FAULTS", "attach.freeze=explode", 1);
        (void)FaultPoint("any");
      },
      testing::ExitedWithCode(64), "LIVEMV_FAULTS cannot be read");
}

}  // namespace
}  // namespace livemv::core
