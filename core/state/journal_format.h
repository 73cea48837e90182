#pragma once

// The journal on disk: header, frames, and facts as bytes. doc/JOURNAL.md has
// the grammar; a change here changes kJournalVersion and that page.
//
// Thread contract: pure functions over values.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/result.h"
#include "core/state/facts.h"
#include "core/state/journal.h"

namespace livemv::state {

inline constexpr uint32_t kJournalVersion = 1;
inline constexpr size_t kHeaderBytes = 64;
inline constexpr size_t kFrameHeadBytes = 32;
// A longer body is refused when written and taken for damage when read.
inline constexpr size_t kMaxBodyBytes = 1u << 20;

struct JournalHeader {
  uint32_t version = kJournalVersion;
  // Goes into every frame's checksum: frames of an older file that lay in the
  // same disk blocks do not verify.
  uint64_t salt = 0;
  Seq first_seq = 1;         // of the file's first frame
  int64_t created_ns = 0;    // realtime
  uint64_t compactions = 0;  // rewritings of this journal so far
  // Every record up to this one was durable before the file got its name.
  Seq installed_seq = 0;
  bool operator==(const JournalHeader&) const = default;
};

std::string EncodeHeader(const JournalHeader& header);
// bytes: at least kHeaderBytes, or kCorrupt. kUnsupported for another version.
core::Result<JournalHeader> DecodeHeader(std::string_view bytes);

// The number of a record type on disk: for ever the same for a fact.
uint8_t FactType(const Fact& fact);
std::string EncodeFact(const Fact& fact);  // body only
// kCorrupt if the body does not fit the type, is too short or too long;
// kUnsupported for a type that this version does not know.
core::Result<Fact> DecodeFact(uint8_t type, std::string_view body);

struct FrameHead {
  uint32_t body_bytes = 0;
  uint8_t type = 0;
  Seq seq = 0;
  Seq durable = 0;  // every record up to this one was durable when written
  uint64_t checksum = 0;
};

// Head and body of one frame.
std::string EncodeFrame(uint64_t salt, Seq seq, Seq durable, uint8_t type,
                        std::string_view body);
// bytes: at least kFrameHeadBytes. False if it cannot be a head.
bool DecodeFrameHead(std::string_view bytes, FrameHead* head);
bool FrameVerifies(uint64_t salt, const FrameHead& head, std::string_view body);

}  // namespace livemv::state
