// Any bytes as a journal file, and any facts into the fold. Built on its own:
//   clang++-19 -std=c++23 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined -I.
//   \
//     tests/fuzz/journal_reader_fuzz.cc core/state/*.cc core/*.cc \
//     -DSPDLOG_COMPILED_LIB -DSPDLOG_FMT_EXTERNAL -lspdlog -lfmt -lxxhash
//
// Checksums would keep the fuzzer from ever reaching the decoder. So the input
// is used twice: as it is behind a good header, and as a list of facts (type,
// length, body) that are framed properly first.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "core/state/fact_text.h"
#include "core/state/journal_format.h"
#include "core/state/journal_reader.h"
#include "core/state/recovery.h"

namespace {

using namespace livemv::state;  // NOLINT(google-build-using-namespace): brief

constexpr uint64_t kSalt = 42;

std::string Header() {
  JournalHeader header;
  header.salt = kSalt;
  return EncodeHeader(header);
}

void ReadJournal(const std::string& bytes) {
  auto reader = JournalReader::FromSource(
      [&](void* buf, size_t len, uint64_t off) -> livemv::core::Result<size_t> {
        size_t n = off < bytes.size() ? std::min(len, bytes.size() - off) : 0;
        std::memcpy(buf, bytes.data() + off, n);
        return n;
      },
      bytes.size());
  if (!reader)
    return;
  RecoveredState state;
  for (;;) {
    auto record = reader->Next();
    if (!record || !*record)
      break;
    (void)RecordText(**record);
    (void)state.Apply((*record)->fact);  // may refuse, must not die
  }
  if (auto tail = reader->Tail())
    (void)TailText(*tail);

  RecoveredState again;
  for (const Fact& fact : state.ToFacts()) {
    if (!again.Apply(fact))
      std::abort();
  }
  if (!(again == state))
    std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view in(reinterpret_cast<const char*>(data), size);
  ReadJournal(std::string(in));
  ReadJournal(Header() + std::string(in));

  std::string framed = Header();
  Seq seq = 1;
  for (size_t at = 0; at + 2 <= in.size();) {
    auto type = static_cast<uint8_t>(in[at]);
    std::string_view body = in.substr(at + 2, static_cast<uint8_t>(in[at + 1]));
    framed += EncodeFrame(kSalt, seq, seq - 1, type, body);
    seq++;
    at += 2 + body.size();
  }
  ReadJournal(framed);
  return 0;
}
