#include "core/state/journal_format.h"

#include <optional>
#include <utility>
#include <variant>

#include "core/byte_codec.h"
#include "core/hash.h"
#include "core/state/fact_fields.h"

namespace livemv::state {
namespace {

using core::ErrorCode;
using core::Fail;

constexpr std::string_view kMagic = "LIVEMVJ\n";

class Encoder {
 public:
  void Id(const char*, FileId id) { out_.U64(id); }
  void U64(const char*, uint64_t v) { out_.U64(v); }
  void U32(const char*, uint32_t v) { out_.U32(v); }
  void Octal(const char*, uint32_t v) { out_.U32(v); }
  void Phase(const char*, uint8_t v) { out_.U8(v); }
  void Bool(const char*, bool v) { out_.U8(v ? 1 : 0); }
  void Bytes(const char*, const std::string& v) { out_.Bytes(v); }
  void Handle(const char*, const core::FileHandle& v) {
    out_.U32(static_cast<uint32_t>(v.type));
    out_.Bytes(v.bytes);
  }
  std::string Take() { return out_.Take(); }

 private:
  core::ByteWriter out_;
};

class Decoder {
 public:
  explicit Decoder(std::string_view in) : in_(in) {}
  void Id(const char*, FileId& id) { id = in_.U64(); }
  void U64(const char*, uint64_t& v) { v = in_.U64(); }
  void U32(const char*, uint32_t& v) { v = in_.U32(); }
  void Octal(const char*, uint32_t& v) { v = in_.U32(); }
  void Phase(const char*, uint8_t& v) { v = in_.U8(); }
  void Bool(const char*, bool& v) {
    uint8_t byte = in_.U8();
    v = byte == 1;
    sane_ = sane_ && byte <= 1;
  }
  void Bytes(const char*, std::string& v) { v = in_.Bytes(); }
  void Handle(const char*, core::FileHandle& v) {
    v.type = static_cast<int32_t>(in_.U32());
    v.bytes = in_.Bytes();
  }
  bool Whole() const { return sane_ && in_.ok() && in_.AtEnd(); }

 private:
  core::ByteReader in_;
  bool sane_ = true;
};

template <class F>
bool DecodeIf(uint8_t type, std::string_view body,
              std::optional<core::Result<Fact>>* out) {
  if (FactFields<F>::kType != type)
    return false;
  F fact{};
  Decoder in(body);
  FactFields<F>::Each(in, fact);
  if (in.Whole()) {
    *out = Fact(std::move(fact));
  } else {
    *out = Fail(ErrorCode::kCorrupt,
                "a journal record of type " +
                    std::string(FactFields<F>::kName) + " with a body of " +
                    std::to_string(body.size()) + " bytes that do not fit it");
  }
  return true;
}

template <size_t... I>
std::optional<core::Result<Fact>> DecodeAny(uint8_t type, std::string_view body,
                                            std::index_sequence<I...>) {
  std::optional<core::Result<Fact>> out;
  (void)(DecodeIf<std::variant_alternative_t<I, Fact>>(type, body, &out) ||
         ...);
  return out;
}

uint64_t FrameChecksum(uint64_t salt, std::string_view head24,
                       std::string_view body) {
  core::ByteWriter salted;
  salted.U64(salt);
  std::string all = salted.Take();
  all.reserve(all.size() + head24.size() + body.size());
  all.append(head24).append(body);
  return core::Hash64Of(all.data(), all.size());
}

std::string Head24(uint32_t body_bytes, uint8_t type, Seq seq, Seq durable) {
  core::ByteWriter out;
  out.U32(body_bytes);
  out.U32(type);
  out.U64(seq);
  out.U64(durable);
  return out.Take();
}

}  // namespace

std::string EncodeHeader(const JournalHeader& header) {
  core::ByteWriter out;
  for (char c : kMagic)
    out.U8(static_cast<uint8_t>(c));
  out.U32(header.version);
  out.U32(kHeaderBytes);
  out.U64(header.salt);
  out.U64(header.first_seq);
  out.U64(static_cast<uint64_t>(header.created_ns));
  out.U64(header.compactions);
  out.U64(header.installed_seq);
  out.U64(core::Hash64Of(out.str().data(), out.str().size()));
  return out.Take();
}

core::Result<JournalHeader> DecodeHeader(std::string_view bytes) {
  if (bytes.size() < kHeaderBytes)
    return Fail(ErrorCode::kCorrupt,
                "journal header: only " + std::to_string(bytes.size()) +
                    " of " + std::to_string(kHeaderBytes) + " bytes");
  if (!bytes.starts_with(kMagic))
    return Fail(ErrorCode::kCorrupt, "journal header: not a livemv journal");
  core::ByteReader in(bytes.substr(kMagic.size()));
  JournalHeader header;
  header.version = in.U32();
  // Before the checksum: another version may have another header.
  if (header.version != kJournalVersion)
    return Fail(ErrorCode::kUnsupported, "journal header: format version " +
                                             std::to_string(header.version) +
                                             ", this livemv reads " +
                                             std::to_string(kJournalVersion));
  uint32_t header_bytes = in.U32();
  header.salt = in.U64();
  header.first_seq = in.U64();
  header.created_ns = static_cast<int64_t>(in.U64());
  header.compactions = in.U64();
  header.installed_seq = in.U64();
  uint64_t checksum = in.U64();
  if (checksum != core::Hash64Of(bytes.data(), kHeaderBytes - 8) ||
      header_bytes != kHeaderBytes || header.first_seq == 0)
    return Fail(ErrorCode::kCorrupt, "journal header: checksum does not match");
  return header;
}

uint8_t FactType(const Fact& fact) {
  return std::visit(
      []<class F>(const F&) -> uint8_t { return FactFields<F>::kType; }, fact);
}

std::string EncodeFact(const Fact& fact) {
  Encoder out;
  std::visit([&]<class F>(const F& f) { FactFields<F>::Each(out, f); }, fact);
  return out.Take();
}

core::Result<Fact> DecodeFact(uint8_t type, std::string_view body) {
  std::optional<core::Result<Fact>> out = DecodeAny(
      type, body, std::make_index_sequence<std::variant_size_v<Fact>>());
  if (!out)
    return Fail(ErrorCode::kUnsupported,
                "a journal record of type " + std::to_string(type) +
                    ", which this livemv does not know");
  return *std::move(out);
}

std::string EncodeFrame(uint64_t salt, Seq seq, Seq durable, uint8_t type,
                        std::string_view body) {
  std::string head =
      Head24(static_cast<uint32_t>(body.size()), type, seq, durable);
  core::ByteWriter checksum;
  checksum.U64(FrameChecksum(salt, head, body));
  head += checksum.str();
  head += body;
  return head;
}

bool DecodeFrameHead(std::string_view bytes, FrameHead* head) {
  core::ByteReader in(bytes.substr(0, kFrameHeadBytes));
  head->body_bytes = in.U32();
  uint32_t type = in.U32();
  head->seq = in.U64();
  head->durable = in.U64();
  head->checksum = in.U64();
  head->type = static_cast<uint8_t>(type);
  return in.ok() && type != 0 && type <= 0xff &&
         head->body_bytes <= kMaxBodyBytes && head->durable < head->seq;
}

bool FrameVerifies(uint64_t salt, const FrameHead& head,
                   std::string_view body) {
  return body.size() == head.body_bytes &&
         head.checksum == FrameChecksum(salt,
                                        Head24(head.body_bytes, head.type,
                                               head.seq, head.durable),
                                        body);
}

}  // namespace livemv::state
