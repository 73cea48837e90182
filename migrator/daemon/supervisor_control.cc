// The supervisor's control socket: what the verbs ask.

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "core/log.h"
#include "core/state/migration_state.h"
#include "migrator/daemon/advice.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/supervisor.h"

namespace livemv::daemon {

using core::FailSys;
using core::Result;
using core::Status;
using core::UniqueFd;
using nlohmann::json;

namespace {

constexpr size_t kMaxClients = 64;
// What a follower that does not read may leave unsent.
constexpr size_t kMaxUnsent = 1 << 20;

std::string Dump(const json& j) {
  return j.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

Status Supervisor::Listen() {
  ASSIGN_OR_RETURN(listener_, ListenAt(registry_.SocketPath(settings_.id)));
  loop_.Watch(listener_.Get(), POLLIN, [this] { Accept(); });
  return {};
}

void Supervisor::Accept() {
  UniqueFd fd(::accept4(listener_.Get(), nullptr, nullptr,
                        SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd || clients_.size() >= kMaxClients)
    return;
  ClientId id = next_client_++;
  loop_.Watch(fd.Get(), POLLIN, [this, id] { OnClient(id); });
  clients_[id].fd = std::move(fd);
}

void Supervisor::DropClient(ClientId id) {
  auto it = clients_.find(id);
  if (it == clients_.end())
    return;
  loop_.Forget(it->second.fd.Get());
  clients_.erase(it);
}

void Supervisor::OnClient(ClientId id) {
  auto it = clients_.find(id);
  if (it == clients_.end())
    return;
  if (!it->second.out.empty())
    Flush(id);
  if ((it = clients_.find(id)) == clients_.end())
    return;
  char buf[16384];
  ssize_t n = ::recv(it->second.fd.Get(), buf, sizeof buf, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR))
    return;
  if (n <= 0) {
    DropClient(id);
    return;
  }
  it->second.lines.Feed(buf, static_cast<size_t>(n));
  std::string line;
  while ((it = clients_.find(id)) != clients_.end() &&
         it->second.lines.Next(&line))
    Handle(id, line);
  if (it != clients_.end() && it->second.lines.TooLong())
    DropClient(id);
}

void Supervisor::Flush(ClientId id) {
  auto it = clients_.find(id);
  if (it == clients_.end())
    return;
  Client& client = it->second;
  while (!client.out.empty()) {
    ssize_t n = ::send(client.fd.Get(), client.out.data(), client.out.size(),
                       MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0 && errno == EAGAIN) {
      if (client.out.size() > kMaxUnsent)
        return DropClient(id);
      loop_.Watch(client.fd.Get(), POLLIN | POLLOUT,
                  [this, id] { OnClient(id); });
      return;
    }
    if (n < 0)
      return DropClient(id);
    client.out.erase(0, static_cast<size_t>(n));
  }
  if (client.closing)
    return DropClient(id);
  loop_.Watch(client.fd.Get(), POLLIN, [this, id] { OnClient(id); });
}

void Supervisor::Answer(ClientId id, const std::string& reply) {
  auto it = clients_.find(id);
  if (it == clients_.end())
    return;
  it->second.busy = false;
  it->second.out += reply + "\n";
  Flush(id);
}

MigrationStatus Supervisor::CurrentStatus() const {
  MigrationStatus s = status_;
  s.supervisor_pid = ::getpid();
  s.worker_pid = worker_.pid;
  s.pauses = pauses_;
  s.stayed = stayed_;
  s.auto_cutover = auto_cutover_;
  s.attempts = static_cast<uint32_t>(schedule_.failed());
  if (!reason_.empty())
    s.reason = s.reason.empty() || reason_.find(s.reason) != std::string::npos
                   ? reason_
                   : s.reason + "; " + reason_;
  if (!worker_ && !worker_stopping_)
    s.reason = "the worker is being restarted";
  if (!dying_.empty())
    s.reason = dying_;
  if (!recovery_.empty())
    s.reason += "; " + recovery_;
  if (unreachable_)
    s.problem = static_cast<int>(Exit::kUnreachable);
  if (schedule_.GivenUp() && s.state == "synced")
    s.problem = static_cast<int>(Exit::kGivenUp);
  if (!recovery_.empty())
    s.problem = static_cast<int>(Exit::kHuman);
  if (std::optional<state::MigrationState> state =
          state::StateFromName(s.state))
    s.verbs = state::LegalVerbs(*state);
  return s;
}

void Supervisor::Push() {
  bool anybody = false;
  for (const auto& [id, client] : clients_)
    anybody = anybody || client.follows;
  if (!anybody)
    return;
  const std::string line = StatusToJson(CurrentStatus()) + "\n";
  std::vector<ClientId> ids;
  for (auto& [id, client] : clients_) {
    // One who reads slowly gets the newest status later, not all of them.
    if (client.follows && client.out.empty()) {
      client.out = line;
      ids.push_back(id);
    }
  }
  for (ClientId id : ids)
    Flush(id);
}

void Supervisor::AskWorker(ClientId id, const std::string& text) {
  json j = json::parse(text);
  const uint64_t n = ++questions_;
  j["op"] = "ask";
  j["n"] = n;
  if (Status told = TellWorker(Dump(j)); !told) {
    Answer(id, MakeReply(Exit::kBlocked,
                         told.error().ToString() + "; try again"));
    return;
  }
  asked_[n] = id;
  clients_[id].busy = true;
}

void Supervisor::Handle(ClientId id, const std::string& line) {
  json j = json::parse(line, nullptr, false);
  if (!j.is_object())
    return Answer(id, MakeReply(Exit::kUsage, "the request is not readable"));
  const std::string verb = j.value("verb", "");
  const std::string state = status_.state;
  if (verb == "status") {
    return Answer(id, StatusToJson(CurrentStatus()));
  } else if (verb == "follow") {
    clients_[id].follows = true;
    return Answer(id, StatusToJson(CurrentStatus()));
  } else if (verb == "cutover") {
    return HandleCutover(id, line);
  } else if (verb == "finish") {
    return HandleFinish(id, j.value("reclaim", false));
  } else if (verb == "pause" || verb == "resume" || verb == "inspect") {
    if (worker_stopping_)
      return Answer(id, MakeReply(Exit::kBlocked,
                                  "the migration is " + state + "; '" + verb +
                                      "' has nothing to act on"));
    return AskWorker(id, line);
  } else if (verb == "abort") {
    if (!live_ && state != "stuck")
      return Answer(id, MakeReply(Exit::kBlocked,
                                  "the overlay is just being put on; try again "
                                  "when the state is copying"));
    if (worker_stopping_)
      return Answer(id, MakeReply(Exit::kBlocked, TooLate()));
    auto_cutover_ = false;
    // An attempt in progress takes a moment, and how it ends says what an
    // abort means.
    if (reanchorer_) {
      put_off_.emplace_back(id, line);
      clients_[id].busy = true;
      return;
    }
    return AskWorker(id, line);
  }
  Answer(id, MakeReply(Exit::kUsage, "unknown request '" + verb + "'"));
}

void Supervisor::HandlePutOff() {
  for (auto& [id, line] : std::exchange(put_off_, {})) {
    if (clients_.contains(id) && !over_)
      Handle(id, line);
  }
}

std::string Supervisor::TooLate() const {
  return "the migration is " + (gone_state_.empty() ? status_.state
                                                    : gone_state_) +
         ": the target is in use, and going back from here would be a new "
         "migration";
}

void Supervisor::HandleCutover(ClientId id, const std::string& line) {
  json j = json::parse(line);
  const std::string& state = status_.state;
  if (state == "moved" || state == "draining" || state == "cutting_over") {
    Answer(id, MakeReply(Exit::kDone, "the migration is " + state));
    return;
  }
  if (state != "synced" && state != "copying") {
    Answer(id, MakeReply(Exit::kBlocked,
                         "the migration is " + state +
                             ", a cutover needs it synced" +
                             (state == "paused" ? "; resume it first" : "")));
    return;
  }
  for (const json& pid : j.value("accept", json::array()))
    if (pid.is_number_integer())
      accepted_.insert(pid.get<pid_t>());
  auto_cutover_ = true;
  unreachable_ = false;
  schedule_.Reset();
  reason_.clear();
  Answer(id, MakeReply(Exit::kDone,
                       state == "synced"
                           ? "cutting over"
                           : "not synced yet; the cutover begins when it is"));
  WriteStateFile();
  Consider();
}

void Supervisor::HandleFinish(ClientId id, bool reclaim) {
  if (status_.state != "moved") {
    std::string text = "the migration is " + status_.state +
                       "; only a moved one can be finished";
    if (status_.state == "draining")
      text += ". " + reason_;
    return Answer(id, MakeReply(Exit::kBlocked, text));
  }
  if (reclaimer_)
    return Answer(id, MakeReply(Exit::kBlocked,
                                "the old contents are being deleted already"));
  finish_text_ = FinishText(settings_, reclaim);
  if (!reclaim) {
    clients_[id].busy = true;
    return Finished(Exit::kDone, finish_text_);
  }
  Result<Child> child =
      Spawn({"reclaim", &settings_, "",
             {{fd_name::kSource, Fd(fd_name::kSource)}}}, false);
  if (!child)
    return Answer(id, MakeReply(Exit::kBlocked, child.error().ToString()));
  reclaimer_ = std::move(*child);
  reclaim_client_ = id;
  clients_[id].busy = true;
  loop_.Watch(reclaimer_.pidfd.Get(), POLLIN, [this] {
    Result<Message> said = reclaimer_.channel.Receive(0);
    loop_.Forget(reclaimer_.pidfd.Get());
    Result<Ended> ended = Reap(reclaimer_);
    reclaimer_ = Child();
    Result<Reply> reply =
        said ? ParseReply(said->text) : Result<Reply>(std::unexpected(
                                            said.error()));
    if (!reply || reply->exit != Exit::kDone || !ended || ended->code != 0)
      return Answer(reclaim_client_,
                    MakeReply(Exit::kHuman,
                              "the old contents could not all be deleted: " +
                                  (reply ? reply->message
                                         : reply.error().ToString()) +
                                  "; the migration is still moved, 'finish' "
                                  "may be tried again"));
    Finished(Exit::kDone, reply->message + "\n" + finish_text_);
  });
}

}  // namespace livemv::daemon
