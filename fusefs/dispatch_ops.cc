#include "fusefs/dispatch_ops.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string>
#include <vector>

#include "fusefs/changes.h"
#include "fusefs/dispatch.h"
#include "fusefs/dispatch_reply.h"
#include "fusefs/fuse_wire.h"

namespace livemv::fusefs {
namespace {

using core::Result;

Dispatcher* Self(fuse_req_t req) {
  return static_cast<Dispatcher*>(fuse_req_userdata(req));
}

Caller CallerOf(fuse_req_t req) {
  const fuse_ctx* ctx = fuse_req_ctx(req);
  return Caller{ctx->uid, ctx->gid, ctx->pid, ctx->umask};
}

// As the kernel is to know it.
Entry ForKernel(FsCore* core, const Entry& entry) {
  return {core->KernelNumber(entry.id), entry.attr};
}

Validity ValidityOf(FsCore* core, const Entry& entry) {
  return {core->CacheSeconds(), core->AttrSeconds(entry.id, entry.attr)};
}

void SendEntry(fuse_req_t req, const Result<Entry>& entry) {
  FsCore* core = Self(req)->core();
  Reply reply(req);
  if (entry)
    reply.WithEntry(ForKernel(core, *entry), ValidityOf(core, *entry));
  else
    reply.Err(entry.error());
}

void OpInit(void* self, fuse_conn_info* conn) {
  const unsigned want =
      FUSE_CAP_ASYNC_READ | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_EXPORT_SUPPORT |
      FUSE_CAP_DONT_MASK | FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO |
      FUSE_CAP_ASYNC_DIO | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_POSIX_ACL |
      // A link's text never changes, and neither does what a number means.
      FUSE_CAP_CACHE_SYMLINKS |
      // Every change passes through us, and our own changes of mtime must not
      // drop the cache.
      FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_IOCTL_DIR;
  // Killpriv v2 instead of v1 is added by the transport. No writeback cache:
  // size and times are ours. Locks stay with the kernel (rule 7).
  conn->want = conn->capable & want;
  conn->max_write = static_cast<Dispatcher*>(self)->max_write();
  conn->max_background = 256;
  conn->congestion_threshold = 192;
}

void OpLookup(fuse_req_t req, fuse_ino_t dir, const char* name) {
  FsCore* core = Self(req)->core();
  Reply reply(req);
  if (std::string_view(name) == ".") {
    // EXPORT_SUPPORT: "is this number alive, and what is it"; of any type.
    auto attr = core->GetAttr(dir);
    if (attr)
      reply.WithEntry(ForKernel(core, {dir, *attr}),
                      ValidityOf(core, {dir, *attr}));
    else
      reply.Err(attr.error());
    return;
  }
  auto entry = core->Lookup(dir, name);
  if (entry)
    reply.WithEntry(ForKernel(core, *entry), ValidityOf(core, *entry));
  else if (entry.error().Errno() == ENOENT)
    reply.NoSuchName(core->CacheSeconds());
  else
    reply.Err(entry.error());
}

void OpGetAttr(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
  FsCore* core = Self(req)->core();
  Reply reply(req);
  auto attr = core->GetAttr(ino);
  if (attr)
    reply.WithAttr(*attr, core->AttrSeconds(ino, *attr));
  else
    reply.Err(attr.error());
}

AttrChange ToChange(const struct fuse_setattr_in& in) {
  AttrChange change;
  if (in.valid & FATTR_MODE)
    change.mode = in.mode;
  if (in.valid & FATTR_UID)
    change.uid = in.uid;
  if (in.valid & FATTR_GID)
    change.gid = in.gid;
  if (in.valid & FATTR_SIZE)
    change.size = in.size;
  if (in.valid & FATTR_ATIME_NOW)
    change.atime = timespec{0, UTIME_NOW};
  else if (in.valid & FATTR_ATIME)
    change.atime = timespec{static_cast<time_t>(in.atime), in.atimensec};
  if (in.valid & FATTR_MTIME_NOW)
    change.mtime = timespec{0, UTIME_NOW};
  else if (in.valid & FATTR_MTIME)
    change.mtime = timespec{static_cast<time_t>(in.mtime), in.mtimensec};
  change.kill_suidgid = (in.valid & wire::kFattrKillSuidgid) != 0;
  // chown(2) to nobody in particular: it changes ctime, and takes away what
  // every change of the owner does.
  constexpr uint32_t kAsked = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE |
                              FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW |
                              FATTR_MTIME_NOW | wire::kFattrKillSuidgid;
  if ((in.valid & kAsked) == 0)
    change.uid = kSameOwner;
  return change;
}

void OpSetAttr(fuse_req_t req, fuse_ino_t ino, struct stat*, int,
               fuse_file_info*) {
  FsCore* core = Self(req)->core();
  Reply reply(req);
  // The raw request: libfuse drops the killpriv flag.
  const auto* in = Transport::RequestBody<struct fuse_setattr_in>();
  auto attr = core->SetAttr(ino, ToChange(*in), CallerOf(req));
  if (attr)
    reply.WithAttr(*attr, core->AttrSeconds(ino, *attr));
  else
    reply.Err(attr.error());
}

void OpReadLink(fuse_req_t req, fuse_ino_t ino) {
  Reply reply(req);
  auto text = Self(req)->core()->ReadLink(ino);
  if (text)
    reply.WithLink(text->c_str());
  else
    reply.Err(text.error());
}

void OpMkNod(fuse_req_t req, fuse_ino_t dir, const char* name, mode_t mode,
             dev_t dev) {
  Once once(Self(req)->intents());
  SendEntry(req, MkNodOnce(&once, Self(req)->core(), dir, name, mode, dev,
                           CallerOf(req)));
}

void OpMkDir(fuse_req_t req, fuse_ino_t dir, const char* name, mode_t mode) {
  Once once(Self(req)->intents());
  SendEntry(
      req, MkDirOnce(&once, Self(req)->core(), dir, name, mode, CallerOf(req)));
}

void OpSymLink(fuse_req_t req, const char* text, fuse_ino_t dir,
               const char* name) {
  Once once(Self(req)->intents());
  SendEntry(req, SymLinkOnce(&once, Self(req)->core(), dir, name, text,
                             CallerOf(req)));
}

void OpLink(fuse_req_t req, fuse_ino_t ino, fuse_ino_t dir, const char* name) {
  Once once(Self(req)->intents());
  SendEntry(req, LinkOnce(&once, Self(req)->core(), ino, dir, name));
}

void OpUnlink(fuse_req_t req, fuse_ino_t dir, const char* name) {
  Once once(Self(req)->intents());
  Reply(req).Of(UnlinkOnce(&once, Self(req)->core(), dir, name));
}

void OpRmDir(fuse_req_t req, fuse_ino_t dir, const char* name) {
  Once once(Self(req)->intents());
  Reply(req).Of(RmDirOnce(&once, Self(req)->core(), dir, name));
}

void OpRename(fuse_req_t req, fuse_ino_t dir, const char* name,
              fuse_ino_t new_dir, const char* new_name, unsigned flags) {
  Once once(Self(req)->intents());
  Reply(req).Of(RenameOnce(&once, Self(req)->core(), dir, name, new_dir,
                           new_name, flags));
}

// An open that empties the file for a caller without CAP_FSETID also drops
// setuid, setgid and capabilities (killpriv v2).
core::Status KillPrivileges(FsCore* core, FileId id, const Caller& caller) {
  AttrChange change;
  change.kill_suidgid = true;
  TRY(core->SetAttr(id, change, caller));
  return {};
}

// Whether the answer to an open may go to the inode that the kernel asked for:
// what is direct is so by its first number, all else by the one that is right
// now. If not, the kernel is told that it is stale and looks the name up again
// (fs/namei.c, do_filp_open).
bool IsForInode(FsCore* core, FileId asked, FileId id, uint32_t backing) {
  return backing != 0 ? asked == id : core->KernelNumber(id) == asked;
}

void OpOpen(fuse_req_t req, fuse_ino_t asked, fuse_file_info* fi) {
  FsCore* core = Self(req)->core();
  const fuse_ino_t ino = asked & ~state::kAliasBit;
  if (!IsForInode(core, asked, ino, 0)) {
    Reply(req).Err(ESTALE);
    return;
  }
  const auto* in = Transport::RequestBody<struct fuse_open_in>();
  const int flags = fi->flags & ~(O_CREAT | O_EXCL | O_NOCTTY);
  auto open = [&](Once* once) -> Result<OpenReply> {
    if (in->open_flags & wire::kOpenKillSuidgid)
      TRY(KillPrivileges(core, ino, CallerOf(req)));
    return once != nullptr ? OpenOnce(once, core, ino, flags)
                           : core->Open(ino, flags);
  };
  std::optional<Once> once;  // until the reply is out
  if (flags & O_TRUNC)
    once.emplace(Self(req)->intents());
  auto opened = open(once ? &*once : nullptr);
  Reply reply(req);
  if (!opened) {
    reply.Err(opened.error());
  } else if (!IsForInode(core, asked, ino, opened->backing)) {
    core->Release(ino, opened->fh);  // an abort has begun, or was given up
    reply.Err(ESTALE);
  } else if (!reply.WithOpen(*opened, *fi)) {
    core->Release(ino, opened->fh);
  }
}

void OpCreate(fuse_req_t req, fuse_ino_t dir, const char* name, mode_t mode,
              fuse_file_info* fi) {
  FsCore* core = Self(req)->core();
  Once once(Self(req)->intents());
  auto made =
      CreateOnce(&once, core, dir, name, fi->flags, mode, CallerOf(req));
  Reply reply(req);
  if (!made) {
    reply.Err(made.error());
    return;
  }
  // What is direct is so by its first number.
  const Entry entry = made->second.backing != 0
                          ? made->first
                          : ForKernel(core, made->first);
  if (!reply.WithCreate(entry, made->second, *fi,
                        ValidityOf(core, made->first)))
    core->Release(made->first.id, made->second.fh);
}

void OpRelease(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi) {
  Self(req)->core()->Release(ino, fi->fh);
  Reply(req).Err(0);
}

void OpRead(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
            fuse_file_info*) {
  // Kept by the thread, so that it is locked into memory once: a reply whose
  // pages are absent when a kill arrives would become EIO.
  static thread_local std::vector<char> buffer;
  if (buffer.size() < size)
    buffer.resize(size);
  Reply reply(req);
  auto got = Self(req)->core()->Read(ino, static_cast<uint64_t>(off),
                                     std::span(buffer.data(), size));
  if (got)
    reply.WithBytes({buffer.data(), *got});
  else
    reply.Err(got.error());
}

// Whether off is the end for an append, or was before a predecessor began to
// write these very bytes there.
Result<bool> IsAtTheEnd(FsCore* core, fuse_ino_t ino, uint64_t off,
                        std::span<const char> data) {
  ASSIGN_OR_RETURN(uint64_t size, core->SizeOf(ino));
  if (size <= off || !Transport::IsResent())
    return size <= off;
  if (size > off + data.size())
    return false;
  std::string there(size - off, '\0');
  ASSIGN_OR_RETURN(size_t got, core->Read(ino, off, there));
  return std::string_view(there.data(), got) ==
         std::string_view(data.data(), got);
}

void OpWrite(fuse_req_t req, fuse_ino_t ino, const char* data, size_t size,
             off_t off, fuse_file_info* fi) {
  FsCore* core = Self(req)->core();
  const auto* in = Transport::RequestBody<struct fuse_write_in>();
  const bool kill = (in->write_flags & wire::kWriteKillSuidgid) != 0;
  const std::span<const char> bytes(data, size);
  const auto at = static_cast<uint64_t>(off);
  auto send = [&](const Result<size_t>& wrote) {
    Reply reply(req);
    if (wrote)
      reply.WithWritten(*wrote);
    else
      reply.Err(wrote.error());
  };
  if ((fi->flags & O_APPEND) == 0)
    return send(core->Write(ino, at, bytes, fi->flags, kill));
  // Uncached means that the file is also appended to behind the overlay, so
  // the offset of an O_APPEND write is not the kernel's to say. For the files
  // that were open then it is not afterwards either: the kernel does not ask
  // for the size before it appends (fs/fuse/file.c, fuse_direct_write_iter).
  bool trusted = !core->IsWrittenBeside(ino);
  if (trusted) {
    Result<bool> fits = IsAtTheEnd(core, ino, at, bytes);
    if (!fits)
      return send(core::Fail(std::move(fits).error()));
    trusted = *fits;
  }
  Once once(Self(req)->intents());
  if (trusted && once.Fresh())
    return send(core->Write(ino, at, bytes, fi->flags & ~O_APPEND, kill));
  send(AppendOnce(&once, core, ino, at, bytes, fi->flags, kill));
}

void OpFlush(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
  Reply(req).Of(Self(req)->core()->Flush(ino));
}

void OpFSync(fuse_req_t req, fuse_ino_t ino, int data_only, fuse_file_info*) {
  Reply(req).Of(Self(req)->core()->FSync(ino, data_only != 0));
}

void OpFAllocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                 fuse_file_info*) {
  Reply reply(req);
  // Moving bytes about cannot be repeated after a kill.
  if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)) {
    reply.Err(EOPNOTSUPP);
    return;
  }
  // With killpriv v2 the kernel leaves it to us and, unlike for a write, does
  // not say whether the caller has CAP_FSETID (fs/fuse/file.c,
  // fuse_file_fallocate).
  if (fuse_req_ctx(req)->uid != 0) {
    core::Status killed =
        KillPrivileges(Self(req)->core(), ino, CallerOf(req));
    if (!killed) {
      reply.Err(killed.error());
      return;
    }
  }
  reply.Of(Self(req)->core()->FAllocate(ino, mode, static_cast<uint64_t>(off),
                                        static_cast<uint64_t>(len)));
}

void OpLSeek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
             fuse_file_info*) {
  Reply reply(req);
  auto at = Self(req)->core()->LSeek(ino, off, whence);
  if (at)
    reply.WithOffset(*at);
  else
    reply.Err(at.error());
}

// Bytes of one item in buf, or more than room if it does not fit.
size_t AddItem(fuse_req_t req, char* buf, size_t room, const DirItem& item,
               bool plus) {
  const char* name = item.entry.name.c_str();
  struct stat st {};
  st.st_ino = item.entry.ino;
  st.st_mode = static_cast<mode_t>(DTTOIF(item.entry.type));
  if (!plus)
    return fuse_add_direntry(req, buf, room, name, &st, item.entry.next_offset);
  fuse_entry_param param{};
  // "." and "..", and items without attributes: number 0 means that this is
  // no lookup.
  FsCore* core = Self(req)->core();
  bool dots = item.entry.name == "." || item.entry.name == "..";
  if (item.id != state::kNoFile && !dots)
    param = ToEntryParam(ForKernel(core, {item.id, item.attr}),
                         ValidityOf(core, {item.id, item.attr}));
  else
    param.attr = st;
  return fuse_add_direntry_plus(req, buf, room, name, &param,
                                item.entry.next_offset);
}

void ReadDirectory(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                   bool plus) {
  FsCore* core = Self(req)->core();
  Reply reply(req);
  auto items = core->ReadDir(ino, off, size, plus);
  if (!items) {
    reply.Err(items.error());
    return;
  }
  std::string buf(size, '\0');
  size_t used = 0;
  for (const DirItem& item : *items) {
    size_t room = size - used;
    size_t need = AddItem(req, buf.data() + used, room, item, plus);
    if (need > room)
      break;  // the next call asks from this item's cookie on
    used += need;
  }
  // An empty answer means the end of the directory.
  if (used == 0 && !items->empty())
    reply.Err(EINVAL);
  else
    reply.WithBytes({buf.data(), used});
}

void OpReadDir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
               fuse_file_info*) {
  ReadDirectory(req, ino, size, off, false);
}

void OpReadDirPlus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                   fuse_file_info*) {
  ReadDirectory(req, ino, size, off, true);
}

void SendXattr(fuse_req_t req, size_t size, const Result<std::string>& value) {
  Reply reply(req);
  if (!value)
    reply.Err(value.error());
  else if (size == 0)
    reply.WithXattrSize(value->size());
  else if (value->size() > size)
    reply.Err(ERANGE);
  else
    reply.WithBytes(*value);
}

void OpGetXattr(fuse_req_t req, fuse_ino_t ino, const char* name, size_t size) {
  SendXattr(req, size, Self(req)->core()->GetXattr(ino, name));
}

void OpListXattr(fuse_req_t req, fuse_ino_t ino, size_t size) {
  auto names = Self(req)->core()->ListXattr(ino);
  if (!names) {
    SendXattr(req, size, std::unexpected(names.error()));
    return;
  }
  std::string joined;
  for (const std::string& name : *names)
    joined.append(name).push_back('\0');
  SendXattr(req, size, joined);
}

void OpRemoveXattr(fuse_req_t req, fuse_ino_t ino, const char* name) {
  Once once(Self(req)->intents());
  Reply(req).Of(RemoveXattrOnce(&once, Self(req)->core(), ino, name));
}

void OpStatFs(fuse_req_t req, fuse_ino_t) {
  Reply reply(req);
  auto fs = Self(req)->core()->StatFs();
  if (fs)
    reply.WithStatFs(*fs);
  else
    reply.Err(fs.error());
}

// chattr, lsattr and the rest: flags of the source's inode have no place on
// the target. fs/fuse/ioctl.c turns ENOTTY into EOPNOTSUPP for the inode
// flags; ENOSYS would be remembered for the whole mount.
void OpIoctl(fuse_req_t req, fuse_ino_t, unsigned, void*, fuse_file_info*,
             unsigned, const void*, size_t, size_t) {
  Reply(req).Err(ENOTTY);
}

}  // namespace

const fuse_lowlevel_ops& DispatchOps() {
  static const fuse_lowlevel_ops kOps = [] {
    fuse_lowlevel_ops ops{};
    ops.init = OpInit;
    ops.lookup = OpLookup;
    ops.getattr = OpGetAttr;
    ops.setattr = OpSetAttr;
    ops.readlink = OpReadLink;
    ops.mknod = OpMkNod;
    ops.mkdir = OpMkDir;
    ops.symlink = OpSymLink;
    ops.link = OpLink;
    ops.unlink = OpUnlink;
    ops.rmdir = OpRmDir;
    ops.rename = OpRename;
    ops.open = OpOpen;
    ops.create = OpCreate;
    ops.release = OpRelease;
    ops.opendir = OpOpen;
    ops.releasedir = OpRelease;
    ops.read = OpRead;
    ops.write = OpWrite;
    ops.flush = OpFlush;
    ops.fsync = OpFSync;
    ops.fsyncdir = OpFSync;
    ops.fallocate = OpFAllocate;
    ops.lseek = OpLSeek;
    ops.readdir = OpReadDir;
    ops.readdirplus = OpReadDirPlus;
    ops.getxattr = OpGetXattr;
    ops.listxattr = OpListXattr;
    ops.removexattr = OpRemoveXattr;
    ops.statfs = OpStatFs;
    ops.ioctl = OpIoctl;
    // Not here, hence ENOSYS, which the kernel remembers: POLL (it then
    // reports files as ready), COPY_FILE_RANGE (it copies by splice), ACCESS
    // and BMAP (never sent with default_permissions and without a device).
    return ops;
  }();
  return kOps;
}

}  // namespace livemv::fusefs
