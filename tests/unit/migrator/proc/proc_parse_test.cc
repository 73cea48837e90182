#include "migrator/proc/proc_parse.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/sysmacros.h>

#include <random>
#include <string>

namespace livemv::proc {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

TEST(ProcParse, StatWithParenthesesAndNewlineInTheName) {
  auto stat = ParseStat(
      "4711 (a) S 1 (\nb) S 12 4711 4711 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 "
      "3 0 987654 1000 200 18446744073709551615 1 1 0\n");
  ASSERT_TRUE(stat);
  EXPECT_EQ(stat->pid, 4711);
  EXPECT_EQ(stat->comm, "a) S 1 (\nb");
  EXPECT_EQ(stat->state, 'S');
  EXPECT_EQ(stat->ppid, 12);
  EXPECT_EQ(stat->flags, 4194560u);
  EXPECT_EQ(stat->threads, 3);
  EXPECT_EQ(stat->start_time, 987654u);
}

TEST(ProcParse, KernelThreadIsToldByItsFlag) {
  auto stat = ParseStat(
      "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0 0\n");
  ASSERT_TRUE(stat);
  EXPECT_NE(stat->flags & kPfKernelThread, 0u);
}

TEST(ProcParse, StatThatIsCutOffIsRefused) {
  EXPECT_FALSE(ParseStat(""));
  EXPECT_FALSE(ParseStat("12 (x"));
  EXPECT_FALSE(ParseStat("12 (x) S 1 2 3"));
  EXPECT_FALSE(ParseStat("twelve (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13"));
}

TEST(ProcParse, Status) {
  auto status = ParseStatus(
      "Name:\tbash\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t77\nNgid:\t0\n"
      "Pid:\t78\nPPid:\t1\nTracerPid:\t99\nUid:\t1000\t1001\t1000\t1000\n"
      "Gid:\t0\t0\t0\t0\nSeccomp:\t2\n");
  ASSERT_TRUE(status);
  EXPECT_EQ(status->tgid, 77);
  EXPECT_EQ(status->pid, 78);
  EXPECT_EQ(status->tracer, 99);
  EXPECT_EQ(status->uid, 1000u);
  EXPECT_EQ(status->euid, 1001u);
  EXPECT_EQ(status->seccomp, 2);
  EXPECT_FALSE(ParseStatus("Name:\tbash\n"));
}

constexpr char kMaps[] =
    "55d0c0000000-55d0c0001000 r--p 00000000 fe:00 1234     /usr/bin/my prog\n"
    "55d0c0001000-55d0c0002000 r-xp 00001000 fe:00 1234     /usr/bin/my prog\n"
    "7f4c701b0000-7f4c701b1000 rw-s 00002000 08:11 99       /d/a\\012b "
    "(deleted)\n"
    "7f4c701bd000-7f4c701be000 rw-s 00000000 00:12 16070    /[aio] (deleted)\n"
    "7ffc11111000-7ffc11132000 rw-p 00000000 00:00 0        [stack]\n";

TEST(ProcParse, MapsOfOneDevice) {
  std::vector<MapLine> maps = ParseMaps(kMaps, makedev(0x08, 0x11));
  ASSERT_THAT(maps, SizeIs(1));
  EXPECT_EQ(maps[0].start, 0x7f4c701b0000u);
  EXPECT_EQ(maps[0].end, 0x7f4c701b1000u);
  EXPECT_TRUE(maps[0].read && maps[0].write && maps[0].shared);
  EXPECT_FALSE(maps[0].exec);
  EXPECT_EQ(maps[0].offset, 0x2000u);
  EXPECT_EQ(maps[0].ino, 99u);
  EXPECT_EQ(maps[0].path, "/d/a\nb (deleted)");
}

TEST(ProcParse, MapsOfAllDevicesLeaveAnonymousMemoryOut) {
  std::vector<MapLine> maps = ParseMaps(kMaps, 0);
  ASSERT_THAT(maps, SizeIs(4));
  EXPECT_EQ(maps[1].path, "/usr/bin/my prog");
  EXPECT_TRUE(maps[1].exec);
  EXPECT_FALSE(maps[1].shared);
}

TEST(ProcParse, AioContextsAreSeenInMaps) {
  EXPECT_TRUE(MapsShowAio(kMaps));
  EXPECT_FALSE(MapsShowAio("1000-2000 rw-p 0 00:00 0\n"));
  // A file of that name has a directory before it.
  EXPECT_FALSE(MapsShowAio("1000-2000 rw-p 0 08:00 5    /tmp/[aio]\n"));
}

TEST(ProcParse, MountInfoWithEscapesAndOptionalFields) {
  std::vector<MountLine> mounts = ParseMountInfo(
      "26 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n"
      "40 26 254:0 /home/a\\040b /srv/x\\012y rw,nosuid shared:5 master:7 "
      "propagate_from:2 - ext4 /dev/vda rw\n"
      "bad line\n"
      "41 26 0:50 / /mnt rw - fuse.sshfs u@h:/p rw\n");
  ASSERT_THAT(mounts, SizeIs(3));
  EXPECT_EQ(mounts[0].dev, makedev(254, 0));
  EXPECT_EQ(mounts[0].shared, 0);
  EXPECT_EQ(mounts[1].root, "/home/a b");
  EXPECT_EQ(mounts[1].point, "/srv/x\ny");
  EXPECT_EQ(mounts[1].options, "rw,nosuid");
  EXPECT_EQ(mounts[1].shared, 5);
  EXPECT_EQ(mounts[1].master, 7);
  EXPECT_EQ(mounts[2].type, "fuse.sshfs");
  EXPECT_EQ(mounts[2].source, "u@h:/p");
}

TEST(ProcParse, OctalEscapes) {
  EXPECT_EQ(UnescapeOctal("a\\040b\\134c"), "a b\\c");
  EXPECT_EQ(UnescapeOctal("\\377"), "\377");
  EXPECT_EQ(UnescapeOctal("\\400\\08\\04"), "\\400\\08\\04");
}

TEST(ProcParse, Locks) {
  std::vector<LockLine> locks = ParseLocks(
      "1: POSIX  ADVISORY  WRITE 8204 fe:00:10952887 5 14\n"
      "1: -> POSIX  ADVISORY  READ 8205 fe:00:10952887 0 EOF\n"
      "2: OFDLCK ADVISORY  READ -1 fe:00:10952887 20 24\n"
      "3: FLOCK  ADVISORY  WRITE 10 00:2f:7 0 EOF\n"
      "4: LEASE  ACTIVE    READ 11 fe:00:9 0 EOF\n"
      "5: POSIX  ADVISORY  WRITE 1 <none>:0 0 EOF\n");
  ASSERT_THAT(locks, SizeIs(5));
  EXPECT_EQ(locks[0].kind, LockKind::kPosix);
  EXPECT_TRUE(locks[0].write);
  EXPECT_EQ(locks[0].pid, 8204);
  EXPECT_EQ(locks[0].dev, makedev(0xfe, 0));
  EXPECT_EQ(locks[0].ino, 10952887u);
  EXPECT_EQ(locks[0].start, 5u);
  EXPECT_EQ(locks[0].end, 14u);
  EXPECT_TRUE(locks[1].waiting);
  EXPECT_EQ(locks[1].end, UINT64_MAX);
  EXPECT_EQ(locks[2].kind, LockKind::kOfd);
  EXPECT_EQ(locks[2].pid, -1);
  EXPECT_EQ(locks[3].kind, LockKind::kFlock);
  EXPECT_EQ(locks[3].dev, makedev(0, 0x2f));
  EXPECT_EQ(locks[4].kind, LockKind::kLease);
}

TEST(ProcParse, FdInfoWithLocks) {
  auto info = ParseFdInfo(
      "pos:\t123456789012\nflags:\t02102002\nmnt_id:\t26\nino:\t10952887\n"
      "lock:\t1: POSIX  ADVISORY  WRITE 8204 fe:00:10952887 5 14\n"
      "lock:\t2: OFDLCK ADVISORY  READ -1 fe:00:10952887 20 24\n");
  ASSERT_TRUE(info);
  EXPECT_EQ(info->pos, 123456789012);
  EXPECT_EQ(info->flags & O_CLOEXEC, O_CLOEXEC);
  EXPECT_EQ(info->flags & O_APPEND, O_APPEND);
  EXPECT_EQ(info->flags & O_ACCMODE, O_RDWR);
  EXPECT_EQ(info->mnt_id, 26);
  EXPECT_EQ(info->ino, 10952887u);
  EXPECT_THAT(info->locks, SizeIs(2));
  EXPECT_FALSE(ParseFdInfo("pos:\t1\n"));
}

TEST(ProcParse, FdInfoOfInotifyAndFanotify) {
  auto info = ParseFdInfo(
      "pos:\t0\nflags:\t00\nmnt_id:\t17\nino:\t1038\n"
      "inotify wd:1 ino:3c51a sdev:fe00000 mask:fff ignored_mask:0 "
      "fhandle-bytes:8 fhandle-type:1 f_handle:1ac5030000000000\n"
      "fanotify flags:0 event-flags:8000\n"
      "fanotify sdev:fe00000 mflags:0 mask:2 ignored_mask:0\n"
      "fanotify mnt_id:1a mflags:0 mask:2 ignored_mask:0\n");
  ASSERT_TRUE(info);
  ASSERT_THAT(info->watches, SizeIs(3));
  EXPECT_EQ(info->watches[0].wd, 1);
  EXPECT_EQ(info->watches[0].ino, 0x3c51au);
  EXPECT_EQ(info->watches[0].sdev, makedev(254, 0));
  EXPECT_EQ(info->watches[0].handle_type, 1);
  EXPECT_EQ(info->watches[0].handle, std::string("\x1a\xc5\x03\0\0\0\0\0", 8));
  EXPECT_TRUE(info->watches[1].fanotify);
  EXPECT_EQ(info->watches[1].ino, 0u);
  EXPECT_EQ(info->watches[2].mnt_id, 26);
}

TEST(ProcParse, FdInfoOfEpollAndIoUring) {
  auto epoll = ParseFdInfo(
      "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n"
      "tfd:        5 events:       1f data:                5  pos:0 "
      "ino:a720b8 sdev:fe00000\n");
  ASSERT_TRUE(epoll);
  ASSERT_THAT(epoll->epoll, SizeIs(1));
  EXPECT_EQ(epoll->epoll[0].fd, 5);
  EXPECT_EQ(epoll->epoll[0].ino, 0xa720b8u);
  auto ring = ParseFdInfo(
      "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1\nSqMask:\t0x7\n"
      "UserFiles:\t3\n    0: /tmp/x\\040y\n    2: /tmp/z\nUserBufs:\t1\n"
      "    0: 0x1000/4096\nPollList:\n");
  ASSERT_TRUE(ring);
  EXPECT_THAT(ring->ring_files, ElementsAre("/tmp/x y", "/tmp/z"));
}

TEST(ProcParse, SwapsLoopsExportsAndFilesystems) {
  std::vector<SwapLine> swaps = ParseSwaps(
      "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
      "/swap\\040file                          file\t\t1048572\t0\t-2\n"
      "/dev/sda2                               partition\t999\t0\t-3\n");
  ASSERT_THAT(swaps, SizeIs(2));
  EXPECT_EQ(swaps[0].path, "/swap file");
  EXPECT_TRUE(swaps[0].is_file);
  EXPECT_FALSE(swaps[1].is_file);
  EXPECT_EQ(ParseLoopBackingFile("/a b\nc\n"), "/a b\nc");
  EXPECT_FALSE(ParseLoopBackingFile("\n"));
  EXPECT_THAT(ParseNfsdExports("# Version 1.1\n# Path Client(Flags) # IPs\n"
                               "/srv/a\\040b\t*(rw,sync)\n"),
              ElementsAre("/srv/a b"));
  EXPECT_THAT(ParseFilesystems("nodev\tsysfs\n\text4\nnodev\tnfs4\n"),
              ElementsAre("sysfs", "ext4", "nfs4"));
  EXPECT_THAT(ParseSwaps("Filename Type\n"), IsEmpty());
}

// Every parser survives what a damaged or hostile text may hold.
void ParseWithEverything(const std::string& text) {
  ParseStat(text);
  ParseStatus(text);
  ParseMaps(text, 0);
  ParseMaps(text, makedev(8, 1));
  MapsShowAio(text);
  ParseMountInfo(text);
  ParseLocks(text);
  ParseFdInfo(text);
  ParseSwaps(text);
  ParseLoopBackingFile(text);
  ParseNfsdExports(text);
  ParseFilesystems(text);
}

TEST(ProcParse, DamagedTextsNeitherCrashNorGrow) {
  const std::string seeds[] = {
      kMaps,
      "4711 (a) S 12 4711 4711 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 3 0 98\n",
      "40 26 254:0 /home/a\\040b /srv rw shared:5 - ext4 /dev/vda rw\n",
      "pos:\t0\nflags:\t02\nUserFiles:\t3\n    0: /x\\040y\n    2: /z\ntfd: 5 "
      "ino:a sdev:fe00000\ninotify wd:1 ino:3c sdev:fe "
      "f_handle:1ac5\nlock:\t1: "
      "-> POSIX ADVISORY WRITE 8204 fe:00:10952887 5 14\n",
      "Filename Type\n/swap\\040f file 1 2 3\n",
  };
  std::mt19937 random(20260722);
  for (int round = 0; round < 20000; ++round) {
    std::string text = seeds[random() % std::size(seeds)];
    const unsigned edits = 1 + random() % 6;
    for (unsigned i = 0; i < edits && !text.empty(); ++i) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, random() % 9);
          break;
        case 2:
          text.insert(at, "99999999999999999999999");
          break;
        default:
          text.resize(at);
      }
    }
    ParseWithEverything(text);
    EXPECT_LE(ParseMountInfo(text).size(), text.size());
  }
}

}  // namespace
}  // namespace livemv::proc
