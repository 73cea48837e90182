#include "core/compact_map.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace livemv::core {
namespace {

template <class Map>
void ExpectEqual(const Map& map, const std::map<uint64_t, uint32_t>& model) {
  EXPECT_EQ(map.Size(), model.size());
  EXPECT_EQ(map.Empty(), model.empty());
  std::map<uint64_t, uint32_t> seen;
  map.ForEach([&](uint64_t key, uint32_t value) {
    EXPECT_TRUE(seen.emplace(key, value).second);
  });
  EXPECT_EQ(seen, model);
}

template <int kPartBits>
void RunAgainstAMap() {
  std::mt19937_64 random(7);
  CompactMap<uint32_t, kPartBits> map;
  std::map<uint64_t, uint32_t> model;
  for (int i = 0; i < 20'000; i++) {
    // Few keys that differ in their high or low words only, so that most of
    // them are put and erased again and again.
    uint64_t key = random() % 500;
    if (random() % 2 == 0)
      key <<= 32;
    if (random() % 3 == 0) {
      EXPECT_EQ(map.Erase(key), model.erase(key) == 1);
    } else {
      const auto value = static_cast<uint32_t>(random());
      map.Put(key, value);
      model[key] = value;
    }
    const uint32_t* found = map.Find(key);
    auto expected = model.find(key);
    ASSERT_EQ(found != nullptr, expected != model.end());
    if (found != nullptr) {
      ASSERT_EQ(*found, expected->second);
    }
  }
  ExpectEqual(map, model);
}

TEST(CompactMap, IsAMapInFewPartsAndInMany) {
  RunAgainstAMap<1>();
  RunAgainstAMap<8>();
}

// Grows from the heap into pages and back.
TEST(CompactMap, HoldsManyAndGivesThemUp) {
  CompactMap<uint64_t, 1> map;
  constexpr uint64_t kMany = 20'000;
  for (uint64_t key = 0; key < kMany; key++)
    map.Put(key * 7919, key);
  for (uint64_t key = 0; key < kMany; key++) {
    ASSERT_NE(map.Find(key * 7919), nullptr);
    ASSERT_EQ(*map.Find(key * 7919), key);
  }
  for (uint64_t key = 0; key < kMany; key++) {
    ASSERT_TRUE(map.Erase(key * 7919));
    ASSERT_FALSE(map.Contains(key * 7919));
    if (key + 1 < kMany) {
      ASSERT_EQ(*map.Find((key + 1) * 7919), key + 1);
    }
  }
  EXPECT_TRUE(map.Empty());
}

}  // namespace
}  // namespace livemv::core
