// The worked example of doc/JOURNAL.md is the output of this program.

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>

#include "core/state/fact_text.h"
#include "core/state/journal_reader.h"
#include "core/state/journal_writer.h"
#include "tests/unit/core/state/fact_samples.h"
#include "tests/unit/core/state/memory_disk.h"

namespace livemv::state {
namespace {

std::string HexLines(const std::string& bytes) {
  std::string out;
  for (size_t at = 0; at < bytes.size(); at += 16) {
    char text[32];
    snprintf(text, sizeof text, "%04zx ", at);
    out += text;
    for (size_t i = at; i < std::min(at + 16, bytes.size()); i++) {
      snprintf(text, sizeof text, i % 8 == 0 && i != at ? "  %02x" : " %02x",
               static_cast<unsigned char>(bytes[i]));
      out += text;
    }
    out += '\n';
  }
  return out;
}

TEST(JournalExample, TheOneInTheDocumentationIsTrue) {
  MemoryDisk disk;
  JournalOptions options;
  options.reserve_bytes = 128;
  options.step_bytes = 64;
  auto journal = JournalFile::Create(
      &disk, MemoryDisk::kDir, "journal",
      MigrationFact{"m1", "/srv/data", "nas:/export", SampleHandle(2, 0)},
      options);
  ASSERT_TRUE(journal);
  const FileId file = 0x0000000c'9e3779b9;
  ASSERT_TRUE((*journal)->AppendDurable(SessionFact{"boot-1", 4711}));
  ASSERT_TRUE((*journal)->Append(EntryDirtyFact{kRootId, "log.txt"}));
  ASSERT_TRUE((*journal)->AppendDurable(LocalEndFact{file, 1'500'000}));
  ASSERT_TRUE((*journal)->Append(CopiedFact{file, 0, 2, true}));

  std::string want =
      HexLines(disk.Content("journal").substr(0, (*journal)->FileBytes()));
  auto reader = JournalReader::Open(&disk, MemoryDisk::kDir, "journal");
  ASSERT_TRUE(reader);
  want += "\n";
  for (;;) {
    auto record = reader->Next();
    ASSERT_TRUE(record);
    if (!*record)
      break;
    want += RecordText(**record) + "\n";
  }
  want += TailText(*reader->Tail()) + "\n";

  const std::string here = __FILE__;
  const std::string root = here.substr(0, here.find("tests/unit/"));
  std::ifstream in(root + "doc/JOURNAL.md");
  ASSERT_TRUE(in) << root << "doc/JOURNAL.md";
  std::stringstream text;
  text << in.rdbuf();
  EXPECT_NE(text.str().find(want), std::string::npos)
      << "doc/JOURNAL.md lacks:\n"
      << want;
}

}  // namespace
}  // namespace livemv::state
