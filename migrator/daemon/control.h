#pragma once

// The supervisor's control socket, /run/livemv/ID/control: a request is one
// line of JSON, {"verb": "pause", ...}; the answer is one line too,
// {"exit": 0, "message": "...", ...}. After {"verb": "follow"} the supervisor
// sends a status line whenever it has a new one, and last a line with
// "final": true, before it closes.
//
// Here is the client, and the line splitter that both ends use.
//
// Thread contract: one thread.

#include <cstdint>
#include <string>

#include "core/result.h"
#include "core/unique_fd.h"
#include "migrator/daemon/exit_code.h"

namespace livemv::daemon {

// Cuts a byte stream into lines of at most kMaxLine bytes.
class LineSplitter {
 public:
  static constexpr size_t kMaxLine = 4u << 20;
  void Feed(const char* data, size_t len) { buffer_.append(data, len); }
  // True and the line without its end, if one is complete.
  bool Next(std::string* line);
  // The other end sends more than kMaxLine without an end of line.
  bool TooLong() const { return buffer_.size() > kMaxLine; }

 private:
  std::string buffer_;
};

// One answer. text is the whole line as it came.
struct Reply {
  Exit exit = Exit::kDone;
  std::string message;
  std::string text;
};
core::Result<Reply> ParseReply(const std::string& line);
std::string MakeReply(Exit exit, const std::string& message);

class ControlClient {
 public:
  // kGone if nobody listens there.
  static core::Result<ControlClient> Connect(const std::string& socket_path);

  core::Status Send(const std::string& line);
  // The next line. Deadline CLOCK_MONOTONIC in ns, < 0: none. kGone at the end.
  core::Result<std::string> ReadLine(int64_t deadline_ns);
  core::Result<Reply> Ask(const std::string& line, int64_t deadline_ns);
  int Fd() const { return fd_.Get(); }

 private:
  explicit ControlClient(core::UniqueFd fd) : fd_(std::move(fd)) {}
  core::UniqueFd fd_;
  LineSplitter lines_;
};

// A listening socket at path, mode 0600; what was there before is removed.
core::Result<core::UniqueFd> ListenAt(const std::string& path);

}  // namespace livemv::daemon
