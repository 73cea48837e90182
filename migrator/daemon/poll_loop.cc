#include "migrator/daemon/poll_loop.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "migrator/daemon/channel.h"

namespace livemv::daemon {

void PollLoop::Watch(int fd, short events, Callback callback) {
  watched_[fd] = {events, std::move(callback), round_};
}

void PollLoop::Forget(int fd) { watched_.erase(fd); }

PollLoop::TimerId PollLoop::At(int64_t when_ns, Callback callback) {
  TimerId id = next_timer_++;
  timers_.emplace(when_ns, std::make_pair(id, std::move(callback)));
  return id;
}

void PollLoop::Cancel(TimerId id) {
  for (auto it = timers_.begin(); it != timers_.end(); ++it) {
    if (it->second.first == id) {
      timers_.erase(it);
      return;
    }
  }
}

void PollLoop::RunTimers() {
  // A timer set by a callback for now waits for the next round, so that
  // descriptors get their turn.
  const int64_t now = MonotonicNs();
  std::vector<TimerId> due;
  for (const auto& [when, timer] : timers_) {
    if (when > now)
      break;
    due.push_back(timer.first);
  }
  for (TimerId id : due) {
    auto it = std::find_if(timers_.begin(), timers_.end(), [&](const auto& t) {
      return t.second.first == id;
    });
    if (it == timers_.end())
      continue;  // cancelled by an earlier one
    Callback callback = std::move(it->second.second);
    timers_.erase(it);
    callback();
  }
}

core::Status PollLoop::Step(int64_t timeout_ns) {
  round_++;
  int64_t wait = timeout_ns;
  if (!timers_.empty()) {
    int64_t next = std::max<int64_t>(0, timers_.begin()->first - MonotonicNs());
    wait = wait < 0 ? next : std::min(wait, next);
  }
  std::vector<struct pollfd> fds;
  for (const auto& [fd, watched] : watched_)
    fds.push_back({fd, watched.events, 0});
  int timeout = wait < 0 ? -1
                         : static_cast<int>(std::min<int64_t>(
                               (wait + 999'999) / 1'000'000, 1 << 30));
  int ready = ::poll(fds.data(), fds.size(), timeout);
  if (ready < 0 && errno != EINTR)
    return core::FailSys(errno, "poll");
  RunTimers();
  if (ready <= 0)
    return {};
  for (const struct pollfd& p : fds) {
    if (p.revents == 0)
      continue;
    auto it = watched_.find(p.fd);
    // Removed by an earlier callback; or the number is another descriptor's by
    // now, and what was seen is not of that one.
    if (it == watched_.end() || it->second.round == round_)
      continue;
    Callback callback = it->second.callback;
    callback();
  }
  return {};
}

core::Status PollLoop::Run() {
  while (!stopped_)
    TRY(Step(-1));
  return {};
}

}  // namespace livemv::daemon
