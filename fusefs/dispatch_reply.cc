#include "fusefs/dispatch_reply.h"

#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include <atomic>
#include <cerrno>
#include <cmath>

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
  fi.cache_readdir = open.cache_dir;
  return fi;
}

fuse_attr ToFuseAttr(const core::Stat& from) {
  fuse_attr to{};
  to.ino = from.stx_ino;
  to.size = from.stx_size;
  to.blocks = from.stx_blocks;
  to.atime = static_cast<uint64_t>(from.stx_atime.tv_sec);
  to.mtime = static_cast<uint64_t>(from.stx_mtime.tv_sec);
  to.ctime = static_cast<uint64_t>(from.stx_ctime.tv_sec);
  to.atimensec = from.stx_atime.tv_nsec;
  to.mtimensec = from.stx_mtime.tv_nsec;
  to.ctimensec = from.stx_ctime.tv_nsec;
  to.mode = from.stx_mode;
  to.nlink = from.stx_nlink;
  to.uid = from.stx_uid;
  to.gid = from.stx_gid;
  to.blksize = from.stx_blksize;
  return to;
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

fuse_entry_param ToEntryParam(const Entry& from, Validity valid) {
  fuse_entry_param to{};
  to.ino = from.id;
  // A FileId is never used again for another inode, so one generation does.
  to.generation = 0;
  to.attr = ToStat(from.attr);
  to.attr_timeout = valid.attr;
  to.entry_timeout = valid.name;
  return to;
}

fuse_entry_out ToEntryOut(const Entry& from, Validity valid) {
  auto nanoseconds = [](double seconds) {
    return static_cast<uint32_t>((seconds - std::floor(seconds)) * 1e9);
  };
  fuse_entry_out to{};
  to.nodeid = from.id;
  to.entry_valid = static_cast<uint64_t>(valid.name);
  to.entry_valid_nsec = nanoseconds(valid.name);
  to.attr_valid = static_cast<uint64_t>(valid.attr);
  to.attr_valid_nsec = nanoseconds(valid.attr);
  to.attr = ToFuseAttr(from.attr);
  return to;
}

wire::OpenOut ToOpenOut(const OpenReply& open) {
  wire::OpenOut to{};
  to.fh = open.fh;
  to.backing = open.backing;
  if (open.backing != 0)
    to.open_flags = wire::kOpenPassthrough;
  else if (open.direct_io)
    to.open_flags = FOPEN_DIRECT_IO;
  else if (open.keep_cache)
    to.open_flags = FOPEN_KEEP_CACHE;
  if (open.no_flush)
    to.open_flags |= FOPEN_NOFLUSH;
  if (open.cache_dir)
    to.open_flags |= FOPEN_CACHE_DIR;
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

void Reply::WithEntry(const Entry& entry, Validity valid) {
  fuse_entry_param param = ToEntryParam(entry, valid);
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

// libfuse does not know of backing numbers.
bool Reply::WithRaw(const void* body, size_t len) {
  if (!Begin())
    return false;
  const uint64_t unique = Transport::Request()->unique;
  Transport* transport = Transport::Current();
  fuse_reply_none(request_);
  return transport->Reply(unique, 0, body, len) == 0;
}

bool Reply::WithOpen(const OpenReply& open, const fuse_file_info& asked) {
  if (open.backing != 0) {
    const wire::OpenOut out = ToOpenOut(open);
    return WithRaw(&out, sizeof out);
  }
  fuse_file_info fi = ToFileInfo(open, asked);
  return Begin() && fuse_reply_open(request_, &fi) == 0;
}

bool Reply::WithCreate(const Entry& entry, const OpenReply& open,
                       const fuse_file_info& asked, Validity valid) {
  if (open.backing != 0) {
    const CreateOut out{ToEntryOut(entry, valid), ToOpenOut(open)};
    return WithRaw(&out, sizeof out);
  }
  fuse_entry_param param = ToEntryParam(entry, valid);
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
