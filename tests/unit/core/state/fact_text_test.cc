#include "core/state/fact_text.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "tests/unit/core/state/fact_samples.h"

namespace livemv::state {
namespace {

TEST(FactText, SaysEveryField) {
  EXPECT_EQ(FactText(LocalEndFact{0x1f, 4096}), "local_end id=0x1f end=4096");
  EXPECT_EQ(FactText(CopiedFact{0x1f, 2, 3, true}),
            "copied id=0x1f first=2 count=3 hot=yes");
  EXPECT_EQ(FactText(BoundFact{2, SampleHandle(1, 2), 9, 0100644}),
            "bound id=0x2 target=1:0100000002000000 target_ino=9 type=0100644");
  EXPECT_EQ(FactText(PhaseFact{4, "all is copied"}),
            "phase state=synced reason=\"all is copied\"");
  EXPECT_EQ(FactText(PhaseFact{99, ""}), "phase state=99 reason=\"\"");
}

TEST(FactText, NoFileNameCanForgeALine) {
  EXPECT_EQ(Quoted("a\n1 @64 truth target=yes\r\x1b[2J\"\\\xff\t"),
            "\"a\\n1 @64 truth target=yes\\x0d\\x1b[2J\\\"\\\\\\xff\\t\"");
  for (const Fact& fact : OneOfEach()) {
    for (char c : FactText(fact))
      EXPECT_TRUE(c >= 0x20 && c < 0x7f);
  }
}

TEST(FactText, EveryKindHasANameOfItsOwn) {
  std::set<std::string_view> names;
  for (const Fact& fact : OneOfEach())
    names.insert(FactName(fact));
  EXPECT_EQ(names.size(), std::variant_size_v<Fact>);
}

TEST(FactText, ARecordHasItsNumberAndPlace) {
  JournalRecord record;
  record.seq = 12;
  record.offset = 1024;
  record.fact = TruthFact{true};
  EXPECT_EQ(RecordText(record), "12 @1024 truth target=yes");
}

TEST(FactText, TheEndSaysWhatFollows) {
  JournalTail tail;
  tail.offset = 100;
  tail.file_bytes = 4096;
  EXPECT_EQ(TailText(tail), "end @100: whole, 3996 bytes of room");
  tail.kind = JournalTail::Kind::kTorn;
  tail.what = "why";
  EXPECT_EQ(TailText(tail), "end @100: torn: why");
  tail.kind = JournalTail::Kind::kDamaged;
  EXPECT_EQ(TailText(tail), "end @100: DAMAGED: why");
}

}  // namespace
}  // namespace livemv::state
