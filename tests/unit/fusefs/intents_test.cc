#include "fusefs/intents.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "fusefs/fuse_wire.h"
#include "tests/support/fuse_bench.h"

namespace livemv::fusefs {
namespace {

using fake::Bytes;
using fake::FuseReply;
using fake::Name;
using Phase = IntentTable::Phase;

class IntentTableTest : public testing::Test {
 protected:
  std::unique_ptr<IntentTable> Attach() {
    return std::move(*IntentTable::Attach(memory_.data(), memory_.size() * 8));
  }
  std::vector<uint64_t> memory_ =
      std::vector<uint64_t>(IntentTable::Bytes() / 8 + 1);
};

TEST_F(IntentTableTest, ARecordOutlivesItsWriter) {
  auto first = Attach();
  ASSERT_TRUE(first->Begin(2, FUSE_UNLINK, 77));
  ASSERT_TRUE(first->Begin(4, FUSE_MKDIR, 0));
  first->Complete(4, EEXIST, 9);
  ASSERT_TRUE(first->Begin(6, FUSE_RMDIR, 0));
  first->Drop(6);

  auto second = Attach();
  EXPECT_EQ(second->Size(), 2u);
  EXPECT_EQ(second->Find(2).phase, Phase::kBegun);
  EXPECT_EQ(second->Find(2).opcode, uint32_t{FUSE_UNLINK});
  EXPECT_EQ(second->Find(2).note, 77u);
  EXPECT_EQ(second->Find(4).phase, Phase::kCompleted);
  EXPECT_EQ(second->Find(4).err, EEXIST);
  EXPECT_EQ(second->Find(4).value, 9u);
  EXPECT_EQ(second->Find(6).phase, Phase::kNone);
}

TEST_F(IntentTableTest, LeftoversMakeRoomAndWhatIsInFlightDoesNot) {
  auto first = Attach();
  for (uint64_t u = 1; u <= IntentTable::kSlots; u++)
    ASSERT_TRUE(first->Begin(2 * u, FUSE_UNLINK, 0));
  auto full = first->Begin(1'000'000, FUSE_UNLINK, 0);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, core::ErrorCode::kConflict);

  auto second = Attach();
  second->Find(2);  // the oldest was handed out again: in flight
  ASSERT_TRUE(second->Begin(1'000'000, FUSE_UNLINK, 0));
  EXPECT_EQ(second->Find(2).phase, Phase::kBegun);
  EXPECT_EQ(second->Find(4).phase, Phase::kNone);  // the oldest leftover
  EXPECT_EQ(second->Find(6).phase, Phase::kBegun);
}

TEST_F(IntentTableTest, AMountsFirstWorkerStartsEmpty) {
  auto table = Attach();
  ASSERT_TRUE(table->Begin(2, FUSE_UNLINK, 0));
  table->Clear();
  EXPECT_EQ(table->Size(), 0u);
  EXPECT_EQ(Attach()->Size(), 0u);
}

TEST_F(IntentTableTest, ForeignMemoryIsRefused) {
  memory_[0] = 4711;
  auto table = IntentTable::Attach(memory_.data(), memory_.size() * 8);
  ASSERT_FALSE(table);
  EXPECT_EQ(table.error().code, core::ErrorCode::kCorrupt);
  auto small = IntentTable::Attach(memory_.data(), 8);
  ASSERT_FALSE(small);
  EXPECT_EQ(small.error().code, core::ErrorCode::kInvalid);
}

// A worker read a request and was killed at one of these points; its successor
// gets the request again. The dead worker's doing is played by hand.
enum class Killed { kBeforeTheRecord, kBeforeTheAct, kAfterTheAct, kCompleted };

std::string PrintKilled(const testing::TestParamInfo<Killed>& info) {
  switch (info.param) {
    case Killed::kBeforeTheRecord:
      return "BeforeTheRecord";
    case Killed::kBeforeTheAct:
      return "BeforeTheAct";
    case Killed::kAfterTheAct:
      return "AfterTheAct";
    default:
      return "Completed";
  }
}

class ResentTest : public testing::TestWithParam<Killed>,
                   protected fake::FuseBench {
 protected:
  static constexpr uint32_t kUser = 1000;

  void SetUp() override {
    ASSERT_TRUE(StartFirst());
    Init();
    session->Stop();
    session->Wait();
  }
  void TearDown() override {
    EXPECT_TRUE(fake::Eventually([&] { return intents->Size() == 0; }));
  }

  // Loses the request as far as the dead worker came, starts the successor and
  // returns its answer. act: what the request does, on the core.
  FuseReply AskAgain(uint32_t opcode, uint64_t nodeid, const std::string& body,
                     uint64_t note, const std::function<void()>& act,
                     uint64_t value = 0) {
    uint64_t unique = kernel.Lose(opcode, nodeid, body, kUser, kUser);
    if (GetParam() != Killed::kBeforeTheRecord) {
      EXPECT_TRUE(intents->Begin(unique, opcode, note));
    }
    if (GetParam() == Killed::kAfterTheAct || GetParam() == Killed::kCompleted)
      act();
    if (GetParam() == Killed::kCompleted)
      intents->Complete(unique, 0, value);
    EXPECT_TRUE(StartNext());
    auto reply = kernel.Wait(unique);
    EXPECT_TRUE(reply) << "opcode " << opcode;
    return reply ? *reply : FuseReply{0, ETIMEDOUT, ""};
  }
  FileId MakeFile(const std::string& name, const std::string& data = "") {
    auto entry = core.MkNod(1, name.c_str(), S_IFREG | 0644, 0, user_);
    if (!data.empty()) {
      EXPECT_TRUE(core.Write(entry->id, 0, data, 0, false));
    }
    return entry->id;
  }

  const Caller user_{kUser, kUser, 1, 0};
  const Caller root_{};
};

TEST_P(ResentTest, Unlink) {
  MakeFile("f");
  EXPECT_EQ(AskAgain(FUSE_UNLINK, 1, Name("f"), 0,
                     [&] { EXPECT_TRUE(core.Unlink(1, "f")); })
                .err,
            0);
  EXPECT_FALSE(core.Has("f"));
}

TEST_P(ResentTest, RmDir) {
  ASSERT_TRUE(core.MkDir(1, "d", 0755, user_));
  EXPECT_EQ(AskAgain(FUSE_RMDIR, 1, Name("d"), 0,
                     [&] { EXPECT_TRUE(core.RmDir(1, "d")); })
                .err,
            0);
  EXPECT_FALSE(core.Has("d"));
}

TEST_P(ResentTest, Rename) {
  FileId id = MakeFile("a");
  MakeFile("b");
  EXPECT_EQ(
      AskAgain(FUSE_RENAME, 1, Bytes(fuse_rename_in{1}) + Name("a") + Name("b"),
               0, [&] { EXPECT_TRUE(core.Rename(1, "a", 1, "b", 0)); })
          .err,
      0);
  EXPECT_FALSE(core.Has("a"));
  EXPECT_EQ(core.IdOf("b"), id);
}

TEST_P(ResentTest, RenameExchangeHappensOnce) {
  FileId a = MakeFile("a"), b = MakeFile("b");
  fuse_rename2_in in{1, RENAME_EXCHANGE, 0};
  EXPECT_EQ(
      AskAgain(
          FUSE_RENAME2, 1, Bytes(in) + Name("a") + Name("b"), a,
          [&] { EXPECT_TRUE(core.Rename(1, "a", 1, "b", RENAME_EXCHANGE)); })
          .err,
      0);
  EXPECT_EQ(core.IdOf("a"), b);
  EXPECT_EQ(core.IdOf("b"), a);
}

TEST_P(ResentTest, MkDir) {
  FuseReply reply =
      AskAgain(FUSE_MKDIR, 1, Bytes(fuse_mkdir_in{0755, 0}) + Name("d"), 0,
               [&] { EXPECT_TRUE(core.MkDir(1, "d", 0755, user_)); });
  EXPECT_EQ(reply.err, 0);
  EXPECT_EQ(reply.As<fuse_entry_out>().nodeid, core.IdOf("d"));
}

TEST_P(ResentTest, MkNodIsGivenToItsOwnerToo) {
  // The dead worker made it, as root, and had not given it away.
  const bool half = GetParam() == Killed::kAfterTheAct;
  FuseReply reply = AskAgain(
      FUSE_MKNOD, 1, Bytes(fuse_mknod_in{S_IFREG | 04755, 0, 0, 0}) + Name("f"),
      0, [&] {
        EXPECT_TRUE(core.MkNod(1, "f", S_IFREG | (half ? 0755 : 04755), 0,
                               half ? root_ : user_));
      });
  EXPECT_EQ(reply.err, 0);
  auto attr = reply.As<fuse_entry_out>().attr;
  EXPECT_EQ(attr.uid, kUser);
  EXPECT_EQ(attr.gid, kUser);
  EXPECT_EQ(attr.mode, S_IFREG | 04755u);
}

TEST_P(ResentTest, SymLink) {
  FuseReply reply = AskAgain(FUSE_SYMLINK, 1, Name("l") + Name("text"), 0, [&] {
    EXPECT_TRUE(core.SymLink(1, "l", "text", user_));
  });
  EXPECT_EQ(reply.err, 0);
  EXPECT_EQ(core.Data("l"), "text");
}

TEST_P(ResentTest, LinkHappensOnce) {
  FileId id = MakeFile("a");
  FuseReply reply = AskAgain(FUSE_LINK, 1, Bytes(fuse_link_in{id}) + Name("b"),
                             0, [&] { EXPECT_TRUE(core.Link(id, 1, "b")); });
  EXPECT_EQ(reply.err, 0);
  EXPECT_EQ(reply.As<fuse_entry_out>().nodeid, id);
  EXPECT_EQ(reply.As<fuse_entry_out>().attr.nlink, 2u);
}

TEST_P(ResentTest, CreateExclusively) {
  const int flags = O_CREAT | O_EXCL | O_RDWR;
  fuse_create_in in{};
  in.flags = flags;
  in.mode = S_IFREG | 0640;
  FuseReply reply = AskAgain(FUSE_CREATE, 1, Bytes(in) + Name("f"), 0, [&] {
    EXPECT_TRUE(
        core.Create(1, "f", flags, 0640,
                    GetParam() == Killed::kAfterTheAct ? root_ : user_));
  });
  EXPECT_EQ(reply.err, 0);
  ASSERT_EQ(reply.body.size(), sizeof(fuse_entry_out) + sizeof(fuse_open_out));
  EXPECT_EQ(reply.As<fuse_entry_out>().nodeid, core.IdOf("f"));
  EXPECT_EQ(reply.As<fuse_entry_out>().attr.uid, kUser);
}

TEST_P(ResentTest, OpenWithTruncateKeepsWhatWasWrittenSince) {
  FileId id = MakeFile("f", "old");
  const bool completed = GetParam() == Killed::kCompleted;
  FuseReply reply = AskAgain(
      FUSE_OPEN, id, Bytes(fuse_open_in{O_WRONLY | O_TRUNC, 0}), 0, [&] {
        EXPECT_TRUE(core.Open(id, O_TRUNC));
        if (completed) {
          EXPECT_TRUE(core.Write(id, 0, std::string("new"), 0, false));
        }
      });
  EXPECT_EQ(reply.err, 0);
  EXPECT_EQ(core.Data("f"), completed ? "new" : "");
}

TEST_P(ResentTest, SetXattrThatCreates) {
  wire::SetxattrIn in{5, XATTR_CREATE, 0, 0};
  EXPECT_EQ(
      AskAgain(FUSE_SETXATTR, 1, Bytes(in) + Name("user.a") + "value", 0,
               [&] {
                 EXPECT_TRUE(core.SetXattr(1, "user.a", "value", XATTR_CREATE));
               })
          .err,
      0);
  EXPECT_EQ(*core.GetXattr(1, "user.a"), "value");
}

TEST_P(ResentTest, RemoveXattr) {
  ASSERT_TRUE(core.SetXattr(1, "user.a", "value", 0));
  EXPECT_EQ(AskAgain(FUSE_REMOVEXATTR, 1, Name("user.a"), 0,
                     [&] { EXPECT_TRUE(core.RemoveXattr(1, "user.a")); })
                .err,
            0);
  EXPECT_FALSE(core.GetXattr(1, "user.a"));
}

TEST_P(ResentTest, AppendHappensOnce) {
  core.seconds = 0;  // uncached: others append behind the overlay
  FileId id = MakeFile("log", "first;");
  fuse_write_in in{};
  in.size = 7;
  in.flags = O_WRONLY | O_APPEND;
  FuseReply reply = AskAgain(
      FUSE_WRITE, id, Bytes(in) + "second;", 6,
      [&] {
        EXPECT_TRUE(core.Write(id, 0, std::string("second;"), O_APPEND, false));
        EXPECT_TRUE(core.Write(id, 0, std::string("else;"), O_APPEND, false));
      },
      7);
  EXPECT_EQ(reply.err, 0);
  EXPECT_EQ(reply.As<fuse_write_out>().size, 7u);
  std::string data = core.Data("log");
  size_t at = data.find("second;");
  EXPECT_NE(at, std::string::npos);
  EXPECT_EQ(data.find("second;", at + 1), std::string::npos) << data;
}

// Cached, but the kernel's idea of the end is from before the attach.
TEST_P(ResentTest, AppendBehindTheKernelsBackHappensOnce) {
  core.seconds = 1;
  FileId id = MakeFile("log", "first;moved;");
  fuse_write_in in{};
  in.offset = 6;
  in.size = 7;
  in.flags = O_WRONLY | O_APPEND;
  FuseReply reply = AskAgain(
      FUSE_WRITE, id, Bytes(in) + "second;", 12,
      [&] {
        EXPECT_TRUE(core.Write(id, 0, std::string("second;"), O_APPEND, false));
        EXPECT_TRUE(core.Write(id, 0, std::string("else;"), O_APPEND, false));
      },
      7);
  EXPECT_EQ(reply.err, 0);
  std::string data = core.Data("log");
  EXPECT_EQ(data.substr(0, 12), "first;moved;");
  size_t at = data.find("second;");
  EXPECT_NE(at, std::string::npos);
  EXPECT_EQ(data.find("second;", at + 1), std::string::npos) << data;
}

INSTANTIATE_TEST_SUITE_P(Killed, ResentTest,
                         testing::Values(Killed::kBeforeTheRecord,
                                         Killed::kBeforeTheAct,
                                         Killed::kAfterTheAct,
                                         Killed::kCompleted),
                         PrintKilled);

TEST(Resent, AnErrorIsAnsweredFromTheRecord) {
  fake::FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  b.session->Stop();
  b.session->Wait();
  uint64_t unique =
      b.kernel.Lose(FUSE_MKDIR, 1, Bytes(fuse_mkdir_in{0755, 0}) + Name("d"));
  ASSERT_TRUE(b.intents->Begin(unique, FUSE_MKDIR, 0));
  b.intents->Complete(unique, ENOSPC, 0);
  ASSERT_TRUE(b.StartNext());
  auto reply = b.kernel.Wait(unique);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->err, ENOSPC);
  EXPECT_FALSE(b.core.Has("d"));
}

TEST(Resent, AnotherThingUnderTheNameIsNotTakenForOurs) {
  fake::FuseBench b;
  ASSERT_TRUE(b.StartFirst());
  b.Init();
  b.session->Stop();
  b.session->Wait();
  ASSERT_TRUE(b.core.MkNod(1, "x", S_IFREG | 0644, 0, Caller{}));
  uint64_t unique =
      b.kernel.Lose(FUSE_MKDIR, 1, Bytes(fuse_mkdir_in{0755, 0}) + Name("x"));
  ASSERT_TRUE(b.intents->Begin(unique, FUSE_MKDIR, 0));
  ASSERT_TRUE(b.StartNext());
  auto reply = b.kernel.Wait(unique);
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->err, EEXIST);
}

}  // namespace
}  // namespace livemv::fusefs
