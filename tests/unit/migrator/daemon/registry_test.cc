#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrator/daemon/registry.h"
#include "migrator/daemon/small_files.h"

namespace livemv::daemon {
namespace {

class RegistryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/livemv_registry_XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    base_ = name;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(base_)); }

  Registration Entry(const std::string& id, const std::string& dir,
                     const std::string& target) {
    return {id, dir, target, "/var/lib/livemv/" + id, 4711};
  }

  std::string base_;
};

TEST_F(RegistryTest, FindsByIdByDirAndByAPathBelow) {
  Registry registry(base_ + "/run");
  auto alive = registry.Add(Entry("abc234", "/srv/app", "nas:/x"));
  ASSERT_TRUE(alive) << alive.error().ToString();
  for (const char* key : {"abc234", "/srv/app", "/srv/app/", "/srv/app/sub/f"}) {
    auto found = registry.Find(key);
    ASSERT_TRUE(found) << key;
    EXPECT_EQ(found->id, "abc234");
    EXPECT_EQ(found->target, "nas:/x");
    EXPECT_EQ(found->supervisor_pid, 4711);
  }
  EXPECT_EQ(registry.Find("/srv/apple").error().code, core::ErrorCode::kGone);
  EXPECT_EQ(registry.Find("zzzzzz").error().code, core::ErrorCode::kGone);
}

TEST_F(RegistryTest, KnowsADeadSupervisorByItsLock) {
  Registry registry(base_ + "/run");
  auto alive = registry.Add(Entry("abc234", "/srv/app", "nas:/x"));
  ASSERT_TRUE(alive);
  EXPECT_TRUE(registry.Find("abc234")->alive);
  alive->Reset();
  EXPECT_FALSE(registry.Find("abc234")->alive);
}

TEST_F(RegistryTest, RefusesASecondStartOnTheSameTreeOrTarget) {
  Registry registry(base_ + "/run");
  auto alive = registry.Add(Entry("abc234", "/srv/app", "/mnt/nas/app"));
  ASSERT_TRUE(alive);
  auto conflict = [&](const char* dir, const char* target) {
    core::Status status = registry.CheckFree(dir, target);
    return !status && status.error().code == core::ErrorCode::kConflict &&
           status.error().what.find("abc234") != std::string::npos;
  };
  EXPECT_TRUE(conflict("/srv/app", "nas:/y"));
  EXPECT_TRUE(conflict("/srv/app/sub", "nas:/y"));
  EXPECT_TRUE(conflict("/srv", "nas:/y"));
  EXPECT_TRUE(conflict("/srv/other", "/mnt/nas/app"));
  EXPECT_TRUE(conflict("/srv/other", "/mnt/nas"));
  EXPECT_TRUE(conflict("/srv/other", "/srv/app/in"));
  EXPECT_TRUE(conflict("/mnt/nas/app", "nas:/y"));
  EXPECT_TRUE(registry.CheckFree("/srv/other", "/mnt/nas/other"));
  EXPECT_TRUE(registry.CheckFree("/srv/apple", "nas:/mnt/nas/app"));
}

TEST_F(RegistryTest, TwoNfsTargetsCollideOnlyOnOneHost) {
  Registry registry(base_ + "/run");
  auto alive = registry.Add(Entry("abc234", "/srv/app", "nas:/x"));
  ASSERT_TRUE(alive);
  EXPECT_FALSE(registry.CheckFree("/srv/b", "nas:/x"));
  EXPECT_FALSE(registry.CheckFree("/srv/b", "nas:/x/sub"));
  EXPECT_TRUE(registry.CheckFree("/srv/b", "nas2:/x"));
  EXPECT_TRUE(registry.CheckFree("/srv/b", "nas:/xy"));
}

TEST_F(RegistryTest, PathsWithSpacesAndNewlinesSurvive) {
  Registry registry(base_ + "/run");
  auto alive = registry.Add(Entry("abc234", "/srv/a b\n\"c\"", "nas:/x y"));
  ASSERT_TRUE(alive);
  EXPECT_EQ(registry.Find("abc234")->dir, "/srv/a b\n\"c\"");
}

TEST_F(RegistryTest, RemovedEntriesAreGoneAndTheTreeIsFreeAgain) {
  Registry registry(base_ + "/run");
  auto alive = registry.Add(Entry("abc234", "/srv/app", "nas:/x"));
  ASSERT_TRUE(alive);
  registry.Remove("abc234");
  EXPECT_TRUE(registry.List().empty());
  EXPECT_TRUE(registry.CheckFree("/srv/app", "nas:/x"));
  EXPECT_NE(::access((base_ + "/run/abc234").c_str(), F_OK), 0);
}

TEST_F(RegistryTest, ABrokenEntryIsReportedAndHidesNoOther) {
  Registry registry(base_ + "/run");
  auto alive = registry.Add(Entry("abc234", "/srv/app", "nas:/x"));
  ASSERT_TRUE(alive);
  ASSERT_EQ(::mkdir((base_ + "/run/bbbbbb").c_str(), 0700), 0);
  ASSERT_TRUE(ReplaceFile(base_ + "/run/bbbbbb/info.json", "{\"dir\":"));
  std::vector<std::string> broken;
  auto all = registry.List(&broken);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].id, "abc234");
  EXPECT_EQ(broken.size(), 1u);
}

TEST_F(RegistryTest, NewIdsAreShortAndDiffer) {
  Registry registry(base_ + "/run");
  std::string a = *registry.NewId(), b = *registry.NewId();
  EXPECT_TRUE(LooksLikeId(a));
  EXPECT_NE(a, b);
  EXPECT_FALSE(LooksLikeId("ABCDEF"));
  EXPECT_FALSE(LooksLikeId("../../"));
}

TEST(SmallFiles, RemoveTreeTakesATreeAndNotItsLinks) {
  char name[] = "/tmp/livemv_small_XXXXXX";
  ASSERT_NE(::mkdtemp(name), nullptr);
  const std::string base = name;
  ASSERT_TRUE(MakeDirectories(base + "/keep", 0700));
  ASSERT_TRUE(MakeDirectories(base + "/gone/deep/er", 0700));
  ASSERT_TRUE(ReplaceFile(base + "/keep/file", "x"));
  ASSERT_EQ(::symlink((base + "/keep").c_str(), (base + "/gone/l").c_str()), 0);
  ASSERT_TRUE(RemoveTree(base + "/gone"));
  EXPECT_NE(::access((base + "/gone").c_str(), F_OK), 0);
  EXPECT_EQ(*ReadSmallFile(base + "/keep/file"), "x");
  ASSERT_TRUE(RemoveTree(base));
  EXPECT_TRUE(RemoveTree(base));
}

}  // namespace
}  // namespace livemv::daemon
