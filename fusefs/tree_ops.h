#pragma once

// The name and attribute operations of a filesystem on one Tree, as root on
// behalf of a caller. Knows nothing of journals, modes or two sides; OverlayFs
// adds those.
//
// Thread contract: all methods from any thread; they block as the tree's
// filesystem blocks. Errors carry the errno for the application.

#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "core/state/ids.h"
#include "core/syscalls.h"
#include "fusefs/fs_core.h"
#include "fusefs/tree.h"

namespace livemv::fusefs {

// On the placeholder of a file that was created through the overlay. Neither
// shown to applications nor copied; an abort removes it.
inline constexpr char kMarkXattr[] = "trusted.livemv";

class TreeOps {
 public:
  // tree must outlive this. The process's umask must be 0 where default ACLs
  // are to have their exact effect.
  explicit TreeOps(Tree* tree) : tree_(tree), sys_(tree->sys()) {}

  core::Result<Entry> Lookup(FileId dir, const char* name);
  core::Result<core::Stat> GetAttr(FileId id);
  // Everything in change but size.
  core::Status ChangeAttrs(FileId id, const AttrChange& change);
  // A write or truncate by a caller without CAP_FSETID drops setuid, setgid
  // (if executable by the group) and file capabilities (inode(7)).
  core::Result<bool> HasPrivileges(FileId id);
  core::Status DropPrivileges(FileId id);
  core::Result<std::string> ReadLink(FileId id);

  // mode with its S_IFMT bits says what is made; text for a symbolic link.
  // EEXIST if the name is taken.
  core::Result<Entry> Make(FileId dir, const char* name, mode_t mode, dev_t dev,
                           const char* text, const Caller& caller);
  // The second half of Make (owner, mode) for an object that a predecessor
  // made and may not have finished. Doing it again changes nothing.
  core::Result<Entry> FinishMake(FileId dir, const char* name, mode_t mode,
                                 const Caller& caller);
  // A regular file without a name, as O_TMPFILE makes it in dir.
  core::Result<Entry> MakeNameless(FileId dir, mode_t mode,
                                   const Caller& caller);
  core::Result<Entry> Link(FileId id, FileId dir, const char* name);
  // flags: AT_REMOVEDIR or 0.
  core::Status Unlink(FileId dir, const char* name, int flags);
  core::Status Rename(FileId dir, const char* name, FileId new_dir,
                      const char* new_name, unsigned flags);

  core::Result<std::vector<DirItem>> ReadDir(FileId dir, int64_t offset,
                                             size_t max_bytes, bool plus);
  core::Result<std::string> GetXattr(FileId id, const char* name);
  core::Status SetXattr(FileId id, const char* name, std::string_view value,
                        int flags);
  core::Result<std::vector<std::string>> ListXattr(FileId id);
  core::Status RemoveXattr(FileId id, const char* name);

  Tree* tree() const { return tree_; }

 private:
  struct Met {
    FileId id;
    SharedFd fd;  // O_PATH
    core::Stat st;
  };
  core::Result<Met> Meet(FileId dir, const char* name);
  core::Result<Met> MeetOpen(core::UniqueFd fd);
  // The permissions that a new object is asked with: the caller's umask has no
  // effect beside a default ACL (acl(5)).
  core::Result<mode_t> Masked(int dirfd, mode_t mode, const Caller& caller);
  core::Status MakeObject(int at, const char* name, mode_t mode, dev_t dev,
                          const char* text, const Caller& caller);
  // Owner and mode of a new object as the kernel would have given them to the
  // caller. False: it had them.
  core::Result<bool> GiveTo(const Met& met, int dirfd, mode_t mode,
                            const Caller& caller);
  // GiveTo, and the attributes that it has then.
  core::Result<Entry> Given(Met met, int dirfd, mode_t mode,
                            const Caller& caller);
  core::Result<bool> HasDefaultAcl(int dirfd);

  Tree* const tree_;
  core::Syscalls* const sys_;
};

}  // namespace livemv::fusefs
