#include "migrator/daemon/overlay_channel.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace livemv::daemon {

using core::Error;
using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;
using core::UniqueFd;
using cutover::FlushReport;
using cutover::OpenAsk;
using nlohmann::json;

namespace {

// The worker keeps the deadline itself; its answer needs a moment to arrive.
constexpr int64_t kAnswerSlackNs = 20'000'000;
// Calls that carry no deadline are a journal append or a flag.
constexpr int64_t kShortCallNs = 5'000'000'000;
constexpr size_t kAsksPerMessage = 100;

std::string Dump(const json& j) {
  return j.dump(-1, ' ', false, json::error_handler_t::replace);
}

json ErrorJson(const Error& e) {
  return {{"ok", false},
          {"code", static_cast<int>(e.code)},
          {"errno", e.sys_errno},
          {"what", e.what}};
}

json StatusJson(const Status& s) {
  return s ? json{{"ok", true}} : ErrorJson(s.error());
}

json ReportJson(const Result<FlushReport>& r) {
  if (!r)
    return ErrorJson(r.error());
  return {{"ok", true},
          {"took_ns", r->took_ns},
          {"redo_left", r->redo_left},
          {"bytes_left", r->bytes_left}};
}

Result<FlushReport> ReportOf(const Result<Message>& answer) {
  if (!answer)
    return std::unexpected(answer.error());
  json j = json::parse(answer->text, nullptr, false);
  return FlushReport{j.value("took_ns", int64_t{0}),
                     j.value("redo_left", uint64_t{0}),
                     j.value("bytes_left", uint64_t{0})};
}

Status StatusOf(const Result<Message>& answer) {
  if (!answer)
    return std::unexpected(answer.error());
  return {};
}

// A path hint is bytes; JSON is UTF-8. Each byte travels as one code point.
std::string Widen(const std::string& bytes) {
  std::string out;
  for (char c : bytes) {
    auto u = static_cast<unsigned char>(c);
    if (u < 0x80) {
      out += c;
    } else {
      out += static_cast<char>(0xc0 | (u >> 6));
      out += static_cast<char>(0x80 | (u & 0x3f));
    }
  }
  return out;
}

std::string Narrow(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); i++) {
    auto u = static_cast<unsigned char>(text[i]);
    if (u >= 0xc0 && i + 1 < text.size()) {
      out += static_cast<char>((u << 6) |
                               (static_cast<unsigned char>(text[++i]) & 0x3f));
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

Result<Message> OverlayClient::Call(const std::string& request,
                                    int64_t deadline_ns) {
  json j = json::parse(request);
  const uint64_t number = ++calls_;
  j["n"] = number;
  TRY(channel_.Send(Dump(j), {}, deadline_ns));
  for (;;) {
    ASSIGN_OR_RETURN(Message answer,
                     channel_.Receive(deadline_ns + kAnswerSlackNs));
    json a = json::parse(answer.text, nullptr, false);
    if (!a.is_object() || !a.contains("n") || !a.contains("ok"))
      return Fail(ErrorCode::kCorrupt, "the worker's answer is not readable");
    if (a["n"] != number)
      continue;  // to a call that was given up
    if (a["ok"] == true)
      return answer;
    Error error;
    error.code = static_cast<ErrorCode>(a.value("code", 0));
    error.sys_errno = a.value("errno", 0);
    error.what = a.value("what", "the worker refused");
    return Fail(std::move(error));
  }
}

Status OverlayClient::Advance(state::Event event, const std::string& reason) {
  return StatusOf(Call(Dump({{"op", "advance"},
                             {"event", static_cast<int>(event)},
                             {"reason", reason}}),
                       MonotonicNs() + kShortCallNs));
}

Status OverlayClient::StartRedirect(int64_t deadline_ns) {
  return StatusOf(Call(
      Dump({{"op", "start_redirect"}, {"deadline", deadline_ns}}),
      deadline_ns));
}

Status OverlayClient::GiveUpAttach() {
  return StatusOf(
      Call(Dump({{"op", "give_up_attach"}}), MonotonicNs() + kShortCallNs));
}

Result<std::vector<UniqueFd>> OverlayClient::OpenOnTarget(
    const std::vector<OpenAsk>& asks, int64_t deadline_ns) {
  std::vector<UniqueFd> out;
  for (size_t first = 0; first < asks.size(); first += kAsksPerMessage) {
    json list = json::array();
    size_t end = std::min(asks.size(), first + kAsksPerMessage);
    for (size_t i = first; i < end; i++)
      list.push_back({{"id", asks[i].id},
                      {"flags", asks[i].flags},
                      {"path", Widen(asks[i].path_hint)}});
    ASSIGN_OR_RETURN(Message answer,
                     Call(Dump({{"op", "open_on_target"},
                                {"deadline", deadline_ns},
                                {"asks", list}}),
                          deadline_ns));
    // One character an ask: '1' has a descriptor, '0' is an object that is
    // gone.
    const std::string have =
        json::parse(answer.text, nullptr, false).value("have", "");
    auto opened =
        static_cast<size_t>(std::count(have.begin(), have.end(), '1'));
    if (have.size() != end - first || opened != answer.fds.size())
      return Fail(ErrorCode::kCorrupt,
                  "the worker answered for " + std::to_string(have.size()) +
                      " of " + std::to_string(end - first) + " files, with " +
                      std::to_string(answer.fds.size()) + " descriptors");
    size_t next = 0;
    for (char c : have)
      out.push_back(c == '1' ? std::move(answer.fds[next++]) : UniqueFd());
  }
  return out;
}

// As many messages as it takes; the answers in the order of the numbers.
Result<std::vector<OverlayClient::Piece>> OverlayClient::AskAbout(
    const char* op, const std::vector<state::FileId>& ids,
    int64_t deadline_ns) {
  std::vector<Piece> pieces;
  for (size_t first = 0; first < ids.size(); first += kAsksPerMessage) {
    const size_t end = std::min(ids.size(), first + kAsksPerMessage);
    json list = json::array();
    for (size_t i = first; i < end; i++)
      list.push_back(ids[i]);
    ASSIGN_OR_RETURN(
        Message answer,
        Call(Dump({{"op", op}, {"deadline", deadline_ns}, {"ids", list}}),
             deadline_ns));
    pieces.push_back({std::move(answer), end - first});
  }
  return pieces;
}

Result<std::vector<core::FileHandle>> OverlayClient::SourceHandles(
    const std::vector<state::FileId>& ids, int64_t deadline_ns) {
  std::vector<core::FileHandle> out;
  ASSIGN_OR_RETURN(std::vector<Piece> pieces,
                   AskAbout("source_handles", ids, deadline_ns));
  for (const Piece& piece : pieces) {
    const json handles = json::parse(piece.answer.text, nullptr, false)
                             .value("handles", json::array());
    if (handles.size() != piece.asked)
      return Fail(ErrorCode::kCorrupt,
                  "the worker told " + std::to_string(handles.size()) + " of " +
                      std::to_string(piece.asked) + " handles");
    for (const json& h : handles)
      out.push_back({h.value("type", 0), Narrow(h.value("bytes", ""))});
  }
  return out;
}

Result<std::vector<bool>> OverlayClient::AreDirect(
    const std::vector<state::FileId>& nodes, int64_t deadline_ns) {
  std::vector<bool> out;
  ASSIGN_OR_RETURN(std::vector<Piece> pieces,
                   AskAbout("are_direct", nodes, deadline_ns));
  for (const Piece& piece : pieces) {
    const std::string direct =
        json::parse(piece.answer.text, nullptr, false).value("direct", "");
    if (direct.size() != piece.asked)
      return Fail(ErrorCode::kCorrupt,
                  "the worker told of " + std::to_string(direct.size()) +
                      " of " + std::to_string(piece.asked) + " files");
    for (char c : direct)
      out.push_back(c == '1');
  }
  return out;
}

Status OverlayClient::LeaveDirect(int64_t deadline_ns) {
  return StatusOf(Call(
      Dump({{"op", "leave_direct"}, {"deadline", deadline_ns}}), deadline_ns));
}

Result<FlushReport> OverlayClient::FlushRound(int64_t deadline_ns) {
  return ReportOf(Call(
      Dump({{"op", "flush_round"}, {"deadline", deadline_ns}}), deadline_ns));
}

Result<FlushReport> OverlayClient::DrainAndGate(int64_t deadline_ns) {
  return ReportOf(Call(
      Dump({{"op", "drain_and_gate"}, {"deadline", deadline_ns}}),
      deadline_ns));
}

Status OverlayClient::GateOpens(int64_t deadline_ns) {
  return StatusOf(Call(
      Dump({{"op", "gate_opens"}, {"deadline", deadline_ns}}), deadline_ns));
}

Status OverlayClient::RefuseOpens() {
  return StatusOf(
      Call(Dump({{"op", "refuse_opens"}}), MonotonicNs() + kShortCallNs));
}

Status OverlayClient::OpenGate() {
  return StatusOf(
      Call(Dump({{"op", "open_gate"}}), MonotonicNs() + kShortCallNs));
}

Status OverlayClient::CommitTarget(int64_t deadline_ns) {
  return StatusOf(Call(
      Dump({{"op", "commit_target"}, {"deadline", deadline_ns}}),
      deadline_ns));
}

Status OverlayClient::RevokeTarget(int64_t deadline_ns) {
  return StatusOf(Call(
      Dump({{"op", "revoke_target"}, {"deadline", deadline_ns}}),
      deadline_ns));
}

Status OverlayClient::CommitSource(int64_t deadline_ns) {
  return StatusOf(Call(
      Dump({{"op", "commit_source"}, {"deadline", deadline_ns}}),
      deadline_ns));
}

namespace {

json Answer(const json& request, cutover::OverlayControl& control,
            std::vector<UniqueFd>* fds) {
  const std::string op = request.value("op", "");
  const int64_t deadline = request.value("deadline", int64_t{0});
  if (op == "advance")
    return StatusJson(
        control.Advance(static_cast<state::Event>(request.value("event", 0)),
                        request.value("reason", "")));
  if (op == "start_redirect")
    return StatusJson(control.StartRedirect(deadline));
  if (op == "give_up_attach")
    return StatusJson(control.GiveUpAttach());
  if (op == "open_on_target") {
    std::vector<OpenAsk> asks;
    for (const json& item : request.value("asks", json::array()))
      asks.push_back({item.value("id", state::kNoFile), item.value("flags", 0),
                      Narrow(item.value("path", ""))});
    Result<std::vector<UniqueFd>> opened =
        control.OpenOnTarget(asks, deadline);
    if (!opened)
      return ErrorJson(opened.error());
    std::string have;
    for (UniqueFd& fd : *opened) {
      have += fd ? '1' : '0';
      if (fd)
        fds->push_back(std::move(fd));
    }
    return {{"ok", true}, {"have", have}};
  }
  if (op == "source_handles") {
    auto handles = control.SourceHandles(
        request.value("ids", std::vector<state::FileId>()), deadline);
    if (!handles)
      return ErrorJson(handles.error());
    json list = json::array();
    for (const core::FileHandle& h : *handles)
      list.push_back({{"type", h.type}, {"bytes", Widen(h.bytes)}});
    return {{"ok", true}, {"handles", list}};
  }
  if (op == "are_direct") {
    auto direct = control.AreDirect(
        request.value("ids", std::vector<state::FileId>()), deadline);
    if (!direct)
      return ErrorJson(direct.error());
    std::string text;
    for (bool one : *direct)
      text += one ? '1' : '0';
    return {{"ok", true}, {"direct", text}};
  }
  if (op == "leave_direct")
    return StatusJson(control.LeaveDirect(deadline));
  if (op == "flush_round")
    return ReportJson(control.FlushRound(deadline));
  if (op == "drain_and_gate")
    return ReportJson(control.DrainAndGate(deadline));
  if (op == "gate_opens")
    return StatusJson(control.GateOpens(deadline));
  if (op == "refuse_opens")
    return StatusJson(control.RefuseOpens());
  if (op == "open_gate")
    return StatusJson(control.OpenGate());
  if (op == "commit_target")
    return StatusJson(control.CommitTarget(deadline));
  if (op == "revoke_target")
    return StatusJson(control.RevokeTarget(deadline));
  if (op == "commit_source")
    return StatusJson(control.CommitSource(deadline));
  return ErrorJson(
      Error::Of(ErrorCode::kUnsupported, "unknown call '" + op + "'"));
}

}  // namespace

Status ServeOverlayControl(Channel& channel,
                           cutover::OverlayControl& control) {
  for (;;) {
    Result<Message> request = channel.Receive();
    if (!request) {
      if (request.error().code == ErrorCode::kGone)
        return {};
      return std::unexpected(request.error());
    }
    json j = json::parse(request->text, nullptr, false);
    if (!j.is_object())
      return Fail(ErrorCode::kCorrupt, "a call that is not readable");
    std::vector<UniqueFd> fds;
    json answer = Answer(j, control, &fds);
    answer["n"] = j.value("n", uint64_t{0});
    std::vector<int> numbers;
    for (const UniqueFd& fd : fds)
      numbers.push_back(fd.Get());
    Status sent = channel.Send(Dump(answer), numbers);
    if (!sent) {
      if (sent.error().code == ErrorCode::kGone)
        return {};
      return sent;
    }
  }
}

}  // namespace livemv::daemon
