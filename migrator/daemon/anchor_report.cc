#include "migrator/daemon/anchor_report.h"

#include <algorithm>

#include "migrator/daemon/paths.h"
#include "migrator/daemon/preflight_findings.h"

namespace livemv::daemon {

using Json = nlohmann::ordered_json;

namespace {

std::string Name(pid_t pid, const proc::Anchor& anchor) {
  std::string name = anchor.kind == proc::AnchorKind::kDescriptor
                         ? "fd"
                         : proc::AnchorKindName(anchor.kind);
  if (anchor.number >= 0)
    name += " " + std::to_string(anchor.number);
  if (anchor.tid != pid)
    name += " (thread " + std::to_string(anchor.tid) + ")";
  return name;
}

}  // namespace

const char* VerdictWord(proc::Movability movability) {
  switch (movability) {
    case proc::Movability::kMovable:
      return "movable";
    case proc::Movability::kStays:
      return "stays";
    case proc::Movability::kBlocks:
      break;
  }
  return "blocks";
}

Json ReasonsJson(const std::vector<proc::Reason>& reasons) {
  Json json = Json::array();
  for (const proc::Reason& reason : reasons)
    json.push_back({{"code", reason.code},
                    {"what", reason.what},
                    {"way_out", reason.way_out}});
  return json;
}

Json AnchorsJson(const std::vector<proc::Anchor>& anchors) {
  Json json = Json::array();
  for (const proc::Anchor& anchor : anchors)
    json.push_back({{"kind", proc::AnchorKindName(anchor.kind)},
                    {"thread", anchor.tid},
                    {"number", anchor.number >= 0 ? Json(anchor.number) : Json()},
                    {"path", anchor.path},
                    {"details", anchor.details},
                    {"verdict", VerdictWord(anchor.movability)},
                    {"reasons", ReasonsJson(anchor.reasons)}});
  return json;
}

std::string AnchorsText(pid_t pid, const std::vector<proc::Anchor>& anchors) {
  size_t widest = 0;
  for (const proc::Anchor& anchor : anchors)
    widest = std::max(widest, Name(pid, anchor).size());
  std::string out;
  for (const proc::Anchor& anchor : anchors) {
    std::string name = Name(pid, anchor);
    name.resize(widest, ' ');
    out += "  " + name;
    out += "  ";
    std::string verdict = VerdictWord(anchor.movability);
    verdict.resize(7, ' ');
    out += verdict;
    if (!anchor.path.empty())
      out += "  " + Quote(anchor.path);
    if (!anchor.details.empty())
      out += "  " + Printable(anchor.details);
    out += "\n";
    const std::string indent(widest + 13, ' ');
    for (const proc::Reason& reason : anchor.reasons)
      out += indent + Printable(reason.what) + "\n" + indent + "-> " +
             reason.way_out + "\n";
  }
  return out;
}

}  // namespace livemv::daemon
