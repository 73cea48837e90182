#pragma once

// Reads a journal from its beginning to the first record that is not whole,
// and says what comes after it. Changes nothing; may read while another
// process appends.
//
// Thread contract: one reader, one thread. Reads block on the journal's disk.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/result.h"
#include "core/state/facts.h"
#include "core/state/journal.h"
#include "core/state/journal_format.h"
#include "core/state/recovery.h"
#include "core/syscalls.h"

namespace livemv::state {

struct JournalRecord {
  Seq seq = 0;
  uint64_t offset = 0;  // of its frame in the file
  uint64_t bytes = 0;   // of its frame
  Seq durable = 0;      // see FrameHead
  Fact fact;
};

// What follows the last whole record.
struct JournalTail {
  enum class Kind {
    kClean,    // nothing, or zeros: room made ahead
    kTorn,     // an append that did not reach the disk whole: no record that a
               // Sync returned for is known to be missing
    kDamaged,  // a record known to have been durable is missing or changed
  };
  Kind kind = Kind::kClean;
  uint64_t offset = 0;  // end of the last whole record
  Seq next_seq = 1;     // the number that was expected there
  uint64_t file_bytes = 0;
  uint64_t dirty_end = 0;    // only zeros from here on
  uint64_t whole_after = 0;  // whole records that follow the tear
  std::string what;          // for a person; empty if clean
};

class JournalReader {
 public:
  // Up to len bytes at off into buf; fewer only at the end.
  using ReadAt =
      std::function<core::Result<size_t>(void* buf, size_t len, uint64_t off)>;

  // sys must outlive the reader.
  static core::Result<JournalReader> Open(core::Syscalls* sys, int dirfd,
                                          const std::string& name);
  static core::Result<JournalReader> FromSource(ReadAt read,
                                                uint64_t file_bytes);

  const JournalHeader& header() const { return header_; }
  // The next record, or nothing at the end or the first tear. kCorrupt or
  // kUnsupported for a whole record whose body this version cannot read.
  core::Result<std::optional<JournalRecord>> Next();
  // End of the last whole record so far.
  uint64_t offset() const { return offset_; }
  Seq next_seq() const { return next_seq_; }
  // Looks at what follows; after Next returned nothing.
  core::Result<JournalTail> Tail();
  // The file is this long now: Next may then find more.
  void SetFileBytes(uint64_t file_bytes) { file_bytes_ = file_bytes; }

 private:
  JournalReader(ReadAt read, uint64_t file_bytes, JournalHeader header)
      : read_(std::move(read)),
        file_bytes_(file_bytes),
        header_(header),
        offset_(kHeaderBytes),
        next_seq_(header.first_seq) {}
  // View of [off, off+len) or fewer at the end; valid until the next call.
  core::Result<std::string_view> Bytes(uint64_t off, size_t len);
  // The whole frame at off, whatever its number; its body's view is valid
  // until the next call.
  core::Result<bool> FrameAt(uint64_t off, FrameHead* head,
                             std::string_view* body);
  core::Status FindDirtyEnd(JournalTail* tail);

  ReadAt read_;
  uint64_t file_bytes_;
  JournalHeader header_;
  uint64_t offset_;
  Seq next_seq_;
  std::string buffer_;
  uint64_t buffer_off_ = 0;
};

struct LoadedJournal {
  RecoveredState state;
  JournalHeader header;
  JournalTail tail;
  uint64_t records = 0;
};
// Reads and folds a journal without changing it.
core::Result<LoadedJournal> LoadJournal(core::Syscalls* sys, int dirfd,
                                        const std::string& name);

}  // namespace livemv::state
