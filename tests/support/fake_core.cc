#include "tests/support/fake_core.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/xattr.h>

#include <algorithm>
#include <cerrno>

namespace livemv::fake {

using core::FailSys;
using core::Status;
using fusefs::AttrChange;
using fusefs::Caller;
using fusefs::DirItem;
using fusefs::Entry;
using fusefs::OpenReply;

class FakeCore::Hooks {
 public:
  Hooks(FakeCore* core, const char* op) : core_(core), op_(op) {
    core_->calls++;
    if (core_->before)
      core_->before(op_);
  }
  ~Hooks() {
    if (core_->after)
      core_->after(op_);
  }

 private:
  FakeCore* const core_;
  const char* const op_;
};

FakeCore::FakeCore() {
  Inode root;
  root.attr.stx_mask = STATX_BASIC_STATS | STATX_BTIME;
  root.attr.stx_mode = S_IFDIR | 0755;
  root.attr.stx_nlink = 2;
  root.attr.stx_ino = 1;
  inodes_[1] = root;
}

FakeCore::Inode* FakeCore::Find(FileId id) {
  auto it = inodes_.find(id);
  return it == inodes_.end() ? nullptr : &it->second;
}

bool FakeCore::Has(const std::string& name) {
  std::lock_guard lock(mu_);
  return inodes_[1].names.contains(name);
}

FakeCore::FileId FakeCore::IdOf(const std::string& name) {
  std::lock_guard lock(mu_);
  return inodes_[1].names.at(name);
}

std::string FakeCore::Data(const std::string& name) {
  std::lock_guard lock(mu_);
  return inodes_[IdOf(name)].data;
}

core::Stat& FakeCore::Attr(FileId id) {
  std::lock_guard lock(mu_);
  return inodes_.at(id).attr;
}

core::Result<Entry> FakeCore::Lookup(FileId dir, const char* name) {
  std::lock_guard lock(mu_);
  calls++;
  Inode* in = Find(dir);
  if (in == nullptr)
    return FailSys(ESTALE, "lookup");
  auto it = in->names.find(name);
  if (it == in->names.end())
    return FailSys(ENOENT, "lookup");
  return Entry{it->second, inodes_[it->second].attr};
}

core::Result<core::Stat> FakeCore::GetAttr(FileId id) {
  std::lock_guard lock(mu_);
  calls++;
  Inode* in = Find(id);
  if (in == nullptr)
    return FailSys(ESTALE, "getattr");
  return in->attr;
}

core::Result<core::Stat> FakeCore::SetAttr(FileId id, const AttrChange& change,
                                           const Caller&) {
  Hooks hooks(this, "setattr");
  std::lock_guard lock(mu_);
  last_change = change;
  Inode* in = Find(id);
  if (in == nullptr)
    return FailSys(ESTALE, "setattr");
  if (change.mode)
    in->attr.stx_mode = static_cast<uint16_t>((in->attr.stx_mode & S_IFMT) |
                                              (*change.mode & 07777));
  if (change.uid)
    in->attr.stx_uid = *change.uid;
  if (change.gid)
    in->attr.stx_gid = *change.gid;
  if (change.size) {
    in->data.resize(*change.size);
    in->attr.stx_size = *change.size;
  }
  return in->attr;
}

core::Result<std::string> FakeCore::ReadLink(FileId id) {
  std::lock_guard lock(mu_);
  calls++;
  return Find(id)->data;
}

core::Result<Entry> FakeCore::Make(const char* op, FileId dir, const char* name,
                                   mode_t mode, const Caller& caller,
                                   const char* data) {
  Hooks hooks(this, op);
  std::lock_guard lock(mu_);
  Inode* in = Find(dir);
  if (in->names.contains(name))
    return FailSys(EEXIST, op);
  FileId id = next_++;
  Inode made;
  made.attr.stx_mask = STATX_BASIC_STATS | STATX_BTIME;
  made.attr.stx_mode = static_cast<uint16_t>(mode);
  made.attr.stx_nlink = 1;
  made.attr.stx_ino = id + 1000;
  made.attr.stx_uid = caller.uid;
  made.attr.stx_gid = caller.gid;
  made.attr.stx_btime.tv_sec = 12345;
  made.attr.stx_blksize = 4096;
  made.data = data;
  made.attr.stx_size = made.data.size();
  inodes_[id] = made;
  Find(dir)->names[name] = id;
  return Entry{id, made.attr};
}

core::Result<Entry> FakeCore::MkNod(FileId dir, const char* name, mode_t mode,
                                    dev_t, const Caller& caller) {
  return Make("mknod", dir, name, mode, caller, "");
}

core::Result<Entry> FakeCore::MkDir(FileId dir, const char* name, mode_t mode,
                                    const Caller& caller) {
  return Make("mkdir", dir, name, mode | S_IFDIR, caller, "");
}

core::Result<Entry> FakeCore::SymLink(FileId dir, const char* name,
                                      const char* text, const Caller& caller) {
  return Make("symlink", dir, name, S_IFLNK | 0777, caller, text);
}

core::Result<Entry> FakeCore::Link(FileId id, FileId dir, const char* name) {
  Hooks hooks(this, "link");
  std::lock_guard lock(mu_);
  if (Find(dir)->names.contains(name))
    return FailSys(EEXIST, "link");
  Find(dir)->names[name] = id;
  Find(id)->attr.stx_nlink++;
  return Entry{id, Find(id)->attr};
}

Status FakeCore::Remove(const char* op, FileId dir, const char* name) {
  Hooks hooks(this, op);
  std::lock_guard lock(mu_);
  if (Find(dir)->names.erase(name) == 0)
    return FailSys(ENOENT, op);
  return {};
}

Status FakeCore::Unlink(FileId dir, const char* name) {
  return Remove("unlink", dir, name);
}

Status FakeCore::RmDir(FileId dir, const char* name) {
  return Remove("rmdir", dir, name);
}

Status FakeCore::Rename(FileId dir, const char* name, FileId new_dir,
                        const char* new_name, unsigned flags) {
  Hooks hooks(this, "rename");
  std::lock_guard lock(mu_);
  auto& from = Find(dir)->names;
  auto& to = Find(new_dir)->names;
  if (!from.contains(name))
    return FailSys(ENOENT, "rename");
  if ((flags & RENAME_NOREPLACE) != 0 && to.contains(new_name))
    return FailSys(EEXIST, "rename");
  if ((flags & RENAME_EXCHANGE) != 0) {
    if (!to.contains(new_name))
      return FailSys(ENOENT, "rename");
    std::swap(from[name], to[new_name]);
    return {};
  }
  to[new_name] = from[name];
  from.erase(name);
  return {};
}

core::Result<OpenReply> FakeCore::Open(FileId id, int flags) {
  Hooks hooks(this, "open");
  std::lock_guard lock(mu_);
  Inode* in = Find(id);
  if (in == nullptr)
    return FailSys(ESTALE, "open");
  if ((flags & O_TRUNC) != 0) {
    in->data.clear();
    in->attr.stx_size = 0;
  }
  return OpenReply{static_cast<uint64_t>(flags), false, true};
}

core::Result<std::pair<Entry, OpenReply>> FakeCore::Create(
    FileId dir, const char* name, int flags, mode_t mode,
    const Caller& caller) {
  auto made = Make("create", dir, name, (mode & 07777) | S_IFREG, caller, "");
  if (!made && (made.error().Errno() != EEXIST || (flags & O_EXCL) != 0))
    return std::unexpected(made.error());
  if (!made)
    made = Lookup(dir, name);
  return std::pair(*made, OpenReply{static_cast<uint64_t>(flags), false, true});
}

void FakeCore::Release(FileId, uint64_t) {
  releases++;
}

core::Result<size_t> FakeCore::Read(FileId id, uint64_t off,
                                    std::span<char> buf) {
  Hooks hooks(this, "read");
  std::lock_guard lock(mu_);
  Inode* in = Find(id);
  if (off >= in->data.size())
    return 0;
  return in->data.copy(buf.data(), buf.size(), off);
}

core::Result<size_t> FakeCore::Write(FileId id, uint64_t off,
                                     std::span<const char> data, int open_flags,
                                     bool kill_suidgid) {
  Hooks hooks(this, "write");
  std::lock_guard lock(mu_);
  last_write_kill = kill_suidgid;
  last_write_flags = open_flags;
  Inode* in = Find(id);
  if ((open_flags & O_APPEND) != 0)
    off = in->data.size();
  if (in->data.size() < off + data.size())
    in->data.resize(off + data.size());
  std::copy(data.begin(), data.end(), in->data.begin() + long(off));
  in->attr.stx_size = in->data.size();
  return data.size();
}

core::Result<uint64_t> FakeCore::SizeOf(FileId id) {
  std::lock_guard lock(mu_);
  return uint64_t{Find(id)->data.size()};
}

Status FakeCore::Flush(FileId) {
  flushes++;
  return {};
}

Status FakeCore::FSync(FileId, bool) {
  Hooks hooks(this, "fsync");
  return {};
}

Status FakeCore::FAllocate(FileId, int, uint64_t, uint64_t) {
  Hooks hooks(this, "fallocate");
  return {};
}

core::Result<off_t> FakeCore::LSeek(FileId, off_t off, int) {
  return off;
}

core::Result<std::vector<DirItem>> FakeCore::ReadDir(FileId dir, int64_t offset,
                                                     size_t, bool plus) {
  std::lock_guard lock(mu_);
  calls++;
  std::vector<DirItem> items;
  int64_t cookie = 0;
  for (const auto& [name, id] : Find(dir)->names) {
    if (cookie++ < offset)
      continue;
    const core::Stat& attr = inodes_[id].attr;
    DirItem item;
    item.entry = core::DirEntry{
        attr.stx_ino, cookie, static_cast<uint8_t>(attr.stx_mode >> 12), name};
    if (plus) {
      item.id = id;
      item.attr = attr;
    }
    items.push_back(item);
  }
  return items;
}

core::Result<std::string> FakeCore::GetXattr(FileId id, const char* name) {
  std::lock_guard lock(mu_);
  calls++;
  auto& xattrs = Find(id)->xattrs;
  if (!xattrs.contains(name))
    return FailSys(ENODATA, "getxattr");
  return xattrs[name];
}

Status FakeCore::SetXattr(FileId id, const char* name, std::string_view value,
                          int flags) {
  Hooks hooks(this, "setxattr");
  std::lock_guard lock(mu_);
  auto& xattrs = Find(id)->xattrs;
  if ((flags & XATTR_CREATE) != 0 && xattrs.contains(name))
    return FailSys(EEXIST, "setxattr");
  if ((flags & XATTR_REPLACE) != 0 && !xattrs.contains(name))
    return FailSys(ENODATA, "setxattr");
  xattrs[name] = value;
  return {};
}

core::Result<std::vector<std::string>> FakeCore::ListXattr(FileId id) {
  std::lock_guard lock(mu_);
  calls++;
  std::vector<std::string> names;
  for (const auto& [name, value] : Find(id)->xattrs)
    names.push_back(name);
  return names;
}

Status FakeCore::RemoveXattr(FileId id, const char* name) {
  Hooks hooks(this, "removexattr");
  std::lock_guard lock(mu_);
  if (Find(id)->xattrs.erase(name) == 0)
    return FailSys(ENODATA, "removexattr");
  return {};
}

core::Result<struct statfs> FakeCore::StatFs() {
  struct statfs fs {};
  fs.f_bsize = 4096;
  fs.f_blocks = 1000;
  fs.f_bavail = 500;
  fs.f_namelen = 255;
  return fs;
}

}  // namespace livemv::fake
