// The stage of the fake kernel, and its calls on bytes. Names and attributes
// are in fake_names.cc.

#include "tests/support/fake_syscalls.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/hash.h"
#include "core/sync.h"

namespace livemv::fake {

using core::FailSys;
using core::Result;
using core::Status;

// ---------------------------------------------------------------- inodes

void FakeSyscalls::Inode::Put(uint64_t off, std::string_view bytes) {
  // Bytes past the size do not exist: the size is a change of its own.
  if (off >= size)
    return;
  bytes = bytes.substr(0, std::min<uint64_t>(bytes.size(), size - off));
  while (!bytes.empty()) {
    uint64_t index = off / kPage, in = off % kPage;
    size_t n = std::min<uint64_t>(bytes.size(), kPage - in);
    auto page = std::make_shared<Page>();
    if (auto it = pages.find(index); it != pages.end())
      *page = *it->second;
    else
      page->fill(0);
    std::memcpy(page->data() + in, bytes.data(), n);
    pages[index] = std::move(page);
    bytes.remove_prefix(n);
    off += n;
  }
}

void FakeSyscalls::Inode::Clear(uint64_t begin, uint64_t end) {
  auto it = pages.lower_bound(begin / kPage);
  while (it != pages.end() && it->first * kPage < end) {
    uint64_t start = it->first * kPage;
    uint64_t b = std::max(begin, start), e = std::min(end, start + kPage);
    if (b == start && e == start + kPage) {
      it = pages.erase(it);
      continue;
    }
    auto page = std::make_shared<Page>(*it->second);
    std::memset(page->data() + (b - start), 0, e - b);
    it->second = std::move(page);
    ++it;
  }
}

void FakeSyscalls::Inode::Resize(uint64_t new_size) {
  if (new_size < size) {
    Clear(new_size, (new_size + kPage - 1) / kPage * kPage);
    pages.erase(pages.lower_bound((new_size + kPage - 1) / kPage), pages.end());
  }
  size = new_size;
}

std::string FakeSyscalls::Inode::Get(uint64_t off, uint64_t len) const {
  if (off >= size)
    return {};
  len = std::min(len, size - off);
  std::string out(len, '\0');
  for (auto it = pages.lower_bound(off / kPage);
       it != pages.end() && it->first * kPage < off + len; ++it) {
    uint64_t start = it->first * kPage;
    uint64_t b = std::max(off, start), e = std::min(off + len, start + kPage);
    std::memcpy(out.data() + (b - off), it->second->data() + (b - start),
                e - b);
  }
  return out;
}

FakeSyscalls::Inode* FakeSyscalls::Image::Find(uint64_t ino) {
  auto it = inodes.find(ino);
  return it == inodes.end() ? nullptr : &it->second;
}
const FakeSyscalls::Inode* FakeSyscalls::Image::Find(uint64_t ino) const {
  auto it = inodes.find(ino);
  return it == inodes.end() ? nullptr : &it->second;
}

void FakeSyscalls::Op::Apply(Image& image) const {
  if (!is_data) {
    change(image);
    return;
  }
  if (Inode* inode = image.Find(ino))
    inode->Put(off, bytes);
}

// ----------------------------------------------------------------- stage

FakeSyscalls::FakeSyscalls() = default;
FakeSyscalls::~FakeSyscalls() = default;

FakeSyscalls::FsId FakeSyscalls::AddFs(Kind kind) {
  auto fs = std::make_unique<Fs>();
  fs->kind = kind;
  Inode root;
  root.ino = kRootIno;
  root.gen = 1;
  root.mode = S_IFDIR | 0755;
  root.nlink = 2;
  root.parent = kRootIno;
  fs->live.inodes[kRootIno] = root;
  fs->durable.inodes[kRootIno] = root;
  fss_.push_back(std::move(fs));
  return static_cast<FsId>(fss_.size() - 1);
}

core::UniqueFd FakeSyscalls::OpenRoot(FsId fs) {
  return Install(fs, kRootIno, O_RDONLY | O_DIRECTORY);
}

void FakeSyscalls::SetSpace(FsId fs, uint64_t bytes) {
  fss_[fs]->space = bytes;
}
void FakeSyscalls::SetTakesDirect(FsId fs, bool takes) {
  fss_[fs]->takes_direct = takes;
}
void FakeSyscalls::SetTakesPunch(FsId fs, bool takes) {
  fss_[fs]->takes_punch = takes;
}

uint64_t FakeSyscalls::UsedBytes(FsId fs) const {
  uint64_t pages = 0;
  for (const auto& [ino, inode] : fss_[fs]->live.inodes)
    pages += inode.pages.size();
  return pages * kPage;
}

uint64_t FakeSyscalls::NewPages(const Inode& inode, uint64_t off,
                                uint64_t len) const {
  if (len == 0)
    return 0;
  uint64_t first = off / kPage, last = (off + len - 1) / kPage;
  uint64_t have = static_cast<uint64_t>(std::distance(
      inode.pages.lower_bound(first), inode.pages.upper_bound(last)));
  return last - first + 1 - have;
}

bool FakeSyscalls::HasSpace(FsId fs, uint64_t new_pages) const {
  return new_pages == 0 || !fss_[fs]->space ||
         UsedBytes(fs) + new_pages * kPage <= *fss_[fs]->space;
}

void FakeSyscalls::FailNext(const char* name, FsId fs, int err, int times,
                            int skip, uint64_t ino) {
  failures_.push_back({name, fs, ino, err, times, skip});
}

bool FakeSyscalls::LoseWriteback(FsId fs, uint64_t ino, std::mt19937_64& rng) {
  Fs& f = *fss_[fs];
  std::vector<size_t> candidates;
  for (size_t i = 0; i < f.pending.size(); i++)
    if (f.pending[i].is_data && (ino == 0 || f.pending[i].ino == ino) &&
        f.live.Find(f.pending[i].ino) != nullptr)
      candidates.push_back(i);
  if (candidates.empty())
    return false;
  size_t lost = candidates[rng() % candidates.size()];
  uint64_t victim = f.pending[lost].ino;
  f.pending.erase(f.pending.begin() + static_cast<ptrdiff_t>(lost));
  // What the cache shows now: the storage and the writes that are left.
  Image image = f.durable;
  for (const Op& op : f.pending)
    op.Apply(image);
  if (const Inode* now = image.Find(victim))
    f.live.Find(victim)->pages = now->pages;
  f.lost_writeback.insert(victim);
  return true;
}

void FakeSyscalls::CorruptStorage(FsId fs, uint64_t ino, uint64_t off,
                                  int rewrites) {
  fss_[fs]->rot[ino].push_back({off, rewrites});
}

void FakeSyscalls::CloseAll() {
  fds_.clear();
  for (size_t i = 0; i < fss_.size(); i++) {
    auto open = std::move(fss_[i]->open);
    fss_[i]->open.clear();
    for (const auto& [ino, count] : open)
      Collect(static_cast<FsId>(i), ino);
  }
}

void FakeSyscalls::CloseAllBut(const std::set<int>& kept) {
  for (auto it = fds_.begin(); it != fds_.end();) {
    const int fd = it->first;
    ++it;
    if (!kept.contains(fd))
      CloseFd(fd);
  }
}

core::UniqueFd FakeSyscalls::Dup(int fd) {
  auto it = fds_.find(fd);
  if (it == fds_.end())
    return {};
  const OpenFile file = it->second;
  return Install(file.fs, file.ino, file.flags);
}

void FakeSyscalls::PowerCut(std::mt19937_64& rng) {
  fds_.clear();
  for (auto& f : fss_) {
    f->open.clear();
    size_t metadata = 0;
    for (const Op& op : f->pending)
      metadata += f->kind == Kind::kOrdered || !op.is_data ? 1 : 0;
    size_t keep = rng() % (metadata + 1), seen = 0;
    uint64_t chance = rng() % 5;  // of a data write, in quarters
    for (const Op& op : f->pending) {
      bool ordered = f->kind == Kind::kOrdered || !op.is_data;
      bool kept = ordered ? seen++ < keep : rng() % 4 < chance;
      if (kept)
        op.Apply(f->durable);
    }
    f->pending.clear();
    f->lost_writeback.clear();
    f->dropped.clear();
    std::erase_if(f->durable.inodes,
                  [](const auto& item) { return item.second.nlink == 0; });
    f->live = f->durable;
    for (auto it = f->free_inos.begin(); it != f->free_inos.end();)
      it = f->live.inodes.contains(*it) ? f->free_inos.erase(it) : ++it;
  }
}

void FakeSyscalls::MakeAllDurable(FsId fs) {
  Flush(fs, 0);
}

uint64_t FakeSyscalls::CallsOf(const std::string& name) const {
  auto it = counts_.find(name);
  return it == counts_.end() ? 0 : it->second;
}

std::optional<uint64_t> FakeSyscalls::InoOf(FsId fs,
                                            const std::string& path) const {
  uint64_t ino = kRootIno;
  for (size_t pos = 0; pos < path.size();) {
    size_t end = std::min(path.find('/', pos), path.size());
    const Inode* dir = fss_[fs]->live.Find(ino);
    auto it = dir->entries.find(path.substr(pos, end - pos));
    if (it == dir->entries.end())
      return std::nullopt;
    ino = it->second.ino;
    pos = end + 1;
  }
  return ino;
}

std::string FakeSyscalls::Content(FsId fs, uint64_t ino) const {
  const Inode* inode = fss_[fs]->live.Find(ino);
  return inode == nullptr ? std::string() : inode->Get(0, inode->size);
}

uint64_t FakeSyscalls::SizeOf(FsId fs, uint64_t ino) const {
  const Inode* inode = fss_[fs]->live.Find(ino);
  return inode == nullptr ? 0 : inode->size;
}

// ------------------------------------------------------------- machinery

Status FakeSyscalls::Begin(const char* name, int fd, uint64_t off,
                           uint64_t len, const void* bytes) {
  if (core::Scheduler* s = core::Scheduler::Current(); s != nullptr && yield_) {
    bool asked = false;  // not ready at once: somebody else may go first
    s->WaitUntil([&asked] { return std::exchange(asked, true); }, -1);
  }
  calls_++;
  counts_[name]++;
  now_ns_ += 1000;
  Call call{name, -1, 0, off, len, fd, static_cast<const char*>(bytes)};
  if (auto it = fds_.find(fd); it != fds_.end()) {
    call.fs = it->second.fs;
    call.ino = it->second.ino;
  }
  for (auto it = failures_.begin(); it != failures_.end(); ++it) {
    if (it->name != name || it->fs != call.fs ||
        (it->ino != 0 && it->ino != call.ino))
      continue;
    if (it->skip > 0) {
      it->skip--;
      continue;
    }
    int err = it->err;
    if (--it->times == 0)
      failures_.erase(it);
    return FailSys(err, name);
  }
  if (auto hook = on_call)  // a copy: it may replace itself
    if (int err = hook(call); err != 0)
      return FailSys(err, name);
  return {};
}

Result<FakeSyscalls::OpenFile*> FakeSyscalls::File(int fd, const char* call) {
  auto it = fds_.find(fd);
  if (it == fds_.end())
    return FailSys(EBADF, call);
  return &it->second;
}

core::UniqueFd FakeSyscalls::Install(FsId fs, uint64_t ino, int flags) {
  int fd = next_fd_++;
  fds_[fd] = {fs, ino, flags};
  fss_[fs]->open[ino]++;
  return core::UniqueFd(fd, this);
}

void FakeSyscalls::CloseFd(int fd) noexcept {
  auto it = fds_.find(fd);
  if (it == fds_.end())
    return;  // a descriptor of a process that died meanwhile
  OpenFile file = it->second;
  fds_.erase(it);
  auto open = fss_[file.fs]->open.find(file.ino);
  if (open != fss_[file.fs]->open.end() && --open->second == 0) {
    fss_[file.fs]->open.erase(open);
    Collect(file.fs, file.ino);
  }
}

FakeSyscalls::Inode& FakeSyscalls::Live(FsId fs, uint64_t ino) {
  Inode* inode = fss_[fs]->live.Find(ino);
  if (inode == nullptr)
    std::abort();  // descriptors keep their inodes
  return *inode;
}

// The last name and the last descriptor are gone: so is the inode.
void FakeSyscalls::Collect(FsId fs, uint64_t ino) {
  Fs& f = *fss_[fs];
  const Inode* inode = f.live.Find(ino);
  if (inode == nullptr || inode->nlink != 0 || f.open.contains(ino))
    return;
  f.live.inodes.erase(ino);
  f.free_inos.insert(ino);
  f.rot.erase(ino);
  f.pending.push_back({ino, false, 0, {}, [ino](Image& image) {
                         const Inode* gone = image.Find(ino);
                         if (gone != nullptr && gone->nlink == 0)
                           image.inodes.erase(ino);
                       }});
}

void FakeSyscalls::Change(FsId fs, uint64_t ino,
                          std::function<void(Image&)> change) {
  Fs& f = *fss_[fs];
  change(f.live);
  f.pending.push_back({ino, false, 0, {}, std::move(change)});
  if (f.kind != Kind::kNfs)
    return;
  // The server has it on its disk before it answers.
  std::vector<Op> left;
  for (Op& op : f.pending) {
    if (op.is_data)
      left.push_back(std::move(op));
    else
      op.Apply(f.durable);
  }
  f.pending = std::move(left);
}

void FakeSyscalls::Data(FsId fs, uint64_t ino, uint64_t off,
                        std::string bytes) {
  Fs& f = *fss_[fs];
  Op op{ino, true, off, std::move(bytes), {}};
  op.Apply(f.live);
  f.pending.push_back(std::move(op));
}

void FakeSyscalls::Flush(FsId fs, uint64_t ino) {
  Fs& f = *fss_[fs];
  std::vector<Op> left;
  for (Op& op : f.pending) {
    bool all =
        ino == 0 || !op.is_data || op.ino == ino || f.kind == Kind::kOrdered;
    if (all)
      op.Apply(f.durable);
    else
      left.push_back(std::move(op));
  }
  // A data write that stays behind must not come back over a truncate that
  // went before it: it ends at the size that is durable now.
  for (Op& op : left) {
    const Inode* inode = f.durable.Find(op.ino);
    const Inode* live = f.live.Find(op.ino);
    if (inode != nullptr && live != nullptr && live->gen == inode->gen)
      op.bytes = live->Get(op.off, op.bytes.size());
    else
      op.bytes.clear();
  }
  f.pending = std::move(left);
}

Status FakeSyscalls::SyncResult(FsId fs, uint64_t ino, const char* call) {
  if (lying_sync && lying_sync(fs, call))
    return {};
  Fs& f = *fss_[fs];
  bool lost =
      ino == 0 ? !f.lost_writeback.empty() : f.lost_writeback.contains(ino);
  Flush(fs, ino);
  if (!lost)
    return {};
  if (ino == 0)
    f.lost_writeback.clear();
  else
    f.lost_writeback.erase(ino);
  return FailSys(EIO, call);
}

struct timespec FakeSyscalls::Time() {
  int64_t now = RealtimeNs();
  return {now / 1'000'000'000, now % 1'000'000'000};
}

void FakeSyscalls::Touch(FsId fs, uint64_t ino, bool mtime) {
  struct timespec now = Time();
  // Times are not worth a record of their own on a server.
  auto change = [ino, now, mtime](Image& image) {
    if (Inode* inode = image.Find(ino)) {
      if (mtime)
        inode->mtime = now;
      inode->ctime = now;
    }
  };
  change(fss_[fs]->live);
  fss_[fs]->pending.push_back({ino, false, 0, {}, std::move(change)});
}

// ----------------------------------------------------------------- bytes

Result<size_t> FakeSyscalls::PRead(int fd, void* buf, size_t len, off_t off) {
  TRY(Begin("PRead", fd, static_cast<uint64_t>(off), len));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "pread"));
  if ((file->flags & O_PATH) != 0 || (file->flags & O_ACCMODE) == O_WRONLY)
    return FailSys(EBADF, "pread");
  Inode& inode = Live(file->fs, file->ino);
  if (inode.IsDir())
    return FailSys(EISDIR, "pread");
  bool direct = (file->flags & O_DIRECT) != 0;
  if (direct &&
      ((reinterpret_cast<uintptr_t>(buf) | len | static_cast<uint64_t>(off)) %
       512) != 0)
    return FailSys(EINVAL, "pread");
  uint64_t begin = static_cast<uint64_t>(off);
  std::string bytes = inode.Get(begin, len);
  Fs& f = *fss_[file->fs];
  if (direct || f.dropped.contains(file->ino))
    for (const auto& rot : f.rot[file->ino])
      if (rot.off >= begin && rot.off < begin + bytes.size())
        bytes[rot.off - begin] = static_cast<char>(~bytes[rot.off - begin]);
  std::memcpy(buf, bytes.data(), bytes.size());
  return bytes.size();
}

// Every write takes it away, even root's (security/commoncap.c).
void FakeSyscalls::KillCapability(FsId fs, uint64_t ino) {
  if (!Live(fs, ino).xattrs.contains("security.capability"))
    return;
  Change(fs, ino, [ino](Image& image) {
    if (Inode* i = image.Find(ino))
      i->xattrs.erase("security.capability");
  });
}

Result<size_t> FakeSyscalls::WriteTo(OpenFile file, const void* buf, size_t len,
                                     uint64_t off) {
  if ((file.flags & O_PATH) != 0 || (file.flags & O_ACCMODE) == O_RDONLY)
    return FailSys(EBADF, "pwrite");
  Inode& inode = Live(file.fs, file.ino);
  if (!S_ISREG(inode.mode))
    return FailSys(EINVAL, "pwrite");
  // As much as there is room for, page by page.
  while (len > 0 && !HasSpace(file.fs, NewPages(inode, off, len))) {
    uint64_t last = (off + len - 1) / kPage * kPage;
    if (last <= off)
      return FailSys(ENOSPC, "pwrite");
    len = last - off;
  }
  uint64_t ino = file.ino, end = off + len;
  if (end > inode.size) {
    auto grow = [ino, end](Image& image) {
      if (Inode* i = image.Find(ino); i != nullptr && i->size < end)
        i->Resize(end);
    };
    // The client's size reaches the server with the data.
    grow(fss_[file.fs]->live);
    fss_[file.fs]->pending.push_back({ino, false, 0, {}, std::move(grow)});
  }
  Data(file.fs, ino, off, std::string(static_cast<const char*>(buf), len));
  KillCapability(file.fs, ino);
  Touch(file.fs, ino, true);
  Fs& f = *fss_[file.fs];
  f.dropped.erase(ino);
  if (auto rot = f.rot.find(ino); rot != f.rot.end())
    std::erase_if(rot->second, [&](auto& r) {
      return r.off >= off && r.off < end && r.rewrites-- <= 0;
    });
  return len;
}

Result<size_t> FakeSyscalls::PWrite(int fd, const void* buf, size_t len,
                                    off_t off) {
  TRY(Begin("PWrite", fd, static_cast<uint64_t>(off), len, buf));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "pwrite"));
  return WriteTo(*file, buf, len, static_cast<uint64_t>(off));
}

Result<size_t> FakeSyscalls::WriteAppend(int fd, const void* buf, size_t len) {
  TRY(Begin("WriteAppend", fd, 0, len));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "pwritev2"));
  return WriteTo(*file, buf, len, Live(file->fs, file->ino).size);
}

Status FakeSyscalls::FSync(int fd) {
  TRY(Begin("FSync", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "fsync"));
  if ((file->flags & O_PATH) != 0)
    return FailSys(EBADF, "fsync");
  return SyncResult(file->fs, file->ino, "fsync");
}

Status FakeSyscalls::FDataSync(int fd) {
  TRY(Begin("FDataSync", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "fdatasync"));
  if ((file->flags & O_PATH) != 0)
    return FailSys(EBADF, "fdatasync");
  return SyncResult(file->fs, file->ino, "fdatasync");
}

Status FakeSyscalls::SyncFs(int fd) {
  TRY(Begin("SyncFs", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "syncfs"));
  return SyncResult(file->fs, 0, "syncfs");
}

Status FakeSyscalls::FTruncate(int fd, uint64_t len) {
  TRY(Begin("FTruncate", fd, len));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "ftruncate"));
  if ((file->flags & O_PATH) != 0)
    return FailSys(EBADF, "ftruncate");
  if ((file->flags & O_ACCMODE) == O_RDONLY ||
      !S_ISREG(Live(file->fs, file->ino).mode))
    return FailSys(EINVAL, "ftruncate");
  uint64_t ino = file->ino;
  if (fss_[file->fs]->kind == Kind::kNfs)
    Flush(file->fs, ino);
  Change(file->fs, ino, [ino, len](Image& image) {
    if (Inode* inode = image.Find(ino))
      inode->Resize(len);
  });
  KillCapability(file->fs, ino);
  Touch(file->fs, ino, true);
  return {};
}

Status FakeSyscalls::FAllocate(int fd, int mode, uint64_t off, uint64_t len) {
  TRY(Begin("FAllocate", fd, off, len));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "fallocate"));
  if ((file->flags & O_PATH) != 0 || (file->flags & O_ACCMODE) == O_RDONLY)
    return FailSys(EBADF, "fallocate");
  if (len == 0)
    return FailSys(EINVAL, "fallocate");
  FsId fs = file->fs;
  uint64_t ino = file->ino, end = off + len;
  Inode& inode = Live(fs, ino);
  // fs/nfs/nfs42proc.c: the client writes back before ALLOCATE, DEALLOCATE.
  if (fss_[fs]->kind == Kind::kNfs)
    Flush(fs, ino);
  bool keep = (mode & FALLOC_FL_KEEP_SIZE) != 0;
  int what = mode & ~FALLOC_FL_KEEP_SIZE;
  if (what == FALLOC_FL_PUNCH_HOLE || what == FALLOC_FL_ZERO_RANGE) {
    if (!fss_[fs]->takes_punch)
      return FailSys(EOPNOTSUPP, "fallocate");
    if (what == FALLOC_FL_PUNCH_HOLE && !keep)
      return FailSys(EOPNOTSUPP, "fallocate");
    Change(fs, ino, [ino, off, end, keep](Image& image) {
      if (Inode* i = image.Find(ino)) {
        i->Clear(off, end);
        if (!keep && i->size < end)
          i->Resize(end);
      }
    });
  } else if (what == 0) {
    if (!HasSpace(fs, NewPages(inode, off, len)))
      return FailSys(ENOSPC, "fallocate");
    Change(fs, ino, [ino, off, end, keep](Image& image) {
      Inode* i = image.Find(ino);
      if (i == nullptr)
        return;
      if (!keep && i->size < end)
        i->Resize(end);
      auto zeros = std::make_shared<Page>();
      zeros->fill(0);
      for (uint64_t p = off / kPage; p * kPage < end; p++)
        i->pages.try_emplace(p, zeros);
    });
  } else {
    return FailSys(EOPNOTSUPP, "fallocate");
  }
  Touch(fs, ino, true);
  return {};
}

Result<off_t> FakeSyscalls::LSeek(int fd, off_t off, int whence) {
  TRY(Begin("LSeek", fd, static_cast<uint64_t>(off)));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "lseek"));
  if ((file->flags & O_PATH) != 0)
    return FailSys(EBADF, "lseek");
  const Inode& inode = Live(file->fs, file->ino);
  uint64_t pos = static_cast<uint64_t>(off);
  if (whence != SEEK_DATA && whence != SEEK_HOLE)
    return FailSys(EINVAL, "lseek");
  if (off < 0 || pos >= inode.size)
    return FailSys(ENXIO, "lseek");
  bool want_data = whence == SEEK_DATA;
  for (uint64_t page = pos / kPage; page * kPage < inode.size; page++)
    if (inode.pages.contains(page) == want_data)
      return static_cast<off_t>(std::max(pos, page * kPage));
  if (want_data)
    return FailSys(ENXIO, "lseek");
  return static_cast<off_t>(inode.size);
}

Status FakeSyscalls::FAdvise(int fd, uint64_t off, uint64_t len, int advice) {
  TRY(Begin("FAdvise", fd, off, len));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "posix_fadvise"));
  if (advice == POSIX_FADV_DONTNEED)
    fss_[file->fs]->dropped.insert(file->ino);
  return {};
}

Result<core::Stat> FakeSyscalls::StatAt(int dirfd, const char* path,
                                        unsigned mask) {
  TRY(Begin("StatAt", dirfd));
  ASSIGN_OR_RETURN(At at, Resolve(dirfd, path, "statx"));
  if (at.ino == 0)
    return FailSys(ENOENT, "statx");
  const Inode& inode = Live(at.fs, at.ino);
  core::Stat st{};
  st.stx_mask = mask | STATX_BASIC_STATS | STATX_BTIME;
  st.stx_blksize = kPage;
  st.stx_nlink = inode.nlink;
  st.stx_uid = inode.uid;
  st.stx_gid = inode.gid;
  st.stx_mode = static_cast<uint16_t>(inode.mode);
  st.stx_ino = inode.ino;
  st.stx_size = S_ISLNK(inode.mode) ? inode.link.size() : inode.size;
  st.stx_blocks = inode.pages.size() * (kPage / 512);
  auto time = [](const struct timespec& t) {
    struct statx_timestamp out {};
    out.tv_sec = t.tv_sec;
    out.tv_nsec = static_cast<uint32_t>(t.tv_nsec);
    return out;
  };
  st.stx_atime = time(inode.atime);
  st.stx_mtime = time(inode.mtime);
  st.stx_ctime = time(inode.ctime);
  st.stx_btime = time(inode.btime);
  st.stx_rdev_major = static_cast<uint32_t>(inode.rdev >> 8);
  st.stx_rdev_minor = static_cast<uint32_t>(inode.rdev & 0xff);
  st.stx_dev_major = 250;
  st.stx_dev_minor = static_cast<uint32_t>(at.fs);
  return st;
}

Result<struct statfs> FakeSyscalls::FStatFs(int fd) {
  TRY(Begin("FStatFs", fd));
  ASSIGN_OR_RETURN(OpenFile * file, File(fd, "fstatfs"));
  struct statfs s {};
  s.f_type = fss_[file->fs]->kind == Kind::kNfs ? NFS_SUPER_MAGIC
                                                : EXT4_SUPER_MAGIC;
  s.f_bsize = kPage;
  uint64_t total = fss_[file->fs]->space.value_or(1ull << 40);
  uint64_t used = UsedBytes(file->fs);
  s.f_blocks = total / kPage;
  s.f_bfree = s.f_bavail = (total - std::min(total, used)) / kPage;
  s.f_files = s.f_ffree = 1 << 20;
  s.f_namelen = 255;
  return s;
}

int64_t FakeSyscalls::MonotonicNs() {
  if (core::Scheduler* s = core::Scheduler::Current())
    return s->NowNs();
  return now_ns_;
}
int64_t FakeSyscalls::RealtimeNs() {
  return 1'700'000'000'000'000'000 + now_ns_;
}

}  // namespace livemv::fake
