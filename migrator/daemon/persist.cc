#include "migrator/daemon/persist.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <sstream>

#include "migrator/daemon/advice.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/small_files.h"

namespace livemv::daemon {

using core::FailSys;
using core::Result;

namespace {

std::string Root() {
  const char* root = std::getenv("LIVEMV_SYSTEMD");
  return root != nullptr ? root : "";
}

// fstab(5): octal escapes.
std::string Decoded(const std::string& field) {
  std::string out;
  for (size_t i = 0; i < field.size(); i++) {
    if (field[i] == '\\' && i + 3 < field.size() &&
        field.find_first_not_of("01234567", i + 1) >= i + 4) {
      out += static_cast<char>(std::stoi(field.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      out += field[i];
    }
  }
  return out;
}

// Specifiers (systemd.unit(5)).
std::string Plain(const std::string& text) {
  std::string out;
  for (char c : text)
    out += c == '%' ? "%%" : std::string(1, c);
  return out;
}

Result<std::string> WriteFstab(const Settings& s) {
  // A link leads to what is to be replaced.
  Result<std::string> path = Normalise(Root() + "/etc/fstab");
  if (!path && path.error().sys_errno != ENOENT)
    return core::Fail(std::move(path).error());
  const std::string file = path ? *path : Root() + "/etc/fstab";
  std::string old;
  struct stat st{};
  st.st_mode = 0644;
  if (path) {
    ASSIGN_OR_RETURN(old, ReadSmallFile(file));
    if (::stat(file.c_str(), &st) != 0)
      return FailSys(errno, file);
  }
  const std::string text = FstabWith(old, s);
  if (text == old)
    return file + " has the mount already.";
  TRY(ReplaceFile(file, text, st.st_mode & 07777));
  return file + " mounts " + Printable(s.target) + " on " + Printable(s.dir) +
         " at boot.";
}

Result<std::string> WriteUnit(const Settings& s) {
  const std::string units = Root() + "/etc/systemd/system";
  const std::string name = MountUnitName(s.dir);
  const std::string wants = units + (ParseNfsName(s.target)
                                         ? "/remote-fs.target.wants"
                                         : "/local-fs.target.wants");
  TRY(MakeDirectories(wants, 0755));
  TRY(ReplaceFile(units + "/" + name, MountUnit(s), 0644));
  const std::string link = wants + "/" + name;
  if (::symlink(("../" + name).c_str(), link.c_str()) != 0 && errno != EEXIST)
    return FailSys(errno, "link " + link);
  return units + "/" + name + " mounts " + Printable(s.target) + " on " +
         Printable(s.dir) + " at boot.";
}

}  // namespace

std::string FstabWith(const std::string& fstab, const Settings& s) {
  std::istringstream in(fstab);
  std::string out, line;
  while (std::getline(in, line)) {
    if (line == s.fstab_line)
      return fstab;
    std::istringstream words(line);
    std::string what, where;
    words >> what >> where;
    if (!what.starts_with("#") && Decoded(where) == s.dir)
      out += "# replaced by livemv: ";
    out += line + "\n";
  }
  return out + s.fstab_line + "\n";
}

// systemd-escape --path --suffix=mount
std::string MountUnitName(const std::string& dir) {
  std::string out;
  for (size_t i = 1; i < dir.size(); i++) {
    const char c = dir[i];
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       (c >= '0' && c <= '9') || c == ':' || c == '_' ||
                       (c == '.' && i != 1);
    constexpr char kHex[] = "0123456789abcdef";
    if (c == '/')
      out += '-';
    else if (plain)
      out += c;
    else
      out += std::string("\\x") + kHex[(c >> 4) & 15] + kHex[c & 15];
  }
  return (out.empty() ? "-" : out) + ".mount";
}

std::string MountUnit(const Settings& s) {
  const bool nfs = ParseNfsName(s.target).has_value();
  std::string options = s.mount_options;
  if (!nfs)
    options = options.empty() ? "bind" : "bind," + options;
  return "[Unit]\n"
         "Description=Moved here by livemv (" + s.id + ")\n" +
         (nfs ? "Wants=network-online.target\nAfter=network-online.target\n"
              : "") +
         "\n[Mount]\nWhat=" + Plain(s.target) + "\nWhere=" + Plain(s.dir) +
         "\nType=" + (nfs ? "nfs" : "none") + "\n" +
         (options.empty() ? "" : "Options=" + Plain(options) + "\n") +
         "\n[Install]\nWantedBy=" +
         (nfs ? "remote-fs.target" : "local-fs.target") + "\n";
}

Result<std::string> MakePermanent(const Settings& settings, Persist how) {
  switch (how) {
    case Persist::kFstab:
      return WriteFstab(settings);
    case Persist::kUnit:
      return WriteUnit(settings);
    case Persist::kNone:
      break;
  }
  return std::string();
}

}  // namespace livemv::daemon
