#include "core/state/journal_reader.h"

#include <fcntl.h>

#include <algorithm>
#include <memory>

namespace livemv::state {
namespace {

using core::ErrorCode;
using core::Fail;

constexpr size_t kWindowBytes = 1u << 20;

}  // namespace

core::Result<JournalReader> JournalReader::Open(core::Syscalls* sys, int dirfd,
                                                const std::string& name) {
  auto opened = sys->OpenAt(dirfd, name.c_str(), O_RDONLY);
  if (!opened)
    return Fail(std::move(opened).error().With("journal " + name));
  auto fd = std::make_shared<const core::UniqueFd>(*std::move(opened));
  auto stat = sys->StatAt(fd->Get(), "");
  if (!stat)
    return Fail(std::move(stat).error().With("journal " + name));
  ReadAt read = [sys, fd](void* buf, size_t len, uint64_t off) {
    return sys->PRead(fd->Get(), buf, len, static_cast<off_t>(off));
  };
  auto reader = FromSource(std::move(read), stat->stx_size);
  if (!reader)
    return Fail(std::move(reader).error().With("journal " + name));
  return reader;
}

core::Result<JournalReader> JournalReader::FromSource(ReadAt read,
                                                      uint64_t file_bytes) {
  JournalReader reader(std::move(read), file_bytes, JournalHeader{});
  ASSIGN_OR_RETURN(std::string_view bytes, reader.Bytes(0, kHeaderBytes));
  ASSIGN_OR_RETURN(reader.header_, DecodeHeader(bytes));
  reader.next_seq_ = reader.header_.first_seq;
  return reader;
}

core::Result<std::string_view> JournalReader::Bytes(uint64_t off, size_t len) {
  if (off >= file_bytes_)
    return std::string_view();
  len = std::min<uint64_t>(len, file_bytes_ - off);
  if (off < buffer_off_ || off + len > buffer_off_ + buffer_.size()) {
    buffer_.resize(
        std::min<uint64_t>(std::max(len, kWindowBytes), file_bytes_ - off));
    buffer_off_ = off;
    size_t got = 0;
    while (got < buffer_.size()) {
      auto n = read_(buffer_.data() + got, buffer_.size() - got, off + got);
      if (!n) {
        buffer_.clear();
        return Fail(std::move(n).error());
      }
      if (*n == 0)
        break;
      got += *n;
    }
    buffer_.resize(got);
  }
  size_t at = off - buffer_off_;
  if (at >= buffer_.size())
    return std::string_view();
  return std::string_view(buffer_).substr(at, len);
}

core::Result<bool> JournalReader::FrameAt(uint64_t off, FrameHead* head,
                                          std::string_view* body) {
  ASSIGN_OR_RETURN(std::string_view bytes, Bytes(off, kFrameHeadBytes));
  if (bytes.size() < kFrameHeadBytes || !DecodeFrameHead(bytes, head))
    return false;
  if (head->body_bytes > file_bytes_ - off - kFrameHeadBytes)
    return false;
  ASSIGN_OR_RETURN(bytes, Bytes(off, kFrameHeadBytes + head->body_bytes));
  if (bytes.size() < kFrameHeadBytes + head->body_bytes)
    return false;
  *body = bytes.substr(kFrameHeadBytes);
  return FrameVerifies(header_.salt, *head, *body);
}

core::Result<std::optional<JournalRecord>> JournalReader::Next() {
  FrameHead head;
  std::string_view body;
  ASSIGN_OR_RETURN(bool whole, FrameAt(offset_, &head, &body));
  if (!whole) {
    // A read beside an append is not atomic: it may have got a later page of
    // it and not yet an earlier one. A second look sees both.
    buffer_.clear();
    ASSIGN_OR_RETURN(whole, FrameAt(offset_, &head, &body));
  }
  if (!whole || head.seq != next_seq_)
    return std::optional<JournalRecord>();
  JournalRecord record;
  record.seq = head.seq;
  record.offset = offset_;
  record.bytes = kFrameHeadBytes + head.body_bytes;
  record.durable = head.durable;
  auto fact = DecodeFact(head.type, body);
  if (!fact)
    return Fail(
        std::move(fact).error().With("record " + std::to_string(head.seq) +
                                     " at byte " + std::to_string(offset_)));
  record.fact = *std::move(fact);
  offset_ += record.bytes;
  next_seq_++;
  return std::optional<JournalRecord>(std::move(record));
}

core::Status JournalReader::FindDirtyEnd(JournalTail* tail) {
  tail->dirty_end = offset_;
  for (uint64_t off = offset_; off < file_bytes_;) {
    ASSIGN_OR_RETURN(std::string_view bytes, Bytes(off, kWindowBytes));
    if (bytes.empty())
      break;
    if (size_t last = bytes.find_last_not_of('\0'); last != bytes.npos)
      tail->dirty_end = off + last + 1;
    off += bytes.size();
  }
  return {};
}

core::Result<JournalTail> JournalReader::Tail() {
  JournalTail tail;
  tail.offset = offset_;
  tail.next_seq = next_seq_;
  tail.file_bytes = file_bytes_;
  TRY(FindDirtyEnd(&tail));
  Seq durable = header_.installed_seq;
  if (tail.dirty_end == offset_ && durable < next_seq_)
    return tail;

  // Every whole record behind the tear, wherever it begins. What they say was
  // durable when they were written tells a power cut from damage.
  for (uint64_t off = offset_; off + kFrameHeadBytes <= tail.dirty_end;) {
    FrameHead head;
    std::string_view body;
    ASSIGN_OR_RETURN(bool whole, FrameAt(off, &head, &body));
    if (!whole || head.seq < next_seq_) {
      off++;
      continue;
    }
    tail.whole_after++;
    durable = std::max(durable, head.durable);
    off += kFrameHeadBytes + head.body_bytes;
  }
  tail.kind = durable >= next_seq_ ? JournalTail::Kind::kDamaged
                                   : JournalTail::Kind::kTorn;
  tail.what = "record " + std::to_string(next_seq_) + " is not whole, " +
              std::to_string(tail.dirty_end - offset_) +
              " bytes from there on are not zero, " +
              std::to_string(tail.whole_after) + " whole records follow";
  if (tail.kind == JournalTail::Kind::kDamaged)
    tail.what += "; the records up to " + std::to_string(durable) +
                 " are known to have been durable";
  return tail;
}

core::Result<LoadedJournal> LoadJournal(core::Syscalls* sys, int dirfd,
                                        const std::string& name) {
  ASSIGN_OR_RETURN(JournalReader reader, JournalReader::Open(sys, dirfd, name));
  LoadedJournal out;
  out.header = reader.header();
  for (;;) {
    auto record = reader.Next();
    if (!record)
      return Fail(std::move(record).error().With("journal " + name));
    if (!*record)
      break;
    out.records++;
    if (core::Status applied = out.state.Apply((*record)->fact); !applied)
      return Fail(std::move(applied).error().With(
          "journal " + name + ": record " + std::to_string((*record)->seq)));
  }
  ASSIGN_OR_RETURN(out.tail, reader.Tail());
  return out;
}

}  // namespace livemv::state
