#pragma once

// What we speak to /dev/fuse beyond the distribution's <linux/fuse.h> (7.38,
// Debian 12): facts of the kernel's ABI up to 7.45, under our own names so
// that a newer system header does not clash.

#include <linux/fuse.h>
#include <sys/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace livemv::fusefs::wire {

// INIT flags, 64 bits: the upper half travels in flags2 with kInitExt set.
inline constexpr uint64_t kHandleKillprivV2 = 1ull << 28;
inline constexpr uint64_t kSetxattrExt = 1ull << 29;
inline constexpr uint64_t kInitExt = 1ull << 30;
inline constexpr uint64_t kCreateSuppGroup = 1ull << 34;
inline constexpr uint64_t kDirectIoAllowMmap = 1ull << 36;  // 7.39
inline constexpr uint64_t kPassthrough = 1ull << 37;        // 7.40
inline constexpr uint64_t kNoExportSupport = 1ull << 38;
inline constexpr uint64_t kHasResend = 1ull << 39;  // 7.40, Linux 6.9

// The minor version of the ABI that these definitions describe and that our
// INIT reply names (libfuse 3.14 would say 38 or less).
inline constexpr uint32_t kMinor = 40;

// Opcodes that libfuse 3.14 does not know.
inline constexpr uint32_t kOpSyncFs = 50;
inline constexpr uint32_t kOpTmpFile = 51;
inline constexpr uint32_t kOpStatx = 52;
inline constexpr uint32_t kOpCopyFileRange64 = 53;

// Notifications: fuse_out_header with unique 0 and the code as error.
inline constexpr int32_t kNotifyInvalInode = 2;
inline constexpr int32_t kNotifyInvalEntry = 3;
inline constexpr int32_t kNotifyResend = 7;    // Linux 6.9
inline constexpr int32_t kNotifyIncEpoch = 8;  // Linux 6.16
inline constexpr uint32_t kIncEpochMinor = 44;  // of a kernel that has it

// Set in `unique` of a request that the kernel hands out again after
// kNotifyResend; the reply carries it too.
inline constexpr uint64_t kResentBit = 1ull << 63;

// SETATTR, WRITE, OPEN/CREATE and SETXATTR flags that libfuse 3.14 drops.
inline constexpr uint32_t kFattrKillSuidgid = 1u << 11;
inline constexpr uint32_t kWriteKillSuidgid = 1u << 2;
inline constexpr uint32_t kOpenKillSuidgid = 1u << 0;
inline constexpr uint32_t kSetxattrAclKillSgid = 1u << 0;

struct StatxIn {
  uint32_t getattr_flags;
  uint32_t reserved;
  uint64_t fh;
  uint32_t sx_flags;
  uint32_t sx_mask;
};

struct StatxTime {
  int64_t sec;
  uint32_t nsec;
  int32_t reserved;
};

struct StatxAttr {
  uint32_t mask;
  uint32_t blksize;
  uint64_t attributes;
  uint32_t nlink;
  uint32_t uid;
  uint32_t gid;
  uint16_t mode;
  uint16_t spare0;
  uint64_t ino;
  uint64_t size;
  uint64_t blocks;
  uint64_t attributes_mask;
  StatxTime atime, btime, ctime, mtime;
  uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
  uint64_t spare2[14];
};

struct StatxOut {
  uint64_t attr_valid;
  uint32_t attr_valid_nsec;
  uint32_t flags;
  uint64_t spare[2];
  StatxAttr stat;
};

static_assert(sizeof(StatxIn) == 24);
static_assert(sizeof(StatxAttr) == 256);
static_assert(sizeof(StatxOut) == 288);

// fuse_init_out as of 7.40; 64 bytes as before, the fields sit in the tail
// that used to be unused.
struct InitOut {
  uint32_t major, minor;
  uint32_t max_readahead;
  uint32_t flags;
  uint16_t max_background, congestion_threshold;
  uint32_t max_write;
  uint32_t time_gran;
  uint16_t max_pages, map_alignment;
  uint32_t flags2;
  uint32_t max_stack_depth;
  uint32_t unused[6];
};
static_assert(sizeof(InitOut) == 64);

// FUSE_DEV_IOC_BACKING_OPEN and _CLOSE, 7.40.
struct BackingMap {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
static_assert(sizeof(BackingMap) == 16);
inline constexpr unsigned long kIoctlBackingOpen = _IOW(229, 1, BackingMap);
inline constexpr unsigned long kIoctlBackingClose = _IOW(229, 2, uint32_t);

// OPEN and CREATE replies; fuse_open_out's padding is the backing number.
inline constexpr uint32_t kOpenPassthrough = 1u << 7;
struct OpenOut {
  uint64_t fh;
  uint32_t open_flags;
  uint32_t backing;
};
static_assert(sizeof(OpenOut) == sizeof(fuse_open_out));

// The SETXATTR body once kSetxattrExt is negotiated.
struct SetxattrIn {
  uint32_t size;
  uint32_t flags;
  uint32_t setxattr_flags;
  uint32_t padding;
};
static_assert(sizeof(SetxattrIn) == 16);

}  // namespace livemv::fusefs::wire
