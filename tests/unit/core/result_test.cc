#include "core/result.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace livemv::core {
namespace {

Result<int> Half(int n) {
  if (n % 2 != 0)
    return Fail(ErrorCode::kInvalid, "half of an odd number");
  return n / 2;
}
Result<int> Quarter(int n) {
  ASSIGN_OR_RETURN(int half, Half(n));
  return Half(half);
}
Status MustHalve(int n) {
  TRY(Half(n));
  return {};
}

TEST(Result, TryHandsTheErrorOnAndKeepsTheValue) {
  EXPECT_EQ(*Quarter(8), 2);
  ASSERT_FALSE(Quarter(6));
  EXPECT_EQ(Quarter(6).error().code, ErrorCode::kInvalid);
  EXPECT_TRUE(MustHalve(2));
  EXPECT_FALSE(MustHalve(3));
}

TEST(Error, SaysWhatWasAttemptedOnWhatAndWhy) {
  Error error = Error::System(ENOENT, "open /a/b");
  EXPECT_EQ(error.ToString(), "open /a/b: No such file or directory (ENOENT)");
  EXPECT_EQ(std::move(error).With("attach").ToString(),
            "attach: open /a/b: No such file or directory (ENOENT)");
  EXPECT_EQ(Error::Of(ErrorCode::kCorrupt, "journal").ToString(), "journal");
}

TEST(Error, AnApplicationNeverSeesErrnoZero) {
  EXPECT_EQ(Error::System(ENOSPC, "x").Errno(), ENOSPC);
  EXPECT_EQ(Error::Of(ErrorCode::kInvalid, "x").Errno(), EINVAL);
  EXPECT_EQ(Error::Of(ErrorCode::kUnsupported, "x").Errno(), EOPNOTSUPP);
  EXPECT_EQ(Error::Of(ErrorCode::kTimeout, "x").Errno(), ETIMEDOUT);
  EXPECT_EQ(Error::Of(ErrorCode::kConflict, "x").Errno(), EAGAIN);
  EXPECT_EQ(Error::Of(ErrorCode::kGone, "x").Errno(), ESTALE);
  EXPECT_EQ(Error::Of(ErrorCode::kCorrupt, "x").Errno(), EIO);
  EXPECT_EQ(Error::Of(ErrorCode::kAborted, "x").Errno(), EIO);
  EXPECT_EQ(Error::Of(ErrorCode::kSystem, "x").Errno(), EIO);
}

TEST(Error, NamesOfErrnos) {
  EXPECT_EQ(ErrnoName(EAGAIN), "EAGAIN");
  EXPECT_EQ(ErrnoName(4711), "E4711");
}

}  // namespace
}  // namespace livemv::core
