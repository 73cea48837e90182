#pragma once

// The verbs. Each prints what it has to say and returns the exit code.
//
// Thread contract: one thread, the program's only one.

#include <optional>
#include <string>

#include "migrator/daemon/exit_code.h"
#include "migrator/daemon/registry.h"
#include "tools/cli.h"

namespace livemv::tools {

daemon::Exit PlanCommand(daemon::Registry& registry, const Command& command);
daemon::Exit StartCommand(daemon::Registry& registry, const Command& command);
daemon::Exit StatusCommand(daemon::Registry& registry, const Command& command);
daemon::Exit ListCommand(daemon::Registry& registry, const Command& command);
// cutover, pause, resume, abort, finish
daemon::Exit AskCommand(daemon::Registry& registry, const Command& command);
daemon::Exit InspectCommand(daemon::Registry& registry, const Command& command);
daemon::Exit ExplainCommand(daemon::Registry& registry, const Command& command);
daemon::Exit RecoverCommand(daemon::Registry& registry, const Command& command);
daemon::Exit DumpCommand(daemon::Registry& registry, const Command& command);

// "livemv: text" on standard error; returns exit.
daemon::Exit Complain(daemon::Exit exit, const std::string& text);
// The migration that the user named; complains if there is none.
std::optional<daemon::Registration> Named(daemon::Registry& registry,
                                          const std::string& which);

}  // namespace livemv::tools
