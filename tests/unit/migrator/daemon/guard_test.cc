#include "migrator/daemon/guard.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace livemv::daemon {
namespace {

namespace fs = std::filesystem;

class Guard : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/livemv-guard-test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    root_ = name;
    ::setenv("LIVEMV_SYSTEMD", name, 1);
    settings_.id = "abcdef";
    settings_.dir = "/srv/job";
    settings_.target = "nas:/job";
    settings_.registry = "/run/livemv";
    settings_.state_dir = "/var/lib/livemv/abcdef";
  }
  void TearDown() override {
    ::unsetenv("LIVEMV_SYSTEMD");
    fs::remove_all(root_);
  }
  static std::string Read(const fs::path& path) {
    std::ostringstream out;
    out << std::ifstream(path).rdbuf();
    return out.str();
  }
  fs::path Units() const { return fs::path(root_) / "etc/systemd/system"; }

  std::string root_;
  Settings settings_;
};

TEST_F(Guard, KnowsWhetherTheHostWasBootedWithSystemd) {
  EXPECT_FALSE(HasSystemd());
  fs::create_directories(fs::path(root_) / "run/systemd/system");
  EXPECT_TRUE(HasSystemd());
}

TEST_F(Guard, CoversBeforeLocalFilesystemsAreSaidToBeThere) {
  const std::string unit = GuardUnit(settings_);
  EXPECT_NE(unit.find("\nDefaultDependencies=no\n"), std::string::npos);
  EXPECT_NE(unit.find("\nRequiresMountsFor=\"/srv\"\n"), std::string::npos);
  // Once livemv has it in its registry, nothing is put over it.
  EXPECT_NE(unit.find("\nConditionPathExists=!/run/livemv/abcdef\n"),
            std::string::npos);
  settings_.dir_is_mount = true;
  EXPECT_NE(GuardUnit(settings_).find("\nRequiresMountsFor=\"/srv/job\"\n"),
            std::string::npos);
  EXPECT_NE(unit.find("\nBefore=local-fs.target"), std::string::npos);
  EXPECT_NE(unit.find("ExecStart=/bin/mount -t tmpfs -o ro,"),
            std::string::npos);
  EXPECT_NE(unit.find(" livemv-guard \"/srv/job\"\n"), std::string::npos);
}

TEST_F(Guard, QuotesWhatSystemdWouldTakeForItsOwn) {
  settings_.dir = "/srv/a b/50%/$HOME/\"x\"\\y\n";
  settings_.dir_is_mount = true;
  const std::string unit = GuardUnit(settings_);
  EXPECT_NE(unit.find("livemv-guard \"/srv/a b/50%%/$$HOME/\\\"x\\\"\\\\y\\x0a\""),
            std::string::npos)
      << unit;
  EXPECT_NE(unit.find("RequiresMountsFor=\"/srv/a b/50%%/$HOME/"),
            std::string::npos)
      << unit;
}

TEST_F(Guard, InstallsAndGoesWithTheLast) {
  Settings other = settings_;
  other.id = "ghijkl";
  ASSERT_TRUE(InstallGuard(settings_, "/usr/bin/livemv"));
  ASSERT_TRUE(InstallGuard(other, "/usr/bin/livemv"));
  EXPECT_EQ(Read(Units() / "livemv-guard-abcdef.service"),
            GuardUnit(settings_));
  EXPECT_EQ(Read(Units() / "local-fs.target.wants/livemv-guard-abcdef.service"),
            GuardUnit(settings_));  // the link leads to it
  EXPECT_NE(Read(Units() / "multi-user.target.wants/livemv-recover.service")
                .find("ExecStart=\"/usr/bin/livemv\" recover --all\n"),
            std::string::npos);
  EXPECT_NE(Read(Units() / "livemv-recover.service.d/ghijkl.conf")
                .find("After=livemv-guard-ghijkl.service"),
            std::string::npos);
  ASSERT_TRUE(RemoveGuard("abcdef"));
  EXPECT_FALSE(fs::exists(Units() / "livemv-guard-abcdef.service"));
  EXPECT_TRUE(fs::exists(Units() / "livemv-recover.service"));
  ASSERT_TRUE(RemoveGuard("ghijkl"));
  ASSERT_TRUE(RemoveGuard("ghijkl"));
  int left = 0;
  for (const auto& entry : fs::recursive_directory_iterator(Units()))
    left += !entry.is_directory();
  EXPECT_EQ(left, 0);
  EXPECT_FALSE(fs::exists(Units() / "livemv-recover.service.d"));
}

}  // namespace
}  // namespace livemv::daemon
