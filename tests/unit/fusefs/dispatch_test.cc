#include "fusefs/dispatch.h"

#include <dirent.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "core/fault_points.h"
#include "fusefs/fuse_wire.h"
#include "tests/support/fuse_bench.h"

namespace livemv::fusefs {
namespace {

using fake::Bytes;
using fake::FuseReply;
using fake::Name;

class DispatchTest : public testing::Test, protected fake::FuseBench {
 protected:
  void SetUp() override {
    ASSERT_TRUE(StartFirst());
    Init();
  }
  void TearDown() override {
    // Nothing was left without a reply; two replies abort the fake.
    EXPECT_EQ(kernel.Unanswered(), 0u);
  }
  uint64_t MakeFile(const std::string& name, uint32_t mode = 0644) {
    FuseReply reply =
        kernel.Ask(FUSE_MKNOD, 1,
                   Bytes(fuse_mknod_in{S_IFREG | mode, 0, 0, 0}) + Name(name));
    EXPECT_EQ(reply.err, 0);
    return reply.As<fuse_entry_out>().nodeid;
  }
};

TEST_F(DispatchTest, LookupRepliesTheNumberTheInodeAndTheTimeouts) {
  uint64_t id = MakeFile("f");
  FuseReply reply = kernel.Ask(FUSE_LOOKUP, 1, Name("f"));
  auto entry = reply.As<fuse_entry_out>();
  EXPECT_EQ(entry.nodeid, id);
  EXPECT_EQ(entry.attr.ino, id + 1000);
  EXPECT_EQ(entry.attr.blksize, 4096u);
  EXPECT_EQ(entry.entry_valid, 60u);
  EXPECT_EQ(entry.attr_valid, 60u);
}

TEST_F(DispatchTest, AMissingNameIsCachedOnlyWhereCachingIsAllowed) {
  FuseReply cached = kernel.Ask(FUSE_LOOKUP, 1, Name("none"));
  EXPECT_EQ(cached.err, 0);
  EXPECT_EQ(cached.As<fuse_entry_out>().nodeid, 0u);
  EXPECT_EQ(cached.As<fuse_entry_out>().entry_valid, 60u);
  core.seconds = 0;
  EXPECT_EQ(kernel.Ask(FUSE_LOOKUP, 1, Name("none")).err, ENOENT);
}

TEST_F(DispatchTest, LookupOfDotFindsAnyLivingNumber) {
  uint64_t id = MakeFile("f");
  FuseReply reply = kernel.Ask(FUSE_LOOKUP, id, Name("."));
  EXPECT_EQ(reply.As<fuse_entry_out>().nodeid, id);
  EXPECT_EQ(kernel.Ask(FUSE_LOOKUP, 999, Name(".")).err, ESTALE);
}

TEST_F(DispatchTest, StatxHasTheBirthTime) {
  uint64_t id = MakeFile("f");
  FuseReply reply = kernel.Ask(wire::kOpStatx, id, Bytes(wire::StatxIn{}));
  ASSERT_EQ(reply.body.size(), sizeof(wire::StatxOut));
  auto out = reply.As<wire::StatxOut>();
  EXPECT_TRUE(out.stat.mask & STATX_BTIME);
  EXPECT_EQ(out.stat.btime.sec, 12345);
  EXPECT_EQ(out.stat.ino, id + 1000);
  EXPECT_EQ(out.attr_valid, 60u);
  EXPECT_EQ(kernel.Ask(wire::kOpStatx, 999, Bytes(wire::StatxIn{})).err,
            ESTALE);
}

TEST_F(DispatchTest, WhatIsNotBuiltIsRefusedByName) {
  uint64_t id = MakeFile("f");
  EXPECT_EQ(
      kernel.Ask(wire::kOpTmpFile, 1, Bytes(fuse_create_in{}) + Name("t")).err,
      EOPNOTSUPP);
  // These two are remembered by the kernel, which then copies by splice.
  EXPECT_EQ(
      kernel.Ask(FUSE_COPY_FILE_RANGE, id, Bytes(fuse_copy_file_range_in{}))
          .err,
      ENOSYS);
  EXPECT_EQ(
      kernel.Ask(wire::kOpCopyFileRange64, id, Bytes(fuse_copy_file_range_in{}))
          .err,
      ENOSYS);
  fuse_ioctl_in ioctl{};
  ioctl.cmd = 0x80086601;  // FS_IOC_GETFLAGS
  ioctl.out_size = 8;
  EXPECT_EQ(kernel.Ask(FUSE_IOCTL, id, Bytes(ioctl)).err, ENOTTY);
  fuse_fallocate_in falloc{};
  falloc.length = 4096;
  falloc.mode = FALLOC_FL_COLLAPSE_RANGE;
  EXPECT_EQ(kernel.Ask(FUSE_FALLOCATE, id, Bytes(falloc)).err, EOPNOTSUPP);
  falloc.mode = FALLOC_FL_KEEP_SIZE;
  EXPECT_EQ(kernel.Ask(FUSE_FALLOCATE, id, Bytes(falloc)).err, 0);
  EXPECT_EQ(kernel.Ask(wire::kOpSyncFs, 1, std::string(8, '\0')).err, 0);
  EXPECT_EQ(kernel.Ask(FUSE_DESTROY, 0).err, 0);
}

TEST_F(DispatchTest, ForgetAndInterruptAreNotAnswered) {
  uint64_t id = MakeFile("f");
  const int calls = core.calls;
  kernel.Send(FUSE_FORGET, id, Bytes(fuse_forget_in{1}));
  kernel.Send(FUSE_INTERRUPT, 0, Bytes(fuse_interrupt_in{2}));
  // In order behind them, and the fake aborts at a reply that nobody awaits.
  EXPECT_EQ(kernel.Ask(FUSE_GETATTR, 1, std::string(16, '\0')).err, 0);
  EXPECT_EQ(core.calls, calls + 1);
}

TEST_F(DispatchTest, SetAttrPassesTheFlagsThatLibfuseDrops) {
  uint64_t id = MakeFile("f");
  fuse_setattr_in in{};
  in.valid = FATTR_SIZE | wire::kFattrKillSuidgid | FATTR_MTIME_NOW |
             FATTR_MTIME | FATTR_ATIME;
  in.size = 7;
  in.atime = 5;
  in.atimensec = 6;
  FuseReply reply = kernel.Ask(FUSE_SETATTR, id, Bytes(in));
  EXPECT_EQ(reply.As<fuse_attr_out>().attr.size, 7u);
  EXPECT_TRUE(core.last_change.kill_suidgid);
  EXPECT_EQ(core.last_change.mtime->tv_nsec, UTIME_NOW);
  EXPECT_EQ(core.last_change.atime->tv_sec, 5);
  EXPECT_EQ(core.last_change.atime->tv_nsec, 6);
  EXPECT_FALSE(core.last_change.mode || core.last_change.uid);
}

TEST_F(DispatchTest, WriteAndOpenPassTheirKillFlags) {
  uint64_t id = MakeFile("f");
  fuse_write_in in{};
  in.size = 3;
  in.flags = O_WRONLY | O_SYNC;
  in.write_flags = wire::kWriteKillSuidgid;
  FuseReply reply = kernel.Ask(FUSE_WRITE, id, Bytes(in) + "abc");
  EXPECT_EQ(reply.As<fuse_write_out>().size, 3u);
  EXPECT_TRUE(core.last_write_kill);
  EXPECT_EQ(core.last_write_flags, O_WRONLY | O_SYNC);
  in.write_flags = 0;
  kernel.Ask(FUSE_WRITE, id, Bytes(in) + "abc");
  EXPECT_FALSE(core.last_write_kill);

  fuse_open_in open{O_WRONLY | O_TRUNC, wire::kOpenKillSuidgid};
  EXPECT_EQ(kernel.Ask(FUSE_OPEN, id, Bytes(open)).err, 0);
  EXPECT_TRUE(core.last_change.kill_suidgid);
  EXPECT_EQ(core.Data("f"), "");
}

TEST_F(DispatchTest, OpenRepliesTheCoresChoices) {
  uint64_t id = MakeFile("f");
  FuseReply reply = kernel.Ask(FUSE_OPEN, id, Bytes(fuse_open_in{O_RDWR, 0}));
  auto out = reply.As<fuse_open_out>();
  EXPECT_EQ(out.fh, uint64_t{O_RDWR});
  EXPECT_EQ(out.open_flags, uint32_t{FOPEN_KEEP_CACHE});
}

TEST_F(DispatchTest, DirectoryItemsThatDoNotFitComeWithTheNextCall) {
  for (int i = 0; i < 20; i++)
    MakeFile("file-with-a-long-name-" + std::to_string(i));
  for (bool plus : {false, true}) {
    std::vector<std::string> names;
    uint64_t offset = 0;
    for (int round = 0; round < 100; round++) {
      fuse_read_in in{};
      in.offset = offset;
      in.size = 600;
      FuseReply reply =
          kernel.Ask(plus ? FUSE_READDIRPLUS : FUSE_READDIR, 1, Bytes(in));
      ASSERT_EQ(reply.err, 0);
      ASSERT_LE(reply.body.size(), 600u);
      if (reply.body.empty())
        break;
      for (size_t at = 0; at < reply.body.size();) {
        size_t head = plus ? sizeof(fuse_entry_out) : 0;
        fuse_dirent item;
        memcpy(&item, reply.body.data() + at + head,
               offsetof(fuse_dirent, name));
        names.emplace_back(
            reply.body.data() + at + head + offsetof(fuse_dirent, name),
            item.namelen);
        if (plus) {
          fuse_entry_out entry;
          memcpy(&entry, reply.body.data() + at, sizeof entry);
          EXPECT_EQ(entry.nodeid, core.IdOf(names.back()));
        }
        EXPECT_EQ(item.ino, core.IdOf(names.back()) + 1000);
        EXPECT_EQ(item.type, uint32_t{DT_REG});
        offset = item.off;
        at += FUSE_DIRENT_ALIGN(head + offsetof(fuse_dirent, name) +
                                item.namelen);
      }
    }
    EXPECT_EQ(names.size(), 20u) << "plus=" << plus;
    std::sort(names.begin(), names.end());
    EXPECT_EQ(std::unique(names.begin(), names.end()), names.end());
  }
}

TEST_F(DispatchTest, XattrsHaveExactSizes) {
  uint64_t id = MakeFile("f");
  wire::SetxattrIn in{5, XATTR_CREATE, 0, 0};
  EXPECT_EQ(
      kernel.Ask(FUSE_SETXATTR, id, Bytes(in) + Name("user.a") + "value").err,
      0);
  EXPECT_EQ(
      kernel.Ask(FUSE_SETXATTR, id, Bytes(in) + Name("user.a") + "value").err,
      EEXIST);
  fuse_getxattr_in get{};
  EXPECT_EQ(kernel.Ask(FUSE_GETXATTR, id, Bytes(get) + Name("user.a"))
                .As<fuse_getxattr_out>()
                .size,
            5u);
  get.size = 4;
  EXPECT_EQ(kernel.Ask(FUSE_GETXATTR, id, Bytes(get) + Name("user.a")).err,
            ERANGE);
  get.size = 5;
  EXPECT_EQ(kernel.Ask(FUSE_GETXATTR, id, Bytes(get) + Name("user.a")).body,
            "value");
  EXPECT_EQ(kernel.Ask(FUSE_GETXATTR, id, Bytes(get) + Name("user.b")).err,
            ENODATA);
  get.size = 100;
  EXPECT_EQ(kernel.Ask(FUSE_LISTXATTR, id, Bytes(get)).body, Name("user.a"));
  EXPECT_EQ(kernel.Ask(FUSE_REMOVEXATTR, id, Name("user.a")).err, 0);
  EXPECT_EQ(kernel.Ask(FUSE_REMOVEXATTR, id, Name("user.a")).err, ENODATA);
}

TEST_F(DispatchTest, SettingAnAclForAStrangerDropsSetgid) {
  uint64_t id = MakeFile("f", 02755);
  wire::SetxattrIn in{1, 0, 0, 0};
  std::string name = Name("system.posix_acl_access");
  EXPECT_EQ(kernel.Ask(FUSE_SETXATTR, id, Bytes(in) + name + "x").err, 0);
  EXPECT_EQ(core.Attr(id).stx_mode & 07777, 02755);
  in.setxattr_flags = wire::kSetxattrAclKillSgid;
  EXPECT_EQ(kernel.Ask(FUSE_SETXATTR, id, Bytes(in) + name + "x").err, 0);
  EXPECT_EQ(core.Attr(id).stx_mode & 07777, 0755);
}

TEST_F(DispatchTest, ASetxattrWhoseSizesLieIsRefused) {
  uint64_t id = MakeFile("f");
  wire::SetxattrIn in{1000, 0, 0, 0};
  EXPECT_EQ(kernel.Ask(FUSE_SETXATTR, id, Bytes(in) + Name("user.a") + "v").err,
            EINVAL);
  EXPECT_EQ(kernel.Ask(FUSE_SETXATTR, id, Bytes(in) + "no-end").err, EINVAL);
  EXPECT_EQ(kernel.Ask(FUSE_SETXATTR, id, "short").err, EINVAL);
}

TEST_F(DispatchTest, AFaultPointSetsTheReply) {
  ASSERT_TRUE(core::ArmFaults("fuse.before_reply.getattr=error:5@1"));
  EXPECT_EQ(kernel.Ask(FUSE_GETATTR, 1, std::string(16, '\0')).err, EIO);
  EXPECT_EQ(kernel.Ask(FUSE_GETATTR, 1, std::string(16, '\0')).err, 0);
  ASSERT_TRUE(core::ArmFaults(""));
}

TEST_F(DispatchTest, AnAnsweredChangeLeavesNoIntent) {
  MakeFile("f");
  EXPECT_EQ(kernel.Ask(FUSE_UNLINK, 1, Name("f")).err, 0);
  EXPECT_EQ(kernel.Ask(FUSE_UNLINK, 1, Name("f")).err, ENOENT);
  EXPECT_TRUE(fake::Eventually([&] { return intents->Size() == 0; }));
}

TEST(Dispatch, OldKernelsSendTheShortSetxattr) {
  fake::FuseBench b(~0ull & ~(1ull << 31) & ~wire::kSetxattrExt);
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  struct {
    uint32_t size, flags;
  } in{5, 0};
  EXPECT_EQ(
      b.kernel.Ask(FUSE_SETXATTR, 1, Bytes(in) + Name("user.a") + "value").err,
      0);
  EXPECT_EQ(*b.core.GetXattr(1, "user.a"), "value");
}

}  // namespace
}  // namespace livemv::fusefs
