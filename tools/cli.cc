#include "tools/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <charconv>

#include "migrator/daemon/units.h"

#ifndef LIVEMV_VERSION
#define LIVEMV_VERSION "0.1.0"
#endif

namespace livemv::tools {

using daemon::Exit;

namespace {

struct VerbRow {
  Verb verb;
  const char* name;
  const char* synopsis;
  const char* text;
};

constexpr std::array kVerbs = {
    VerbRow{Verb::kPlan, "plan", "DIR TARGET [-o MOUNTOPTS] [--allow-loss=WHAT,...] [--json]",
            "say what a move would do and what is in its way; change nothing"},
    VerbRow{Verb::kStart, "start",
            "DIR TARGET [--cutover=auto|wait] [--max-pause=200ms] [--wait] "
            "[--yes] [-o MOUNTOPTS] [--allow-loss=WHAT,...]",
            "move DIR to TARGET while it is in use"},
    VerbRow{Verb::kStatus, "status", "[DIR|ID] [--json] [--watch]",
            "show where a migration is"},
    VerbRow{Verb::kList, "list", "[--json]", "list the migrations here"},
    VerbRow{Verb::kCutover, "cutover", "DIR|ID [--wait] [--accept=PID,...]",
            "put the real mount on DIR; accept processes that stay behind"},
    VerbRow{Verb::kPause, "pause", "DIR|ID",
            "stop copying; new writes go on to the target"},
    VerbRow{Verb::kResume, "resume", "DIR|ID", "copy again"},
    VerbRow{Verb::kAbort, "abort", "DIR|ID [--wait]",
            "bring new data back to the source and take the overlay away"},
    VerbRow{Verb::kFinish, "finish", "DIR|ID [--persist=fstab|unit|none] [--reclaim]",
            "dismiss a moved migration; free the old bytes with --reclaim"},
    VerbRow{Verb::kRecover, "recover",
            "--all|ID|DIR [--accept-changes] [--state-dir=PATH]",
            "bring back migrations whose processes are gone: after a reboot"},
    VerbRow{Verb::kInspect, "inspect", "PATH|DIR|ID",
            "show who owns which bytes of a file or a tree"},
    VerbRow{Verb::kExplain, "explain", "PID [DIR] [--json]",
            "show what ties a process to the tree, and what would become of it"},
    VerbRow{Verb::kJournalDump, "journal", "dump ID",
            "print a migration's journal"},
};

const VerbRow& RowOf(Verb verb) {
  for (const VerbRow& row : kVerbs)
    if (row.verb == verb)
      return row;
  return kVerbs.front();
}

std::string Help() {
  std::string out =
      "livemv moves a directory that running processes use to another\n"
      "filesystem, without stopping them.\n\nUsage:\n";
  for (const VerbRow& row : kVerbs) {
    out += std::string("  livemv ") + row.name + " " + row.synopsis + "\n" +
           "      " + row.text + "\n";
  }
  out +=
      "\nTARGET is host:/export[/sub], or an existing directory on another\n"
      "mounted filesystem. 'livemv VERB --help' shows a verb's options;\n"
      "livemv(8) has the exit codes.\n";
  return out;
}

size_t Distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); j++)
    row[j] = j;
  for (size_t i = 1; i <= a.size(); i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); j++) {
      size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1,
                         diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

Parsed Refuse(const std::string& text) {
  Parsed out;
  out.text = text + "\n";
  out.exit = Exit::kUsage;
  return out;
}

Parsed Say(const std::string& text) {
  Parsed out;
  out.text = text;
  return out;
}

bool ParsePid(const std::string& text, pid_t* pid) {
  auto [rest, error] =
      std::from_chars(text.data(), text.data() + text.size(), *pid);
  return error == std::errc() && rest == text.data() + text.size() && *pid > 0;
}

// Texts that CLI11 collects and that are checked after it.
struct Raw {
  std::string cutover = "auto";
  std::string max_pause = "200ms";
  std::vector<std::string> accept;
  std::string journal_verb;
  std::string pid;
  std::string allow_loss;
  std::string persist = "none";
};

void AddOptions(CLI::App& app, Verb verb, Command& c, Raw& raw) {
  const bool optional_which = verb == Verb::kStatus;
  switch (verb) {
    case Verb::kPlan:
    case Verb::kStart:
      app.add_option("DIR", c.dir, "the directory to move")->required();
      app.add_option("TARGET", c.target,
                     "host:/export[/sub], or an existing directory on another "
                     "filesystem; it must be empty")
          ->required();
      app.add_option("-o", c.mount_options,
                     "mount options for the target, as for mount(8)")
          ->type_name("MOUNTOPTS");
      app.add_option("--allow-loss", raw.allow_loss,
                     "what may be lost if the target cannot hold it: xattr, "
                     "acl, owner, time, soft (data, by a soft mount)")
          ->type_name("WHAT,...");
      app.add_option("--state-dir", c.state_dir,
                     "keep the journal in PATH/ID (default /var/lib/livemv)")
          ->type_name("PATH");
      break;
    case Verb::kJournalDump:
      app.add_option("dump", raw.journal_verb, "the word 'dump'")->required();
      app.add_option("ID", c.which, "the migration")->required();
      break;
    case Verb::kInspect:
      app.add_option("PATH", c.which, "a file, a directory, or a migration ID")
          ->required();
      break;
    case Verb::kExplain:
      app.add_option("PID", raw.pid, "the process")->required();
      app.add_option("DIR", c.dir,
                     "the directory; without it, that of each migration");
      break;
    case Verb::kList:
      break;
    case Verb::kRecover:
      app.add_option("ID|DIR", c.which, "the migration, by ID or by path");
      app.add_flag("--all", c.all, "every one that there is");
      app.add_flag("--accept-changes", c.accept_changes,
                   "take what others changed on the source meanwhile as it is");
      app.add_option("--state-dir", c.state_dir,
                     "look in PATH (default /var/lib/livemv, which knows those "
                     "elsewhere too)")
          ->type_name("PATH");
      break;
    default: {
      CLI::Option* which =
          app.add_option("DIR|ID", c.which, "the migration, by path or by ID");
      if (!optional_which)
        which->required();
    }
  }
  switch (verb) {
    case Verb::kPlan:
    case Verb::kList:
    case Verb::kInspect:
    case Verb::kExplain:
      app.add_flag("--json", c.json, "print JSON");
      break;
    case Verb::kStart:
      app.add_option("--cutover", raw.cutover,
                     "auto: cut over when synced; wait: stay synced until "
                     "'livemv cutover'")
          ->type_name("auto|wait");
      app.add_option("--max-pause", raw.max_pause,
                     "longest freeze of a cutover attempt, such as 200ms or "
                     "1.5s")
          ->type_name("TIME");
      app.add_flag("--wait", c.wait,
                   "block until moved (or synced, with --cutover=wait)");
      app.add_flag("--yes", c.yes, "do not ask");
      break;
    case Verb::kStatus:
      app.add_flag("--json", c.json, "print JSON");
      app.add_flag("--watch,-w", c.watch, "print again whenever it changes");
      break;
    case Verb::kCutover:
      app.add_flag("--wait", c.wait, "block until it is done or given up");
      app.add_option("--accept", raw.accept,
                     "processes to leave on the overlay although they write")
          ->delimiter(',')
          ->type_name("PID,...");
      break;
    case Verb::kAbort:
      app.add_flag("--wait", c.wait, "block until the source is back");
      break;
    case Verb::kFinish:
      app.add_option("--persist", raw.persist,
                     "mount the target on DIR at each boot: by a line in "
                     "/etc/fstab or by a unit of systemd; none only prints the "
                     "line")
          ->type_name("fstab|unit|none");
      app.add_flag("--reclaim", c.reclaim,
                   "delete the old, covered contents of the source");
      break;
    default:
      break;
  }
  if (verb == Verb::kInspect) {
    app.add_flag("--pending", c.only_pending,
                 "of a tree: only files that the target lacks something of");
    app.add_flag("--remote", c.only_remote,
                 "of a tree: only files with bytes that the target alone has");
  }
}

// What the words mean, once CLI11 has sorted them.
std::string Check(Verb verb, const Raw& raw, Command& c) {
  if (verb == Verb::kStart) {
    if (raw.cutover != "auto" && raw.cutover != "wait")
      return "--cutover is 'auto' or 'wait', not '" + raw.cutover + "'";
    c.auto_cutover = raw.cutover == "auto";
    core::Result<int64_t> pause = daemon::ParseDuration(raw.max_pause);
    if (!pause)
      return "--max-pause: " + pause.error().ToString();
    c.max_pause_ns = *pause;
    if (c.max_pause_ns < 1'000'000 || c.max_pause_ns > 60'000'000'000)
      return "--max-pause must be between 1ms and 60s";
  }
  core::Result<core::Losses> accepted = core::ParseLosses(raw.allow_loss);
  if (!accepted)
    return "--allow-loss: " + accepted.error().ToString();
  c.accepted = *accepted;
  if (verb == Verb::kJournalDump && raw.journal_verb != "dump")
    return "'journal' knows one thing to do, 'dump'; not '" +
           raw.journal_verb + "'";
  if (verb == Verb::kExplain && !ParsePid(raw.pid, &c.pid))
    return "explain takes a process id, not '" + raw.pid + "'";
  for (const std::string& text : raw.accept) {
    pid_t pid = 0;
    if (!ParsePid(text, &pid))
      return "--accept takes process ids, not '" + text + "'";
    c.accept.push_back(pid);
  }
  if (raw.persist == "fstab")
    c.persist = daemon::Persist::kFstab;
  else if (raw.persist == "unit")
    c.persist = daemon::Persist::kUnit;
  else if (raw.persist != "none")
    return "--persist is fstab, unit or none, not '" + raw.persist + "'";
  if (verb == Verb::kRecover && c.all == !c.which.empty())
    return "name one migration, or --all";
  const bool takes_dir = verb == Verb::kPlan || verb == Verb::kStart;
  if (takes_dir && (c.dir.empty() || c.target.empty()))
    return "DIR and TARGET must not be empty";
  return {};
}

}  // namespace

std::string_view VerbName(Verb verb) {
  return verb == Verb::kJournalDump ? "journal dump" : RowOf(verb).name;
}

std::string Nearest(const std::string& unknown) {
  std::string best;
  size_t least = 3;  // more than two slips is another word
  for (const VerbRow& row : kVerbs) {
    size_t d = Distance(unknown, row.name);
    if (d < least && d < std::string_view(row.name).size()) {
      least = d;
      best = row.name;
    }
  }
  return best;
}

Parsed Parse(const std::vector<std::string>& args) {
  if (args.empty())
    return Refuse("livemv: what shall be done? 'livemv --help' lists the verbs");
  if (args[0] == "--help" || args[0] == "-h" || args[0] == "help")
    return Say(Help());
  if (args[0] == "--version" || args[0] == "-V")
    return Say("livemv " LIVEMV_VERSION "\n");
  const VerbRow* row = nullptr;
  for (const VerbRow& candidate : kVerbs)
    if (args[0] == candidate.name)
      row = &candidate;
  if (row == nullptr && args[0].starts_with("-"))
    return Refuse("livemv: the verb comes first, options after it: livemv VERB " +
                  args[0] + " ...; 'livemv --help' lists the verbs");
  if (row == nullptr) {
    std::string near = Nearest(args[0]);
    return Refuse("livemv: unknown verb '" + args[0] + "'" +
                  (near.empty() ? "; 'livemv --help' lists the verbs"
                                : "; did you mean '" + near + "'?"));
  }

  Parsed out;
  out.command.verb = row->verb;
  Raw raw;
  CLI::App app(row->text, std::string("livemv ") + row->name);
  try {
    AddOptions(app, row->verb, out.command, raw);
    // CLI11 takes the words from the back.
    std::vector<std::string> words(args.rbegin(), args.rend() - 1);
    app.parse(words);
  } catch (const CLI::CallForHelp&) {
    return Say(app.help());
  } catch (const CLI::ParseError& e) {
    return Refuse(std::string("livemv ") + row->name + ": " + e.what() +
                  "\nusage: livemv " + row->name + " " + row->synopsis);
  }
  if (std::string wrong = Check(row->verb, raw, out.command); !wrong.empty())
    return Refuse(std::string("livemv ") + row->name + ": " + wrong);
  out.run = true;
  return out;
}

}  // namespace livemv::tools
