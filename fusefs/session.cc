#include "fusefs/session.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "core/log.h"
#include "core/thread_priority.h"
#include "fusefs/fuse_wire.h"

namespace livemv::fusefs {
namespace {

// Made at the start and kept; those that a burst needs beyond them end again.
// A thread takes milliseconds to make, since its buffer and stack are locked:
// made at the thaw after attach they cost more than all that was asked for.
constexpr int kKeptThreads = 32;
// Small, because mlockall(MCL_FUTURE) makes all of it resident.
constexpr size_t kStackBytes = 256 << 10;
// Room for the headers in front of max_write bytes of data.
constexpr size_t kHeaderRoom = 4096;

int64_t MonotonicNs() {
  struct timespec ts;
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1'000'000'000ll + ts.tv_nsec;
}

// Memory of its own mapping, resident from the start: a request that is being
// copied into a page that is not there when SIGKILL arrives becomes EIO
// (fs/fuse/dev.c: the copy's get_user_pages fails).
class PageBuffer {
 public:
  explicit PageBuffer(size_t bytes)
      : bytes_(bytes),
        data_(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)) {}
  ~PageBuffer() {
    if (ok())
      ::munmap(data_, bytes_);
  }
  PageBuffer(const PageBuffer&) = delete;
  PageBuffer& operator=(const PageBuffer&) = delete;
  bool ok() const { return data_ != MAP_FAILED; }
  char* data() const { return static_cast<char*>(data_); }
  size_t size() const { return bytes_; }

 private:
  const size_t bytes_;
  void* const data_;
};

core::Result<core::UniqueFd> MakeEpoll(
    std::initializer_list<std::pair<int, uint32_t>> watched) {
  core::UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll)
    return core::FailSys(errno, "epoll_create1");
  for (auto [fd, events] : watched) {
    struct epoll_event event {};
    event.events = events;
    event.data.fd = fd;
    if (::epoll_ctl(epoll.Get(), EPOLL_CTL_ADD, fd, &event) != 0)
      return core::FailSys(errno,
                           "epoll_ctl for descriptor " + std::to_string(fd));
  }
  return epoll;
}

}  // namespace

Session::Session(int fuse_fd, FsCore* core, SavedInit* saved,
                 IntentTable* intents, SessionOptions options)
    : fuse_fd_(fuse_fd),
      options_(options),
      saved_(saved),
      intents_(intents),
      transport_(fuse_fd, saved),
      dispatcher_(core, &transport_, intents, options.max_write),
      stop_event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      kick_event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Session::~Session() {
  Stop();
  std::unique_lock lock(mu_);
  ended_cv_.wait(lock, [this] { return threads_ == 0; });
}

core::Status Session::Start(bool resume) {
  if (!stop_event_ || !kick_event_)
    return core::Fail(core::ErrorCode::kInvalid,
                      "FUSE session: no descriptors left for its events");
  CHECK(options_.max_threads >= 4);
  TRY(dispatcher_.Init());
  if (!resume) {
    saved_->request_len = 0;
    saved_->reply_len = 0;
    intents_->Clear();
  } else {
    TRY(Resume());
  }
  std::unique_lock lock(mu_);
  CHECK(!started_);
  started_ = true;
  for (int i = 0; i < std::min(kKeptThreads, options_.max_threads); i++)
    SpawnLocked();
  if (threads_ == 0)
    return core::Fail(core::ErrorCode::kInvalid,
                      "FUSE session: no thread can be started");
  return {};
}

core::Status Session::Resume() {
  uint32_t len = saved_->request_len.load(std::memory_order_acquire);
  if (len > sizeof saved_->request)
    return core::Fail(core::ErrorCode::kCorrupt,
                      "the saved FUSE INIT is too long");
  // libfuse must know what was negotiated before a thread reads a request.
  // Without a recorded reply the kernel may still be waiting for one (the
  // predecessor died in between): then this one goes out. Without a recorded
  // request the kernel resends INIT itself.
  if (len > 0) {
    if (saved_->reply_len.load(std::memory_order_acquire) > 0)
      transport_.SwallowInitReply();
    alignas(8) char init[sizeof saved_->request];
    std::memcpy(init, saved_->request, len);
    dispatcher_.Handle(init, len);
  }
  // Once, and before any thread reads: it hands out again whatever the
  // predecessor had read and not answered.
  core::Status status = transport_.Notify(wire::kNotifyResend, nullptr, 0);
  resent_ = status.has_value();
  if (!status) {
    LOG_ERROR("requests of the previous worker cannot be had again: {}",
              status.error().ToString());
    if (status.error().code != core::ErrorCode::kUnsupported)
      return status;
  }
  return {};
}

void Session::SpawnLocked() {
  // One more than may be busy, so that one is left to read.
  if (threads_ > options_.max_threads || ended_)
    return;
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, kStackBytes);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pthread_t thread;
  threads_++;
  int err = pthread_create(
      &thread, &attr,
      [](void* self) -> void* {
        static_cast<Session*>(self)->ThreadMain();
        return nullptr;
      },
      this);
  if (err != 0)
    threads_--;
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  pthread_attr_destroy(&attr);
  // Not fatal while another one lives: it reads when it is done.
  if (err != 0)
    LOG_ERROR("start a FUSE thread: {}", core::ErrnoName(err));
}

void Session::ThreadMain() {
  pthread_setname_np(pthread_self(), "fuse");
  core::ScopedRank rank(core::Rank::kAheadOfApplications);
  {
    PageBuffer buffer(options_.max_write + kHeaderRoom);
    // One epoll descriptor a thread: EPOLLEXCLUSIVE then wakes one thread a
    // request.
    auto epoll = MakeEpoll({{fuse_fd_, EPOLLIN | EPOLLEXCLUSIVE},
                            {kick_event_.Get(), EPOLLIN},
                            {stop_event_.Get(), EPOLLIN}});
    if (!epoll)
      End(StopReason::kError, epoll.error().ToString());
    else if (!buffer.ok())
      End(StopReason::kError, "no memory for a FUSE request buffer");
    else
      while (ServeOne(epoll->Get(), buffer.data(), buffer.size())) {
      }
  }
  std::unique_lock lock(mu_);
  threads_--;
  // Under the lock: the last thread's notice frees the session.
  ended_cv_.notify_all();
}

bool Session::ServeOne(int epoll, char* buf, size_t size) {
  RawRequest queued;
  {
    std::unique_lock lock(mu_);
    if (ended_)
      return false;
    if (TakeReadyLocked(&queued)) {
      if (idle_ == 0)
        SpawnLocked();
    } else {
      if (idle_ >= kKeptThreads)
        return false;
      idle_++;
    }
  }
  if (!queued.bytes.empty()) {
    RunQueued(queued);
    return true;
  }
  struct epoll_event events[3];
  int count = ::epoll_wait(epoll, events, 3, -1);
  {
    std::unique_lock lock(mu_);
    idle_--;
    if (ended_)
      return false;
  }
  bool readable = false;
  for (int i = 0; i < count; i++) {
    readable |= events[i].data.fd == fuse_fd_;
    if (events[i].data.fd == kick_event_.Get()) {
      uint64_t ignored;
      (void)!::read(kick_event_.Get(), &ignored, sizeof ignored);
    }
  }
  // A wake-up for the device was for this thread alone: look at it before the
  // queue.
  return !readable || ReadOne(buf, size);
}

bool Session::ReadOne(char* buf, size_t size) {
  gate_.Enter();
  size_t len = 0;
  int err = 0;
  switch (transport_.Read(buf, size, &len, &err)) {
    case Transport::ReadResult::kRequest:
      break;
    case Transport::ReadResult::kNothing:
      gate_.Leave();
      return true;
    case Transport::ReadResult::kUnmounted:
      gate_.Leave();
      End(StopReason::kUnmounted, "");
      return false;
    case Transport::ReadResult::kError:
      gate_.Leave();
      End(StopReason::kError, "read /dev/fuse: " + core::ErrnoName(err));
      return false;
  }
  const auto* header = reinterpret_cast<const fuse_in_header*>(buf);
  if (Dispatcher::NeedsNothing(header->opcode)) {
    gate_.Leave();
    return true;
  }
  switch (gate_.Admit(header->opcode, {buf, len})) {
    case Gate::Admission::kAnswer:
      dispatcher_.AnswerOnly(*header);
      answered_++;
      gate_.Leave();
      return true;
    case Gate::Admission::kKept:
      gate_.Leave();
      return true;
    case Gate::Admission::kRun:
      break;
  }
  Kind kind = KindOf(buf, len);
  {
    std::unique_lock lock(mu_);
    if (!HasRoomLocked(kind)) {
      ready_.push_back(RawRequest{std::string(buf, len), false});
      return true;  // stays counted in flight
    }
    running_[static_cast<int>(kind)]++;
    if (idle_ == 0)
      SpawnLocked();
  }
  dispatcher_.Handle(buf, len);
  Finish(kind);
  return true;
}

void Session::RunQueued(RawRequest& request) {
  Kind kind = KindOf(request.bytes.data(), request.bytes.size());
  if (request.answered)
    dispatcher_.FinishAnswered(request);
  else if (request.stale)
    dispatcher_.AnswerStale(
        *reinterpret_cast<const fuse_in_header*>(request.bytes.data()));
  else
    dispatcher_.Handle(request.bytes.data(), request.bytes.size());
  Finish(kind);
}

void Session::Finish(Kind kind) {
  {
    std::unique_lock lock(mu_);
    running_[static_cast<int>(kind)]--;
  }
  answered_++;
  gate_.Leave();
}

Session::Kind Session::KindOf(const char* bytes, size_t len) {
  const auto* header = reinterpret_cast<const fuse_in_header*>(bytes);
  const size_t body = len - sizeof *header;
  switch (header->opcode) {
    case FUSE_WRITE:
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
    case FUSE_FLUSH:
    case FUSE_FALLOCATE:
      return Kind::kWrite;
    case FUSE_SETATTR:
      return body >= sizeof(fuse_setattr_in) &&
                     (reinterpret_cast<const fuse_setattr_in*>(header + 1)
                          ->valid &
                      FATTR_SIZE) != 0
                 ? Kind::kWrite
                 : Kind::kQuick;
    case FUSE_OPEN:
      return body >= sizeof(fuse_open_in) &&
                     (reinterpret_cast<const fuse_open_in*>(header + 1)->flags &
                      O_TRUNC) != 0
                 ? Kind::kWrite
                 : Kind::kQuick;
    case FUSE_READ:
    case FUSE_LSEEK:
      return Kind::kRead;
    default:
      return Kind::kQuick;
  }
}

bool Session::HasRoomLocked(Kind kind) const {
  int running = running_[static_cast<int>(kind)];
  switch (kind) {
    case Kind::kWrite:
      return running < options_.max_threads / 2;
    case Kind::kRead:
      return running < options_.max_threads / 4;
    default:
      return true;  // bounded by the number of threads
  }
}

bool Session::TakeReadyLocked(RawRequest* request) {
  for (auto it = ready_.begin(); it != ready_.end(); ++it) {
    Kind kind = KindOf(it->bytes.data(), it->bytes.size());
    if (!HasRoomLocked(kind))
      continue;
    *request = std::move(*it);
    ready_.erase(it);
    running_[static_cast<int>(kind)]++;
    return true;
  }
  return false;
}

void Session::End(StopReason reason, const std::string& error) {
  std::unique_lock lock(mu_);
  if (ended_)
    return;
  ended_ = true;
  reason_ = reason;
  error_ = error;
  uint64_t one = 1;  // never read again: wakes every thread
  (void)!::write(stop_event_.Get(), &one, sizeof one);
  ended_cv_.notify_all();
}

void Session::Stop() {
  End(StopReason::kStopped, "");
}

StopReason Session::Wait() {
  std::unique_lock lock(mu_);
  ended_cv_.wait(lock, [this] { return ended_ && threads_ == 0; });
  return reason_;
}

bool Session::WaitFor(int64_t timeout_ns, StopReason* reason) {
  std::unique_lock lock(mu_);
  bool ended = ended_cv_.wait_for(lock, std::chrono::nanoseconds(timeout_ns),
                                  [this] { return ended_ && threads_ == 0; });
  if (ended)
    *reason = reason_;
  return ended;
}

std::string Session::error() {
  std::unique_lock lock(mu_);
  return error_;
}

core::Status Session::DrainAndClose(int64_t deadline_ns) {
  return gate_.DrainAndClose(deadline_ns, MonotonicNs,
                             [this] { return transport_.Empty(); });
}

void Session::GateOpens() {
  gate_.CloseToOpens();
}

void Session::OpenGate(bool stale_opens) {
  std::vector<RawRequest> kept = gate_.Open(stale_opens);
  std::unique_lock lock(mu_);
  for (RawRequest& request : kept)
    ready_.push_back(std::move(request));
  uint64_t one = 1;
  (void)!::write(kick_event_.Get(), &one, sizeof one);
}

core::Status Session::NotifyFromOutside(int32_t code, const void* body,
                                        size_t len, const void* more,
                                        size_t more_len) {
  if (Transport::Request() != nullptr)
    return core::Fail(core::ErrorCode::kInvalid,
                      "FUSE notification from inside a request");
  core::Status status = transport_.Notify(code, body, len, more, more_len);
  if (!status && status.error().Errno() == ENOENT)
    return {};  // nothing cached
  return status;
}

core::Status Session::InvalidateInode(FileId id) {
  fuse_notify_inval_inode_out out{};
  out.ino = id;  // off 0, len 0: attributes and all pages
  return NotifyFromOutside(wire::kNotifyInvalInode, &out, sizeof out, nullptr,
                           0);
}

core::Status Session::InvalidateAttrs(FileId id) {
  fuse_notify_inval_inode_out out{};
  out.ino = id;
  out.off = -1;
  return NotifyFromOutside(wire::kNotifyInvalInode, &out, sizeof out, nullptr,
                           0);
}

bool Session::CanInvalidateAllEntries() const {
  constexpr size_t kLeast = sizeof(fuse_in_header) + 2 * sizeof(uint32_t);
  if (saved_->request_len.load(std::memory_order_acquire) < kLeast)
    return false;
  uint32_t minor;
  std::memcpy(&minor,
              saved_->request + sizeof(fuse_in_header) + sizeof(uint32_t),
              sizeof minor);
  return minor >= wire::kIncEpochMinor;
}

core::Status Session::InvalidateEntry(FileId dir, std::string_view name) {
  fuse_notify_inval_entry_out out{};
  out.parent = dir;
  out.namelen = static_cast<uint32_t>(name.size());
  std::string terminated(name);  // the kernel wants the NUL behind the name
  return NotifyFromOutside(wire::kNotifyInvalEntry, &out, sizeof out,
                           terminated.c_str(), terminated.size() + 1);
}

core::Status Session::InvalidateAllEntries() {
  return NotifyFromOutside(wire::kNotifyIncEpoch, nullptr, 0, nullptr, 0);
}

}  // namespace livemv::fusefs
