#include "migrator/daemon/guard.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>

#include "migrator/daemon/paths.h"
#include "migrator/daemon/small_files.h"

namespace livemv::daemon {

using core::FailSys;
using core::Status;
using core::UniqueFd;

namespace {

constexpr char kUnits[] = "/etc/systemd/system";
constexpr char kRecoverName[] = "livemv-recover.service";

std::string Root() {
  const char* root = std::getenv("LIVEMV_SYSTEMD");
  return root != nullptr ? root : "";
}

std::string Units() { return Root() + kUnits; }

std::string GuardName(const std::string& id) {
  return "livemv-guard-" + id + ".service";
}

// systemd.syntax(7): one word of a list or a command line. $ is a variable's in
// command lines alone.
std::string Word(const std::string& text, bool command) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '%')
      out += "%%";
    else if (c == '$' && command)
      out += "$$";
    else if (c == '"' || c == '\\')
      out += std::string("\\") + c;
    else if (static_cast<unsigned char>(c) < 0x20) {
      constexpr char kHex[] = "0123456789abcdef";
      out += "\\x";
      out += kHex[(c >> 4) & 15];
      out += kHex[c & 15];
    } else
      out += c;
  }
  return out + "\"";
}

// A description is one line of plain text.
std::string Text(const std::string& text) {
  std::string out;
  for (char c : Printable(text))
    out += c == '%' ? "%%" : std::string(1, c);
  return out;
}

// Makes the link dir/name -> to; one that is there already is kept.
Status Link(const std::string& dir, const std::string& name,
            const std::string& to) {
  TRY(MakeDirectories(dir, 0755));
  const std::string path = dir + "/" + name;
  if (::symlink(to.c_str(), path.c_str()) != 0 && errno != EEXIST)
    return FailSys(errno, "link " + path);
  return SyncDirectory(dir);
}

Status Unlink(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT && errno != ENOTDIR)
    return FailSys(errno, "remove " + path);
  return {};
}

bool AnyGuardLeft() {
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(Units().c_str()),
                                          &::closedir);
  if (!dir)
    return false;
  while (const struct dirent* item = ::readdir(dir.get()))
    if (std::string(item->d_name).starts_with("livemv-guard-"))
      return true;
  return false;
}

}  // namespace

bool HasSystemd() {
  struct stat st{};
  return ::stat((Root() + "/run/systemd/system").c_str(), &st) == 0 &&
         S_ISDIR(st.st_mode);
}

std::string GuardUnit(const Settings& s) {
  // Of a DIR that is no mount of its own only what leads to it is waited for: by
  // the time that DIR is in fstab with the target, that would be the network,
  // which comes after local filesystems.
  const std::string below =
      s.dir_is_mount ? s.dir : s.dir.substr(0, std::max<size_t>(1, s.dir.rfind('/')));
  return "[Unit]\n"
         "Description=Cover " + Text(s.dir) +
         " until livemv has brought migration " + s.id + " back\n"
         "Documentation=man:livemv(8)\n"
         "DefaultDependencies=no\n"
         "RequiresMountsFor=" + Word(below, false) + "\n"
         "# Never over what livemv serves: anything may start it later.\n"
         "ConditionPathExists=!" + Text(s.registry + "/" + s.id) + "\n"
         "Before=local-fs.target umount.target\n"
         "Conflicts=umount.target\n"
         "\n"
         "[Service]\n"
         "Type=oneshot\n"
         "RemainAfterExit=yes\n"
         "ExecStart=/bin/mount -t tmpfs -o ro,nosuid,nodev,noexec,mode=0555,size=4k " +
         std::string(kGuardSource) + " " + Word(s.dir, true) + "\n"
         "\n"
         "[Install]\n"
         "WantedBy=local-fs.target\n";
}

std::string RecoverUnit(const std::string& program) {
  return "[Unit]\n"
         "Description=Bring back the migrations of livemv\n"
         "Documentation=man:livemv(8)\n"
         "Wants=network-online.target\n"
         "After=network-online.target local-fs.target remote-fs.target\n"
         "\n"
         "[Service]\n"
         "Type=oneshot\n"
         "RemainAfterExit=yes\n"
         "ExecStart=" + Word(program, true) + " recover --all\n"
         "# What it starts is the overlay's server, and stays.\n"
         "KillMode=process\n"
         "# A target that is away is tried again; the rest needs somebody.\n"
         "Restart=on-failure\n"
         "RestartSec=15\n"
         "RestartPreventExitStatus=3 4 9 64\n"
         "TimeoutStartSec=infinity\n"
         "\n"
         "[Install]\n"
         "WantedBy=multi-user.target\n";
}

std::string RecoverUnitPart(const Settings& s) {
  return "# Migration " + s.id + " of livemv: " + Text(s.dir) + "\n"
         "[Unit]\n"
         "After=" + GuardName(s.id) + "\n";
}

Status InstallGuard(const Settings& settings, const std::string& program) {
  const std::string units = Units();
  const std::string part = units + "/" + kRecoverName + ".d";
  const std::string guard = GuardName(settings.id);
  Status made = [&]() -> Status {
    TRY(MakeDirectories(part, 0755));
    TRY(ReplaceFile(units + "/" + guard, GuardUnit(settings), 0644));
    TRY(ReplaceFile(units + "/" + kRecoverName, RecoverUnit(program), 0644));
    TRY(ReplaceFile(part + "/" + settings.id + ".conf",
                    RecoverUnitPart(settings), 0644));
    TRY(Link(units + "/local-fs.target.wants", guard, "../" + guard));
    return Link(units + "/multi-user.target.wants", kRecoverName,
                std::string("../") + kRecoverName);
  }();
  if (!made)
    (void)RemoveGuard(settings.id);  // the first error is what is told
  return made;
}

Status RemoveGuard(const std::string& id) {
  const std::string units = Units();
  const std::string guard = GuardName(id);
  Status first;
  auto remove = [&](const std::string& path) {
    if (Status removed = Unlink(path); !removed && first)
      first = removed;
  };
  remove(units + "/local-fs.target.wants/" + guard);
  remove(units + "/" + guard);
  remove(units + "/" + kRecoverName + ".d/" + id + ".conf");
  if (!AnyGuardLeft()) {
    remove(units + "/multi-user.target.wants/" + kRecoverName);
    remove(units + "/" + kRecoverName);
    ::rmdir((units + "/" + kRecoverName + ".d").c_str());
  }
  // The state that the guard stands for may go now.
  for (const char* below : {"/local-fs.target.wants", ""})
    if (Status synced = SyncDirectory(units + below);
        !synced && synced.error().Errno() != ENOENT && first)
      first = synced;
  return first;
}

}  // namespace livemv::daemon
