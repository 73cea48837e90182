#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrator/daemon/paths.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {
namespace {

TEST(ParseDuration, TakesUnitsAndFractions) {
  EXPECT_EQ(*ParseDuration("200ms"), 200'000'000);
  EXPECT_EQ(*ParseDuration("1.5s"), 1'500'000'000);
  EXPECT_EQ(*ParseDuration("250us"), 250'000);
  EXPECT_EQ(*ParseDuration("2m"), 120'000'000'000);
  EXPECT_EQ(*ParseDuration("1h"), 3'600'000'000'000);
}

TEST(ParseDuration, RefusesWhatIsNoDuration) {
  for (const char* text : {"", "200", "ms", "-5ms", "0s", "5 ms", "5xs", "1e3s",
                           "nan s", "200msx", "99999999999h"})
    EXPECT_FALSE(ParseDuration(text)) << text;
}

TEST(Format, BytesCountsAndDurations) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(1048575), "1.0 MiB");
  EXPECT_EQ(FormatBytes(61ull << 30), "61.0 GiB");
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(412031), "412,031");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatDuration(38'000'000), "38 ms");
  EXPECT_EQ(FormatDuration(1'500'000), "1.5 ms");
  EXPECT_EQ(FormatDuration(151'000'000'000), "2m31s");
}

TEST(Paths, NfsNamesAreToldFromDirectories) {
  auto nfs = ParseNfsName("nas04:/share01/app");
  ASSERT_TRUE(nfs);
  EXPECT_EQ(nfs->host, "nas04");
  EXPECT_EQ(nfs->path, "/share01/app");
  auto six = ParseNfsName("[fe80::1]:/x");
  ASSERT_TRUE(six);
  EXPECT_EQ(six->host, "[fe80::1]");
  for (const char* text :
       {"/srv/a:/b", "./a:/b", "nas:", ":/x", "nas:rel", "dir", "[]:/x", "a/b:/c"})
    EXPECT_FALSE(ParseNfsName(text)) << text;
}

TEST(Paths, InsideIsByComponents) {
  EXPECT_TRUE(IsInside("/a/b", "/a"));
  EXPECT_TRUE(IsInside("/a", "/a"));
  EXPECT_TRUE(IsInside("/a", "/"));
  EXPECT_FALSE(IsInside("/ab", "/a"));
  EXPECT_FALSE(IsInside("/a", "/a/b"));
  EXPECT_EQ(Below("/a/b/c", "/a"), "b/c");
  EXPECT_EQ(Below("/a", "/a"), "");
}

TEST(Paths, AbsoluteWithoutTouchingTheFilesystem) {
  EXPECT_EQ(*MakeAbsolute("/a//b/./c/../d/"), "/a/b/d");
  EXPECT_EQ(*MakeAbsolute("/.."), "/");
  EXPECT_FALSE(MakeAbsolute(""));
}

TEST(Paths, NormaliseResolvesLinksSpacesAndNewlines) {
  char base[] = "/tmp/livemv_paths_XXXXXX";
  ASSERT_NE(::mkdtemp(base), nullptr);
  const std::string dir = std::string(base) + "/a b\nc";
  const std::string link = std::string(base) + "/link";
  ASSERT_EQ(::mkdir(dir.c_str(), 0700), 0);
  ASSERT_EQ(::symlink("a b\nc", link.c_str()), 0);
  EXPECT_EQ(*Normalise(link + "/"), dir);
  EXPECT_FALSE(Normalise(link + "/missing"));
  ::unlink(link.c_str());
  ::rmdir(dir.c_str());
  ::rmdir(base);
}

TEST(Paths, OutputCannotBeForged) {
  EXPECT_EQ(Printable("a\nb\t\x1b[31m\\"), "a\\nb\\t\\x1b[31m\\\\");
  EXPECT_EQ(ShellQuoted("/srv/app"), "/srv/app");
  EXPECT_EQ(ShellQuoted("a'b c"), "'a'\\''b c'");
  EXPECT_EQ(ShellQuoted(""), "''");
}

}  // namespace
}  // namespace livemv::daemon
