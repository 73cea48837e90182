#include "core/state/journal_format.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <variant>
#include <vector>

#include "tests/unit/core/state/fact_samples.h"

namespace livemv::state {
namespace {

TEST(JournalFormat, EveryFactComesBackAsItWas) {
  std::vector<Fact> facts = OneOfEach();
  ASSERT_EQ(facts.size(), std::variant_size_v<Fact>);
  for (const Fact& fact : facts) {
    auto back = DecodeFact(FactType(fact), EncodeFact(fact));
    ASSERT_TRUE(back) << back.error().ToString();
    EXPECT_EQ(*back, fact);
  }
}

TEST(JournalFormat, TypeNumbersAreForEver) {
  // The order of OneOfEach is that of the variant; the numbers are written in
  // doc/JOURNAL.md and on people's disks.
  uint8_t number = 1;
  for (const Fact& fact : OneOfEach())
    EXPECT_EQ(FactType(fact), number++);
}

TEST(JournalFormat, ABodyThatIsShorterOrLongerThanItsFactIsRefused) {
  for (const Fact& fact : OneOfEach()) {
    std::string body = EncodeFact(fact);
    for (size_t n = 0; n < body.size(); n++) {
      auto cut = DecodeFact(FactType(fact), body.substr(0, n));
      ASSERT_FALSE(cut) << n << " of type " << int{FactType(fact)};
      EXPECT_EQ(cut.error().code, core::ErrorCode::kCorrupt);
    }
    EXPECT_FALSE(DecodeFact(FactType(fact), body + '\0'));
  }
}

TEST(JournalFormat, AnUnknownTypeAndABadBoolAreRefused) {
  auto unknown = DecodeFact(200, "");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, core::ErrorCode::kUnsupported);
  EXPECT_FALSE(DecodeFact(0, ""));
  EXPECT_TRUE(DecodeFact(FactType(TruthFact{}), std::string(1, '\1')));
  EXPECT_FALSE(DecodeFact(FactType(TruthFact{}), std::string(1, '\2')));
}

TEST(JournalFormat, AFrameWithAnyBitFlippedDoesNotVerify) {
  const std::string body = EncodeFact(EntryDirtyFact{kRootId, "name"});
  const std::string frame = EncodeFrame(99, 7, 5, 14, body);
  ASSERT_EQ(frame.size(), kFrameHeadBytes + body.size());
  auto verifies = [](const std::string& bytes, uint64_t salt) {
    FrameHead head;
    return DecodeFrameHead(bytes, &head) &&
           FrameVerifies(salt, head,
                         std::string_view(bytes).substr(kFrameHeadBytes));
  };
  ASSERT_TRUE(verifies(frame, 99));
  EXPECT_FALSE(verifies(frame, 98)) << "a frame of another file";
  for (size_t bit = 0; bit < frame.size() * 8; bit++) {
    std::string bad = frame;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    EXPECT_FALSE(verifies(bad, 99)) << "bit " << bit;
  }
}

TEST(JournalFormat, AHeaderComesBackAndDamageOfItIsSeen) {
  JournalHeader header;
  header.salt = 0x1122334455667788;
  header.first_seq = 42;
  header.created_ns = 1'700'000'000'000'000'000;
  header.compactions = 3;
  header.installed_seq = 50;
  std::string bytes = EncodeHeader(header);
  ASSERT_EQ(bytes.size(), kHeaderBytes);
  EXPECT_EQ(*DecodeHeader(bytes), header);
  for (size_t bit = 0; bit < bytes.size() * 8; bit++) {
    std::string bad = bytes;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    EXPECT_FALSE(DecodeHeader(bad)) << "bit " << bit;
  }
  EXPECT_FALSE(DecodeHeader(bytes.substr(0, kHeaderBytes - 1)));
  EXPECT_FALSE(DecodeHeader(""));
}

TEST(JournalFormat, AnotherVersionIsNamed) {
  JournalHeader header;
  header.version = kJournalVersion + 1;
  auto decoded = DecodeHeader(EncodeHeader(header));
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, core::ErrorCode::kUnsupported);
  EXPECT_NE(decoded.error().what.find("version 2"), std::string::npos);
}

}  // namespace
}  // namespace livemv::state
