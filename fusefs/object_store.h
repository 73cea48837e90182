#pragma once

// The target filesystem as objects by FileId (rules 3 and 4). Every object is
// made under its FileId in a slot of the private directory
//     <target root>/.livemv-ID/o/<FileId as 16 hex digits>
// and bound by a journaled record to its target handle; afterwards it is
// reached by handle only, wherever the applier places it in the tree.
//
// Thread contract: all methods from any thread. Every method may block as long
// as the target blocks, except Find and FindByIno.

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>

#include "core/result.h"
#include "core/state/facts.h"
#include "core/state/journal.h"
#include "core/sync.h"
#include "core/syscalls.h"
#include "fusefs/source_tree.h"

namespace livemv::fusefs {

struct Object {
  core::FileHandle handle;
  uint64_t ino = 0;   // on the target
  uint32_t type = 0;  // S_IFMT bits
};

class ObjectStore {
 public:
  // root: the target's root directory on the mount that will end up on DIR.
  // private_name: ".livemv-<ID>". The directories are made by Prepare.
  ObjectStore(core::Syscalls* sys, core::UniqueFd root,
              std::string private_name, state::Journal* journal,
              size_t max_open = 4096);

  core::Status Prepare();
  // Takes over what the journal says; before any other call.
  void Adopt(state::FileId id, Object object);

  std::optional<Object> Find(state::FileId id);
  std::optional<state::FileId> FindByIno(uint64_t target_ino);

  // The object of id, made and bound if there is none: type, device number
  // and owner from source, mode 0600 (0700 for a directory); link_text for a
  // symbolic link. An object that already lies in the slot without a record
  // (a kill between the two) is adopted. The record is appended, not synced.
  core::Result<Object> Ensure(state::FileId id, const core::Stat& source,
                              const std::string& link_text = {});

  core::Result<SharedFd> Data(state::FileId id);  // O_RDWR, regular files
  core::Result<SharedFd> Path(state::FileId id);  // O_PATH
  core::Result<SharedFd> Dir(state::FileId id);   // O_RDONLY|O_DIRECTORY
  void Drop(state::FileId id);    // closes what is cached of it
  void Forget(state::FileId id);  // Drop, and the binding goes too

  int RootFd() const { return root_.Get(); }
  int SlotsFd() const { return slots_.Get(); }
  static std::string SlotName(state::FileId id);
  const std::string& private_name() const { return private_name_; }
  core::Syscalls* sys() const { return sys_; }

 private:
  struct Cached {
    SharedFd path, data, dir;
    std::list<state::FileId>::iterator lru;
  };
  core::Result<SharedFd> Get(state::FileId id, SharedFd Cached::*slot,
                             int flags);

  core::Syscalls* const sys_;
  const core::UniqueFd root_;
  const std::string private_name_;
  state::Journal* const journal_;
  const size_t max_open_;
  core::UniqueFd slots_;
  core::Mutex mu_;
  std::unordered_map<state::FileId, Object> objects_;     // guarded by mu_
  std::unordered_map<uint64_t, state::FileId> by_ino_;    // guarded by mu_
  std::unordered_map<state::FileId, Cached> cache_;       // guarded by mu_
  std::list<state::FileId> lru_;                          // guarded by mu_
  core::Mutex make_mu_;  // one creation at a time for one id
};

}  // namespace livemv::fusefs
