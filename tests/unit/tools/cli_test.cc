#include "tools/cli.h"

#include <gtest/gtest.h>

namespace livemv::tools {
namespace {

using daemon::Exit;

TEST(Cli, StartTakesAllItsOptions) {
  Parsed p = Parse({"start", "a b\nc", "nas:/x", "--cutover=wait",
                    "--max-pause=1.5s", "--wait", "--yes", "-o", "nconnect=4,hard",
                    "--state-dir=/var/x"});
  ASSERT_TRUE(p.run) << p.text;
  EXPECT_EQ(p.command.verb, Verb::kStart);
  EXPECT_EQ(p.command.dir, "a b\nc");
  EXPECT_EQ(p.command.target, "nas:/x");
  EXPECT_FALSE(p.command.auto_cutover);
  EXPECT_EQ(p.command.max_pause_ns, 1'500'000'000);
  EXPECT_TRUE(p.command.wait);
  EXPECT_TRUE(p.command.yes);
  EXPECT_EQ(p.command.mount_options, "nconnect=4,hard");
  EXPECT_EQ(p.command.state_dir, "/var/x");
}

TEST(Cli, DefaultsAreThoseOfTheManual) {
  Parsed p = Parse({"plan", "a", "b", "--allow-loss=acl,xattr"});
  EXPECT_EQ(core::LossesText(p.command.accepted), "xattr,acl");
  p = Parse({"start", "a", "b", "--allow-loss=acl,files"});
  EXPECT_EQ(p.exit, Exit::kUsage);
  EXPECT_NE(p.text.find("'files'"), std::string::npos) << p.text;

  p = Parse({"start", "a", "b"});
  ASSERT_TRUE(p.run);
  EXPECT_TRUE(p.command.auto_cutover);
  EXPECT_EQ(p.command.max_pause_ns, 200'000'000);
  EXPECT_FALSE(p.command.wait);
}

TEST(Cli, AWordThatIsAVerbMayBeADirectory) {
  Parsed p = Parse({"start", "status", "list"});
  ASSERT_TRUE(p.run) << p.text;
  EXPECT_EQ(p.command.dir, "status");
  EXPECT_EQ(p.command.target, "list");
  p = Parse({"pause", "--", "-odd"});
  ASSERT_TRUE(p.run) << p.text;
  EXPECT_EQ(p.command.which, "-odd");
}

TEST(Cli, AcceptTakesAListOfPids) {
  Parsed p = Parse({"cutover", "abc234", "--wait", "--accept=12,34"});
  ASSERT_TRUE(p.run) << p.text;
  EXPECT_EQ(p.command.accept, (std::vector<pid_t>{12, 34}));
  for (const char* bad : {"--accept=x", "--accept=0", "--accept=-4",
                          "--accept=12,3x"})
    EXPECT_EQ(Parse({"cutover", "abc234", bad}).exit, Exit::kUsage) << bad;
}

TEST(Cli, StatusNeedsNoName) {
  EXPECT_TRUE(Parse({"status"}).run);
  EXPECT_TRUE(Parse({"status", "/srv/app", "--json"}).command.json);
  EXPECT_TRUE(Parse({"status", "--watch"}).command.watch);
  EXPECT_TRUE(Parse({"list", "--json"}).run);
}

TEST(Cli, JournalDumpIsTwoWords) {
  Parsed p = Parse({"journal", "dump", "abc234"});
  ASSERT_TRUE(p.run) << p.text;
  EXPECT_EQ(p.command.verb, Verb::kJournalDump);
  EXPECT_EQ(p.command.which, "abc234");
  EXPECT_EQ(Parse({"journal", "eat", "abc234"}).exit, Exit::kUsage);
  EXPECT_EQ(Parse({"journal", "dump"}).exit, Exit::kUsage);
}

TEST(Cli, WhatCannotBeUnderstoodIsUsage) {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"start"},
      {"start", "a"},
      {"start", "a", "b", "c"},
      {"start", "a", "b", "--max-pause=200"},
      {"start", "a", "b", "--max-pause=2h"},
      {"start", "a", "b", "--cutover=later"},
      {"start", "a", "b", "--frobnicate"},
      {"start", "", "b"},
      {"plan", "a", "b", "--wait"},
      {"pause"},
      {"list", "x"},
      {"undo", "x"},
      {"rehearse", "x"},
      {"recover"},
      {"recover", "--all", "x"},
      {"finish", "x", "--persist=yes"},
      {"verify", "x"},
      {"@supervisor", "3"},
      {"--frobnicate"},
  };
  for (const auto& args : wrong) {
    Parsed p = Parse(args);
    EXPECT_FALSE(p.run);
    EXPECT_EQ(p.exit, Exit::kUsage) << (args.empty() ? "" : args[0]);
    EXPECT_FALSE(p.text.empty());
  }
}

TEST(Cli, AnUnknownVerbSuggestsTheNearest) {
  EXPECT_EQ(Nearest("statsu"), "status");
  EXPECT_EQ(Nearest("cutovr"), "cutover");
  EXPECT_EQ(Nearest("stop"), "");
  EXPECT_EQ(Nearest("xyzzy"), "");
  EXPECT_NE(Parse({"strat", "a", "b"}).text.find("did you mean 'start'"),
            std::string::npos);
}

TEST(Cli, OptionsBeforeTheVerbAreToldWhereTheyBelong) {
  EXPECT_NE(Parse({"--state-dir=/x", "status"}).text.find(
                "livemv VERB --state-dir=/x"),
            std::string::npos);
}

TEST(Cli, HelpAndVersionAreNoErrors) {
  Parsed p = Parse({"--help"});
  EXPECT_FALSE(p.run);
  EXPECT_EQ(p.exit, Exit::kDone);
  for (const char* verb : {"plan", "start", "status", "list", "cutover",
                           "pause", "resume", "abort", "finish", "inspect",
                           "journal dump"})
    EXPECT_NE(p.text.find(std::string("livemv ") + verb), std::string::npos);
  EXPECT_EQ(Parse({"--version"}).exit, Exit::kDone);
  EXPECT_EQ(Parse({"start", "--help"}).exit, Exit::kDone);
}

TEST(Cli, ExplainTakesAProcessAndPerhapsADirectory) {
  Parsed parsed = Parse({"explain", "4711"});
  ASSERT_TRUE(parsed.run) << parsed.text;
  EXPECT_EQ(parsed.command.verb, Verb::kExplain);
  EXPECT_EQ(parsed.command.pid, 4711);
  EXPECT_EQ(parsed.command.dir, "");
  parsed = Parse({"explain", "1", "/srv", "--json"});
  ASSERT_TRUE(parsed.run) << parsed.text;
  EXPECT_EQ(parsed.command.dir, "/srv");
  EXPECT_TRUE(parsed.command.json);
  for (const char* pid : {"0", "-1", "x", "12x", ""})
    EXPECT_EQ(Parse({"explain", pid}).exit, Exit::kUsage) << pid;
  EXPECT_EQ(Parse({"explain"}).exit, Exit::kUsage);
}

}  // namespace
}  // namespace livemv::tools
