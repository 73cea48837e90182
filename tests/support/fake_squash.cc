// The server that takes root for nobody.

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "tests/support/fake_syscalls.h"

namespace livemv::fake {

using core::FailSys;
using core::Status;

namespace {

constexpr uint32_t kNobody = 65534;

}  // namespace

void FakeSyscalls::SetSquash(FsId fs, bool squashes) {
  fss_[fs]->squashes = squashes;
}

mode_t FakeSyscalls::ModeOf(FsId fs, uint64_t ino) const {
  const Inode* inode = fss_[fs]->live.Find(ino);
  return inode == nullptr ? 0 : inode->mode & 07777;
}

core::Identity FakeSyscalls::Acting(FsId fs) const {
  core::Identity who = acting_;
  if (fss_[fs]->squashes) {
    who.uid = who.uid == 0 ? kNobody : who.uid;
    who.gid = who.gid == 0 ? kNobody : who.gid;
  }
  return who;
}

Status FakeSyscalls::Allow(FsId fs, uint64_t ino, unsigned mask,
                           const char* call) {
  if (!fss_[fs]->squashes)
    return {};
  const Inode& inode = Live(fs, ino);
  const core::Identity who = Acting(fs);
  const unsigned bits = who.uid == inode.uid   ? inode.mode >> 6
                        : who.gid == inode.gid ? inode.mode >> 3
                                               : inode.mode;
  if ((bits & mask) != mask)
    return FailSys(EACCES, call);
  return {};
}

Status FakeSyscalls::AllowOpen(FsId fs, uint64_t ino, int flags,
                               const char* call) {
  if ((flags & O_PATH) != 0)
    return {};
  const int access = flags & O_ACCMODE;
  return Allow(fs, ino, access == O_RDONLY ? 4 : access == O_WRONLY ? 2 : 6,
               call);
}

Status FakeSyscalls::AllowName(FsId fs, uint64_t dir, uint64_t ino,
                               const char* call) {
  TRY(Allow(fs, dir, 3, call));
  const uid_t uid = Acting(fs).uid;
  if (fss_[fs]->squashes && ino != 0 && (Live(fs, dir).mode & S_ISVTX) != 0 &&
      uid != Live(fs, dir).uid && uid != Live(fs, ino).uid)
    return FailSys(EPERM, call);
  return {};
}

Status FakeSyscalls::AllowOwner(FsId fs, uint64_t ino, const char* call) {
  if (fss_[fs]->squashes && Acting(fs).uid != Live(fs, ino).uid)
    return FailSys(EPERM, call);
  return {};
}

}  // namespace livemv::fake
