#include "core/state/recovery.h"

#include <algorithm>
#include <variant>

namespace livemv::state {
namespace {

using core::ErrorCode;
using core::Fail;

std::string HexId(FileId id) {
  char text[24];
  snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(id));
  return text;
}

template <class Map>
std::vector<FileId> SortedKeys(const Map& map) {
  std::vector<FileId> keys;
  keys.reserve(map.size());
  for (const auto& item : map) {
    if constexpr (requires { item.first; })
      keys.push_back(item.first);
    else
      keys.push_back(item);
  }
  std::sort(keys.begin(), keys.end());
  return keys;
}

// One fact into one state; a method a fact.
class Folder {
 public:
  explicit Folder(RecoveredState* state) : s_(*state) {}

  core::Status operator()(const MigrationFact& f) {
    s_.migration = f;
    return {};
  }
  core::Status operator()(const SessionFact& f) {
    s_.sessions.push_back(f);
    return {};
  }
  core::Status operator()(const NodeFact& f) {
    auto [it, added] = s_.nodes.emplace(f.id, f.handle);
    if (!added && it->second != f.handle)
      return Fail(ErrorCode::kCorrupt,
                  "journal: two source handles have the number " + HexId(f.id));
    return {};
  }

  core::Status operator()(const LocalEndFact& f) {
    if (Dead(f.id))
      return {};
    std::optional<ByteMap>& map = s_.files[f.id].map;
    if (!map)
      map.emplace(f.end);
    else if (f.end < map->local_end())
      map->ShrinkTo(f.end);
    else
      map->RaiseTo(f.end);
    return {};
  }
  core::Status operator()(const BoundFact& f) {
    s_.files[f.id].bound = BoundObject{f.target, f.target_ino, f.type};
    return {};
  }
  core::Status operator()(const CopiedFact& f) {
    return OnChunks(f, "copied", [&](ByteMap& map, ByteMap::Range r) {
      map.MarkCopied(r.first, r.count, f.hot);
    });
  }
  core::Status operator()(const WithdrawnFact& f) {
    return OnChunks(f, "withdrawn", [](ByteMap& map, ByteMap::Range r) {
      map.Withdraw(r.first, r.count);
    });
  }
  core::Status operator()(const HotFact& f) {
    return OnChunks(f, "hot", [](ByteMap& map, ByteMap::Range r) {
      map.MarkHot(r.first, r.count);
    });
  }
  core::Status operator()(const UnhotFact& f) {
    return OnChunks(f, "unhot", [](ByteMap& map, ByteMap::Range r) {
      map.Unhot(r.first, r.count);
    });
  }
  core::Status operator()(const RemoteFact& f) {
    if (Dead(f.id))
      return {};
    ByteMap* map = MapOf(f.id);
    if (map == nullptr)
      return NoLocalEnd(f.id, "remote");
    uint64_t off = std::min(f.off, map->local_end());
    map->MakeRemote(off, std::min(f.len, map->local_end() - off));
    return {};
  }
  core::Status operator()(const CutFact& f) {
    if (Dead(f.id))
      return {};
    FileState& file = s_.files[f.id];
    if (!file.map)
      file.map.emplace(f.local_end);
    else if (f.local_end < file.map->local_end())
      file.map->ShrinkTo(f.local_end);
    file.cut = f.size;
    if (file.object_size)
      file.object_size = f.size;
    return {};
  }
  core::Status operator()(const CutDoneFact& f) {
    if (auto it = s_.files.find(f.id); it != s_.files.end())
      it->second.cut.reset();
    return {};
  }
  core::Status operator()(const ObjectSizeFact& f) {
    if (!Dead(f.id))
      s_.files[f.id].object_size = f.size;
    return {};
  }
  core::Status operator()(const DirectFact& f) {
    if (f.how > static_cast<uint32_t>(Direct::kAliased))
      return Fail(ErrorCode::kCorrupt,
                  "journal: there is no such way to be direct as " +
                      std::to_string(f.how));
    if (Dead(f.id))
      return {};
    FileState& file = s_.files[f.id];
    file.direct = static_cast<Direct>(f.how);
    file.backing = file.direct == Direct::kYes ? f.backing : 0;
    if (file == FileState{})
      s_.files.erase(f.id);
    return {};
  }

  core::Status operator()(const PutBackFact& f) {
    if (!Dead(f.id))
      s_.files[f.id].put_back = f;
    return {};
  }
  core::Status operator()(const PutBackDoneFact& f) {
    auto it = s_.files.find(f.id);
    if (it == s_.files.end())
      return {};
    it->second.put_back.reset();
    if (it->second == FileState{})
      s_.files.erase(it);
    return {};
  }

  core::Status operator()(const EntryDirtyFact& f) {
    if (!Dead(f.dir))
      s_.dirty_entries[f.dir].insert(f.name);
    return {};
  }
  core::Status operator()(const EntryCleanFact& f) {
    auto it = s_.dirty_entries.find(f.dir);
    if (it == s_.dirty_entries.end())
      return {};
    it->second.erase(f.name);
    if (it->second.empty())
      s_.dirty_entries.erase(it);
    return {};
  }
  core::Status operator()(const AttrsDirtyFact& f) {
    return PutAlive(&s_.dirty_attrs, f.id);
  }
  core::Status operator()(const AttrsCleanFact& f) {
    s_.dirty_attrs.erase(f.id);
    return {};
  }
  core::Status operator()(const MetaHotFact& f) {
    return PutAlive(&s_.meta_hot, f.id);
  }
  core::Status operator()(const MetaUnhotFact& f) {
    s_.meta_hot.erase(f.id);
    return {};
  }
  core::Status operator()(const OwedFact& f) {
    return PutAlive(&s_.owed, f.id);
  }
  core::Status operator()(const OwedDoneFact& f) {
    s_.owed.erase(f.id);
    return {};
  }
  core::Status operator()(const PlacedFact& f) {
    s_.placed[f.id] = Place{f.dir, f.name};
    return {};
  }

  core::Status operator()(const DeadFact& f) {
    s_.dead.insert(f.id);
    s_.dirty_entries.erase(f.id);
    s_.dirty_attrs.erase(f.id);
    s_.meta_hot.erase(f.id);
    s_.owed.erase(f.id);
    auto it = s_.files.find(f.id);
    if (it == s_.files.end())
      return {};
    FileState left;
    left.bound = std::move(it->second.bound);  // what can still be destroyed
    if (left.bound)
      it->second = std::move(left);
    else
      s_.files.erase(it);
    return {};
  }
  core::Status operator()(const ForgottenFact& f) {
    TRY((*this)(DeadFact{f.id}));
    s_.dead.erase(f.id);
    s_.files.erase(f.id);
    s_.placed.erase(f.id);
    s_.nodes.erase(f.id);
    return {};
  }

  core::Status operator()(const PhaseFact& f) {
    auto state = static_cast<MigrationState>(f.state);
    if (state > MigrationState::kStuck)
      return Fail(ErrorCode::kCorrupt, "journal: there is no migration state " +
                                           std::to_string(f.state));
    if (state != MigrationState::kStuck)
      s_.phase = Phase{state};
    else if (s_.phase.state != MigrationState::kStuck)
      s_.phase = Phase{state, s_.phase.state};
    s_.reason = f.reason;
    return {};
  }
  core::Status operator()(const TruthFact& f) {
    s_.target_is_truth = f.target;
    return {};
  }
  core::Status operator()(const OptionFact& f) {
    s_.options[f.name] = f.value;
    return {};
  }

 private:
  bool Dead(FileId id) const { return s_.dead.contains(id); }
  core::Status PutAlive(std::unordered_set<FileId>* set, FileId id) {
    if (!Dead(id))
      set->insert(id);
    return {};
  }
  ByteMap* MapOf(FileId id) {
    auto it = s_.files.find(id);
    return it != s_.files.end() && it->second.map ? &*it->second.map : nullptr;
  }
  static core::Status NoLocalEnd(FileId id, const char* what) {
    return Fail(ErrorCode::kCorrupt,
                "journal: bytes of " + HexId(id) + " are said to be " + what +
                    ", but its local end was never recorded");
  }
  template <class F, class Act>
  core::Status OnChunks(const F& f, const char* what, Act act) {
    if (Dead(f.id))
      return {};
    ByteMap* map = MapOf(f.id);
    if (map == nullptr)
      return NoLocalEnd(f.id, what);
    uint64_t first = std::min(f.first, map->Chunks());
    act(*map, {first, std::min(f.count, map->Chunks() - first)});
    return {};
  }

  RecoveredState& s_;
};

void FactsOfFile(FileId id, const FileState& file, std::vector<Fact>* out) {
  if (file.bound)
    out->push_back(
        BoundFact{id, file.bound->handle, file.bound->ino, file.bound->type});
  if (file.map) {
    if (file.cut)  // carries the local end too
      out->push_back(CutFact{id, *file.cut, file.map->local_end()});
    else
      out->push_back(LocalEndFact{id, file.map->local_end()});
    for (ByteMap::Range r : file.map->CopiedRanges())
      out->push_back(CopiedFact{id, r.first, r.count, false});
    for (ByteMap::Range r : file.map->HotRanges())
      out->push_back(HotFact{id, r.first, r.count});
    for (ByteMap::Range r : file.map->RemoteRanges())
      out->push_back(RemoteFact{id, r.first, r.count});
  }
  if (file.object_size)
    out->push_back(ObjectSizeFact{id, *file.object_size});
  if (file.direct != Direct::kNo)
    out->push_back(
        DirectFact{id, static_cast<uint32_t>(file.direct), file.backing});
  if (file.put_back)
    out->push_back(*file.put_back);
}

}  // namespace

core::Status RecoveredState::Apply(const Fact& fact) {
  return std::visit(Folder(this), fact);
}

std::vector<Fact> RecoveredState::ToFacts() const {
  std::vector<Fact> out;
  if (migration)
    out.push_back(*migration);
  for (const SessionFact& session : sessions)
    out.push_back(session);
  for (const auto& [name, value] : options)
    out.push_back(OptionFact{name, value});
  if (phase.state == MigrationState::kStuck)
    out.push_back(PhaseFact{static_cast<uint8_t>(phase.before_stuck), ""});
  if (phase != Phase{} || !reason.empty())
    out.push_back(PhaseFact{static_cast<uint8_t>(phase.state), reason});
  if (target_is_truth)
    out.push_back(TruthFact{true});
  for (FileId id : SortedKeys(nodes))
    out.push_back(NodeFact{id, nodes.at(id)});
  // Before the rest: a dead inode takes only facts that outlive it.
  for (FileId id : SortedKeys(dead))
    out.push_back(DeadFact{id});
  for (FileId id : SortedKeys(files))
    FactsOfFile(id, files.at(id), &out);
  for (FileId id : SortedKeys(placed))
    out.push_back(PlacedFact{id, placed.at(id).dir, placed.at(id).name});
  for (FileId dir : SortedKeys(dirty_entries)) {
    for (const std::string& name : dirty_entries.at(dir))
      out.push_back(EntryDirtyFact{dir, name});
  }
  for (FileId id : SortedKeys(dirty_attrs))
    out.push_back(AttrsDirtyFact{id});
  for (FileId id : SortedKeys(meta_hot))
    out.push_back(MetaHotFact{id});
  for (FileId id : SortedKeys(owed))
    out.push_back(OwedFact{id});
  return out;
}

bool RecoveredState::IsDirtyEntry(FileId dir, std::string_view name) const {
  auto it = dirty_entries.find(dir);
  return it != dirty_entries.end() && it->second.contains(std::string(name));
}

bool RecoveredState::HostWentDown(std::string_view boot_id) const {
  return std::any_of(sessions.begin(), sessions.end(),
                     [&](const SessionFact& s) { return s.boot_id != boot_id; });
}

std::vector<Fact> FactsOfNewSession(const RecoveredState& state,
                                    const std::string& boot_id, uint32_t pid) {
  std::vector<Fact> out;
  for (FileId id : SortedKeys(state.files)) {
    const FileState& file = state.files.at(id);
    if (!file.map)
      continue;
    for (ByteMap::Range hot : file.map->HotRanges()) {
      // Only what is claimed: most hot chunks of a busy file are.
      bool claimed = false;
      for (uint64_t c = hot.first; c < hot.first + hot.count && !claimed; c++)
        claimed = file.map->IsCopied(c);
      if (claimed)
        out.push_back(WithdrawnFact{id, hot.first, hot.count});
    }
  }
  // Once: later workers of the same boot find the debts written down.
  if (!state.sessions.empty() && state.sessions.back().boot_id != boot_id) {
    for (FileId id : SortedKeys(state.meta_hot))
      out.push_back(OwedFact{id});
  }
  out.push_back(SessionFact{boot_id, pid});
  return out;
}

}  // namespace livemv::state
