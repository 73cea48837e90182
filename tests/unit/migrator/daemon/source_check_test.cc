#include "migrator/daemon/source_check.h"

#include <gtest/gtest.h>

#include "migrator/daemon/private_dir.h"
#include "migrator/daemon/state_dir.h"

namespace livemv::daemon {
namespace {

constexpr int64_t kAlive = 1'000'000'000'000;

std::optional<int64_t> Last(const std::string& session, const Boot& boot,
                            bool covered) {
  state::RecoveredState state;
  state.options[kAliveOption] = std::to_string(kAlive);
  state.sessions.push_back({session, 1});
  return LastOwnChangeNs(state, boot, covered);
}

TEST(LastOwnChange, IsTheLastWordInTheSameBootWithoutAnOverlay) {
  const Boot boot{"one", kAlive - 5};
  EXPECT_EQ(Last("one", boot, false), kAlive);
  EXPECT_EQ(Last("one", boot, true), kAlive + kAliveSlackNs);
}

TEST(LastOwnChange, IsBeforeTheBootThatCameAfterTheWord) {
  const Boot soon{"two", kAlive + 5};
  const Boot late{"two", kAlive + 2 * kAliveSlackNs};
  EXPECT_EQ(Last("one", soon, false), kAlive + 5);
  EXPECT_EQ(Last("one", late, false), kAlive + kAliveSlackNs);
  // A worker that began in this boot and has said nothing.
  EXPECT_EQ(Last("two", soon, false), kAlive + 5);
  EXPECT_EQ(Last("two", soon, true), kAlive + 5);
}

TEST(LastOwnChange, DoesNotTrustABootThatIsOlderThanTheWord) {
  EXPECT_EQ(Last("one", {"two", kAlive - 5}, false), kAlive + kAliveSlackNs);
}

TEST(LastOwnChange, NeedsAWord) {
  state::RecoveredState state;
  EXPECT_FALSE(LastOwnChangeNs(state, {"one", 0}, false));
  state.options[kAliveOption] = "soon";
  EXPECT_FALSE(LastOwnChangeNs(state, {"one", 0}, false));
}

TEST(HandleText, HasTypeAndBytes) {
  EXPECT_EQ(HandleText({129, std::string("\x01\xff\0", 3)}), "129:01ff00");
}

}  // namespace
}  // namespace livemv::daemon
