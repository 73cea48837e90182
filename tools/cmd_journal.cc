// journal dump: straight from the file, so that it works when every livemv
// process is dead.

#include <fcntl.h>

#include <cstdio>
#include <memory>

#include "core/state/fact_text.h"
#include "core/state/journal_reader.h"
#include "core/syscalls.h"
#include "migrator/daemon/paths.h"
#include "migrator/daemon/state_dir.h"
#include "tools/commands.h"

namespace livemv::tools {

using core::Result;
using daemon::Exit;

Exit DumpCommand(daemon::Registry& registry, const Command& command) {
  std::string dir;
  Result<daemon::Registration> entry = registry.Find(command.which);
  if (entry)
    dir = entry->state_dir;
  else if (daemon::LooksLikeId(command.which))
    dir = std::string(daemon::kDefaultStateParent) + "/" + command.which;
  else
    return Complain(Exit::kBlocked, entry.error().ToString());
  std::unique_ptr<core::Syscalls> sys = core::MakeRealSyscalls();
  Result<core::UniqueFd> dirfd =
      sys->OpenAt(AT_FDCWD, dir.c_str(), O_RDONLY | O_DIRECTORY);
  if (!dirfd)
    return Complain(Exit::kBlocked, "no journal is known by " +
                                        daemon::Printable(command.which) +
                                        ": " + daemon::Printable(dir) + ": " +
                                        dirfd.error().ToString());
  Result<state::JournalReader> reader =
      state::JournalReader::Open(sys.get(), dirfd->Get(), "journal");
  if (!reader)
    return Complain(Exit::kBlocked, "the journal in " +
                                        daemon::Printable(dir) + ": " +
                                        reader.error().ToString());
  for (;;) {
    Result<std::optional<state::JournalRecord>> record = reader->Next();
    if (!record)
      return Complain(Exit::kHuman, record.error().ToString());
    if (!*record)
      break;
    std::printf("%s\n", state::RecordText(**record).c_str());
  }
  Result<state::JournalTail> tail = reader->Tail();
  if (!tail)
    return Complain(Exit::kHuman, tail.error().ToString());
  std::printf("%s\n", state::TailText(*tail).c_str());
  return tail->kind == state::JournalTail::Kind::kDamaged ? Exit::kHuman
                                                          : Exit::kDone;
}

}  // namespace livemv::tools
