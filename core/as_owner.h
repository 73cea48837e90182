#pragma once

// System calls on a filesystem whose server does not let root do everything
// (root_squash, exports(5)): what root is denied is done as the owner of the
// object; the server asks nobody else for more. A descriptor that its owner
// opened reads and writes for whoever has it.
//
// Where the object's own mode denies its owner (a file without write
// permission, a directory that takes no names) the mode is widened for the
// call and put back. A directory is moved to another parent by whoever owns one
// of the two, and its "..", which that changes, is writable for everybody
// meanwhile, but nobody else may enter it. From the directory of one to that of
// another there is no way but over one in which all may make names: EACCES.
//
// New objects are made as whoever the caller acts as (core/acting.h): here
// nothing is tried again, since the maker becomes the owner.
//
// Thread contract: as Syscalls; calls that widen a mode wait for each other.

#include <functional>
#include <memory>

#include "core/syscalls.h"

namespace livemv::core {

// The mode of this object is about to be widened: what comes back is let go of
// when it was put back, and whoever keeps modes in order should look at it then,
// also if this process has died before. An error keeps the mode as it is.
using Widened = std::function<Result<std::shared_ptr<void>>(const Stat&)>;

// sys and root_fd must outlive what comes back. Objects of other filesystems
// than that of root_fd are left alone: what root is denied there has other
// reasons. Nothing is asked of the filesystem here.
std::unique_ptr<Syscalls> MakeAsOwner(Syscalls* sys, int root_fd,
                                      Widened widened);

}  // namespace livemv::core
