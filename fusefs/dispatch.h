#pragma once

// Requests in the kernel's form -> FsCore -> exactly one reply. Beyond
// libfuse's operations it answers STATX (with birth time), SYNCFS, SETXATTR
// with its extended flags, TMPFILE, and refuses COPY_FILE_RANGE with ENOSYS (the
// kernel then copies by splice and does not ask again). Locks are the kernel's
// own; INTERRUPT is ignored; FORGET does nothing, because node numbers need no
// lookup count (rule 4).
//
// Requests that must not run twice go through the IntentTable.
// Fault points, for OP such as "unlink": fuse.begun, fuse.executed,
// fuse.before_reply, and each with ".OP" behind it.
//
// Thread contract: Handle from any thread.

#include <atomic>
#include <cstdint>
#include <string_view>

#include "core/result.h"
#include "fusefs/fs_core.h"
#include "fusefs/gate.h"
#include "fusefs/intents.h"
#include "fusefs/transport.h"

struct fuse_in_header;
struct fuse_session;

namespace livemv::fusefs {

class Dispatcher {
 public:
  // All must outlive the dispatcher. max_write in bytes.
  Dispatcher(FsCore* core, Transport* transport, IntentTable* intents,
             uint32_t max_write);
  ~Dispatcher();
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  // Makes the libfuse session; before any Handle.
  core::Status Init();
  // Answers one request. bytes: as read, suitably aligned for 8-byte loads,
  // writable for the duration of the call.
  void Handle(char* bytes, size_t len);
  // FORGET, INTERRUPT: nothing to do and nothing to answer.
  static bool NeedsNothing(uint32_t opcode);
  // Replies success without acting (a closed gate's FLUSH and RELEASE).
  void AnswerOnly(const fuse_in_header& header);
  // Replies ESTALE without acting.
  void AnswerStale(const fuse_in_header& header);
  // What an answered RELEASE still owes to FsCore.
  void FinishAnswered(const RawRequest& request);

  FsCore* core() const { return core_; }
  Transport* transport() const { return transport_; }
  IntentTable* intents() const { return intents_; }
  uint32_t max_write() const { return max_write_; }
  bool destroyed() const { return destroyed_; }

 private:
  void ToOwnNumbers(fuse_in_header* header, size_t len);
  bool HandleHere(const fuse_in_header* header, size_t len);
  void Statx(const fuse_in_header* header);
  void SetXattr(const fuse_in_header* header, size_t len);
  void TmpFile(const fuse_in_header* header, size_t len);
  core::Status DropSetgid(FileId id);

  FsCore* const core_;
  Transport* const transport_;
  IntentTable* const intents_;
  const uint32_t max_write_;
  struct fuse_session* session_ = nullptr;
  std::atomic<bool> destroyed_{false};
};

}  // namespace livemv::fusefs
