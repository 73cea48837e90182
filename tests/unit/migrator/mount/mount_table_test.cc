#include "migrator/mount/mount_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/sysmacros.h>
#include <unistd.h>

namespace livemv::mount {
namespace {

using ::testing::ElementsAre;

MountTable Table(std::string_view text) {
  auto table = MountTable::Parse(text);
  EXPECT_TRUE(table) << table.error().ToString();
  return table ? *table : MountTable();
}

constexpr std::string_view kRoot =
    "26 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard\n";

TEST(MountTable, ReadsEveryField) {
  MountTable t = Table(
      "36 35 98:7 /sub /mnt/a rw,nosuid,noatime shared:5 master:1 "
      "propagate_from:2 unbindable - fuse.livemv name ro,allow_other\n");
  ASSERT_EQ(t.entries().size(), 1u);
  const MountEntry& e = t.entries()[0];
  EXPECT_EQ(e.id, 36u);
  EXPECT_EQ(e.parent, 35u);
  EXPECT_EQ(e.dev, makedev(98, 7));
  EXPECT_EQ(e.root, "/sub");
  EXPECT_EQ(e.point, "/mnt/a");
  EXPECT_EQ(e.shared, 5u);
  EXPECT_EQ(e.master, 1u);
  EXPECT_EQ(e.propagate_from, 2u);
  EXPECT_TRUE(e.unbindable);
  EXPECT_EQ(e.fs_type, "fuse.livemv");
  EXPECT_EQ(e.source, "name");
  EXPECT_EQ(e.super_options, "ro,allow_other");
  EXPECT_TRUE(e.HasOption("nosuid"));
  EXPECT_FALSE(e.HasOption("suid"));
  EXPECT_FALSE(e.HasOption("noexec"));
}

TEST(MountTable, DecodesBlanksNewlinesAndBackslashes) {
  MountTable t = Table(
      "1 0 8:1 / /a\\040b\\012c\\134d\\011e rw - ext4 /dev/x\\043y rw\n");
  EXPECT_EQ(t.entries()[0].point, "/a b\nc\\d\te");
  EXPECT_EQ(t.entries()[0].source, "/dev/x#y");
}

TEST(MountTable, AnEmptySourceIsNotTakenForTheOptions) {
  MountTable t = Table("1 0 0:5 / /x rw - tmpfs  rw,size=4k\n");
  EXPECT_EQ(t.entries()[0].source, "");
  EXPECT_EQ(t.entries()[0].super_options, "rw,size=4k");
}

TEST(MountTable, RefusesWhatIsNotMountinfo) {
  for (std::string_view bad :
       {"nonsense", "1 2 3:4 / / rw ext4 /dev/a rw", "x 2 3:4 / / rw - e s o",
        "1 2 34 / / rw - ext4 s o", "1 2 3:4 / - ext4 s o"}) {
    auto table = MountTable::Parse(bad);
    ASSERT_FALSE(table) << bad;
    EXPECT_EQ(table.error().code, core::ErrorCode::kCorrupt);
  }
}

TEST(MountTable, WalkEndsOnTheTopOfAStack) {
  MountTable t = Table(std::string(kRoot) +
                       "40 26 7:0 / /data rw - ext4 /dev/loop0 rw\n"
                       "41 40 0:50 / /data rw - fuse.livemv /data rw\n"
                       "42 41 7:1 / /data/deep rw - ext4 /dev/loop1 rw\n");
  EXPECT_EQ(t.Walk("/data/file")->id, 41u);
  EXPECT_EQ(t.Walk("/data/deep/x")->id, 42u);
  EXPECT_EQ(t.Walk("/database")->id, 26u);
  EXPECT_EQ(t.TopAt("/data")->id, 41u);
  EXPECT_EQ(t.TopAt("/data/file"), nullptr);
  EXPECT_EQ(t.DepthAt("/data"), 2u);
}

TEST(MountTable, AMountSlidBeneathIsNotTheTopThoughItIsNewer) {
  // After MOVE_MOUNT_BENEATH the overlay's parent is the newer mount.
  MountTable t = Table(std::string(kRoot) +
                       "41 55 0:50 / /data rw - fuse.livemv /data rw\n"
                       "55 26 0:60 / /data rw - nfs4 nas:/x rw\n");
  EXPECT_EQ(t.TopAt("/data")->id, 41u);
}

TEST(MountTable, AMountCoveredByOneHigherUpIsNotReached) {
  MountTable t = Table(std::string(kRoot) +
                       "40 26 7:0 / /a/b rw - ext4 /dev/loop0 rw\n"
                       "41 26 7:1 / /a rw - ext4 /dev/loop1 rw\n");
  EXPECT_EQ(t.Walk("/a/b/c")->id, 41u);
  EXPECT_EQ(t.TopAt("/a/b"), nullptr);
}

TEST(MountTable, AChrootedTableWithoutARootMountIsWalked) {
  MountTable t = Table("40 26 7:0 / /a rw - ext4 /dev/loop0 rw\n");
  EXPECT_EQ(t.Walk("/a/x")->id, 40u);
  EXPECT_EQ(t.Walk("/b"), nullptr);
}

TEST(MountTable, SaysWhereAPathLiesInItsFilesystem) {
  MountTable t = Table(std::string(kRoot) +
                       "40 26 7:0 /vol/x /data rw - ext4 /dev/loop0 rw\n");
  EXPECT_EQ(*t.PathInFilesystem("/data/d"), "/vol/x/d");
  EXPECT_EQ(*t.PathInFilesystem("/data"), "/vol/x");
  EXPECT_EQ(*t.PathInFilesystem("/home/u"), "/home/u");
  EXPECT_EQ(*t.PathInFilesystem("/"), "/");
}

TEST(MountTable, FindsEveryDoorToADirectory) {
  MountTable t =
      Table(std::string(kRoot) +
            "40 26 7:0 / /vol rw - ext4 /dev/loop0 rw\n"
            "41 26 7:0 /work /bind rw - ext4 /dev/loop0 rw\n"
            "42 26 7:0 /work/sub /part rw - ext4 /dev/loop0 rw\n"
            "43 26 7:0 /worker /other rw - ext4 /dev/loop0 rw\n"
            "44 26 7:1 /work /elsewhere rw - ext4 /dev/loop1 rw\n"
            "45 41 0:50 / /bind rw - fuse.livemv x rw\n");
  std::vector<Door> doors = t.DoorsTo(makedev(7, 0), "/work");
  ASSERT_EQ(doors.size(), 3u);
  EXPECT_EQ(doors[0].path, "/vol/work");
  EXPECT_EQ(doors[0].kind, Door::Kind::kWhole);
  EXPECT_FALSE(doors[0].covered);
  EXPECT_EQ(doors[1].path, "/bind");
  EXPECT_TRUE(doors[1].covered);
  EXPECT_EQ(doors[2].path, "/part");
  EXPECT_EQ(doors[2].kind, Door::Kind::kPart);
}

TEST(MountTable, FindsTheMountsBelow) {
  MountTable t = Table(std::string(kRoot) +
                       "40 26 7:0 / /data rw - ext4 /dev/loop0 rw\n"
                       "41 40 7:1 / /data/in rw - ext4 /dev/loop1 rw\n"
                       "42 26 7:2 / /database rw - ext4 /dev/loop2 rw\n");
  std::vector<MountEntry> below = t.Below("/data");
  ASSERT_EQ(below.size(), 1u);
  EXPECT_EQ(below[0].id, 41u);
}

TEST(MountTable, IsWithinComparesWholeComponents) {
  EXPECT_TRUE(IsWithin("/a/b", "/a"));
  EXPECT_TRUE(IsWithin("/a", "/a"));
  EXPECT_FALSE(IsWithin("/ab", "/a"));
  EXPECT_TRUE(IsWithin("/a", "/"));
}

TEST(MountTable, ReadsThisProcess) {
  auto table = MountTable::Of(0);
  ASSERT_TRUE(table) << table.error().ToString();
  EXPECT_NE(table->Walk("/proc/self"), nullptr);
  EXPECT_EQ(table->Walk("/proc/self")->fs_type, "proc");
}

TEST(MountTable, SaysThatAProcessIsGone) {
  auto table = MountTable::Of(0x3fffffff);
  ASSERT_FALSE(table);
  EXPECT_EQ(table.error().code, core::ErrorCode::kGone);
}

}  // namespace
}  // namespace livemv::mount
