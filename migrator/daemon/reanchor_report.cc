#include "migrator/daemon/reanchor_report.h"

#include <nlohmann/json.hpp>

namespace livemv::daemon {

using nlohmann::json;

std::string ReportToJson(const ReanchorReport& r) {
  json pauses = json::array(), stayed = json::array();
  for (const PauseLine& p : r.pauses)
    pauses.push_back({{"phase", p.phase},
                      {"pid", p.pid},
                      {"command", p.command},
                      {"ns", p.ns}});
  for (const HolderLine& h : r.stayed)
    stayed.push_back({{"pid", h.pid},
                      {"command", h.command},
                      {"verdict", h.verdict},
                      {"reason", h.reason}});
  json j = {{"outcome", static_cast<int>(r.outcome)},
            {"reason", r.reason},
            {"froze", r.froze},
            {"committed", r.committed},
            {"unreachable", r.unreachable},
            {"redirected", r.redirected},
            {"pauses", pauses},
            {"stayed", stayed}};
  return j.dump(-1, ' ', false, json::error_handler_t::replace);
}

core::Result<ReanchorReport> ReportFromJson(const std::string& text) {
  json j = json::parse(text, nullptr, false);
  ReanchorReport r;
  try {
    int outcome = j.at("outcome");
    if (outcome < 0 || outcome > static_cast<int>(
                                     ReanchorReport::Outcome::kRolledBack))
      return Fail(core::ErrorCode::kCorrupt, "report: unknown outcome");
    r.outcome = static_cast<ReanchorReport::Outcome>(outcome);
    r.reason = j.at("reason");
    r.froze = j.at("froze");
    r.unreachable = j.at("unreachable");
    r.redirected = j.at("redirected");
    r.committed = j.at("committed");
    for (const json& p : j.at("pauses"))
      r.pauses.push_back({p.at("phase"), p.at("pid"), p.at("command"),
                          p.at("ns")});
    for (const json& h : j.at("stayed"))
      r.stayed.push_back({h.at("pid"), h.at("command"), h.at("verdict"),
                          h.at("reason"), 0, 0, 0});
  } catch (const json::exception& e) {
    return Fail(core::ErrorCode::kCorrupt, std::string("report: ") + e.what());
  }
  return r;
}

}  // namespace livemv::daemon
