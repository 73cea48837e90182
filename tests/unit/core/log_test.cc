#include "core/log.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

namespace livemv::core {
namespace {

class Log : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/livemv-log-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    dir_ = name;
    path_ = dir_ + "/log";
  }
  void TearDown() override {
    ReleaseLogs();
    StartLog("", "test");
    unlink(path_.c_str());
    rmdir(dir_.c_str());
  }
  std::string Content() const {
    std::ifstream in(path_);
    std::ostringstream out;
    out << in.rdbuf();
    return out.str();
  }
  std::string dir_, path_;
};

TEST_F(Log, LinesGoToAPrivateFileWithTheRole) {
  StartLog(path_, "worker");
  LOG_INFO("attached {} in {} us", "/srv/data", 17);
  EXPECT_NE(Content().find("worker["), std::string::npos);
  EXPECT_NE(Content().find(" info attached /srv/data in 17 us\n"),
            std::string::npos);
  struct stat st;
  ASSERT_EQ(stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
}

TEST_F(Log, AFileIsAppendedToNotReplaced) {
  StartLog(path_, "worker");
  LOG_INFO("first");
  StartLog(path_, "worker");
  LOG_INFO("second");
  EXPECT_NE(Content().find("first"), std::string::npos);
  EXPECT_NE(Content().find("second"), std::string::npos);
}

TEST_F(Log, HeldLinesAreWrittenInOrderAtTheRelease) {
  StartLog(path_, "tracer");
  LOG_INFO("before");
  HoldLogs();
  LOG_INFO("held one");
  LOG_ERROR("held two");
  EXPECT_EQ(Content().find("held"), std::string::npos);
  ReleaseLogs();
  std::string text = Content();
  size_t before = text.find("before"), one = text.find("held one"),
         two = text.find("held two");
  ASSERT_NE(two, std::string::npos);
  EXPECT_LT(before, one);
  EXPECT_LT(one, two);
  LOG_INFO("after");
  EXPECT_NE(Content().find("after"), std::string::npos);
}

TEST_F(Log, HoldingKeepsABoundedNumberOfLines) {
  StartLog(path_, "tracer");
  HoldLogs();
  for (int i = 0; i < 5000; i++)
    LOG_INFO("line {}.", i);
  ReleaseLogs();
  std::string text = Content();
  EXPECT_NE(text.find("line 4095."), std::string::npos);
  EXPECT_EQ(text.find("line 4096."), std::string::npos);
}

TEST_F(Log, AFileThatCannotBeOpenedDoesNotStopTheProgram) {
  StartLog(dir_ + "/no/such/dir/log", "worker");
  LOG_INFO("this goes to standard error");
}

TEST_F(Log, ABrokenInvariantIsInTheLogEvenWhileHeld) {
  EXPECT_DEATH(
      {
        StartLog(path_, "tracer");
        HoldLogs();
        LOG_INFO("held line");
        CHECK(1 + 1 == 3);
      },
      "broken invariant: 1 \\+ 1 == 3");
  EXPECT_NE(Content().find("held line"), std::string::npos);
  EXPECT_NE(Content().find("broken invariant: 1 + 1 == 3"), std::string::npos);
}

}  // namespace
}  // namespace livemv::core
