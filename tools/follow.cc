#include "tools/follow.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "migrator/daemon/channel.h"
#include "migrator/daemon/control.h"
#include "migrator/daemon/paths.h"

namespace livemv::tools {

using core::ErrorCode;
using core::Result;
using daemon::ControlClient;
using daemon::Exit;
using daemon::MigrationStatus;
using nlohmann::json;

namespace {

volatile sig_atomic_t interrupted = 0;

void OnSignal(int signal) { interrupted = signal; }

constexpr int64_t kTickNs = 500'000'000;
constexpr int64_t kPlainLineNs = 5'000'000'000;

// Progress on a terminal is one line that is written over; elsewhere a line
// whenever the state or its reason changes, and one now and then.
class ProgressPrinter {
 public:
  explicit ProgressPrinter(bool enabled)
      : enabled_(enabled), terminal_(::isatty(STDOUT_FILENO) == 1) {}

  void Show(const MigrationStatus& s) {
    if (!enabled_)
      return;
    const std::string line = daemon::RenderProgress(s);
    const int64_t now = daemon::MonotonicNs();
    const std::string key = s.state + s.reason;
    if (terminal_) {
      std::printf("\r\033[K%s", line.c_str());
      open_ = true;
    } else if (key != last_key_ ||
               (now - last_ns_ > kPlainLineNs && line != last_line_)) {
      std::printf("%s\n", line.c_str());
      last_key_ = key;
      last_line_ = line;
      last_ns_ = now;
    }
    std::fflush(stdout);
  }
  void EndLine() {
    if (open_)
      std::printf("\n");
    open_ = false;
    std::fflush(stdout);
  }

 private:
  const bool enabled_, terminal_;
  bool open_ = false;
  std::string last_key_, last_line_;
  int64_t last_ns_ = 0;
};

}  // namespace

void CatchInterrupts() {
  struct sigaction action{};
  action.sa_handler = OnSignal;  // no SA_RESTART: waits return EINTR
  for (int signal : {SIGINT, SIGTERM, SIGHUP})
    ::sigaction(signal, &action, nullptr);
}

int Interrupted() { return interrupted; }

void DieOf(int signal) {
  std::fflush(stdout);
  std::fflush(stderr);
  ::signal(signal, SIG_DFL);
  ::kill(::getpid(), signal);
  ::_exit(128 + signal);
}

std::string GoesOn(const std::string& id) {
  return "livemv: the migration goes on in the background.\n"
         "  follow:  livemv status " + id + " --watch\n"
         "  finish:  livemv cutover " + id + " --wait, then livemv finish " +
         id + "\n"
         "  abort:   livemv abort " + id + " --wait\n";
}

Verdict Judge(Goal goal, const MigrationStatus& s) {
  const std::string& state = s.state;
  if (goal == Goal::kNever)
    return {};
  if (goal == Goal::kAborted) {
    if (state == "aborted")
      return {true, Exit::kDone, ""};
    if (s.problem == static_cast<int>(Exit::kHuman))
      return {true, Exit::kHuman, s.reason};
    return {};
  }
  if (state == "aborted")
    return {true, Exit::kAborted,
            "the migration was aborted by somebody else; " +
                daemon::Printable(s.source) + " is the source again"};
  if (state == "moved" || state == "finished")
    return {true, Exit::kDone, ""};
  if (s.problem == static_cast<int>(Exit::kHuman) ||
      s.problem == static_cast<int>(Exit::kMismatch))
    return {true, static_cast<Exit>(s.problem), s.reason};
  if (goal == Goal::kSynced && (state == "synced" || state == "cutting_over" ||
                                state == "draining"))
    return {true, Exit::kDone, ""};
  if (goal == Goal::kCutover && state == "draining" && !s.stayed.empty())
    return {true, Exit::kDone,
            daemon::Printable(s.target) + " is in use; " + s.reason};
  if (goal == Goal::kCutover &&
      s.problem == static_cast<int>(Exit::kUnreachable))
    return {true, Exit::kUnreachable,
            s.reason + "\nThe migration is still live and synced, and the "
                       "cutover is tried again by itself; 'livemv abort " +
                s.id + "' goes back to the source."};
  if (goal != Goal::kSynced &&
      s.problem == static_cast<int>(Exit::kGivenUp) && state == "synced")
    return {true, Exit::kGivenUp,
            s.reason + "\nThe migration is still live and synced; 'livemv "
                       "cutover " + s.id + "' tries again."};
  return {};
}

Exit Follow(daemon::Registry& registry, const daemon::Registration& entry,
            Goal goal, bool as_json) {
  CatchInterrupts();
  auto lost = [&](const std::string& why) {
    std::fprintf(stderr,
                 "livemv: %s\nThe supervisor of migration %s (pid %d) is gone. "
                 "If its worker lives, applications go on; look with 'ps'. The "
                 "journal is in %s: 'livemv journal dump %s' shows it.\n",
                 why.c_str(), entry.id.c_str(), entry.supervisor_pid,
                 daemon::Printable(entry.state_dir).c_str(), entry.id.c_str());
    return Exit::kHuman;
  };
  Result<ControlClient> client =
      ControlClient::Connect(registry.SocketPath(entry.id));
  if (!client)
    return lost(client.error().ToString());
  if (core::Status sent = client->Send(R"({"verb":"follow"})"); !sent)
    return lost(sent.error().ToString());
  ProgressPrinter printer(!as_json);
  for (;;) {
    Result<std::string> line =
        client->ReadLine(daemon::MonotonicNs() + kTickNs);
    if (int signal = Interrupted(); signal != 0) {
      printer.EndLine();
      if (goal != Goal::kNever)
        std::fputs(GoesOn(entry.id).c_str(), stderr);
      DieOf(signal);
    }
    if (!line) {
      if (line.error().code == ErrorCode::kTimeout ||
          line.error().sys_errno == EINTR)
        continue;
      printer.EndLine();
      return lost(line.error().ToString());
    }
    Result<MigrationStatus> status = daemon::StatusFromJson(*line);
    if (!status) {
      printer.EndLine();
      return lost(status.error().ToString());
    }
    if (as_json) {
      std::printf("%s\n", line->c_str());
      std::fflush(stdout);
    }
    printer.Show(*status);
    json j = json::parse(*line, nullptr, false);
    const bool final = j.value("final", false);
    if (final && status->state == "moved")
      status->state = "finished";
    // The worker's word; the supervisor has the last one, when all is tidied.
    if (status->state == "aborted" && !final)
      continue;
    Verdict verdict = Judge(goal, *status);
    if (!verdict.over && final)
      verdict = {true, goal == Goal::kNever ? Exit::kDone
                                            : static_cast<Exit>(
                                                  j.value("exit", 9)),
                 j.value("message", "")};
    if (!verdict.over)
      continue;
    printer.EndLine();
    if (goal == Goal::kAborted && final)
      verdict.text = j.value("message", "");
    if (!verdict.text.empty())
      std::fprintf(verdict.exit == Exit::kDone ? stdout : stderr, "%s\n",
                   verdict.text.c_str());
    return verdict.exit;
  }
}

}  // namespace livemv::tools
