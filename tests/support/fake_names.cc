// Names, links and attributes of the fake kernel.

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/xattr.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/hash.h"
#include "tests/support/fake_syscalls.h"

namespace livemv::fake {

using core::FailSys;
using core::FileHandle;
using core::Result;
using core::Status;

namespace {

// FILEID_INO32_GEN (include/linux/exportfs.h): as ext4 gives.
constexpr int kInoGenType = 1;

FileHandle HandleOf(uint64_t ino, uint32_t gen) {
  uint32_t words[2] = {static_cast<uint32_t>(ino), gen};
  return {kInoGenType,
          std::string(reinterpret_cast<char*>(words), sizeof words)};
}

uint8_t DirType(mode_t mode) {
  return static_cast<uint8_t>((mode & S_IFMT) >> 12);
}

}  // namespace

Result<FakeSyscalls::At> FakeSyscalls::Resolve(int dirfd, const char* path,
                                               const char* call) {
  ASSIGN_OR_RETURN(OpenFile * file, File(dirfd, call));
  At at{file->fs, file->ino, "", file->ino};
  std::string_view rest = path;
  if (rest.empty())
    return at;
  if (rest.front() == '/')
    return FailSys(EINVAL, std::string(call) + " of an absolute path");
  while (!rest.empty()) {
    size_t end = std::min(rest.find('/'), rest.size());
    std::string name(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (at.ino == 0)
      return FailSys(ENOENT, call);
    const Inode& dir = Live(at.fs, at.ino);
    if (!dir.IsDir())
      return FailSys(ENOTDIR, call);
    if (name.size() > 255)
      return FailSys(ENAMETOOLONG, call);
    TRY(Allow(at.fs, at.ino, 1, call));
    if (name == "." || name.empty())
      continue;
    if (name == "..") {
      at.ino = dir.parent;
      at.dir = dir.parent;
      at.name.clear();
      continue;
    }
    at.dir = at.ino;
    at.name = name;
    auto it = dir.entries.find(name);
    at.ino = it == dir.entries.end() ? 0 : it->second.ino;
  }
  return at;
}

Result<uint64_t> FakeSyscalls::NewInode(FsId fs, const At& at, mode_t mode,
                                        dev_t dev, const std::string& link) {
  Fs& f = *fss_[fs];
  if (at.name.empty() || at.ino != 0)
    return FailSys(EEXIST, "create");
  if (Live(fs, at.dir).nlink == 0)
    return FailSys(ENOENT, "create");  // the directory was removed
  TRY(AllowName(fs, at.dir, 0, "create"));
  const core::Identity who = Acting(fs);
  if (f.squashes && (S_ISBLK(mode) || S_ISCHR(mode)))
    return FailSys(EPERM, "create");
  uint64_t ino = f.next_ino;
  if (f.free_inos.empty()) {
    f.next_ino++;
  } else {
    ino = *f.free_inos.begin();
    f.free_inos.erase(f.free_inos.begin());
  }
  Inode inode;
  inode.ino = ino;
  inode.gen = std::max(1u, f.next_gen[ino]);
  // Used up, also if a power cut takes the inode.
  f.next_gen[ino] = inode.gen + 1;
  inode.mode = mode;
  inode.uid = who.uid;
  inode.gid = who.gid;
  if ((Live(fs, at.dir).mode & S_ISGID) != 0) {
    inode.gid = Live(fs, at.dir).gid;
    inode.mode |= S_ISDIR(mode) ? S_ISGID : 0;
  }
  inode.nlink = S_ISDIR(mode) ? 2 : 1;
  inode.rdev = dev;
  inode.link = link;
  inode.atime = inode.mtime = inode.ctime = inode.btime = Time();
  if (S_ISDIR(mode))
    inode.parent = at.dir;
  uint64_t dir = at.dir;
  std::string name = at.name;
  int64_t cookie = Live(fs, dir).last_cookie + 1;
  Change(fs, ino, [ino, inode, dir, name, cookie](Image& image) {
    Inode* d = image.Find(dir);
    if (d == nullptr)
      return;
    image.inodes[ino] = inode;
    d->last_cookie = std::max(d->last_cookie, cookie);
    d->entries[name] = {ino, cookie};
    if (inode.IsDir())
      d->nlink++;
  });
  Touch(fs, dir, true);
  return ino;
}

Result<core::UniqueFd> FakeSyscalls::OpenAt(int dirfd, const char* path,
                                            int flags, mode_t mode) {
  if (int fd = 0; ::sscanf(path, "/proc/self/fd/%d", &fd) == 1)
    return OpenAt(fd, "", flags, mode);  // a magic link (proc(5))
  TRY(Begin("OpenAt", dirfd));
  ASSIGN_OR_RETURN(At at, Resolve(dirfd, path, "openat"));
  bool made = false;
  if ((flags & O_CREAT) != 0) {
    made = at.ino == 0;
    if (at.ino != 0 && (flags & O_EXCL) != 0)
      return FailSys(EEXIST, "openat");
    if (at.ino == 0) {
      ASSIGN_OR_RETURN(at.ino,
                       NewInode(at.fs, at, S_IFREG | (mode & 07777), 0, ""));
    }
  }
  if (at.ino == 0)
    return FailSys(ENOENT, "openat");
  Inode& inode = Live(at.fs, at.ino);
  if (!made)
    TRY(AllowOpen(at.fs, at.ino, flags, "openat"));
  bool path_only = (flags & O_PATH) != 0;
  if ((flags & O_DIRECTORY) != 0 && !inode.IsDir())
    return FailSys(ENOTDIR, "openat");
  if (!path_only) {
    if (S_ISLNK(inode.mode))
      return FailSys(ELOOP, "openat");
    if (inode.IsDir() && (flags & O_ACCMODE) != O_RDONLY)
      return FailSys(EISDIR, "openat");
    if ((flags & O_DIRECT) != 0 && !fss_[at.fs]->takes_direct)
      return FailSys(EINVAL, "openat");
  }
  core::UniqueFd fd = Install(at.fs, at.ino, flags);
  if ((flags & O_TRUNC) != 0 && S_ISREG(inode.mode) && !path_only) {
    uint64_t ino = at.ino;
    if (fss_[at.fs]->kind == Kind::kNfs)
      Flush(at.fs, ino);
    Change(at.fs, ino, [ino](Image& image) {
      if (Inode* i = image.Find(ino))
        i->Resize(0);
    });
    Touch(at.fs, ino, true);
  }
  return fd;
}

Result<core::UniqueFd> FakeSyscalls::OpenByHandle(int mount_fd,
                                                  const FileHandle& handle,
                                                  int flags) {
  TRY(Begin("OpenByHandle", mount_fd));
  ASSIGN_OR_RETURN(OpenFile * root, File(mount_fd, "open_by_handle_at"));
  FsId fs = root->fs;
  uint32_t words[2];
  if (handle.type != kInoGenType || handle.bytes.size() != sizeof words)
    return FailSys(ESTALE, "open_by_handle_at");
  std::memcpy(words, handle.bytes.data(), sizeof words);
  const Inode* inode = fss_[fs]->live.Find(words[0]);
  // One without links is found while somebody has it open (ext4 and tmpfs,
  // measured on 6.18).
  if (inode == nullptr || inode->gen != words[1])
    return FailSys(ESTALE, "open_by_handle_at");
  bool path_only = (flags & O_PATH) != 0;
  if ((flags & O_DIRECTORY) != 0 && !inode->IsDir())
    return FailSys(ENOTDIR, "open_by_handle_at");
  if (!path_only && S_ISLNK(inode->mode))
    return FailSys(ELOOP, "open_by_handle_at");
  if (!path_only && inode->IsDir() && (flags & O_ACCMODE) != O_RDONLY)
    return FailSys(EISDIR, "open_by_handle_at");
  if (!path_only && (flags & O_DIRECT) != 0 && !fss_[fs]->takes_direct)
    return FailSys(EINVAL, "open_by_handle_at");
  TRY(AllowOpen(fs, words[0], flags, "open_by_handle_at"));
  return Install(fs, words[0], flags);
}

Result<FileHandle> FakeSyscalls::NameToHandle(int dirfd, const char* path) {
  TRY(Begin("NameToHandle", dirfd));
  ASSIGN_OR_RETURN(At at, Resolve(dirfd, path, "name_to_handle_at"));
  if (at.ino == 0)
    return FailSys(ENOENT, "name_to_handle_at");
  return HandleOf(at.ino, Live(at.fs, at.ino).gen);
}

Result<std::vector<core::DirEntry>> FakeSyscalls::ReadDir(int fd,
                                                          int64_t offset,
                                                          size_t max_bytes) {
  TRY(Begin("ReadDir", fd, static_cast<uint64_t>(offset), max_bytes));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "getdents64"));
  if ((file->flags & O_PATH) != 0)
    return FailSys(EBADF, "getdents64");
  const Inode& dir = Live(file->fs, file->ino);
  if (!dir.IsDir())
    return FailSys(ENOTDIR, "getdents64");
  TRY(Allow(file->fs, file->ino, 4, "getdents64"));
  if (dir.nlink == 0)
    return FailSys(ENOENT, "getdents64");  // IS_DEADDIR, fs/readdir.c
  std::vector<core::DirEntry> all, out;
  all.push_back({dir.ino, 1, DT_DIR, "."});
  all.push_back({dir.parent, 2, DT_DIR, ".."});
  for (const auto& [name, entry] : dir.entries)
    all.push_back({entry.ino, entry.cookie,
                   DirType(Live(file->fs, entry.ino).mode), name});
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
    return a.next_offset < b.next_offset;
  });
  size_t bytes = 0;
  for (auto& entry : all) {
    if (entry.next_offset <= offset)
      continue;
    bytes += 24 + entry.name.size();
    if (!out.empty() && bytes > max_bytes)
      break;
    out.push_back(std::move(entry));
  }
  return out;
}

Status FakeSyscalls::MkDirAt(int dirfd, const char* path, mode_t mode) {
  TRY(Begin("MkDirAt", dirfd));
  ASSIGN_OR_RETURN(At at, Resolve(dirfd, path, "mkdirat"));
  TRY(NewInode(at.fs, at, S_IFDIR | (mode & 07777), 0, ""));
  return {};
}

Status FakeSyscalls::MkNodAt(int dirfd, const char* path, mode_t mode,
                             dev_t dev) {
  TRY(Begin("MkNodAt", dirfd));
  ASSIGN_OR_RETURN(At at, Resolve(dirfd, path, "mknodat"));
  if ((mode & S_IFMT) == 0)
    mode |= S_IFREG;
  TRY(NewInode(at.fs, at, mode, dev, ""));
  return {};
}

Status FakeSyscalls::SymLinkAt(const char* text, int dirfd, const char* path) {
  TRY(Begin("SymLinkAt", dirfd));
  ASSIGN_OR_RETURN(At at, Resolve(dirfd, path, "symlinkat"));
  TRY(NewInode(at.fs, at, S_IFLNK | 0777, 0, text));
  return {};
}

Result<std::string> FakeSyscalls::ReadLinkAt(int dirfd, const char* path) {
  TRY(Begin("ReadLinkAt", dirfd));
  ASSIGN_OR_RETURN(At at, Resolve(dirfd, path, "readlinkat"));
  if (at.ino == 0)
    return FailSys(ENOENT, "readlinkat");
  const Inode& inode = Live(at.fs, at.ino);
  if (!S_ISLNK(inode.mode))
    return FailSys(EINVAL, "readlinkat");
  return inode.link;
}

Status FakeSyscalls::LinkFd(int fd, int dirfd, const char* path) {
  TRY(Begin("LinkFd", dirfd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "linkat"));
  ASSIGN_OR_RETURN(At at, Resolve(dirfd, path, "linkat"));
  if (at.fs != file->fs)
    return FailSys(EXDEV, "linkat");
  const Inode& inode = Live(file->fs, file->ino);
  if (inode.IsDir())
    return FailSys(EPERM, "linkat");
  if (at.ino != 0)
    return FailSys(EEXIST, "linkat");
  if (inode.nlink == 0 || Live(at.fs, at.dir).nlink == 0)
    return FailSys(ENOENT, "linkat");
  TRY(AllowName(at.fs, at.dir, 0, "linkat"));
  uint64_t ino = file->ino, dir = at.dir;
  std::string name = at.name;
  int64_t cookie = Live(at.fs, dir).last_cookie + 1;
  Change(at.fs, ino, [ino, dir, name, cookie](Image& image) {
    Inode* d = image.Find(dir);
    Inode* i = image.Find(ino);
    if (d == nullptr || i == nullptr)
      return;
    d->last_cookie = std::max(d->last_cookie, cookie);
    d->entries[name] = {ino, cookie};
    i->nlink++;
  });
  Touch(at.fs, dir, true);
  Touch(at.fs, ino, false);
  return {};
}

Status FakeSyscalls::UnlinkAt(int dirfd, const char* path, int flags) {
  TRY(Begin("UnlinkAt", dirfd));
  ASSIGN_OR_RETURN(At at, Resolve(dirfd, path, "unlinkat"));
  if (at.ino == 0)
    return FailSys(ENOENT, "unlinkat");
  const Inode& inode = Live(at.fs, at.ino);
  bool dir_wanted = (flags & AT_REMOVEDIR) != 0;
  if (at.name.empty())
    return FailSys(EINVAL, "unlinkat");
  TRY(AllowName(at.fs, at.dir, at.ino, "unlinkat"));
  if (inode.IsDir() && !dir_wanted)
    return FailSys(EISDIR, "unlinkat");
  if (!inode.IsDir() && dir_wanted)
    return FailSys(ENOTDIR, "unlinkat");
  if (dir_wanted && !inode.entries.empty())
    return FailSys(ENOTEMPTY, "unlinkat");
  uint64_t ino = at.ino, dir = at.dir;
  std::string name = at.name;
  Change(at.fs, ino, [ino, dir, name](Image& image) {
    Inode* d = image.Find(dir);
    Inode* i = image.Find(ino);
    if (d == nullptr || i == nullptr)
      return;
    d->entries.erase(name);
    if (i->IsDir()) {
      d->nlink--;
      i->nlink = 0;
    } else {
      i->nlink--;
    }
  });
  Touch(at.fs, dir, true);
  Touch(at.fs, ino, false);
  Collect(at.fs, ino);
  return {};
}

Status FakeSyscalls::RenameAt(int olddir, const char* oldpath, int newdir,
                              const char* newpath, unsigned flags) {
  TRY(Begin("RenameAt", newdir));
  ASSIGN_OR_RETURN(At from, Resolve(olddir, oldpath, "renameat2"));
  ASSIGN_OR_RETURN(At to, Resolve(newdir, newpath, "renameat2"));
  if (from.fs != to.fs)
    return FailSys(EXDEV, "renameat2");
  FsId fs = from.fs;
  if (from.ino == 0)
    return FailSys(ENOENT, "renameat2");
  if (from.name.empty() || to.name.empty())
    return FailSys(EBUSY, "renameat2");
  if (Live(fs, to.dir).nlink == 0)
    return FailSys(ENOENT, "renameat2");
  bool exchange = (flags & RENAME_EXCHANGE) != 0;
  if (exchange && to.ino == 0)
    return FailSys(ENOENT, "renameat2");
  if ((flags & RENAME_NOREPLACE) != 0 && to.ino != 0)
    return FailSys(EEXIST, "renameat2");
  TRY(AllowName(fs, from.dir, from.ino, "renameat2"));
  TRY(AllowName(fs, to.dir, to.ino, "renameat2"));
  // Its ".." is to change (fs/namei.c, vfs_rename).
  if (from.dir != to.dir && Live(fs, from.ino).IsDir())
    TRY(Allow(fs, from.ino, 2, "renameat2"));
  // Neither may become its own descendant.
  auto inside = [&](uint64_t dir, uint64_t moved) {
    for (; dir != kRootIno; dir = Live(fs, dir).parent)
      if (dir == moved)
        return true;
    return moved == kRootIno;
  };
  const Inode& a = Live(fs, from.ino);
  if (a.IsDir() && inside(to.dir, from.ino))
    return FailSys(EINVAL, "renameat2");
  if (exchange && Live(fs, to.ino).IsDir() && inside(from.dir, to.ino))
    return FailSys(EINVAL, "renameat2");
  if (from.ino == to.ino)
    return {};  // two links of one file: nothing happens (rename(2))
  if (to.ino != 0 && !exchange) {
    const Inode& b = Live(fs, to.ino);
    if (a.IsDir() && !b.IsDir())
      return FailSys(ENOTDIR, "renameat2");
    if (!a.IsDir() && b.IsDir())
      return FailSys(EISDIR, "renameat2");
    if (b.IsDir() && !b.entries.empty())
      return FailSys(ENOTEMPTY, "renameat2");
  }
  int64_t cookie = Live(fs, to.dir).last_cookie + 1;
  Change(fs, from.ino, [from, to, exchange, cookie](Image& image) {
    Inode* d1 = image.Find(from.dir);
    Inode* d2 = image.Find(to.dir);
    Inode* i = image.Find(from.ino);
    if (d1 == nullptr || d2 == nullptr || i == nullptr)
      return;
    Inode* victim = to.ino == 0 ? nullptr : image.Find(to.ino);
    auto settle = [](Inode* dir, Inode* child, Inode* old_dir) {
      if (!child->IsDir())
        return;
      old_dir->nlink--;
      dir->nlink++;
      child->parent = dir->ino;
    };
    if (exchange) {
      d1->entries[from.name].ino = to.ino;
      d2->entries[to.name].ino = from.ino;
      settle(d2, i, d1);
      if (victim != nullptr)
        settle(d1, victim, d2);
      return;
    }
    if (victim != nullptr) {
      if (victim->IsDir()) {
        victim->nlink = 0;
        d2->nlink--;
      } else {
        victim->nlink--;
      }
    }
    d1->entries.erase(from.name);
    d2->last_cookie = std::max(d2->last_cookie, cookie);
    d2->entries[to.name] = {from.ino, cookie};
    settle(d2, i, d1);
  });
  Touch(fs, from.dir, true);
  Touch(fs, to.dir, true);
  Touch(fs, from.ino, false);
  if (to.ino != 0) {
    Touch(fs, to.ino, false);
    Collect(fs, to.ino);
  }
  return {};
}

// ------------------------------------------------------------- attributes

Status FakeSyscalls::ChMod(int fd, mode_t mode) {
  TRY(Begin("ChMod", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "chmod"));
  uint64_t ino = file->ino;
  if (S_ISLNK(Live(file->fs, ino).mode))
    return FailSys(EOPNOTSUPP, "chmod");
  TRY(AllowOwner(file->fs, ino, "chmod"));
  Change(file->fs, ino, [ino, mode](Image& image) {
    if (Inode* i = image.Find(ino))
      i->mode = (i->mode & S_IFMT) | (mode & 07777);
  });
  Touch(file->fs, ino, false);
  return {};
}

Status FakeSyscalls::ChOwn(int fd, uid_t uid, gid_t gid) {
  TRY(Begin("ChOwn", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "fchownat"));
  uint64_t ino = file->ino;
  if (fss_[file->fs]->squashes) {
    TRY(AllowOwner(file->fs, ino, "fchownat"));
    const Inode& now = Live(file->fs, ino);
    const bool given = uid != static_cast<uid_t>(-1) && uid != now.uid;
    const bool regrouped = gid != static_cast<gid_t>(-1) && gid != now.gid &&
                           gid != Acting(file->fs).gid;
    if (given || regrouped)
      return FailSys(EPERM, "fchownat");
  }
  Change(file->fs, ino, [ino, uid, gid](Image& image) {
    Inode* i = image.Find(ino);
    if (i == nullptr)
      return;
    if (uid != static_cast<uid_t>(-1))
      i->uid = uid;
    if (gid != static_cast<gid_t>(-1))
      i->gid = gid;
    if (S_ISREG(i->mode))  // fs/open.c: chown_common kills these
      i->mode &= ~static_cast<mode_t>(S_ISUID |
                                      ((i->mode & S_IXGRP) != 0 ? S_ISGID : 0));
  });
  Touch(file->fs, ino, false);
  return {};
}

Status FakeSyscalls::UTimens(int fd, const struct timespec times[2]) {
  TRY(Begin("UTimens", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "utimensat"));
  uint64_t ino = file->ino;
  TRY(AllowOwner(file->fs, ino, "utimensat"));
  struct timespec t[2] = {times[0], times[1]};
  bool set[2];
  for (int i = 0; i < 2; i++) {
    set[i] = t[i].tv_nsec != UTIME_OMIT;
    if (t[i].tv_nsec == UTIME_NOW)
      t[i] = Time();
  }
  Touch(file->fs, ino, false);
  Change(file->fs, ino,
         [ino, at = t[0], mt = t[1], a = set[0], m = set[1]](Image& image) {
           Inode* i = image.Find(ino);
           if (i == nullptr)
             return;
           if (a)
             i->atime = at;
           if (m)
             i->mtime = mt;
         });
  return {};
}

Result<std::string> FakeSyscalls::GetXattr(int fd, const char* name) {
  TRY(Begin("GetXattr", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "getxattr"));
  const auto& xattrs = Live(file->fs, file->ino).xattrs;
  auto it = xattrs.find(name);
  if (it == xattrs.end())
    return FailSys(ENODATA, "getxattr");
  return it->second;
}

Status FakeSyscalls::SetXattr(int fd, const char* name, std::string_view value,
                              int flags) {
  TRY(Begin("SetXattr", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "setxattr"));
  bool has = Live(file->fs, file->ino).xattrs.contains(name);
  if ((flags & XATTR_CREATE) != 0 && has)
    return FailSys(EEXIST, "setxattr");
  if ((flags & XATTR_REPLACE) != 0 && !has)
    return FailSys(ENODATA, "setxattr");
  uint64_t ino = file->ino;
  Change(file->fs, ino,
         [ino, n = std::string(name), v = std::string(value)](Image& image) {
           if (Inode* i = image.Find(ino))
             i->xattrs[n] = v;
         });
  Touch(file->fs, ino, false);
  return {};
}

Result<std::vector<std::string>> FakeSyscalls::ListXattr(int fd) {
  TRY(Begin("ListXattr", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "listxattr"));
  std::vector<std::string> names;
  for (const auto& [name, value] : Live(file->fs, file->ino).xattrs)
    names.push_back(name);
  return names;
}

Status FakeSyscalls::RemoveXattr(int fd, const char* name) {
  TRY(Begin("RemoveXattr", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "removexattr"));
  if (!Live(file->fs, file->ino).xattrs.contains(name))
    return FailSys(ENODATA, "removexattr");
  uint64_t ino = file->ino;
  Change(file->fs, ino, [ino, n = std::string(name)](Image& image) {
    if (Inode* i = image.Find(ino))
      i->xattrs.erase(n);
  });
  Touch(file->fs, ino, false);
  return {};
}

// ---------------------------------------------------------------- looking in

void FakeSyscalls::Walk(FsId fs, uint64_t ino, const std::string& path,
                        const std::set<std::string>& skip, bool with_times,
                        std::vector<std::string>* out) const {
  const Inode* inode = fss_[fs]->live.Find(ino);
  char head[160];
  snprintf(head, sizeof head, " %06o %u:%u links=%u size=%llu",
           static_cast<unsigned>(inode->mode), inode->uid, inode->gid,
           inode->IsDir() ? 0 : inode->nlink,
           static_cast<unsigned long long>(inode->IsDir() ? 0 : inode->size));
  std::string line = (path.empty() ? "." : path) + head;
  for (const auto& [name, value] : inode->xattrs)
    line += " " + name + "=" + value;
  if (S_ISLNK(inode->mode))
    line += " -> " + inode->link;
  if (S_ISREG(inode->mode)) {
    std::string bytes = inode->Get(0, inode->size);
    snprintf(head, sizeof head, " #%016llx",
             static_cast<unsigned long long>(
                 core::Hash64Of(bytes.data(), bytes.size())));
    line += head;
  }
  if (with_times) {
    snprintf(head, sizeof head, " mtime=%lld.%09ld",
             static_cast<long long>(inode->mtime.tv_sec), inode->mtime.tv_nsec);
    line += head;
  }
  out->push_back(std::move(line));
  for (const auto& [name, entry] : inode->entries)
    if (!(path.empty() && skip.contains(name)))
      Walk(fs, entry.ino, path.empty() ? name : path + "/" + name, skip,
           with_times, out);
}

std::vector<std::string> FakeSyscalls::Tree(FsId fs,
                                            const std::set<std::string>& skip,
                                            bool with_times) const {
  std::vector<std::string> out;
  Walk(fs, kRootIno, "", skip, with_times, &out);
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace livemv::fake
