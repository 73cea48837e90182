#include "migrator/daemon/plan_report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "migrator/daemon/anchor_report.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/preflight_findings.h"
#include "migrator/daemon/units.h"

namespace livemv::daemon {
namespace {

using Json = nlohmann::ordered_json;

// text in lines of at most columns, the first after first, others after rest.
std::string Wrap(std::string_view text, const std::string& first,
                 const std::string& rest, size_t columns) {
  std::string out = first;
  size_t at = first.size();
  bool line_has_word = false;
  while (!text.empty()) {
    const size_t space = text.find(' ');
    const std::string_view word = text.substr(0, space);
    text.remove_prefix(space == std::string_view::npos ? text.size()
                                                       : space + 1);
    if (word.empty())
      continue;
    if (line_has_word && at + 1 + word.size() > columns) {
      out += "\n" + rest;
      at = rest.size();
      line_has_word = false;
    }
    if (line_has_word) {
      out += ' ';
      ++at;
    }
    out += word;
    at += word.size();
    line_has_word = true;
  }
  return out + "\n";
}

std::string Plural(uint64_t n, const char* one, const char* many) {
  return FormatCount(n) + " " + (n == 1 ? one : many);
}

std::string Cut(std::string text, size_t width) {
  if (text.size() > width) {
    text.resize(width > 1 ? width - 1 : 0);
    text += '~';
  }
  text.resize(width, ' ');
  return text;
}

std::string Number(size_t n, size_t width) {
  std::string text = std::to_string(n);
  return text.size() < width ? std::string(width - text.size(), ' ') + text
                             : text;
}

std::string VolumeText(const Volume& volume) {
  std::string text = volume.type.empty() ? "a filesystem" : volume.type;
  if (!volume.device.empty())
    text += " (" + Printable(volume.device) + ")";
  text += ", " + FormatBytes(volume.free_bytes) + " free";
  return text;
}

std::string HoldersText(const Plan& plan, size_t columns) {
  if (plan.holders.empty())
    return "  holders  none\n";
  std::string out = "  holders  " +
                    Plural(plan.holders.size(), "process", "processes") + "\n" +
                    "        PID  COMMAND           CWD   FDS  MAPS  VERDICT\n";
  for (const PlannedHolder& planned : plan.holders) {
    const std::string verdict =
        proc::MovabilityName(planned.verdict.movability);
    out += "    " + Number(static_cast<size_t>(planned.holder.pid), 7) + "  " +
           Cut(Printable(planned.holder.comm), 16) + Number(planned.cwds, 5) +
           " " + Number(planned.fds, 5) + " " + Number(planned.maps, 5) + "  " +
           verdict + "\n";
    if (!planned.verdict.reasons.empty())
      out += Wrap(Printable(planned.verdict.Line()), "             ",
                  "             ", columns);
  }
  return out;
}

Json VolumeJson(const Volume& volume) {
  return Json{{"type", volume.type},
              {"device", volume.device},
              {"options", volume.options},
              {"total_bytes", volume.total_bytes},
              {"free_bytes", volume.free_bytes},
              {"total_files", volume.total_files},
              {"free_files", volume.free_files}};
}

Json SurveyJson(const Survey& survey) {
  return Json{{"files", survey.files},
              {"directories", survey.directories},
              {"symlinks", survey.symlinks},
              {"specials", survey.specials},
              {"bytes", survey.bytes},
              {"allocated_bytes", survey.allocated},
              {"largest_bytes", survey.largest},
              {"largest_path", survey.largest_path},
              {"hard_linked", survey.hard_linked},
              {"with_user_xattrs", survey.with_user_xattrs},
              {"with_system_xattrs", survey.with_system_xattrs},
              {"with_acls", survey.with_acls},
              {"outside_links", survey.outside_link_count},
              {"unreadable", survey.unreadable_count},
              {"survey_ms", survey.took_ns / 1'000'000}};
}

Json HolderJson(const PlannedHolder& planned) {
  return Json{{"pid", planned.holder.pid},
              {"command", planned.holder.comm},
              {"cmdline", planned.holder.cmdline},
              {"uid", planned.holder.uid},
              {"threads", planned.holder.threads},
              {"cwds", planned.cwds},
              {"fds", planned.fds},
              {"maps", planned.maps},
              {"verdict", VerdictWord(planned.verdict.movability)},
              {"reasons", ReasonsJson(planned.verdict.reasons)},
              {"anchors", AnchorsJson(planned.anchors)}};
}

}  // namespace

std::string FindingsText(const std::vector<Finding>& findings, size_t columns) {
  std::string out;
  for (const Finding& finding : findings) {
    std::string label = SeverityName(finding.severity);
    label.resize(9, ' ');
    out += Wrap(finding.what, "  " + label, std::string(11, ' '), columns);
    if (!finding.way_out.empty())
      out += Wrap(finding.way_out, std::string(11, ' ') + "-> ",
                  std::string(14, ' '), columns);
  }
  return out;
}

std::string PlanText(const Plan& plan, size_t columns) {
  std::string out;
  std::string line = Quote(plan.dir);
  if (plan.source_volume)
    line += " on " + VolumeText(*plan.source_volume);
  out += Wrap(line, "  source   ", "           ", columns);
  if (plan.survey) {
    const Survey& survey = *plan.survey;
    line = Plural(survey.files, "file", "files") + ", " +
           Plural(survey.directories, "directory", "directories") + ", " +
           FormatBytes(survey.bytes);
    if (survey.allocated < survey.bytes)
      line += " (" + FormatBytes(survey.allocated) + " on disk)";
    if (survey.largest > 0)
      line += "; the largest file " + Quote(survey.largest_path) + " has " +
              FormatBytes(survey.largest);
    out += Wrap(line, "           ", "           ", columns);
  }
  line = Quote(plan.target);
  if (plan.target_volume)
    line += " on " + VolumeText(*plan.target_volume);
  out += Wrap(line, "  target   ", "           ", columns);
  if (plan.target_volume && !plan.target_volume->options.empty()) {
    // Broken at the commas.
    std::string options = plan.target_volume->options;
    for (size_t at = 0; (at = options.find(',', at)) != std::string::npos;)
      options.insert(at += 1, 1, ' ');
    out += Wrap("mounted with " + options, "           ", "           ",
                columns);
  }
  if (plan.estimated_ns > 0)
    out += "  copy     about " +
           FormatDuration(std::max<int64_t>(plan.estimated_ns, 1'000'000'000)) +
           " (reckoned, not measured)\n";
  if (plan.tree)
    out += HoldersText(plan, columns);
  out += FindingsText(plan.findings, columns);
  const auto count = [&](Severity severity) {
    return static_cast<uint64_t>(std::count_if(
        plan.findings.begin(), plan.findings.end(),
        [&](const Finding& f) { return f.severity == severity; }));
  };
  const uint64_t blockers = count(Severity::kBlocker);
  const uint64_t warnings = count(Severity::kWarning);
  if (blockers > 0)
    out += "BLOCKED: " + Plural(blockers, "blocker", "blockers");
  else
    out += "READY";
  if (warnings > 0)
    out += (blockers > 0 ? ", " : ", with ") +
           Plural(warnings, "warning", "warnings");
  return out + "\n";
}

std::string PlanJson(const Plan& plan) {
  Json findings = Json::array();
  for (const Finding& finding : plan.findings)
    findings.push_back({{"severity", SeverityName(finding.severity)},
                        {"code", finding.code},
                        {"what", finding.what},
                        {"way_out", finding.way_out}});
  Json holders = Json::array();
  for (const PlannedHolder& planned : plan.holders)
    holders.push_back(HolderJson(planned));
  const Exit code = plan.Code();
  Json json{{"source", plan.dir},
            {"target", plan.target},
            {"target_is_nfs", plan.target_is_nfs},
            {"kernel", plan.kernel},
            {"result", code == Exit::kBlocked    ? "blocked"
                       : code == Exit::kWarnings ? "warnings"
                                                 : "ok"},
            {"exit_code", static_cast<int>(code)}};
  json["source_volume"] =
      plan.source_volume ? VolumeJson(*plan.source_volume) : Json();
  json["target_volume"] =
      plan.target_volume ? VolumeJson(*plan.target_volume) : Json();
  json["survey"] = plan.survey ? SurveyJson(*plan.survey) : Json();
  json["estimated_seconds"] =
      static_cast<double>(plan.estimated_ns) / 1'000'000'000;
  json["holders"] = std::move(holders);
  json["findings"] = std::move(findings);
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace livemv::daemon
