#include "migrator/daemon/control.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "migrator/daemon/channel.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::Fail;
using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;
using nlohmann::json;

bool LineSplitter::Next(std::string* line) {
  size_t end = buffer_.find('\n');
  if (end == std::string::npos)
    return false;
  *line = buffer_.substr(0, end);
  buffer_.erase(0, end + 1);
  return true;
}

std::string MakeReply(Exit exit, const std::string& message) {
  return json({{"exit", static_cast<int>(exit)}, {"message", message}})
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

Result<Reply> ParseReply(const std::string& line) {
  json j = json::parse(line, nullptr, false);
  if (!j.is_object() || !j.contains("exit") || !j["exit"].is_number_integer())
    return Fail(ErrorCode::kCorrupt,
                "the supervisor's answer is not readable: " +
                    line.substr(0, 200));
  Reply reply;
  reply.exit = static_cast<Exit>(j["exit"].get<int>());
  if (j.contains("message") && j["message"].is_string())
    reply.message = j["message"];
  reply.text = line;
  return reply;
}

namespace {

Result<struct sockaddr_un> Address(const std::string& path) {
  struct sockaddr_un addr{};
  addr.sun_family = AF_UNIX;
  if (path.size() >= sizeof addr.sun_path)
    return Fail(ErrorCode::kInvalid, "socket path too long: " + path);
  std::memcpy(addr.sun_path, path.data(), path.size());
  return addr;
}

}  // namespace

Result<UniqueFd> ListenAt(const std::string& path) {
  ASSIGN_OR_RETURN(struct sockaddr_un addr, Address(path));
  UniqueFd fd(
      ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd)
    return FailSys(errno, "socket");
  ::unlink(path.c_str());
  mode_t old = ::umask(0177);
  int bound = ::bind(fd.Get(), reinterpret_cast<const struct sockaddr*>(&addr),
                     sizeof addr);
  int error = errno;
  ::umask(old);
  if (bound != 0)
    return FailSys(error, "bind " + path);
  if (::listen(fd.Get(), 16) != 0)
    return FailSys(errno, "listen on " + path);
  return fd;
}

Result<ControlClient> ControlClient::Connect(const std::string& socket_path) {
  ASSIGN_OR_RETURN(struct sockaddr_un addr, Address(socket_path));
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd)
    return FailSys(errno, "socket");
  if (::connect(fd.Get(), reinterpret_cast<const struct sockaddr*>(&addr),
                sizeof addr) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED)
      return Fail(ErrorCode::kGone, "no supervisor listens on " + socket_path);
    return FailSys(errno, "connect to " + socket_path);
  }
  return ControlClient(std::move(fd));
}

Status ControlClient::Send(const std::string& line) {
  std::string out = line + "\n";
  for (size_t done = 0; done < out.size();) {
    ssize_t n = ::send(fd_.Get(), out.data() + done, out.size() - done,
                       MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return FailSys(errno, "send to the supervisor");
    done += static_cast<size_t>(n);
  }
  return {};
}

Result<std::string> ControlClient::ReadLine(int64_t deadline_ns) {
  std::string line;
  while (!lines_.Next(&line)) {
    if (lines_.TooLong())
      return Fail(ErrorCode::kCorrupt, "the supervisor's answer has no end");
    int timeout = -1;
    if (deadline_ns >= 0) {
      int64_t left = deadline_ns - MonotonicNs();
      timeout = static_cast<int>(
          std::clamp<int64_t>((left + 999'999) / 1'000'000, 0, 1 << 30));
    }
    struct pollfd p = {fd_.Get(), POLLIN, 0};
    int ready = ::poll(&p, 1, timeout);
    if (ready == 0)
      return Fail(ErrorCode::kTimeout, "the supervisor did not answer in time");
    if (ready < 0)
      return FailSys(errno, "wait for the supervisor");
    char buf[65536];
    ssize_t n = ::recv(fd_.Get(), buf, sizeof buf, 0);
    if (n < 0)
      return FailSys(errno, "read from the supervisor");
    if (n == 0)
      return Fail(ErrorCode::kGone, "the supervisor closed the connection");
    lines_.Feed(buf, static_cast<size_t>(n));
  }
  return line;
}

Result<Reply> ControlClient::Ask(const std::string& line,
                                 int64_t deadline_ns) {
  TRY(Send(line));
  ASSIGN_OR_RETURN(std::string answer, ReadLine(deadline_ns));
  return ParseReply(answer);
}

}  // namespace livemv::daemon
