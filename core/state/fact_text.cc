#include "core/state/fact_text.h"

#include <cstdio>
#include <variant>

#include "core/state/fact_fields.h"
#include "core/state/migration_state.h"

namespace livemv::state {
namespace {

std::string Hex(uint64_t v) {
  char text[24];
  snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(v));
  return text;
}

class TextWriter {
 public:
  explicit TextWriter(std::string_view name) : out_(name) {}
  void Id(const char* name, FileId id) { Add(name, Hex(id)); }
  void U64(const char* name, uint64_t v) { Add(name, std::to_string(v)); }
  void U32(const char* name, uint32_t v) { Add(name, std::to_string(v)); }
  void Octal(const char* name, uint32_t v) {
    char text[16];
    snprintf(text, sizeof text, "0%o", v);
    Add(name, text);
  }
  void Phase(const char* name, uint8_t v) {
    std::string_view state = StateName(static_cast<MigrationState>(v));
    Add(name, state == "unknown" ? std::to_string(v) : std::string(state));
  }
  void Bool(const char* name, bool v) { Add(name, v ? "yes" : "no"); }
  void Bytes(const char* name, const std::string& v) { Add(name, Quoted(v)); }
  void Handle(const char* name, const core::FileHandle& v) {
    std::string text = std::to_string(v.type) + ":";
    for (unsigned char c : v.bytes) {
      char hex[4];
      snprintf(hex, sizeof hex, "%02x", c);
      text += hex;
    }
    Add(name, text);
  }
  std::string Take() { return std::move(out_); }

 private:
  void Add(const char* name, const std::string& value) {
    out_.append(" ").append(name).append("=").append(value);
  }
  std::string out_;
};

}  // namespace

std::string Quoted(std::string_view bytes) {
  std::string out = "\"";
  for (unsigned char c : bytes) {
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c < 0x20 || c > 0x7e) {
      char hex[8];
      snprintf(hex, sizeof hex, "\\x%02x", c);
      out += hex;
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + "\"";
}

std::string_view FactName(const Fact& fact) {
  return std::visit([]<class F>(const F&) { return FactFields<F>::kName; },
                    fact);
}

std::string FactText(const Fact& fact) {
  TextWriter out(FactName(fact));
  std::visit([&]<class F>(const F& f) { FactFields<F>::Each(out, f); }, fact);
  return out.Take();
}

std::string RecordText(const JournalRecord& record) {
  return std::to_string(record.seq) + " @" + std::to_string(record.offset) +
         " " + FactText(record.fact);
}

std::string TailText(const JournalTail& tail) {
  std::string at = "end @" + std::to_string(tail.offset) + ": ";
  switch (tail.kind) {
    case JournalTail::Kind::kClean:
      return at + "whole, " + std::to_string(tail.file_bytes - tail.offset) +
             " bytes of room";
    case JournalTail::Kind::kTorn:
      return at + "torn: " + tail.what;
    case JournalTail::Kind::kDamaged:
      return at + "DAMAGED: " + tail.what;
  }
  return at;
}

}  // namespace livemv::state
