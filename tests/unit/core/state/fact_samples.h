#pragma once

// Facts for tests: one of each kind, and random ones over few inodes, so that
// they meet each other.

#include <random>
#include <string>
#include <vector>

#include "core/state/facts.h"
#include "core/state/ids.h"

namespace livemv::state {

inline core::FileHandle SampleHandle(uint32_t ino, uint32_t generation) {
  std::string bytes;
  for (uint32_t word : {ino, generation})
    bytes.append(reinterpret_cast<const char*>(&word), 4);
  return core::FileHandle{1, bytes};
}

inline std::vector<Fact> OneOfEach() {
  const FileId id = 0x0000000c'9e3779b9;
  return {
      MigrationFact{"m1", "/srv/data", "nas:/export", SampleHandle(2, 0)},
      SessionFact{"boot-1", 4711},
      NodeFact{kTableBit | 5, core::FileHandle{0x81, "twelve bytes"}},
      LocalEndFact{id, 3 * kChunkBytes + 17},
      BoundFact{id, SampleHandle(77, 78), 77, 0100000},
      CopiedFact{id, 0, 3, true},
      WithdrawnFact{id, 1, 1},
      HotFact{id, 2, 2},
      UnhotFact{id, 0, 1},
      RemoteFact{id, 4096, 8192},
      CutFact{id, 3 * kChunkBytes + 1, 3 * kChunkBytes},
      CutDoneFact{id},
      ObjectSizeFact{id, 1ull << 40},
      EntryDirtyFact{kRootId, "a \"name\"\n\x01\xff"},
      EntryCleanFact{kRootId, std::string("with\0nul", 8)},
      AttrsDirtyFact{id},
      AttrsCleanFact{id},
      MetaHotFact{kRootId},
      MetaUnhotFact{kRootId},
      OwedFact{kRootId},
      OwedDoneFact{kRootId},
      PlacedFact{id, kRootId, "dir"},
      DeadFact{id},
      PhaseFact{4, "all is copied"},
      TruthFact{true},
      OptionFact{"max_pause_ns", "200000000"},
      ForgottenFact{id},
      DirectFact{id, 1, 7},
      PutBackFact{id, 1795787353, 155528636, "\1\2"},
      PutBackDoneFact{id},
  };
}

// Claims about chunks may come before the local end they need, or lie past it.
inline Fact RandomFact(std::mt19937& rng) {
  auto below = [&](uint64_t n) { return rng() % n; };
  const FileId id = 1 + below(6);
  const std::string name(1, static_cast<char>('a' + below(3)));
  switch (below(36)) {
    case 0:
      return SessionFact{"boot-" + name, static_cast<uint32_t>(below(9))};
    case 1:
      return NodeFact{kTableBit | id,
                      SampleHandle(static_cast<uint32_t>(id), 0)};
    case 2:
    case 3:
    case 4:
    case 5:
      return LocalEndFact{id, below(200 * kChunkBytes)};
    case 6:
      return BoundFact{id, SampleHandle(1, static_cast<uint32_t>(below(3))),
                       below(100), 0100000};
    case 7:
    case 8:
    case 9:
    case 10:
      return CopiedFact{id, below(150), below(100), below(3) == 0};
    case 11:
      return WithdrawnFact{id, below(150), below(40)};
    case 12:
    case 13:
      return HotFact{id, below(150), below(20)};
    case 14:
      return UnhotFact{id, below(150), below(60)};
    case 15:
    case 16:
      return RemoteFact{id, below(150 * kChunkBytes), below(3 * kChunkBytes)};
    case 17:
      return CutFact{id, below(250 * kChunkBytes), below(200 * kChunkBytes)};
    case 18:
      return CutDoneFact{id};
    case 19:
      if (const uint64_t size = below(1000); size % 3 != 0)
        return ObjectSizeFact{id, size};
      return DirectFact{id, static_cast<uint32_t>(below(3)),
                        static_cast<uint32_t>(below(3))};
    case 34:
      return PutBackFact{id, below(3), static_cast<uint32_t>(below(3)), name};
    case 35:
      return PutBackDoneFact{id};
    case 20:
    case 21:
      return EntryDirtyFact{id, name};
    case 22:
      return EntryCleanFact{id, name};
    case 23:
      return AttrsDirtyFact{id};
    case 24:
      return AttrsCleanFact{id};
    case 25:
      return MetaHotFact{id};
    case 26:
      return MetaUnhotFact{id};
    case 27:
      return OwedFact{id};
    case 28:
      return OwedDoneFact{id};
    case 29:
      return PlacedFact{id, below(3), name};
    case 30:
      // Seldom, or all inodes are soon dead.
      return below(8) == 0 ? Fact(DeadFact{id}) : Fact(AttrsDirtyFact{id});
    case 31:
      return below(4) == 0 ? Fact(ForgottenFact{id}) : Fact(MetaHotFact{id});
    case 32:
      return PhaseFact{static_cast<uint8_t>(below(12)), name};
    default:
      return below(2) == 0 ? Fact(TruthFact{below(2) == 0})
                           : Fact(OptionFact{name, std::to_string(below(9))});
  }
}

}  // namespace livemv::state
