#pragma once

// The target filesystem as objects by FileId (rules 3 and 4). Every object is
// made under its FileId in a slot of the private directory
//     <target root>/.livemv-ID/o/<FileId as 16 hex digits>
// and bound by a journaled record to its target handle; afterwards it is
// reached by handle only, wherever the applier places it in the tree. Objects
// that nobody can name any more wait in .livemv-ID/v for their end.
//
// Thread contract: all methods from any thread. Every method may block as long
// as the target blocks, except Find, Files, FindByIno and Drop.

#include <array>
#include <atomic>
#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core/result.h"
#include "core/state/facts.h"
#include "core/state/journal.h"
#include "core/sync.h"
#include "core/syscalls.h"
#include "fusefs/handle_table.h"
#include "fusefs/tree.h"

namespace livemv::fusefs {

class ObjectStore {
 public:
  // root: the target's root directory on the mount that will end up on DIR.
  // private_name: ".livemv-<ID>". The directories are made by Prepare.
  ObjectStore(core::Syscalls* sys, core::UniqueFd root,
              std::string private_name, state::Journal* journal,
              size_t max_open = 4096);

  // Makes the private directories where they are missing, and binds the root;
  // does nothing if that is done. Before anything but Ensure that needs a slot;
  // again after RemovePrivate if the migration goes on. The private directory
  // is 0700; in it names are changed by whoever owns the object's next or last
  // directory.
  core::Status Prepare();
  // Only the root: for a target that is the truth, where all names begin at it
  // and nothing is to be made. Blocks on the target.
  core::Status BindRoot();
  // Changes something of no account (the times of a private directory), and
  // waits for as long as the target waits with it. After Prepare.
  core::Status Touch();
  // Removes the private directories. ENOTEMPTY, naming what is left, if
  // objects are still there.
  core::Status RemovePrivate();
  // Takes over what the journal says; before any other call.
  void Adopt(state::FileId id, const Object& object);

  std::optional<Object> Find(state::FileId id);
  // How many regular files have one.
  size_t Files();
  // By number alone: a hint where an inode number may have been used again
  // (a binding whose object was destroyed before a kill or power cut).
  std::optional<state::FileId> FindByIno(uint64_t target_ino);
  // Whose object dirfd/name is, st being its attributes; nothing if nobody's.
  // The handle is asked for if the number is not unique, or if verify is set.
  core::Result<std::optional<state::FileId>> Identify(int dirfd,
                                                      const char* name,
                                                      const core::Stat& st,
                                                      bool verify);
  // The number of a target object, by handle: a bound FileId, or one with
  // kTargetBit that lives in memory only (rule 7).
  state::FileId NumberOf(const Object& object);

  // The object of id, made and bound if there is none: type, device number
  // and owner from source, mode 0600 (0700 for a directory); link_text for a
  // symbolic link. Made as the owner, since a server that squashes root lets
  // nobody give files away. An object that already lies in the slot without a record
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
  int VictimsFd() const { return victims_.Get(); }
  static std::string SlotName(state::FileId id);
  // The FileId of a slot's name, if it is one.
  static std::optional<state::FileId> IdOfSlot(const std::string& name);
  // A name in VictimsFd that nothing has yet.
  std::string NewVictimName();
  const std::string& private_name() const { return private_name_; }
  core::Syscalls* sys() const { return sys_; }

 private:
  struct Cached {
    SharedFd path, data, dir;
    std::list<state::FileId>::iterator lru;
  };
  core::Result<SharedFd> Get(state::FileId id, SharedFd Cached::*slot,
                             int flags);
  void Remember(state::FileId id, const Object& object);
  std::optional<state::FileId> FindByHandleLocked(
      const core::FileHandle& handle, uint64_t ino);
  core::Result<Object> Make(state::FileId id, const core::Stat& source,
                            const std::string& link_text);
  core::Status MakeAsOwner(const std::string& slot, const core::Stat& source,
                           const std::string& link_text);
  core::Status MakeInSlot(const std::string& slot, const core::Stat& source,
                          const std::string& link_text);
  core::Status EmptyAdopted(state::FileId id, const std::string& slot);
  core::Result<core::UniqueFd> MakeDir(int at, const char* name, mode_t mode);
  void RestoreRootTimes(const core::Stat& before);

  core::Syscalls* const sys_;
  const core::UniqueFd root_;
  const std::string private_name_;
  state::Journal* const journal_;
  const size_t max_open_;
  core::Mutex prepare_mu_;
  core::UniqueFd private_, slots_, victims_;
  std::atomic<bool> removed_{false};  // and Prepare was not called since
  std::atomic<uint64_t> next_victim_{0};
  core::Mutex mu_;
  HandleTable objects_;                              // guarded by mu_
  std::unordered_map<state::FileId, Cached> cache_;  // guarded by mu_
  std::list<state::FileId> lru_;                     // guarded by mu_
  uint64_t next_target_ = 1;  // of kTargetBit numbers; guarded by mu_
  core::Mutex make_mu_;
  core::CondVar made_;
  std::unordered_set<state::FileId> making_;  // guarded by make_mu_
};

}  // namespace livemv::fusefs
