#include "core/byte_codec.h"

#include <gtest/gtest.h>

#include <string>

namespace livemv::core {
namespace {

TEST(ByteCodec, ValuesComeBackInOrder) {
  ByteWriter out;
  out.U8(7);
  out.U32(0x01020304);
  out.U64(0x0102030405060708);
  out.Bytes(std::string("a\0b", 3));
  out.Bytes("");
  const std::string bytes = out.Take();
  EXPECT_EQ(bytes.substr(0, 5), std::string("\x07\x04\x03\x02\x01"))
      << "little-endian";
  ByteReader in(bytes);
  EXPECT_EQ(in.U8(), 7);
  EXPECT_EQ(in.U32(), 0x01020304u);
  EXPECT_EQ(in.U64(), 0x0102030405060708u);
  EXPECT_EQ(in.Bytes(), std::string("a\0b", 3));
  EXPECT_EQ(in.Bytes(), "");
  EXPECT_TRUE(in.ok());
  EXPECT_TRUE(in.AtEnd());
}

TEST(ByteCodec, AfterTheFirstShortReadEverythingIsZero) {
  ByteReader in(std::string_view("\1\2\3", 3));
  EXPECT_EQ(in.U32(), 0u);
  EXPECT_FALSE(in.ok());
  EXPECT_EQ(in.U8(), 0) << "though a byte was left";
  EXPECT_EQ(in.Bytes(), "");
  EXPECT_FALSE(in.ok());
}

TEST(ByteCodec, ALengthPastTheEndIsNotBelieved) {
  ByteWriter out;
  out.U32(0xffffffff);
  out.U8('x');
  ByteReader in(out.str());
  EXPECT_EQ(in.Bytes(), "");
  EXPECT_FALSE(in.ok());
}

}  // namespace
}  // namespace livemv::core
