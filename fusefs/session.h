#pragma once

// Serves one FUSE connection until it ends: a pool of threads that read
// /dev/fuse, the gate, the dispatcher, and the resumption of a connection
// that a dead worker left. It takes descriptors and memory that the supervisor
// owns; it neither mounts nor unmounts nor ends the process.
//
// Any thread may read and answers what it read; there is always one that reads
// while others are busy, and requests that may wait for the target are limited
// in number (the rest of them queue), so that a target that hangs does not hold
// up what the source answers alone.
//
// Thread contract: Start once; then all methods from any thread but a request
// handler's.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>

#include "core/result.h"
#include "core/unique_fd.h"
#include "fusefs/dispatch.h"
#include "fusefs/fs_core.h"
#include "fusefs/gate.h"
#include "fusefs/intents.h"
#include "fusefs/transport.h"

namespace livemv::fusefs {

enum class StopReason {
  kUnmounted,  // the last user of the overlay is gone
  kStopped,    // Stop() was called
  kError,      // reading the device failed; see Session::error()
};

struct SessionOptions {
  int max_threads = 64;          // that answer requests at one time, >= 4
  uint32_t max_write = 1 << 20;  // bytes, a multiple of the page size
};

class Session {
 public:
  // fuse_fd: the connection, borrowed, no clone; it becomes non-blocking.
  // saved: in the supervisor's memory. All must outlive the session.
  Session(int fuse_fd, FsCore* core, SavedInit* saved, IntentTable* intents,
          SessionOptions options = {});
  ~Session();  // Stop() and waits
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Begins to serve. resume: another worker has served this connection; call
  // only when that one is dead (its whole thread group reaped), otherwise its
  // late replies are lost and requests run twice. The requests that it left
  // unanswered come again.
  // Returns before the first request is read.
  core::Status Start(bool resume);
  // Whether the kernel took the request to resend (Linux 6.9); without it,
  // requests that the predecessor had read stay unanswered for ever.
  bool resent() const { return resent_; }

  // Waits for the end.
  StopReason Wait();
  // The end if there is one within timeout_ns.
  bool WaitFor(int64_t timeout_ns, StopReason* reason);
  // Ends the session after the requests in flight; does not wait. Unread
  // requests stay with the kernel, for a successor.
  void Stop();
  std::string error();  // of kError

  // OverlayControl's drain: see Gate. deadline_ns: CLOCK_MONOTONIC.
  core::Status DrainAndClose(int64_t deadline_ns);
  void GateOpens();  // see Gate::CloseToOpens
  void OpenGate(bool stale_opens = false);
  // From the freeze to the thaw: FLUSH touches nothing.
  void SetInFreeze(bool on) { gate_.SetInFreeze(on); }
  Gate& gate() { return gate_; }

  // Drops what the kernel caches. Never from a request handler (the kernel
  // may hold the inode's locks while it waits for that very request:
  // kInvalid). OK too if the kernel has nothing cached (ENOENT).
  core::Status InvalidateInode(FileId id);
  core::Status InvalidateEntry(FileId dir, std::string_view name);
  // All names at once (Linux 6.16, else kUnsupported).
  core::Status InvalidateAllEntries();
  // Whether this kernel can do that (7.44, Linux 6.16). False before INIT.
  bool CanInvalidateAllEntries() const;
  // Only what the kernel knows of its size, times and mode; no pages.
  core::Status InvalidateAttrs(FileId id);

  // Requests answered so far; moves while the session is alive and used.
  uint64_t answered() const { return answered_; }

 private:
  // What a request may have to wait for decides how many may run.
  enum class Kind { kWrite, kRead, kQuick, kCount };
  static Kind KindOf(const char* bytes, size_t len);

  core::Status Resume();
  void SpawnLocked();
  void ThreadMain();
  // One queued request, or one wait and what it brought. False: the thread
  // ends.
  bool ServeOne(int epoll, char* buf, size_t size);
  bool ReadOne(char* buf, size_t size);
  void RunQueued(RawRequest& request);
  void Finish(Kind kind);
  bool HasRoomLocked(Kind kind) const;
  bool TakeReadyLocked(RawRequest* request);
  void End(StopReason reason, const std::string& error);
  core::Status NotifyFromOutside(int32_t code, const void* body, size_t len,
                                 const void* more, size_t more_len);

  const int fuse_fd_;
  const SessionOptions options_;
  SavedInit* const saved_;
  IntentTable* const intents_;
  Transport transport_;
  Dispatcher dispatcher_;
  Gate gate_;
  core::UniqueFd stop_event_;  // written once, at the end
  core::UniqueFd kick_event_;  // something is in ready_
  std::atomic<uint64_t> answered_{0};
  bool resent_ = false;

  std::mutex mu_;
  std::condition_variable ended_cv_;
  std::deque<RawRequest> ready_;  // guarded by mu_: gate's and over the limit
  int running_[static_cast<int>(Kind::kCount)] = {};  // guarded by mu_
  int threads_ = 0;                                   // guarded by mu_
  int idle_ = 0;                                      // guarded by mu_
  bool started_ = false, ended_ = false;              // guarded by mu_
  StopReason reason_ = StopReason::kStopped;          // guarded by mu_
  std::string error_;                                 // guarded by mu_
};

}  // namespace livemv::fusefs
