#pragma once

// FileId: the number that stands for one inode of the source for the whole
// migration, across deaths of the worker. It is the FUSE nodeid too.
//   1                    the root of the tree (FUSE_ROOT_ID)
//   ino<<32|generation   for handles that are just those two 32-bit numbers
//                        (FILEID_INO32_GEN: ext4): no table is needed. ext4's
//                        generations use all 32 bits, its inode numbers hardly
//                        ever more than 29, so the bits below stay free
//   kTableBit | n        for other handles, and inode numbers from 2^29 on: n
//                        is made from the handle, bound by a journaled record
// A FileId is never used again for another inode: the generation is part of it.

#include <cstdint>

namespace livemv::state {

using FileId = uint64_t;
inline constexpr FileId kNoFile = 0;
inline constexpr FileId kRootId = 1;
inline constexpr FileId kTableBit = 1ull << 62;
// Objects that exist on the target only (made there after cutover); never
// journaled.
inline constexpr FileId kTargetBit = 1ull << 63;
// Not part of a FileId: the second number under which the kernel knows a file
// (facts.h, Direct::kAliased).
inline constexpr FileId kAliasBit = 1ull << 61;

// Bytes per chunk of the copied bitmap. The last chunk ends at the local end.
inline constexpr uint64_t kChunkBytes = 1ull << 20;

}  // namespace livemv::state
