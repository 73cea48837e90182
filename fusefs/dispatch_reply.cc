#include "fusefs/dispatch_reply.h"

#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include <atomic>
#include <cerrno>

#include "core/log.h"
#include "fusefs/dispatch_faults.h"
#include "fusefs/transport.h"

namespace livemv::fusefs {
namespace {

struct timespec ToTime(const struct statx_timestamp& t) {
  return {t.tv_sec, static_cast<long>(t.tv_nsec)};
}

fuse_file_info ToFileInfo(const OpenReply& open, const fuse_file_info& asked) {
  fuse_file_info fi = asked;
  fi.fh = open.fh;
  fi.direct_io = open.direct_io;
  fi.keep_cache = open.keep_cache && !open.direct_io;
  fi.noflush = open.no_flush;
  return fi;
}

// Errors of the machinery; all others are an answer of POSIX to the caller.
bool IsOurs(int err) {
  switch (err) {
    case EIO:
    case ESTALE:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EBADF:
    case EFAULT:
    case EREMOTEIO:
    case ECONNABORTED:
      return true;
    default:
      return false;
  }
}

// A target that fails fails every request: the first lines tell it all.
void LogSeldom(const core::Error& error) {
  constexpr uint64_t kFirst = 100, kThen = 10'000;
  static std::atomic<uint64_t> seen = 0;
  const uint64_t n = ++seen;
  const fuse_in_header* request = Transport::Request();
  if (request != nullptr && (n <= kFirst || n % kThen == 0))
    LOG_WARN("opcode {} of inode {:x} is answered with an error: {}",
             request->opcode, request->nodeid, error.ToString());
}

}  // namespace

struct stat ToStat(const core::Stat& from) {
  struct stat to {};
  to.st_ino = from.stx_ino;
  to.st_mode = from.stx_mode;
  to.st_nlink = from.stx_nlink;
  to.st_uid = from.stx_uid;
  to.st_gid = from.stx_gid;
  to.st_rdev = makedev(from.stx_rdev_major, from.stx_rdev_minor);
  to.st_size = static_cast<off_t>(from.stx_size);
  to.st_blksize = from.stx_blksize;
  to.st_blocks = static_cast<blkcnt_t>(from.stx_blocks);
  to.st_atim = ToTime(from.stx_atime);
  to.st_mtim = ToTime(from.stx_mtime);
  to.st_ctim = ToTime(from.stx_ctime);
  return to;
}

fuse_entry_param ToEntryParam(const Entry& from, double seconds) {
  fuse_entry_param to{};
  to.ino = from.id;
  // A FileId is never used again for another inode, so one generation does.
  to.generation = 0;
  to.attr = ToStat(from.attr);
  to.attr_timeout = seconds;
  to.entry_timeout = seconds;
  return to;
}

Reply::~Reply() {
  if (sent_)
    return;
  LOG_ERROR("opcode {} left without a reply", Transport::Request()->opcode);
  Err(EIO);
}

bool Reply::Begin() {
  CHECK(!sent_);
  sent_ = true;
  auto passed = PassBeforeReply(Transport::Request()->opcode);
  if (!passed)
    fuse_reply_err(request_, passed.error().Errno());
  return passed.has_value();
}

void Reply::Err(int err) {
  if (Begin())
    fuse_reply_err(request_, err);
}

void Reply::Err(const core::Error& error) {
  if (IsOurs(error.Errno()))
    LogSeldom(error);
  Err(error.Errno());
}

void Reply::Of(const core::Status& status) {
  if (status)
    Err(0);
  else
    Err(status.error());
}

void Reply::WithEntry(const Entry& entry, double seconds) {
  fuse_entry_param param = ToEntryParam(entry, seconds);
  if (Begin())
    fuse_reply_entry(request_, &param);
}

void Reply::NoSuchName(double seconds) {
  if (seconds <= 0) {
    Err(ENOENT);
    return;
  }
  fuse_entry_param none{};  // node number 0: a name that is known not to be
  none.entry_timeout = seconds;
  if (Begin())
    fuse_reply_entry(request_, &none);
}

void Reply::WithAttr(const core::Stat& attr, double seconds) {
  struct stat st = ToStat(attr);
  if (Begin())
    fuse_reply_attr(request_, &st, seconds);
}

void Reply::WithLink(const char* text) {
  if (Begin())
    fuse_reply_readlink(request_, text);
}

bool Reply::WithOpen(const OpenReply& open, const fuse_file_info& asked) {
  fuse_file_info fi = ToFileInfo(open, asked);
  return Begin() && fuse_reply_open(request_, &fi) == 0;
}

bool Reply::WithCreate(const Entry& entry, const OpenReply& open,
                       const fuse_file_info& asked, double seconds) {
  fuse_entry_param param = ToEntryParam(entry, seconds);
  fuse_file_info fi = ToFileInfo(open, asked);
  return Begin() && fuse_reply_create(request_, &param, &fi) == 0;
}

void Reply::WithBytes(std::string_view bytes) {
  if (Begin())
    fuse_reply_buf(request_, bytes.data(), bytes.size());
}

void Reply::WithWritten(size_t bytes) {
  if (Begin())
    fuse_reply_write(request_, bytes);
}

void Reply::WithXattrSize(size_t bytes) {
  if (Begin())
    fuse_reply_xattr(request_, bytes);
}

void Reply::WithOffset(off_t offset) {
  if (Begin())
    fuse_reply_lseek(request_, offset);
}

void Reply::WithStatFs(const struct statfs& fs) {
  struct statvfs out {};
  out.f_bsize = static_cast<unsigned long>(fs.f_bsize);
  out.f_frsize =
      static_cast<unsigned long>(fs.f_frsize != 0 ? fs.f_frsize : fs.f_bsize);
  out.f_blocks = fs.f_blocks;
  out.f_bfree = fs.f_bfree;
  out.f_bavail = fs.f_bavail;
  out.f_files = fs.f_files;
  out.f_ffree = fs.f_ffree;
  out.f_favail = fs.f_ffree;
  out.f_namemax = static_cast<unsigned long>(fs.f_namelen);
  if (Begin())
    fuse_reply_statfs(request_, &out);
}

}  // namespace livemv::fusefs
