#include "fusefs/gate.h"

#include <linux/fuse.h>

#include <algorithm>

#include "core/log.h"

namespace livemv::fusefs {
namespace {

bool IsRelease(uint32_t opcode) {
  return opcode == FUSE_RELEASE || opcode == FUSE_RELEASEDIR;
}

bool IsOpen(uint32_t opcode) {
  return opcode == FUSE_OPEN || opcode == FUSE_CREATE;
}

// How long DrainAndClose waits between two looks at a device that still has
// requests which no reader has taken.
constexpr int64_t kLookAgainNs = 200'000;

}  // namespace

void Gate::Enter() {
  core::MutexLock lock(mu_);
  in_flight_++;
}

void Gate::Leave() {
  core::MutexLock lock(mu_);
  CHECK(in_flight_ > 0);
  if (--in_flight_ == 0 && draining_)
    idle_.NotifyAll();
}

Gate::Admission Gate::Admit(uint32_t opcode, std::string_view bytes) {
  core::MutexLock lock(mu_);
  if (opcode == FUSE_FLUSH && (closed_ || in_freeze_))
    return Admission::kAnswer;
  if (!closed_ && !(opens_closed_ && IsOpen(opcode)))
    return Admission::kRun;
  kept_.push_back(RawRequest{std::string(bytes), IsRelease(opcode)});
  return IsRelease(opcode) ? Admission::kAnswer : Admission::kKept;
}

core::Status Gate::DrainAndClose(int64_t deadline_ns,
                                 const std::function<int64_t()>& now_ns,
                                 const std::function<bool()>& device_empty) {
  core::MutexLock lock(mu_);
  if (closed_)
    return {};
  draining_ = true;
  core::Status status;
  for (int quiet_looks = 0;;) {
    int64_t left = deadline_ns - now_ns();
    if (left <= 0) {
      status = core::Fail(core::ErrorCode::kTimeout,
                          in_flight_ == 0
                              ? "drain the overlay: requests keep coming"
                              : "drain the overlay: " +
                                    std::to_string(in_flight_) +
                                    " requests are still in flight");
      break;
    }
    if (in_flight_ > 0) {
      quiet_looks = 0;
      idle_.WaitFor(lock, left);
      continue;
    }
    // Nobody holds a request (each is counted from before its read) and with
    // mu_ held nobody can begin to read one: so the device tells the whole
    // truth. A request that comes after this look was asked after the drain
    // was complete, and is kept.
    if (!device_empty()) {
      quiet_looks = 0;
      idle_.WaitFor(lock, std::min(left, kLookAgainNs));
      continue;
    }
    if (++quiet_looks < 2) {
      // The kernel queues the next request of a process (readahead after a
      // read, RELEASE after a close) from the task that a reply woke: give it
      // a moment.
      idle_.WaitFor(lock, std::min(left, kLookAgainNs));
      continue;
    }
    closed_ = true;
    break;
  }
  draining_ = false;
  return status;
}

void Gate::CloseToOpens() {
  core::MutexLock lock(mu_);
  opens_closed_ = true;
}

void Gate::Close() {
  core::MutexLock lock(mu_);
  closed_ = true;
}

std::vector<RawRequest> Gate::Open(bool stale_opens) {
  core::MutexLock lock(mu_);
  for (RawRequest& request : kept_)
    request.stale =
        stale_opens &&
        IsOpen(reinterpret_cast<const fuse_in_header*>(request.bytes.data())
                   ->opcode);
  closed_ = opens_closed_ = false;
  in_flight_ += kept_.size();
  return std::exchange(kept_, {});
}

void Gate::SetInFreeze(bool on) {
  core::MutexLock lock(mu_);
  in_freeze_ = on;
}

bool Gate::closed() {
  core::MutexLock lock(mu_);
  return closed_;
}

size_t Gate::in_flight() {
  core::MutexLock lock(mu_);
  return in_flight_;
}

size_t Gate::kept() {
  core::MutexLock lock(mu_);
  return kept_.size();
}

}  // namespace livemv::fusefs
