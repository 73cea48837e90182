#include "core/state/journal_reader.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/unit/core/state/fact_samples.h"

namespace livemv::state {
namespace {

using Kind = JournalTail::Kind;

struct Image {
  std::string bytes;
  std::vector<uint64_t> offsets;  // of each frame
};

// count records; all up to `durable` are said to be so by those after them.
Image MakeImage(int count, Seq durable, Seq installed = 0) {
  JournalHeader header;
  header.salt = 1234;
  header.installed_seq = installed;
  Image image{EncodeHeader(header), {}};
  for (Seq seq = 1; seq <= static_cast<Seq>(count); seq++) {
    Fact fact = EntryDirtyFact{kRootId, "name" + std::to_string(seq)};
    image.offsets.push_back(image.bytes.size());
    image.bytes += EncodeFrame(header.salt, seq, std::min(durable, seq - 1),
                               FactType(fact), EncodeFact(fact));
  }
  return image;
}

JournalReader ReaderOf(const std::string& bytes) {
  auto reader = JournalReader::FromSource(
      [bytes](void* buf, size_t len, uint64_t off) -> core::Result<size_t> {
        if (off >= bytes.size())
          return size_t{0};
        // Short reads, as a kernel may give them.
        size_t n = std::min({len, bytes.size() - off, size_t{1000}});
        std::memcpy(buf, bytes.data() + off, n);
        return n;
      },
      bytes.size());
  EXPECT_TRUE(reader) << reader.error().ToString();
  return *std::move(reader);
}

struct Read {
  uint64_t records = 0;
  JournalTail tail;
};
Read ReadAll(const std::string& bytes) {
  JournalReader reader = ReaderOf(bytes);
  Read out;
  for (;;) {
    auto record = reader.Next();
    EXPECT_TRUE(record);
    if (!record || !*record)
      break;
    out.records++;
    EXPECT_EQ((*record)->seq, out.records);
  }
  auto tail = reader.Tail();
  EXPECT_TRUE(tail);
  out.tail = *tail;
  return out;
}

TEST(JournalReader, ReadsEveryRecordWithItsPlace) {
  Image image = MakeImage(100, 0);
  JournalReader reader = ReaderOf(image.bytes);
  for (int i = 0; i < 100; i++) {
    auto record = reader.Next();
    ASSERT_TRUE(record && *record);
    EXPECT_EQ((*record)->offset, image.offsets[static_cast<size_t>(i)]);
    EXPECT_EQ((*record)->fact,
              Fact(EntryDirtyFact{kRootId, "name" + std::to_string(i + 1)}));
  }
  EXPECT_FALSE(*reader.Next());
  EXPECT_FALSE(*reader.Next()) << "asking again changes nothing";
  EXPECT_EQ(reader.Tail()->kind, Kind::kClean);
  EXPECT_EQ(reader.next_seq(), 101u);
}

TEST(JournalReader, ZerosBehindTheLastRecordAreACleanEnd) {
  Image image = MakeImage(3, 0);
  uint64_t end = image.bytes.size();
  image.bytes.append(3 << 20, '\0');
  Read read = ReadAll(image.bytes);
  EXPECT_EQ(read.records, 3u);
  EXPECT_EQ(read.tail.kind, Kind::kClean);
  EXPECT_EQ(read.tail.offset, end);
  EXPECT_EQ(read.tail.file_bytes, image.bytes.size());
}

TEST(JournalReader, ACutAtAnyByteLeavesTheRecordsBeforeIt) {
  Image image = MakeImage(5, 0);
  for (size_t n = kHeaderBytes; n < image.bytes.size(); n++) {
    for (size_t room : {size_t{0}, size_t{200}}) {
      std::string cut = image.bytes.substr(0, n) + std::string(room, '\0');
      Read read = ReadAll(cut);
      size_t whole = 0;
      while (whole < 5 && n >= (whole + 1 < 5 ? image.offsets[whole + 1]
                                              : image.bytes.size()))
        whole++;
      ASSERT_EQ(read.records, whole) << n;
      ASSERT_EQ(read.tail.offset, image.offsets[whole]);
      ASSERT_EQ(read.tail.kind,
                n == image.offsets[whole] ? Kind::kClean : Kind::kTorn)
          << n;
      ASSERT_LE(read.tail.dirty_end, n);
      ASSERT_EQ(read.tail.whole_after, 0u);
    }
  }
}

TEST(JournalReader, AFlippedBitStopsItAtThatRecord) {
  Image image = MakeImage(6, 0);
  std::mt19937 rng(3);
  for (int i = 0; i < 500; i++) {
    size_t bit =
        kHeaderBytes * 8 + rng() % ((image.bytes.size() - kHeaderBytes) * 8);
    std::string bad = image.bytes;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    size_t hit = 0;
    while (hit + 1 < image.offsets.size() && image.offsets[hit + 1] <= bit / 8)
      hit++;
    Read read = ReadAll(bad);
    ASSERT_EQ(read.records, hit);
    ASSERT_EQ(read.tail.kind, Kind::kTorn) << "nobody said it was durable";
    ASSERT_EQ(read.tail.whole_after, 5 - hit);
  }
}

TEST(JournalReader, TheLossOfARecordThatWasDurableIsDamage) {
  Image image = MakeImage(6, 3);
  for (size_t victim = 0; victim < 6; victim++) {
    std::string bad = image.bytes;
    bad[image.offsets[victim] + 20] ^= 1;
    Read read = ReadAll(bad);
    EXPECT_EQ(read.records, victim);
    // Records 1 to 3 were durable, and 4 to 6 say so.
    EXPECT_EQ(read.tail.kind, victim < 3 ? Kind::kDamaged : Kind::kTorn)
        << victim;
  }
}

TEST(JournalReader, AMissingMiddleIsSeen) {
  for (Seq durable : {Seq{0}, Seq{3}}) {
    Image image = MakeImage(6, durable);
    std::string bad = image.bytes;
    bad.erase(image.offsets[2], image.offsets[3] - image.offsets[2]);
    Read read = ReadAll(bad);
    EXPECT_EQ(read.records, 2u);
    EXPECT_EQ(read.tail.whole_after, 3u);
    EXPECT_EQ(read.tail.kind, durable == 0 ? Kind::kTorn : Kind::kDamaged);
  }
}

TEST(JournalReader, ARepeatedRecordIsNotTakenTwice) {
  Image image = MakeImage(3, 0);
  std::string last = image.bytes.substr(image.offsets[2]);
  Read read = ReadAll(image.bytes + last);
  EXPECT_EQ(read.records, 3u);
  EXPECT_EQ(read.tail.kind, Kind::kTorn);
  EXPECT_EQ(read.tail.whole_after, 0u) << "an old number proves nothing";
}

TEST(JournalReader, ZerosWhereInstalledRecordsWereAreDamage) {
  Image image = MakeImage(6, 0, /*installed=*/4);
  std::string bad = image.bytes.substr(0, image.offsets[2]);
  bad.append(4096, '\0');
  Read read = ReadAll(bad);
  EXPECT_EQ(read.records, 2u);
  EXPECT_EQ(read.tail.kind, Kind::kDamaged);
  EXPECT_FALSE(read.tail.what.empty());
}

TEST(JournalReader, AWholeRecordThatCannotBeReadIsAnErrorNotAnEnd) {
  JournalHeader header;
  header.salt = 5;
  std::string bytes = EncodeHeader(header) + EncodeFrame(5, 1, 0, 200, "new");
  JournalReader reader = ReaderOf(bytes);
  auto record = reader.Next();
  ASSERT_FALSE(record);
  EXPECT_EQ(record.error().code, core::ErrorCode::kUnsupported);
  EXPECT_NE(record.error().what.find("record 1"), std::string::npos);
}

TEST(JournalReader, AnAppendSeenHalfwayIsLookedAtAgain) {
  Image image = MakeImage(6, 5);
  // The first read misses the page that holds the third record.
  std::string early = image.bytes;
  std::fill_n(early.begin() + static_cast<long>(image.offsets[2]), 20, '\0');
  int reads = 0;
  auto reader = JournalReader::FromSource(
      [&](void* buf, size_t len, uint64_t off) -> core::Result<size_t> {
        const std::string& now = reads++ == 0 ? early : image.bytes;
        size_t n = std::min(len, now.size() - off);
        std::memcpy(buf, now.data() + off, n);
        return n;
      },
      image.bytes.size());
  ASSERT_TRUE(reader);
  for (int i = 0; i < 6; i++) {
    auto record = reader->Next();
    ASSERT_TRUE(record && *record) << i;
  }
  EXPECT_EQ(reader->Tail()->kind, Kind::kClean);
}

TEST(JournalReader, AReadErrorIsReportedNotTakenForTheEnd) {
  Image image = MakeImage(3, 0);
  bool fail = false;
  auto reader = JournalReader::FromSource(
      [&](void* buf, size_t len, uint64_t off) -> core::Result<size_t> {
        if (fail)
          return core::FailSys(EIO, "pread");
        size_t n = std::min(len, image.bytes.size() - off);
        std::memcpy(buf, image.bytes.data() + off, n);
        return n;
      },
      kHeaderBytes);
  ASSERT_TRUE(reader);
  fail = true;
  reader->SetFileBytes(image.bytes.size());
  auto record = reader->Next();
  ASSERT_FALSE(record);
  EXPECT_EQ(record.error().sys_errno, EIO);
}

// The same loop as tests/fuzz/journal_reader_fuzz.cc, over seeds.
TEST(JournalReader, SurvivesRandomAndMutatedBytes) {
  std::mt19937 rng(11);
  Image image = MakeImage(20, 8);
  uint64_t read_whole = 0;
  for (int i = 0; i < 3000; i++) {
    std::string bytes;
    if (i % 3 == 0) {
      bytes.resize(rng() % 600);
      for (char& c : bytes)
        c = static_cast<char>(rng());
      // Half of them get past the header.
      if (i % 2 == 0)
        bytes.insert(0, image.bytes, 0, kHeaderBytes);
    } else {
      bytes = image.bytes;
      for (uint32_t n = 1 + rng() % 4; n-- > 0;) {
        size_t at = rng() % bytes.size();
        switch (rng() % 4) {
          case 0:
            bytes[at] = static_cast<char>(rng());
            break;
          case 1:
            bytes.erase(at, rng() % 100);
            break;
          case 2:
            bytes.insert(at, bytes.substr(rng() % bytes.size(), rng() % 90));
            break;
          default:
            bytes.resize(at);
        }
        if (bytes.empty())
          break;
      }
    }
    auto reader = JournalReader::FromSource(
        [&](void* buf, size_t len, uint64_t off) -> core::Result<size_t> {
          size_t n = off < bytes.size() ? std::min(len, bytes.size() - off) : 0;
          std::memcpy(buf, bytes.data() + off, n);
          return n;
        },
        bytes.size());
    if (!reader)
      continue;
    RecoveredState state;
    Seq expected = reader->next_seq();
    for (;;) {
      auto record = reader->Next();
      if (!record || !*record)
        break;
      ASSERT_EQ((*record)->seq, expected++);
      read_whole++;
      (void)state.Apply((*record)->fact);  // may refuse, must not die
    }
    auto tail = reader->Tail();
    ASSERT_TRUE(tail);
    ASSERT_LE(tail->offset, bytes.size());
    ASSERT_LE(tail->dirty_end, bytes.size());
  }
  EXPECT_GT(read_whole, 1000u);
}

}  // namespace
}  // namespace livemv::state
