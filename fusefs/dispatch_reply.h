#pragma once

// Exactly one reply to one libfuse request: the methods send it, a second one
// is a broken invariant, and a handler that leaves without one answers EIO.
//
// Thread contract: one thread, that of the request.

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <sys/stat.h>

#include <string_view>

#include "core/result.h"
#include "fusefs/fs_core.h"
#include "fusefs/fuse_wire.h"

namespace livemv::fusefs {

struct stat ToStat(const core::Stat& from);
// How long the kernel may keep what it is told, in seconds.
struct Validity {
  double name = 0, attr = 0;
};

fuse_entry_param ToEntryParam(const Entry& from, Validity valid);

fuse_entry_out ToEntryOut(const Entry& from, Validity valid);
wire::OpenOut ToOpenOut(const OpenReply& open);
struct CreateOut {
  fuse_entry_out entry;
  wire::OpenOut open;
};

class Reply {
 public:
  explicit Reply(fuse_req_t request) : request_(request) {}
  ~Reply();
  Reply(const Reply&) = delete;
  Reply& operator=(const Reply&) = delete;

  void Err(int err);  // 0: success without a body
  // An error that is no answer to a caller's mistake is logged: nobody else
  // can say why an application saw it.
  void Err(const core::Error& error);
  void Of(const core::Status& status);
  void WithEntry(const Entry& entry, Validity valid);
  void NoSuchName(double seconds);  // cached by the kernel if seconds > 0
  void WithAttr(const core::Stat& attr, double seconds);
  void WithLink(const char* text);
  // False: the kernel gave the open up and no RELEASE will follow.
  bool WithOpen(const OpenReply& open, const fuse_file_info& asked);
  bool WithCreate(const Entry& entry, const OpenReply& open,
                  const fuse_file_info& asked, Validity valid);
  void WithBytes(std::string_view bytes);
  void WithWritten(size_t bytes);
  void WithXattrSize(size_t bytes);
  void WithOffset(off_t offset);
  void WithStatFs(const struct statfs& fs);

 private:
  // False if a fault point wants another answer, which was then sent.
  bool Begin();
  bool WithRaw(const void* body, size_t len);

  const fuse_req_t request_;
  bool sent_ = false;
};

}  // namespace livemv::fusefs
