#include "fusefs/dispatch.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/stat.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <string>

#include "core/log.h"
#include "fusefs/changes.h"
#include "fusefs/dispatch_faults.h"
#include "fusefs/dispatch_ops.h"
#include "fusefs/dispatch_reply.h"
#include "fusefs/fuse_wire.h"

namespace livemv::fusefs {
namespace {

wire::StatxTime ToWire(const struct statx_timestamp& t) {
  return {t.tv_sec, t.tv_nsec, 0};
}

wire::StatxOut ToStatxOut(const core::Stat& from, double seconds) {
  wire::StatxOut out{};
  double whole = std::floor(seconds);
  out.attr_valid = static_cast<uint64_t>(whole);
  out.attr_valid_nsec = static_cast<uint32_t>((seconds - whole) * 1e9);
  wire::StatxAttr& to = out.stat;
  to.mask = from.stx_mask & (STATX_BASIC_STATS | STATX_BTIME);
  to.blksize = from.stx_blksize;
  to.attributes = from.stx_attributes;
  to.attributes_mask = from.stx_attributes_mask;
  to.nlink = from.stx_nlink;
  to.uid = from.stx_uid;
  to.gid = from.stx_gid;
  to.mode = from.stx_mode;
  to.ino = from.stx_ino;
  to.size = from.stx_size;
  to.blocks = from.stx_blocks;
  to.atime = ToWire(from.stx_atime);
  to.btime = ToWire(from.stx_btime);
  to.ctime = ToWire(from.stx_ctime);
  to.mtime = ToWire(from.stx_mtime);
  to.rdev_major = from.stx_rdev_major;
  to.rdev_minor = from.stx_rdev_minor;
  return out;
}

// Of the calling thread, for the duration of one request.
class RequestScope {
 public:
  RequestScope(Transport* transport, const fuse_in_header* header)
      : transport_(transport) {
    transport_->SetRequest(header);
  }
  ~RequestScope() { transport_->SetRequest(nullptr); }
  RequestScope(const RequestScope&) = delete;
  RequestScope& operator=(const RequestScope&) = delete;

 private:
  Transport* const transport_;
};

}  // namespace

Dispatcher::Dispatcher(FsCore* core, Transport* transport, IntentTable* intents,
                       uint32_t max_write)
    : core_(core),
      transport_(transport),
      intents_(intents),
      max_write_(max_write) {}

Dispatcher::~Dispatcher() {
  if (session_ != nullptr)
    fuse_session_destroy(session_);
}

core::Status Dispatcher::Init() {
  std::string name = "livemv";
  char* argv[] = {name.data()};
  fuse_args args = FUSE_ARGS_INIT(1, argv);
  session_ =
      fuse_session_new(&args, &DispatchOps(), sizeof(fuse_lowlevel_ops), this);
  fuse_opt_free_args(&args);
  if (session_ == nullptr)
    return core::Fail(core::ErrorCode::kUnsupported,
                      "libfuse refused to make a session");
  // libfuse closes the descriptor that it is given and uses it for nothing
  // else, since the hooks do all I/O: it gets one of its own.
  core::UniqueFd own(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!own)
    return core::FailSys(errno, "open /dev/null");
  int err = fuse_session_custom_io(session_, Transport::CustomIo(), own.Get());
  if (err == 0)
    own.Release();
  if (err != 0)
    return core::FailSys(err < 0 ? -err : err, "give libfuse its hooks");
  return {};
}

bool Dispatcher::NeedsNothing(uint32_t opcode) {
  return opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET ||
         opcode == FUSE_INTERRUPT;
}

void Dispatcher::AnswerOnly(const fuse_in_header& header) {
  transport_->Reply(header.unique, 0, nullptr, 0);
}

void Dispatcher::AnswerStale(const fuse_in_header& header) {
  transport_->Reply(header.unique, ESTALE, nullptr, 0);
}

void Dispatcher::FinishAnswered(const RawRequest& request) {
  const auto* header =
      reinterpret_cast<const fuse_in_header*>(request.bytes.data());
  if ((header->opcode != FUSE_RELEASE && header->opcode != FUSE_RELEASEDIR) ||
      request.bytes.size() < sizeof *header + sizeof(fuse_release_in))
    return;
  const auto* in = reinterpret_cast<const fuse_release_in*>(header + 1);
  core_->Release(header->nodeid & ~state::kAliasBit, in->fh);
}

// To the core an inode has one number. OpOpen looks at the one asked for.
void Dispatcher::ToOwnNumbers(fuse_in_header* header, size_t len) {
  if (header->opcode != FUSE_OPEN)
    header->nodeid &= ~state::kAliasBit;
  if (header->opcode == FUSE_LINK && len >= sizeof *header + sizeof(fuse_link_in))
    reinterpret_cast<fuse_link_in*>(header + 1)->oldnodeid &= ~state::kAliasBit;
}

void Dispatcher::Handle(char* bytes, size_t len) {
  auto* header = reinterpret_cast<fuse_in_header*>(bytes);
  if (NeedsNothing(header->opcode))
    return;
  ToOwnNumbers(header, len);
  RequestScope scope(transport_, header);
  if (HandleHere(header, len))
    return;
  fuse_buf buf{};
  buf.mem = bytes;
  buf.size = len;
  fuse_session_process_buf(session_, &buf);
}

bool Dispatcher::HandleHere(const fuse_in_header* header, size_t len) {
  auto refuse = [&](int err) {
    transport_->Reply(header->unique, err, nullptr, 0);
    return true;
  };
  switch (header->opcode) {
    case wire::kOpStatx:
      Statx(header);
      return true;
    case FUSE_SETXATTR:
      SetXattr(header, len);
      return true;
    case wire::kOpSyncFs: {
      // The kernel asks this of virtiofs only; for us sync(2) ends above.
      auto synced = core_->FSync(state::kRootId, false);
      return refuse(synced ? 0 : synced.error().Errno());
    }
    case wire::kOpTmpFile:
      TmpFile(header, len);
      return true;
    case FUSE_COPY_FILE_RANGE:
    case wire::kOpCopyFileRange64:
      // fs/fuse/file.c: ENOSYS becomes EOPNOTSUPP inside the kernel, is
      // remembered, and the VFS copies by splice: wanted, since a copy that
      // was done in part could not be repeated after a kill.
      return refuse(ENOSYS);
    case FUSE_DESTROY:
      destroyed_ = true;
      return refuse(0);
    default:
      return false;
  }
}

void Dispatcher::Statx(const fuse_in_header* header) {
  auto attr = core_->GetAttr(header->nodeid);
  core::Status passed = PassBeforeReply(header->opcode);
  if (!attr || !passed) {
    transport_->Reply(header->unique,
                      !attr ? attr.error().Errno() : passed.error().Errno(),
                      nullptr, 0);
    return;
  }
  wire::StatxOut out = ToStatxOut(*attr, core_->AttrSeconds(header->nodeid, *attr));
  transport_->Reply(header->unique, 0, &out, sizeof out);
}

// Done again after a kill it makes another one; nobody has seen the first.
void Dispatcher::TmpFile(const fuse_in_header* header, size_t len) {
  if (len < sizeof *header + sizeof(fuse_create_in)) {
    transport_->Reply(header->unique, EINVAL, nullptr, 0);
    return;
  }
  const auto* in = reinterpret_cast<const fuse_create_in*>(header + 1);
  const Caller caller{header->uid, header->gid,
                      static_cast<pid_t>(header->pid), in->umask};
  auto made = core_->TmpFile(header->nodeid, static_cast<int>(in->flags),
                             in->mode, caller);
  // Unknown to the kernel, so that no FORGET will come.
  auto let_go = [&] {
    core_->Release(made->first.id, made->second.fh);
    core_->Forget(made->first.id);
  };
  core::Status passed = PassBeforeReply(header->opcode);
  if (!made || !passed) {
    transport_->Reply(header->unique,
                      !made ? made.error().Errno() : passed.error().Errno(),
                      nullptr, 0);
    if (made)
      let_go();
    return;
  }
  // No name that could be cached; the attributes are asked for.
  CreateOut out{ToEntryOut(made->first, {}), ToOpenOut(made->second)};
  // What is direct is so by its first number.
  if (made->second.backing == 0)
    out.entry.nodeid = core_->KernelNumber(made->first.id);
  if (transport_->Reply(header->unique, 0, &out, sizeof out) != 0)
    let_go();
}

void Dispatcher::SetXattr(const fuse_in_header* header, size_t len) {
  const bool extended = (transport_->KernelFlags() & wire::kSetxattrExt) != 0;
  const size_t fixed = extended ? sizeof(wire::SetxattrIn)
                                : size_t{FUSE_COMPAT_SETXATTR_IN_SIZE};
  const char* body = reinterpret_cast<const char*>(header + 1);
  const char* end = reinterpret_cast<const char*>(header) + len;
  wire::SetxattrIn in{};
  if (body + fixed > end) {
    transport_->Reply(header->unique, EINVAL, nullptr, 0);
    return;
  }
  std::memcpy(&in, body, fixed);
  const char* name = body + fixed;
  size_t name_len = strnlen(name, static_cast<size_t>(end - name));
  const char* value = name + name_len + 1;
  if (value > end || in.size > static_cast<size_t>(end - value)) {
    transport_->Reply(header->unique, EINVAL, nullptr, 0);
    return;
  }
  Once once(intents_);
  core::Status status = SetXattrOnce(&once, core_, header->nodeid, name,
                                     std::string_view(value, in.size),
                                     static_cast<int>(in.flags));
  // The caller is not in the file's group: setting an ACL must take the
  // setgid bit away, as chmod would.
  if (status && (in.setxattr_flags & wire::kSetxattrAclKillSgid) != 0)
    status = DropSetgid(header->nodeid);
  if (status)
    status = PassBeforeReply(header->opcode);
  transport_->Reply(header->unique, status ? 0 : status.error().Errno(),
                    nullptr, 0);
}

core::Status Dispatcher::DropSetgid(FileId id) {
  ASSIGN_OR_RETURN(core::Stat attr, core_->GetAttr(id));
  if ((attr.stx_mode & S_ISGID) == 0)
    return {};
  AttrChange change;
  change.mode = attr.stx_mode & 07777 & ~static_cast<mode_t>(S_ISGID);
  TRY(core_->SetAttr(id, change, Caller{}));
  return {};
}

}  // namespace livemv::fusefs
