#include "migrator/daemon/advice.h"

#include "migrator/daemon/paths.h"

namespace livemv::daemon {

namespace {

// fstab(5): blanks and backslashes as octal escapes.
std::string FstabField(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == ' ')
      out += "\\040";
    else if (c == '\t')
      out += "\\011";
    else if (c == '\n')
      out += "\\012";
    else if (c == '\\')
      out += "\\134";
    else
      out += c;
  }
  return out;
}

}  // namespace

std::string FstabLine(const std::string& target, const std::string& dir,
                      const std::string& mount_options) {
  const bool nfs = ParseNfsName(target).has_value();
  std::string options =
      nfs ? (mount_options.empty() ? "_netdev" : mount_options + ",_netdev")
          : (mount_options.empty() ? "bind" : "bind," + mount_options);
  return FstabField(target) + " " + FstabField(dir) + " " +
         (nfs ? "nfs " : "none ") + options + " 0 0";
}

std::string FinishText(const Settings& s, bool reclaimed) {
  std::string out =
      "To keep " + Printable(s.target) + " on " + Printable(s.dir) +
      " after a reboot, put this into /etc/fstab:\n" + s.fstab_line;
  if (s.dir_is_mount)
    out += "\nin place of the line that mounts " + s.source_device + " there.";
  if (reclaimed)
    return out;
  out += "\nThe old contents still lie beneath the mount. To free their space";
  if (s.dir_is_mount)
    return out + ":\n  mkdir /run/livemv-old && mount " +
           ShellQuoted(s.source_device) +
           " /run/livemv-old    # look, then delete what is in it";
  size_t slash = s.dir.rfind('/');
  std::string parent = slash == 0 ? "/" : s.dir.substr(0, slash);
  return out + ":\n  mkdir /run/livemv-old && mount --bind " +
         ShellQuoted(parent) +
         " /run/livemv-old\n  # look, then delete what is in " +
         ShellQuoted("/run/livemv-old/" + s.dir.substr(slash + 1));
}

}  // namespace livemv::daemon
