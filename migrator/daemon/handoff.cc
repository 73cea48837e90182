#include "migrator/daemon/handoff.h"

#include <nlohmann/json.hpp>

namespace livemv::daemon {

using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;
using core::UniqueFd;
using nlohmann::json;

namespace {

json ToJson(const Settings& s) {
  return {{"id", s.id},
          {"dir", s.dir},
          {"target", s.target},
          {"state_dir", s.state_dir},
          {"registry", s.registry},
          {"mount_options", s.mount_options},
          {"losses", s.losses},
          {"holds_user_xattrs", s.holds.user_xattrs},
          {"holds_system_xattrs", s.holds.system_xattrs},
          {"holds_acls", s.holds.acls},
          {"holds_gives_owners", s.holds.gives_owners},
          {"target_fs_type", s.target_fs_type},
          {"source_fsid", s.source_fsid},
          {"target_fsid", s.target_fsid},
          {"auto_cutover", s.auto_cutover},
          {"max_pause_ns", s.max_pause_ns},
          {"reserve_bytes", s.reserve_bytes},
          {"faults", s.faults},
          {"boot", s.boot},
          {"overlay_dev", static_cast<uint64_t>(s.overlay_dev)},
          {"dir_is_mount", s.dir_is_mount},
          {"source_device", s.source_device},
          {"fstab_line", s.fstab_line}};
}

Result<Settings> FromJson(const json& j) {
  if (!j.is_object())
    return Fail(ErrorCode::kCorrupt, "settings are not an object");
  Settings s;
  try {
    s.id = j.at("id");
    s.dir = j.at("dir");
    s.target = j.at("target");
    s.state_dir = j.at("state_dir");
    s.registry = j.at("registry");
    s.mount_options = j.at("mount_options");
    s.losses = j.at("losses");
    s.holds.user_xattrs = j.at("holds_user_xattrs");
    s.holds.system_xattrs = j.at("holds_system_xattrs");
    s.holds.acls = j.at("holds_acls");
    s.holds.gives_owners = j.at("holds_gives_owners");
    s.target_fs_type = j.at("target_fs_type");
    s.source_fsid = j.at("source_fsid");
    s.target_fsid = j.at("target_fsid");
    s.auto_cutover = j.at("auto_cutover");
    s.max_pause_ns = j.at("max_pause_ns");
    s.reserve_bytes = j.at("reserve_bytes");
    s.faults = j.at("faults");
    s.boot = j.at("boot");
    s.overlay_dev = j.at("overlay_dev").get<uint64_t>();
    s.dir_is_mount = j.at("dir_is_mount");
    s.source_device = j.at("source_device");
    s.fstab_line = j.at("fstab_line");
  } catch (const json::exception& e) {
    return Fail(ErrorCode::kCorrupt, std::string("settings: ") + e.what());
  }
  return s;
}

}  // namespace

Result<UniqueFd> Handoff::Take(const std::string& name) {
  auto it = fds.find(name);
  if (it == fds.end() || !it->second)
    return Fail(ErrorCode::kInvalid, "descriptor '" + name +
                                         "' is missing in the hand-over to the " +
                                         role);
  return std::move(it->second);
}

int Handoff::Borrow(const std::string& name) const {
  auto it = fds.find(name);
  return it == fds.end() ? -1 : it->second.Get();
}

std::string SettingsToJson(const Settings& settings) {
  return ToJson(settings).dump();
}

Result<Settings> SettingsFromJson(const std::string& text) {
  return FromJson(json::parse(text, nullptr, false));
}

Status SendHandoff(Channel& channel, const HandoffView& view) {
  json names = json::array();
  std::vector<int> fds;
  for (const auto& [name, fd] : view.fds) {
    names.push_back(name);
    fds.push_back(fd);
  }
  json j = {{"version", kHandoffVersion},
            {"role", view.role},
            {"settings", ToJson(*view.settings)},
            {"extra", view.extra},
            {"fds", names}};
  return channel.Send(j.dump(), fds);
}

Result<Handoff> ReceiveHandoff(Channel& channel, int64_t deadline_ns) {
  ASSIGN_OR_RETURN(Message message, channel.Receive(deadline_ns));
  json j = json::parse(message.text, nullptr, false);
  if (!j.is_object() || !j.contains("version") ||
      !j["version"].is_number_integer())
    return Fail(ErrorCode::kCorrupt, "the hand-over is not readable");
  if (j["version"] != kHandoffVersion)
    return Fail(ErrorCode::kUnsupported,
                "hand-over of version " + j["version"].dump() +
                    "; this livemv speaks " + std::to_string(kHandoffVersion));
  Handoff out;
  json names;
  try {
    out.role = j.at("role");
    out.extra = j.at("extra");
    names = j.at("fds");
  } catch (const json::exception& e) {
    return Fail(ErrorCode::kCorrupt, std::string("hand-over: ") + e.what());
  }
  ASSIGN_OR_RETURN(out.settings, FromJson(j.value("settings", json())));
  if (!names.is_array() || names.size() != message.fds.size())
    return Fail(ErrorCode::kCorrupt,
                "hand-over with " + std::to_string(message.fds.size()) +
                    " descriptors for " + std::to_string(names.size()) +
                    " names");
  for (size_t i = 0; i < names.size(); i++) {
    if (!names[i].is_string() ||
        !out.fds.emplace(names[i], std::move(message.fds[i])).second)
      return Fail(ErrorCode::kCorrupt, "hand-over names a descriptor twice");
  }
  return out;
}

}  // namespace livemv::daemon
