#include "migrator/daemon/migration_status.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/state/migration_state.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {

using core::ErrorCode;
using core::Fail;
using core::Result;
using nlohmann::json;

namespace {

json ToJson(const Totals& t) {
  return {{"total", t.total}, {"copied", t.copied}, {"remote", t.remote}};
}

Totals TotalsOf(const json& j) {
  return {j.value("total", uint64_t{0}), j.value("copied", uint64_t{0}),
          j.value("remote", uint64_t{0})};
}

json ToJson(const std::vector<HolderLine>& lines) {
  json out = json::array();
  for (const HolderLine& h : lines)
    out.push_back({{"pid", h.pid},
                   {"command", h.command},
                   {"verdict", h.verdict},
                   {"reason", h.reason},
                   {"cwds", h.cwds},
                   {"fds", h.fds},
                   {"maps", h.maps}});
  return out;
}

std::vector<HolderLine> HoldersOf(const json& lines) {
  std::vector<HolderLine> out;
  for (const json& h : lines)
    out.push_back({h.value("pid", 0), h.value("command", ""),
                   h.value("verdict", ""), h.value("reason", ""),
                   h.value("cwds", 0u), h.value("fds", 0u),
                   h.value("maps", 0u)});
  return out;
}

double Ms(int64_t ns) { return static_cast<double>(ns / 1000) / 1000.0; }

}  // namespace

std::string StatusToJson(const MigrationStatus& s, int indent) {
  json pauses = json::array();
  for (const PauseLine& p : s.pauses)
    pauses.push_back({{"phase", p.phase},
                      {"pid", p.pid},
                      {"command", p.command},
                      {"ns", p.ns},
                      {"ms", Ms(p.ns)}});
  json j = {{"id", s.id},
            {"source", s.source},
            {"target", s.target},
            {"state", s.state},
            {"reason", s.reason},
            {"verbs", s.verbs},
            {"bytes", ToJson(s.bytes)},
            {"files", ToJson(s.files)},
            {"holders", ToJson(s.holders)},
            {"stayed", ToJson(s.stayed)},
            {"pauses", pauses},
            {"supervisor_pid", s.supervisor_pid},
            {"worker_pid", s.worker_pid},
            {"rate", s.rate},
            {"eta", s.eta_s < 0 ? json() : json(s.eta_s)},
            {"cutover", s.auto_cutover ? "auto" : "wait"},
            {"redo_left", s.redo_left},
            {"attempts", s.attempts},
            {"max_pause_ms", Ms(s.max_pause_ns)},
            {"scanned", s.scanned},
            {"problem", s.problem}};
  return j.dump(indent, ' ', false, json::error_handler_t::replace);
}

Result<MigrationStatus> StatusFromJson(const std::string& text) {
  json j = json::parse(text, nullptr, false);
  if (!j.is_object())
    return Fail(ErrorCode::kCorrupt, "the status is not readable");
  MigrationStatus s;
  try {
    s.id = j.at("id");
    s.source = j.at("source");
    s.target = j.at("target");
    s.state = j.at("state");
    s.reason = j.at("reason");
    s.verbs = j.at("verbs").get<std::vector<std::string>>();
    s.bytes = TotalsOf(j.at("bytes"));
    s.files = TotalsOf(j.at("files"));
    s.holders = HoldersOf(j.at("holders"));
    s.stayed = HoldersOf(j.at("stayed"));
    for (const json& p : j.at("pauses"))
      s.pauses.push_back({p.value("phase", ""), p.value("pid", 0),
                          p.value("command", ""), p.value("ns", int64_t{0})});
    s.supervisor_pid = j.at("supervisor_pid");
    s.worker_pid = j.at("worker_pid");
    s.rate = j.at("rate");
    s.eta_s = j.at("eta").is_number() ? j.at("eta").get<int64_t>() : -1;
    s.auto_cutover = j.value("cutover", "auto") == "auto";
    s.redo_left = j.value("redo_left", uint64_t{0});
    s.attempts = j.value("attempts", 0u);
    s.max_pause_ns =
        static_cast<int64_t>(j.value("max_pause_ms", 0.0) * 1e6 + 0.5);
    s.scanned = j.value("scanned", false);
    s.problem = j.value("problem", 0);
  } catch (const json::exception& e) {
    return Fail(ErrorCode::kCorrupt, std::string("the status: ") + e.what());
  }
  return s;
}

namespace {

std::string Upper(std::string text) {
  for (char& c : text)
    if (c >= 'a' && c <= 'z')
      c = static_cast<char>(c - 'a' + 'A');
  return text;
}

bool IsAborting(const MigrationStatus& s) {
  return s.state == state::StateName(state::MigrationState::kAborting);
}

// Bytes that are where they belong.
uint64_t Done(const MigrationStatus& s) {
  const uint64_t done =
      IsAborting(s) ? s.bytes.copied : s.bytes.copied + s.bytes.remote;
  return std::min(s.bytes.total, done);
}

// Of those known.
std::string Share(const MigrationStatus& s) {
  if (s.bytes.total == 0)
    return s.scanned ? "100%" : "-";
  char buf[16];
  std::snprintf(buf, sizeof buf, "%.1f%%",
                100.0 * static_cast<double>(Done(s)) /
                    static_cast<double>(s.bytes.total));
  return buf;
}

std::string Eta(int64_t seconds) {
  if (seconds < 0)
    return "-";
  return seconds == 0 ? "under 1 s" : FormatDuration(seconds * 1'000'000'000);
}

std::string Rate(double rate) {
  return FormatBytes(static_cast<uint64_t>(std::max(0.0, rate))) + "/s";
}

std::string Joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words)
    out += (out.empty() ? "" : " ") + word;
  return out;
}

std::string BroughtBack(const MigrationStatus& s) {
  return FormatBytes(s.bytes.copied) + " of " + FormatBytes(s.bytes.total) +
         " brought back  " + Share(s);
}

struct PauseSummary {
  size_t count = 0;
  int64_t longest = 0;
};
PauseSummary Summarise(const MigrationStatus& s, const std::string& phase) {
  PauseSummary out;
  for (const PauseLine& p : s.pauses) {
    if (p.phase != phase)
      continue;
    out.count++;
    out.longest = std::max(out.longest, p.ns);
  }
  return out;
}

}  // namespace

std::string RenderStatus(const MigrationStatus& s) {
  std::string out = s.id + "  " + Printable(s.source) + " -> " +
                    Printable(s.target) + "   " + Upper(s.state);
  if (!s.reason.empty())
    out += "  (" + Printable(s.reason) + ")";
  out += "\nverbs    " + (s.verbs.empty() ? "none" : Joined(s.verbs));
  if (IsAborting(s))
    out += "\nback     " + BroughtBack(s);
  else
    out += "\ncopy     " + FormatBytes(s.bytes.copied) + " of " +
           FormatBytes(s.bytes.total -
                       std::min(s.bytes.total, s.bytes.remote)) +
           "  " + Share(s) + "   " + FormatCount(s.files.copied) + " of " +
           FormatCount(s.files.total) + " files" +
           (s.scanned ? "" : " found so far");
  if (s.rate >= 1)
    out += "   " + Rate(s.rate);
  if (s.eta_s >= 0 && s.state == "copying")
    out += "   ETA " + Eta(s.eta_s);
  out += "\ntarget   " + FormatBytes(s.bytes.remote) +
         " held by the target alone, in " + FormatCount(s.files.remote) +
         " files";
  if (s.redo_left > 0)
    out += "; " + FormatCount(s.redo_left) + " names and attributes to follow";
  size_t moving = 0;
  for (const HolderLine& h : s.holders)
    moving += h.verdict == "movable";
  out += "\nholders  " + std::to_string(s.holders.size());
  if (!s.holders.empty())
    out += ": " + std::to_string(moving) + " movable";
  for (const HolderLine& h : s.holders) {
    if (h.verdict != "movable")
      out += "\n         pid " + std::to_string(h.pid) + " " +
             Printable(h.command) + ": " + h.verdict + ", " +
             Printable(h.reason);
  }
  for (const char* phase : {"attach", "cutover", "abort"}) {
    PauseSummary p = Summarise(s, phase);
    if (p.count > 0)
      out += "\npause    " + std::string(phase) + ": " +
             std::to_string(p.count) + " processes, longest " +
             FormatDuration(p.longest);
  }
  out += "\ncutover  " + std::string(s.auto_cutover ? "auto" : "wait") +
         ", pause at most " + FormatDuration(s.max_pause_ns);
  if (s.attempts > 0)
    out += ", " + std::to_string(s.attempts) + " attempts so far";
  out += "\npids     supervisor " + std::to_string(s.supervisor_pid);
  if (s.worker_pid != 0)
    out += ", worker " + std::to_string(s.worker_pid);
  return out + "\n";
}

std::string RenderListLine(const MigrationStatus& s) {
  char head[64];
  std::snprintf(head, sizeof head, "%-7s %-13s %6s  ", s.id.c_str(),
                s.state.c_str(), Share(s).c_str());
  return head + Printable(s.source) + " -> " + Printable(s.target) + "\n";
}

std::string RenderProgress(const MigrationStatus& s) {
  std::string out = s.state + ": ";
  if (IsAborting(s))
    out += BroughtBack(s) + ", " + FormatCount(s.files.remote) + " files to go";
  else
    out += FormatBytes(Done(s)) + "/" + FormatBytes(s.bytes.total) + " " +
           Share(s) + ", " +
           FormatCount(
               std::min(s.files.total, s.files.copied + s.files.remote)) +
           "/" + FormatCount(s.files.total) + " files";
  if (s.state == "copying")
    out += ", " + Rate(s.rate) + ", ETA " + Eta(s.eta_s);
  out += ", " + std::to_string(s.holders.size()) + " holders";
  if (!s.reason.empty())
    out += " (" + Printable(s.reason) + ")";
  return out;
}

}  // namespace livemv::daemon
