#pragma once

// Little-endian encoding into a string and bounded decoding from bytes.
// A decoder never reads past its end: after the first short read ok() is false
// and every further value is zero or empty.

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace livemv::core {

class ByteWriter {
 public:
  void U8(uint8_t v) { out_.push_back(static_cast<char>(v)); }
  void U32(uint32_t v) { Raw(&v, sizeof v); }
  void U64(uint64_t v) { Raw(&v, sizeof v); }
  void Bytes(std::string_view v) {  // u32 length, then the bytes
    U32(static_cast<uint32_t>(v.size()));
    out_.append(v);
  }
  const std::string& str() const { return out_; }
  std::string Take() { return std::move(out_); }

 private:
  void Raw(const void* p, size_t n) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
    out_.append(static_cast<const char*>(p), n);
  }
  std::string out_;
};

class ByteReader {
 public:
  explicit ByteReader(std::string_view in) : in_(in) {}
  uint8_t U8() { return Raw<uint8_t>(); }
  uint32_t U32() { return Raw<uint32_t>(); }
  uint64_t U64() { return Raw<uint64_t>(); }
  std::string Bytes() {
    uint32_t n = U32();
    if (n > in_.size()) {
      ok_ = false;
      in_ = {};
      return {};
    }
    std::string v(in_.substr(0, n));
    in_.remove_prefix(n);
    return v;
  }
  bool ok() const { return ok_; }
  bool AtEnd() const { return in_.empty(); }

 private:
  template <class T>
  T Raw() {
    T v{};
    if (in_.size() < sizeof v) {
      ok_ = false;
      in_ = {};
      return v;
    }
    std::memcpy(&v, in_.data(), sizeof v);
    in_.remove_prefix(sizeof v);
    return v;
  }
  std::string_view in_;
  bool ok_ = true;
};

}  // namespace livemv::core
