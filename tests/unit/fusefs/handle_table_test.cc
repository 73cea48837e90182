#include "fusefs/handle_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>

namespace livemv::fusefs {
namespace {

using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

Object Ext4(uint32_t ino, uint32_t generation, uint32_t type = S_IFREG) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &ino, 4);
  std::memcpy(bytes.data() + 4, &generation, 4);
  return Object{{1, bytes}, ino, type};
}

Object Nfs(uint64_t ino, char tail) {
  return Object{{0x2001, std::string(43, 'h') + tail}, ino, S_IFREG};
}

TEST(HandleTable, GivesBackWhatItWasGivenWhateverTheHandle) {
  HandleTable table;
  std::vector<Object> objects = {
      Ext4(12, 0xffffffff),
      Ext4(13, 0),
      Ext4(14, 5, S_IFDIR),
      Ext4(15, 5, S_IFLNK),
      Nfs(1ull << 40, 'a'),
      Object{{1, Ext4(16, 1).handle.bytes}, 17, S_IFREG},  // another number
      Object{{1, "short"}, 18, S_IFREG},
      Object{{-1, Ext4(19, 1).handle.bytes}, 19, S_IFREG},
      Object{{1, ""}, 0, S_IFREG},
  };
  for (size_t i = 0; i < objects.size(); i++)
    table.Put(i + 1, objects[i]);
  for (size_t i = 0; i < objects.size(); i++) {
    EXPECT_EQ(table.Find(i + 1), objects[i]) << i;
    EXPECT_THAT(table.FindByIno(objects[i].ino), UnorderedElementsAre(i + 1));
  }
  EXPECT_EQ(table.Files(), objects.size() - 2);
  EXPECT_EQ(table.Find(100), std::nullopt);
  EXPECT_THAT(table.FindByIno(100), IsEmpty());
  for (size_t i = 0; i < objects.size(); i++)
    table.Erase(i + 1);
  EXPECT_EQ(table.Files(), 0u);
  for (size_t i = 0; i < objects.size(); i++) {
    EXPECT_FALSE(table.Contains(i + 1));
    EXPECT_THAT(table.FindByIno(objects[i].ino), IsEmpty());
  }
}

TEST(HandleTable, ABindingIsReplacedWithItsNumber) {
  HandleTable table;
  table.Put(1, Ext4(12, 1));
  table.Put(1, Nfs(99, 'x'));
  EXPECT_EQ(table.Find(1), Nfs(99, 'x'));
  EXPECT_THAT(table.FindByIno(12), IsEmpty());
  EXPECT_THAT(table.FindByIno(99), UnorderedElementsAre(1));
  table.Put(1, Ext4(12, 2));
  EXPECT_EQ(table.Find(1), Ext4(12, 2));
  EXPECT_EQ(table.Files(), 1u);
}

TEST(HandleTable, ANumberThatWasUsedAgainHasSeveral) {
  // In every order of their going.
  for (state::FileId first = 1; first <= 3; first++) {
    for (state::FileId second = 1; second <= 3; second++) {
      if (second == first)
        continue;
      HandleTable table;
      for (state::FileId id = 1; id <= 3; id++)
        table.Put(id, Ext4(12, static_cast<uint32_t>(id)));
      EXPECT_THAT(table.FindByIno(12), UnorderedElementsAre(1, 2, 3));
      table.Erase(first);
      EXPECT_THAT(table.FindByIno(12),
                  UnorderedElementsAre(second, 6 - first - second));
      table.Erase(second);
      const state::FileId last = 6 - first - second;
      EXPECT_THAT(table.FindByIno(12), UnorderedElementsAre(last));
      EXPECT_EQ(table.Find(last), Ext4(12, static_cast<uint32_t>(last)));
    }
  }
}

}  // namespace
}  // namespace livemv::fusefs
