#pragma once

// The one description of every fact's fields: encoding, decoding and text are
// made from it. Type numbers and the order of fields are the format on disk.
//
// A visitor has one method a kind of field: Id, U64, U32, Octal, Phase, Bool,
// Bytes, Handle, each (name, value); values are const when written.
//
// Thread contract: no state.

#include <cstdint>
#include <string_view>

#include "core/state/facts.h"

namespace livemv::state {

template <class F>
struct FactFields;

template <>
struct FactFields<MigrationFact> {
  static constexpr uint8_t kType = 1;
  static constexpr std::string_view kName = "migration";
  static void Each(auto& v, auto& f) {
    v.Bytes("id", f.id);
    v.Bytes("source", f.source);
    v.Bytes("target", f.target);
    v.Handle("source_root", f.source_root);
  }
};
template <>
struct FactFields<SessionFact> {
  static constexpr uint8_t kType = 2;
  static constexpr std::string_view kName = "session";
  static void Each(auto& v, auto& f) {
    v.Bytes("boot_id", f.boot_id);
    v.U32("pid", f.pid);
  }
};
template <>
struct FactFields<NodeFact> {
  static constexpr uint8_t kType = 3;
  static constexpr std::string_view kName = "node";
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.Handle("handle", f.handle);
  }
};
template <>
struct FactFields<LocalEndFact> {
  static constexpr uint8_t kType = 4;
  static constexpr std::string_view kName = "local_end";
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.U64("end", f.end);
  }
};
template <>
struct FactFields<BoundFact> {
  static constexpr uint8_t kType = 5;
  static constexpr std::string_view kName = "bound";
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.Handle("target", f.target);
    v.U64("target_ino", f.target_ino);
    v.Octal("type", f.type);
  }
};

// Withdrawn, hot and unhot: a range of chunks.
struct ChunkFields {
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.U64("first", f.first);
    v.U64("count", f.count);
  }
};
template <>
struct FactFields<CopiedFact> {
  static constexpr uint8_t kType = 6;
  static constexpr std::string_view kName = "copied";
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.U64("first", f.first);
    v.U64("count", f.count);
    v.Bool("hot", f.hot);
  }
};
template <>
struct FactFields<WithdrawnFact> : ChunkFields {
  static constexpr uint8_t kType = 7;
  static constexpr std::string_view kName = "withdrawn";
};
template <>
struct FactFields<HotFact> : ChunkFields {
  static constexpr uint8_t kType = 8;
  static constexpr std::string_view kName = "hot";
};
template <>
struct FactFields<UnhotFact> : ChunkFields {
  static constexpr uint8_t kType = 9;
  static constexpr std::string_view kName = "unhot";
};
template <>
struct FactFields<RemoteFact> {
  static constexpr uint8_t kType = 10;
  static constexpr std::string_view kName = "remote";
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.U64("off", f.off);
    v.U64("len", f.len);
  }
};
template <>
struct FactFields<CutFact> {
  static constexpr uint8_t kType = 11;
  static constexpr std::string_view kName = "cut";
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.U64("size", f.size);
    v.U64("local_end", f.local_end);
  }
};

// Facts that only name an inode.
struct IdFields {
  static void Each(auto& v, auto& f) { v.Id("id", f.id); }
};
template <>
struct FactFields<CutDoneFact> : IdFields {
  static constexpr uint8_t kType = 12;
  static constexpr std::string_view kName = "cut_done";
};
template <>
struct FactFields<ObjectSizeFact> {
  static constexpr uint8_t kType = 13;
  static constexpr std::string_view kName = "object_size";
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.U64("size", f.size);
  }
};

// Facts that name a directory's entry.
struct EntryFields {
  static void Each(auto& v, auto& f) {
    v.Id("dir", f.dir);
    v.Bytes("name", f.name);
  }
};
template <>
struct FactFields<EntryDirtyFact> : EntryFields {
  static constexpr uint8_t kType = 14;
  static constexpr std::string_view kName = "entry_dirty";
};
template <>
struct FactFields<EntryCleanFact> : EntryFields {
  static constexpr uint8_t kType = 15;
  static constexpr std::string_view kName = "entry_clean";
};
template <>
struct FactFields<AttrsDirtyFact> : IdFields {
  static constexpr uint8_t kType = 16;
  static constexpr std::string_view kName = "attrs_dirty";
};
template <>
struct FactFields<AttrsCleanFact> : IdFields {
  static constexpr uint8_t kType = 17;
  static constexpr std::string_view kName = "attrs_clean";
};
template <>
struct FactFields<MetaHotFact> : IdFields {
  static constexpr uint8_t kType = 18;
  static constexpr std::string_view kName = "meta_hot";
};
template <>
struct FactFields<MetaUnhotFact> : IdFields {
  static constexpr uint8_t kType = 19;
  static constexpr std::string_view kName = "meta_unhot";
};
template <>
struct FactFields<OwedFact> : IdFields {
  static constexpr uint8_t kType = 20;
  static constexpr std::string_view kName = "owed";
};
template <>
struct FactFields<OwedDoneFact> : IdFields {
  static constexpr uint8_t kType = 21;
  static constexpr std::string_view kName = "owed_done";
};
template <>
struct FactFields<PlacedFact> {
  static constexpr uint8_t kType = 22;
  static constexpr std::string_view kName = "placed";
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.Id("dir", f.dir);
    v.Bytes("name", f.name);
  }
};
template <>
struct FactFields<DeadFact> : IdFields {
  static constexpr uint8_t kType = 23;
  static constexpr std::string_view kName = "dead";
};
template <>
struct FactFields<PhaseFact> {
  static constexpr uint8_t kType = 24;
  static constexpr std::string_view kName = "phase";
  static void Each(auto& v, auto& f) {
    v.Phase("state", f.state);
    v.Bytes("reason", f.reason);
  }
};
template <>
struct FactFields<TruthFact> {
  static constexpr uint8_t kType = 25;
  static constexpr std::string_view kName = "truth";
  static void Each(auto& v, auto& f) { v.Bool("target", f.target); }
};
template <>
struct FactFields<OptionFact> {
  static constexpr uint8_t kType = 26;
  static constexpr std::string_view kName = "option";
  static void Each(auto& v, auto& f) {
    v.Bytes("name", f.name);
    v.Bytes("value", f.value);
  }
};
template <>
struct FactFields<ForgottenFact> : IdFields {
  static constexpr uint8_t kType = 27;
  static constexpr std::string_view kName = "forgotten";
};
template <>
struct FactFields<DirectFact> {
  static constexpr uint8_t kType = 28;
  static constexpr std::string_view kName = "direct";
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.U32("how", f.how);
    v.U32("backing", f.backing);
  }
};

template <>
struct FactFields<PutBackFact> {
  static constexpr uint8_t kType = 29;
  static constexpr std::string_view kName = "put_back";
  static void Each(auto& v, auto& f) {
    v.Id("id", f.id);
    v.U64("mtime_sec", f.mtime_sec);
    v.U32("mtime_nsec", f.mtime_nsec);
    v.Bytes("capability", f.capability);
  }
};
template <>
struct FactFields<PutBackDoneFact> : IdFields {
  static constexpr uint8_t kType = 30;
  static constexpr std::string_view kName = "put_back_done";
};

inline constexpr uint8_t kLastFactType = 30;

}  // namespace livemv::state
