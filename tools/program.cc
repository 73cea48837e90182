#include "tools/program.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <exception>

#include "migrator/daemon/paths.h"
#include "migrator/daemon/registry.h"
#include "migrator/daemon/roles.h"
#include "tools/cli.h"
#include "tools/commands.h"

namespace livemv::tools {

using daemon::Exit;

namespace {

Exit Dispatch(const Command& command) {
  daemon::Registry registry;
  const bool reads_only =
      command.verb == Verb::kStatus || command.verb == Verb::kList;
  if (!reads_only && ::geteuid() != 0)
    return Complain(Exit::kBlocked,
                    "only root can do this (mounts, ptrace, file handles): "
                    "try sudo livemv " + std::string(VerbName(command.verb)));
  switch (command.verb) {
    case Verb::kPlan:
      return PlanCommand(registry, command);
    case Verb::kStart:
      return StartCommand(registry, command);
    case Verb::kStatus:
      return StatusCommand(registry, command);
    case Verb::kList:
      return ListCommand(registry, command);
    case Verb::kInspect:
      return InspectCommand(registry, command);
    case Verb::kExplain:
      return ExplainCommand(registry, command);
    case Verb::kRecover:
      return RecoverCommand(registry, command);
    case Verb::kJournalDump:
      return DumpCommand(registry, command);
    default:
      return AskCommand(registry, command);
  }
}

}  // namespace

Exit Complain(Exit exit, const std::string& text) {
  std::fprintf(stderr, "livemv: %s\n", text.c_str());
  return exit;
}

std::optional<daemon::Registration> Named(daemon::Registry& registry,
                                          const std::string& which) {
  core::Result<daemon::Registration> entry = registry.Find(which);
  if (entry)
    return *entry;
  Complain(Exit::kBlocked,
           entry.error().ToString() + "; 'livemv list' shows those there are");
  return std::nullopt;
}

int Main(int argc, char** argv) {
  if (daemon::IsChild(argc, argv))
    return daemon::ChildMain();
  ::signal(SIGPIPE, SIG_DFL);
  std::vector<std::string> args;
  for (int i = 1; i < argc; i++)
    args.emplace_back(argv[i]);
  Parsed parsed = Parse(args);
  if (!parsed.run) {
    std::fputs(parsed.text.c_str(),
               parsed.exit == Exit::kDone ? stdout : stderr);
    return static_cast<int>(parsed.exit);
  }
  int code = static_cast<int>(Dispatch(parsed.command));
  if (std::fflush(stdout) != 0)
    std::perror("livemv: standard output");
  return code;
}

}  // namespace livemv::tools
