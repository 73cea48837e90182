#include "core/hash.h"

#include <gtest/gtest.h>

#include <string>

namespace livemv::core {
namespace {

TEST(Hash, PiecesGiveTheHashOfTheWhole) {
  std::string data;
  for (int i = 0; i < 100'000; i++)
    data += static_cast<char>(i * 31);
  for (size_t piece : {size_t{1}, size_t{17}, size_t{4096}, data.size()}) {
    Hasher hasher;
    for (size_t at = 0; at < data.size(); at += piece)
      hasher.Add(data.data() + at, std::min(piece, data.size() - at));
    EXPECT_EQ(hasher.Value(), HashOf(data.data(), data.size())) << piece;
  }
}

TEST(Hash, IsXxh3) {
  // The published values for the empty input.
  EXPECT_EQ(Hash64Of("", 0), 0x2d06800538d394c2u);
  EXPECT_EQ(HashOf("", 0), (Hash128{0x99aa06d3014798d8, 0x6001c324468d497f}));
}

TEST(Hash, OneFlippedBitIsSeen) {
  std::string data(1000, 'a');
  Hash128 before = HashOf(data.data(), data.size());
  data[500] ^= 1;
  EXPECT_NE(HashOf(data.data(), data.size()), before);
}

}  // namespace
}  // namespace livemv::core
