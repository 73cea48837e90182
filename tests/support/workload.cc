// A workload that checks itself, for the demonstration, the end-to-end tests
// and the benchmarks: processes that write numbered lines into a directory
// while something happens to it, and afterwards a count of what arrived.
//
//   workload run DIR OUT [--by-path=N] [--held=N] [--shared=N]
//                        [--interval-ms=5] [--seconds=S] [--until-file=PATH]
//       N processes a kind:
//         by-path  chdir(DIR), then open, append, close by relative name
//         held     one O_APPEND descriptor for the whole run
//         shared   pairs (parent and child) that share one descriptor with a
//                  plain offset
//       Ends after S seconds, on SIGTERM, or when PATH exists; then writes
//       OUT: a line of JSON a process {name, kind, written, errors, last_error,
//       longest_gap_ms, usual_gap_ms, gaps}; gaps lists up to 1000 gaps of more
//       than twice the interval as [end in ms of CLOCK_MONOTONIC, length in ms].
//   workload check DIR OUT
//       Compares the files below DIR with OUT; prints a line of JSON a process
//       and one of totals {written, lost, duplicated, foreign, errors,
//       longest_gap_ms}; exits 1 if anything was lost, doubled or failed.
//
// A line is "<writer> <sequence> <40 times the same letter>\n". A line counts
// as written when write(2) returned its whole length.

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace {

enum class Kind { kByPath, kHeld, kShared };
const char* const kKindName[] = {"by-path", "held", "shared"};

struct Stats {  // one a process, in memory shared with the parent
  char name[32];
  char file[64];
  Kind kind;
  std::atomic<uint64_t> written;
  std::atomic<uint64_t> errors;
  std::atomic<int> last_error;
  std::atomic<int64_t> longest_gap_ns;
  std::atomic<int64_t> gap_sum_ns;
  uint32_t gap_count;
  struct {
    int64_t end_ns, length_ns;
  } gaps[1000];
};

std::atomic<bool>* stop_all;
void OnTerm(int) {
  stop_all->store(true);
}

int64_t Now() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1'000'000'000LL + ts.tv_nsec;
}

size_t MakeLine(char* buf, size_t size, const char* name, uint64_t seq) {
  // A fixed width, so that lines of a shared offset never overlap by length.
  int n = snprintf(buf, size, "%-12s %010llu %.*s\n", name,
                   static_cast<unsigned long long>(seq), 40,
                   "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz");
  return static_cast<size_t>(n);
}

void Fail(Stats* s, int err) {
  s->errors++;
  s->last_error = err;
}

// One process: writes until told to stop. fd >= 0: a descriptor to use.
[[noreturn]] void Writer(Stats* s, const char* dir, int fd, int interval_ms) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (chdir(dir) != 0) {
    Fail(s, errno);
    _exit(1);
  }
  if (s->kind == Kind::kHeld) {
    fd = open(s->file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) {
      Fail(s, errno);
      _exit(1);
    }
  }
  char line[96];
  uint64_t seq = 0;
  int64_t last = Now();
  while (!stop_all->load()) {
    size_t len = MakeLine(line, sizeof line, s->name, seq);
    int out = fd;
    if (s->kind == Kind::kByPath) {
      out = open(s->file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
      if (out < 0)
        Fail(s, errno);
    }
    if (out >= 0) {
      ssize_t n = write(out, line, len);
      if (n == static_cast<ssize_t>(len)) {
        s->written = ++seq;
      } else {
        Fail(s, n < 0 ? errno : ENOSPC);
        if (n > 0)
          seq++;  // part of the line is there: do not use the number again
      }
      if (s->kind == Kind::kByPath && close(out) != 0)
        Fail(s, errno);
    }
    int64_t now = Now(), gap = now - last;
    last = now;
    s->gap_sum_ns += gap;
    if (gap > s->longest_gap_ns)
      s->longest_gap_ns = gap;
    if (gap > 2'000'000LL * interval_ms && s->gap_count < 1000)
      s->gaps[s->gap_count++] = {now, gap};
    timespec pause = {interval_ms / 1000, (interval_ms % 1000) * 1'000'000L};
    nanosleep(&pause, nullptr);
  }
  if (fd >= 0 && s->kind == Kind::kHeld && fsync(fd) != 0)
    Fail(s, errno);
  _exit(0);
}

const char* Option(int argc, char** argv, const char* name) {
  size_t n = strlen(name);
  for (int i = 4; i < argc; i++)
    if (strncmp(argv[i], name, n) == 0 && argv[i][n] == '=')
      return argv[i] + n + 1;
  return nullptr;
}
int IntOption(int argc, char** argv, const char* name, int fallback) {
  const char* v = Option(argc, argv, name);
  return v != nullptr ? atoi(v) : fallback;
}

int Run(int argc, char** argv) {
  const char* dir = argv[2];
  int counts[] = {IntOption(argc, argv, "--by-path", 0),
                  IntOption(argc, argv, "--held", 0),
                  IntOption(argc, argv, "--shared", 0)};
  int interval = IntOption(argc, argv, "--interval-ms", 5);
  int seconds = IntOption(argc, argv, "--seconds", 0);
  const char* until = Option(argc, argv, "--until-file");

  size_t total = static_cast<size_t>(counts[0] + counts[1] + 2 * counts[2]);
  size_t bytes = sizeof(Stats) * total + sizeof(std::atomic<bool>);
  void* shared = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) {
    perror("mmap");
    return 2;
  }
  auto* stats = static_cast<Stats*>(shared);
  stop_all = new (stats + total) std::atomic<bool>(false);
  signal(SIGTERM, OnTerm);
  signal(SIGINT, OnTerm);

  int64_t start = Now();
  std::vector<pid_t> pids;
  size_t next = 0;
  for (int kind = 0; kind < 3; kind++) {
    for (int i = 0; i < counts[kind]; i++) {
      int fd = -1;
      char file[64];
      snprintf(file, sizeof file, "%s-%d.log", kKindName[kind], i);
      if (kind == static_cast<int>(Kind::kShared)) {
        std::string path = std::string(dir) + "/" + file;
        fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
        if (fd < 0) {
          perror(path.c_str());
          return 2;
        }
      }
      int members = kind == static_cast<int>(Kind::kShared) ? 2 : 1;
      for (int m = 0; m < members; m++) {
        Stats* s = new (&stats[next++]) Stats{};
        s->kind = static_cast<Kind>(kind);
        snprintf(s->name, sizeof s->name, "%c%d%s", kKindName[kind][0], i,
                 members == 2 ? (m == 0 ? "a" : "b") : "");
        snprintf(s->file, sizeof s->file, "%s", file);
        pid_t pid = fork();
        if (pid < 0) {
          perror("fork");
          return 2;
        }
        if (pid == 0)
          Writer(s, dir, fd, interval);
        pids.push_back(pid);
      }
      if (fd >= 0)
        close(fd);
    }
  }
  printf("started %zu\n", pids.size());
  fflush(stdout);
  while (!stop_all->load()) {
    timespec tick = {0, 20'000'000};
    nanosleep(&tick, nullptr);
    if (seconds > 0 && Now() - start > seconds * 1'000'000'000LL)
      stop_all->store(true);
    if (until != nullptr && access(until, F_OK) == 0)
      stop_all->store(true);
  }
  bool died = false;
  for (pid_t pid : pids) {
    int status = 0;
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
      died = true;
  }
  std::ofstream out(argv[3], std::ios::trunc);
  for (size_t i = 0; i < next; i++) {
    Stats& s = stats[i];
    uint64_t n = s.written + s.errors;
    char buf[512];
    snprintf(buf, sizeof buf,
             "{\"name\":\"%s\",\"kind\":\"%s\",\"file\":\"%s\",\"written\":%llu,"
             "\"errors\":%llu,\"last_error\":\"%s\",\"longest_gap_ms\":%.2f,"
             "\"usual_gap_ms\":%.2f,\"gaps\":[",
             s.name, kKindName[static_cast<int>(s.kind)], s.file,
             static_cast<unsigned long long>(s.written),
             static_cast<unsigned long long>(s.errors),
             s.last_error ? strerror(s.last_error) : "",
             static_cast<double>(s.longest_gap_ns) / 1e6,
             n ? static_cast<double>(s.gap_sum_ns) / 1e6 /
                     static_cast<double>(n)
               : 0.0);
    out << buf;
    for (uint32_t g = 0; g < s.gap_count; g++) {
      snprintf(buf, sizeof buf, "%s[%.1f,%.2f]", g == 0 ? "" : ",",
               static_cast<double>(s.gaps[g].end_ns) / 1e6,
               static_cast<double>(s.gaps[g].length_ns) / 1e6);
      out << buf;
    }
    out << "]}\n";
  }
  out.close();
  return died || !out ? 1 : 0;
}

std::string Field(const std::string& json, const char* key) {
  std::string mark = std::string("\"") + key + "\":";
  size_t at = json.find(mark);
  if (at == std::string::npos)
    return "";
  at += mark.size();
  if (json[at] == '"') {
    size_t end = json.find('"', at + 1);
    return json.substr(at + 1, end - at - 1);
  }
  return json.substr(at, json.find_first_of(",}", at) - at);
}

int Check(char** argv) {
  std::ifstream in(argv[3]);
  if (!in) {
    perror(argv[3]);
    return 2;
  }
  struct Expect {
    std::string json, file;
    uint64_t written;
  };
  std::map<std::string, Expect> expect;
  uint64_t errors = 0, total = 0;
  double gap = 0;
  for (std::string line; std::getline(in, line);) {
    uint64_t written = strtoull(Field(line, "written").c_str(), nullptr, 10);
    expect[Field(line, "name")] = {line, Field(line, "file"), written};
    errors += strtoull(Field(line, "errors").c_str(), nullptr, 10);
    total += written;
    gap = std::max(gap, strtod(Field(line, "longest_gap_ms").c_str(), nullptr));
  }
  // writer -> times each sequence number was seen
  std::map<std::string, std::vector<uint8_t>> seen;
  std::map<std::string, bool> read;
  uint64_t foreign = 0;
  for (auto& [name, e] : expect) {
    if (read[e.file])
      continue;
    read[e.file] = true;
    std::ifstream file(std::string(argv[2]) + "/" + e.file);
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::string who, seq, rest;
      words >> who >> seq >> rest;
      auto it = expect.find(who);
      if (it == expect.end() || it->second.file != e.file ||
          rest.size() != 40) {
        foreign++;
        continue;
      }
      uint64_t n = strtoull(seq.c_str(), nullptr, 10);
      auto& v = seen[who];
      if (n >= v.size())
        v.resize(n + 1);
      if (v[n] < 255)
        v[n]++;
    }
  }
  uint64_t lost = 0, doubled = 0;
  for (auto& [name, e] : expect) {
    auto& v = seen[name];
    uint64_t l = 0, d = 0;
    for (uint64_t n = 0; n < std::max<uint64_t>(e.written, v.size()); n++) {
      uint8_t times = n < v.size() ? v[n] : 0;
      if (times == 0 && n < e.written)
        l++;
      if (times > 1)
        d += times - 1u;
    }
    lost += l;
    doubled += d;
    std::string json = e.json;
    json.pop_back();
    printf("%s,\"lost\":%llu,\"duplicated\":%llu}\n", json.c_str(),
           static_cast<unsigned long long>(l),
           static_cast<unsigned long long>(d));
  }
  printf(
      "{\"total\":true,\"processes\":%zu,\"written\":%llu,\"lost\":%llu,"
      "\"duplicated\":%llu,\"foreign\":%llu,\"errors\":%llu,"
      "\"longest_gap_ms\":%.2f}\n",
      expect.size(), static_cast<unsigned long long>(total),
      static_cast<unsigned long long>(lost),
      static_cast<unsigned long long>(doubled),
      static_cast<unsigned long long>(foreign),
      static_cast<unsigned long long>(errors), gap);
  return lost + doubled + foreign + errors > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc >= 4 && strcmp(argv[1], "run") == 0)
    return Run(argc, argv);
  if (argc >= 4 && strcmp(argv[1], "check") == 0)
    return Check(argv);
  fprintf(stderr, "usage: workload run|check DIR OUT [--by-path=N] "
                  "[--held=N] [--shared=N] [--interval-ms=N] [--seconds=N] "
                  "[--until-file=PATH]\n");
  return 64;
}
