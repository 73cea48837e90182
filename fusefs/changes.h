#pragma once

// The operations that must not run twice: FsCore's, made safe against a kill
// at any point by an intent record and by post-conditions (see intents.h).
//
// Why post-conditions suffice: the kernel holds the inode locks of the
// directories (of the file, for xattrs) from before it sends such a request
// until it has the reply, so nothing else reaches the same name through the
// overlay between the kill and the repetition.
//
// Each acts for the request that this thread is answering.
// Thread contract: any thread.

#include <string_view>
#include <utility>

#include "core/result.h"
#include "fusefs/fs_core.h"
#include "fusefs/once.h"

namespace livemv::fusefs {

core::Status UnlinkOnce(Once* once, FsCore* core, FileId dir, const char* name);
core::Status RmDirOnce(Once* once, FsCore* core, FileId dir, const char* name);
core::Status RenameOnce(Once* once, FsCore* core, FileId dir, const char* name,
                        FileId new_dir, const char* new_name, unsigned flags);
core::Result<Entry> MkDirOnce(Once* once, FsCore* core, FileId dir,
                              const char* name, mode_t mode,
                              const Caller& caller);
core::Result<Entry> MkNodOnce(Once* once, FsCore* core, FileId dir,
                              const char* name, mode_t mode, dev_t dev,
                              const Caller& caller);
core::Result<Entry> SymLinkOnce(Once* once, FsCore* core, FileId dir,
                                const char* name, const char* text,
                                const Caller& caller);
core::Result<Entry> LinkOnce(Once* once, FsCore* core, FileId id, FileId dir,
                             const char* name);
core::Result<std::pair<Entry, OpenReply>> CreateOnce(Once* once, FsCore* core,
                                                     FileId dir,
                                                     const char* name,
                                                     int flags, mode_t mode,
                                                     const Caller& caller);
// For O_TRUNC: bytes written after the truncation must not be cut again.
core::Result<OpenReply> OpenOnce(Once* once, FsCore* core, FileId id,
                                 int flags);
core::Status SetXattrOnce(Once* once, FsCore* core, FileId id, const char* name,
                          std::string_view value, int flags);
core::Status RemoveXattrOnce(Once* once, FsCore* core, FileId id,
                             const char* name);
// For O_APPEND while others append behind the overlay too: where the bytes
// land is decided by the source, so a repetition would append them twice.
core::Result<size_t> AppendOnce(Once* once, FsCore* core, FileId id,
                                uint64_t off, std::span<const char> data,
                                int open_flags, bool kill_suidgid);

}  // namespace livemv::fusefs
