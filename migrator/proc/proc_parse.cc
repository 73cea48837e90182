#include "migrator/proc/proc_parse.h"

#include <sys/sysmacros.h>

#include <charconv>
#include <limits>

namespace livemv::proc {
namespace {

// Takes the text up to the next newline off *text.
std::optional<std::string_view> NextLine(std::string_view* text) {
  if (text->empty())
    return std::nullopt;
  const size_t end = text->find('\n');
  std::string_view line = text->substr(0, end);
  text->remove_prefix(end == std::string_view::npos ? text->size() : end + 1);
  return line;
}

// Takes the next word off *line; "" at the end.
std::string_view NextWord(std::string_view* line) {
  const size_t begin = line->find_first_not_of(" \t");
  if (begin == std::string_view::npos) {
    *line = {};
    return {};
  }
  line->remove_prefix(begin);
  const size_t end = line->find_first_of(" \t");
  std::string_view word = line->substr(0, end);
  line->remove_prefix(word.size());
  return word;
}

// The whole of text as a number; nullopt if it is anything else.
template <class T>
std::optional<T> Number(std::string_view text, int base = 10) {
  T value{};
  const char* end = text.data() + text.size();
  auto [at, error] = std::from_chars(text.data(), end, value, base);
  if (error != std::errc{} || at != end)
    return std::nullopt;
  return value;
}

// Reads a number in front of *text and takes it off.
template <class T>
std::optional<T> TakeNumber(std::string_view* text, int base = 10) {
  T value{};
  auto [at, error] =
      std::from_chars(text->data(), text->data() + text->size(), value, base);
  if (error != std::errc{})
    return std::nullopt;
  text->remove_prefix(static_cast<size_t>(at - text->data()));
  return value;
}

bool TakeChar(std::string_view* text, char c) {
  if (text->empty() || text->front() != c)
    return false;
  text->remove_prefix(1);
  return true;
}

bool TakePrefix(std::string_view* text, std::string_view prefix) {
  if (!text->starts_with(prefix))
    return false;
  text->remove_prefix(prefix.size());
  return true;
}

// "fe:00" in the base that the file uses.
std::optional<dev_t> MajorMinor(std::string_view text, int base) {
  auto major = TakeNumber<unsigned>(&text, base);
  if (!major || !TakeChar(&text, ':'))
    return std::nullopt;
  auto minor = Number<unsigned>(text, base);
  if (!minor)
    return std::nullopt;
  return makedev(*major, *minor);
}

// The kernel's own dev_t, as in "sdev:": 12 bits major, 20 bits minor
// (include/linux/kdev_t.h).
dev_t FromKernelDev(uint32_t dev) {
  return makedev(dev >> 20, dev & 0xfffff);
}

std::string UnescapeNewlines(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text.substr(i, 4) == "\\012") {
      out += '\n';
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::optional<std::string> FromHex(std::string_view text) {
  if (text.size() % 2 != 0)
    return std::nullopt;
  std::string out;
  out.reserve(text.size() / 2);
  for (size_t i = 0; i < text.size(); i += 2) {
    auto byte = Number<unsigned>(text.substr(i, 2), 16);
    if (!byte)
      return std::nullopt;
    out += static_cast<char>(*byte);
  }
  return out;
}

// "1: POSIX  ADVISORY  WRITE 8204 fe:00:10952887 5 14"; a waiter has "->"
// after the number.
std::optional<LockLine> ParseLock(std::string_view line) {
  LockLine lock;
  std::string_view number = NextWord(&line);
  if (number.empty() || number.back() != ':')
    return std::nullopt;
  std::string_view kind = NextWord(&line);
  if (kind == "->") {
    lock.waiting = true;
    kind = NextWord(&line);
  }
  if (kind == "POSIX" || kind == "ACCESS")
    lock.kind = LockKind::kPosix;
  else if (kind == "OFDLCK")
    lock.kind = LockKind::kOfd;
  else if (kind == "FLOCK")
    lock.kind = LockKind::kFlock;
  else if (kind == "LEASE")
    lock.kind = LockKind::kLease;
  else if (kind == "DELEG")
    lock.kind = LockKind::kDelegation;
  NextWord(&line);  // ADVISORY, MSNFS, ACTIVE, BREAKING, ...
  std::string_view mode = NextWord(&line);
  if (mode.empty())
    return std::nullopt;
  lock.write = mode == "WRITE" || mode == "RW";
  auto pid = Number<pid_t>(NextWord(&line));
  std::string_view object = NextWord(&line);
  const size_t colon = object.rfind(':');
  if (!pid || colon == std::string_view::npos)
    return std::nullopt;
  lock.pid = *pid;
  auto dev = MajorMinor(object.substr(0, colon), 16);
  auto ino = Number<uint64_t>(object.substr(colon + 1));
  auto start = Number<uint64_t>(NextWord(&line));
  std::string_view end = NextWord(&line);
  if (!dev || !ino || !start || end.empty())
    return std::nullopt;
  lock.dev = *dev;
  lock.ino = *ino;
  lock.start = *start;
  if (end != "EOF") {
    auto last = Number<uint64_t>(end);
    if (!last)
      return std::nullopt;
    lock.end = *last;
  }
  return lock;
}

// The words of an inotify or fanotify line are "key:value".
std::optional<WatchLine> ParseWatch(std::string_view line, bool fanotify) {
  WatchLine watch;
  watch.fanotify = fanotify;
  bool marks_something = false;
  while (true) {
    std::string_view word = NextWord(&line);
    if (word.empty())
      break;
    const size_t colon = word.find(':');
    if (colon == std::string_view::npos)
      continue;
    std::string_view key = word.substr(0, colon);
    std::string_view value = word.substr(colon + 1);
    if (key == "wd") {
      auto wd = Number<int>(value);
      if (!wd)
        return std::nullopt;
      watch.wd = *wd;
    } else if (key == "ino") {
      auto ino = Number<uint64_t>(value, 16);
      if (!ino)
        return std::nullopt;
      watch.ino = *ino;
    } else if (key == "sdev") {
      auto sdev = Number<uint32_t>(value, 16);
      if (!sdev)
        return std::nullopt;
      watch.sdev = FromKernelDev(*sdev);
      marks_something = true;
    } else if (key == "mnt_id") {
      auto id = Number<int>(value, 16);
      if (!id)
        return std::nullopt;
      watch.mnt_id = *id;
      marks_something = true;
    } else if (key == "fhandle-type") {
      watch.handle_type = Number<int>(value, 16).value_or(0);
    } else if (key == "f_handle") {
      watch.handle = FromHex(value).value_or("");
    }
  }
  if (!marks_something)
    return std::nullopt;
  return watch;
}

// "tfd:        5 events:       1f data:   5  pos:0 ino:a720b8 sdev:fe00000"
std::optional<EpollLine> ParseEpoll(std::string_view line) {
  EpollLine epoll;
  auto fd = Number<int>(NextWord(&line));
  if (!fd)
    return std::nullopt;
  epoll.fd = *fd;
  bool complete = false;
  while (true) {
    std::string_view word = NextWord(&line);
    if (word.empty())
      break;
    if (TakePrefix(&word, "ino:")) {
      epoll.ino = Number<uint64_t>(word, 16).value_or(0);
    } else if (TakePrefix(&word, "sdev:")) {
      auto sdev = Number<uint32_t>(word, 16);
      if (!sdev)
        return std::nullopt;
      epoll.sdev = FromKernelDev(*sdev);
      complete = true;
    }
  }
  if (!complete)
    return std::nullopt;
  return epoll;
}

}  // namespace

std::optional<ProcStat> ParseStat(std::string_view text) {
  ProcStat stat;
  auto pid = TakeNumber<pid_t>(&text);
  const size_t open = text.find('(');
  // The name may hold ") S 1"; the fields after it hold no parenthesis.
  const size_t close = text.rfind(')');
  if (!pid || open == std::string_view::npos ||
      close == std::string_view::npos || close < open)
    return std::nullopt;
  stat.pid = *pid;
  stat.comm = std::string(text.substr(open + 1, close - open - 1));
  text.remove_prefix(close + 1);
  std::string_view state = NextWord(&text);
  if (state.size() != 1)
    return std::nullopt;
  stat.state = state.front();
  // Fields are numbered as in proc(5): state is 3.
  for (int field = 4; field <= 22; ++field) {
    std::string_view word = NextWord(&text);
    if (word.empty())
      return std::nullopt;
    if (field == 4) {
      auto ppid = Number<pid_t>(word);
      if (!ppid)
        return std::nullopt;
      stat.ppid = *ppid;
    } else if (field == 9) {
      auto flags = Number<uint64_t>(word);
      if (!flags)
        return std::nullopt;
      stat.flags = *flags;
    } else if (field == 20) {
      auto threads = Number<int64_t>(word);
      if (!threads)
        return std::nullopt;
      stat.threads = *threads;
    } else if (field == 22) {
      auto start = Number<uint64_t>(word);
      if (!start)
        return std::nullopt;
      stat.start_time = *start;
    }
  }
  return stat;
}

std::optional<ProcStatus> ParseStatus(std::string_view text) {
  ProcStatus status;
  bool has_pid = false;
  bool has_uid = false;
  while (auto line = NextLine(&text)) {
    if (TakePrefix(&*line, "Pid:")) {
      auto pid = Number<pid_t>(NextWord(&*line));
      has_pid = pid.has_value();
      status.pid = pid.value_or(0);
    } else if (TakePrefix(&*line, "Tgid:")) {
      status.tgid = Number<pid_t>(NextWord(&*line)).value_or(0);
    } else if (TakePrefix(&*line, "TracerPid:")) {
      status.tracer = Number<pid_t>(NextWord(&*line)).value_or(0);
    } else if (TakePrefix(&*line, "Uid:")) {
      auto real = Number<uid_t>(NextWord(&*line));
      auto effective = Number<uid_t>(NextWord(&*line));
      has_uid = real && effective;
      status.uid = real.value_or(0);
      status.euid = effective.value_or(0);
    } else if (TakePrefix(&*line, "Seccomp:")) {
      status.seccomp = Number<int>(NextWord(&*line)).value_or(0);
    } else if (TakePrefix(&*line, "SigPnd:")) {
      status.pending = Number<uint64_t>(NextWord(&*line), 16).value_or(0);
    }
  }
  if (!has_pid || !has_uid)
    return std::nullopt;
  return status;
}

std::vector<MapLine> ParseMaps(std::string_view text, dev_t dev) {
  std::vector<MapLine> maps;
  while (auto next = NextLine(&text)) {
    std::string_view line = *next;
    MapLine map;
    auto start = TakeNumber<uint64_t>(&line, 16);
    if (!start || !TakeChar(&line, '-'))
      continue;
    auto end = TakeNumber<uint64_t>(&line, 16);
    std::string_view perms = NextWord(&line);
    auto offset = Number<uint64_t>(NextWord(&line), 16);
    auto device = MajorMinor(NextWord(&line), 16);
    auto ino = Number<uint64_t>(NextWord(&line));
    if (!end || perms.size() != 4 || !offset || !device || !ino)
      continue;
    if (*ino == 0 || (dev != 0 && *device != dev))
      continue;
    map.start = *start;
    map.end = *end;
    map.read = perms[0] == 'r';
    map.write = perms[1] == 'w';
    map.exec = perms[2] == 'x';
    map.shared = perms[3] == 's';
    map.offset = *offset;
    map.dev = *device;
    map.ino = *ino;
    const size_t path = line.find_first_not_of(' ');
    if (path != std::string_view::npos)
      map.path = UnescapeNewlines(line.substr(path));
    maps.push_back(std::move(map));
  }
  return maps;
}

bool MapsShowAio(std::string_view text) {
  while (auto next = NextLine(&text)) {
    std::string_view line = *next;
    for (int i = 0; i < 5; ++i)
      NextWord(&line);
    // fs/aio.c: the ring is a file named [aio] of a filesystem without root.
    const size_t path = line.find_first_not_of(' ');
    if (path != std::string_view::npos &&
        line.substr(path).starts_with("/[aio]"))
      return true;
  }
  return false;
}

std::string UnescapeOctal(std::string_view text) {
  auto octal = [](char c) { return c >= '0' && c <= '7'; };
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && text[i + 1] <= '3' &&
        octal(text[i + 1]) && octal(text[i + 2]) && octal(text[i + 3])) {
      out += static_cast<char>((text[i + 1] - '0') * 64 +
                               (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::vector<MountLine> ParseMountInfo(std::string_view text) {
  std::vector<MountLine> mounts;
  while (auto next = NextLine(&text)) {
    std::string_view line = *next;
    MountLine mount;
    auto id = Number<int>(NextWord(&line));
    auto parent = Number<int>(NextWord(&line));
    auto dev = MajorMinor(NextWord(&line), 10);
    mount.root = UnescapeOctal(NextWord(&line));
    mount.point = UnescapeOctal(NextWord(&line));
    mount.options = std::string(NextWord(&line));
    if (!id || !parent || !dev || mount.options.empty())
      continue;
    mount.id = *id;
    mount.parent = *parent;
    mount.dev = *dev;
    std::string_view word = NextWord(&line);
    while (!word.empty() && word != "-") {
      if (TakePrefix(&word, "shared:"))
        mount.shared = Number<int>(word).value_or(0);
      else if (TakePrefix(&word, "master:"))
        mount.master = Number<int>(word).value_or(0);
      word = NextWord(&line);
    }
    if (word != "-")
      continue;
    mount.type = UnescapeOctal(NextWord(&line));
    mount.source = UnescapeOctal(NextWord(&line));
    mount.super_options = std::string(NextWord(&line));
    if (mount.type.empty())
      continue;
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

std::vector<LockLine> ParseLocks(std::string_view text) {
  std::vector<LockLine> locks;
  while (auto line = NextLine(&text)) {
    if (auto lock = ParseLock(*line))
      locks.push_back(*lock);
  }
  return locks;
}

const char* LockKindName(LockKind kind) {
  switch (kind) {
    case LockKind::kPosix:
      return "POSIX lock";
    case LockKind::kOfd:
      return "open file description lock";
    case LockKind::kFlock:
      return "flock";
    case LockKind::kLease:
      return "lease";
    case LockKind::kDelegation:
      return "delegation";
    case LockKind::kOther:
      break;
  }
  return "lock";
}

std::optional<FdInfo> ParseFdInfo(std::string_view text) {
  FdInfo info;
  bool has_flags = false;
  while (auto next = NextLine(&text)) {
    std::string_view line = *next;
    if (TakePrefix(&line, "pos:")) {
      info.pos = Number<int64_t>(NextWord(&line)).value_or(0);
    } else if (TakePrefix(&line, "flags:")) {
      // A union of bits: printed as an unsigned octal number.
      auto flags = Number<uint32_t>(NextWord(&line), 8);
      if (!flags)
        return std::nullopt;
      info.flags = static_cast<int>(*flags);
      has_flags = true;
    } else if (TakePrefix(&line, "mnt_id:")) {
      info.mnt_id = Number<int>(NextWord(&line)).value_or(-1);
    } else if (TakePrefix(&line, "ino:")) {
      info.ino = Number<uint64_t>(NextWord(&line)).value_or(0);
    } else if (TakePrefix(&line, "lock:")) {
      if (auto lock = ParseLock(line))
        info.locks.push_back(*lock);
    } else if (TakePrefix(&line, "inotify ")) {
      if (auto watch = ParseWatch(line, false))
        info.watches.push_back(std::move(*watch));
    } else if (TakePrefix(&line, "fanotify ")) {
      if (auto watch = ParseWatch(line, true))
        info.watches.push_back(std::move(*watch));
    } else if (TakePrefix(&line, "tfd:")) {
      if (auto epoll = ParseEpoll(line))
        info.epoll.push_back(*epoll);
    } else if (TakePrefix(&line, "UserFiles:")) {
      // io_uring/fdinfo.c: one indented "  3: /path" line for each slot in
      // use, without a terminator: the first other line ends them.
      while (true) {
        std::string_view rest = text;
        auto slot = NextLine(&rest);
        if (!slot || !slot->starts_with(' '))
          break;
        std::string_view number = NextWord(&*slot);
        if (number.size() < 2 || number.back() != ':' ||
            !Number<unsigned>(number.substr(0, number.size() - 1)))
          break;
        info.ring_files.push_back(UnescapeOctal(NextWord(&*slot)));
        text = rest;
      }
    }
  }
  if (!has_flags)
    return std::nullopt;
  return info;
}

std::vector<SwapLine> ParseSwaps(std::string_view text) {
  std::vector<SwapLine> swaps;
  NextLine(&text);  // column titles
  while (auto next = NextLine(&text)) {
    std::string_view line = *next;
    SwapLine swap;
    swap.path = UnescapeOctal(NextWord(&line));
    std::string_view type = NextWord(&line);
    if (swap.path.empty() || (type != "file" && type != "partition"))
      continue;
    swap.is_file = type == "file";
    swaps.push_back(std::move(swap));
  }
  return swaps;
}

std::optional<std::string> ParseLoopBackingFile(std::string_view text) {
  if (text.ends_with('\n'))
    text.remove_suffix(1);
  if (!text.starts_with('/'))
    return std::nullopt;
  return std::string(text);
}

std::vector<std::string> ParseNfsdExports(std::string_view text) {
  std::vector<std::string> paths;
  while (auto next = NextLine(&text)) {
    std::string_view line = *next;
    std::string_view path = NextWord(&line);
    if (path.starts_with('/'))
      paths.push_back(UnescapeOctal(path));
  }
  return paths;
}

std::vector<std::string> ParseFilesystems(std::string_view text) {
  std::vector<std::string> names;
  while (auto next = NextLine(&text)) {
    std::string_view line = *next;
    std::string_view word = NextWord(&line);
    if (word == "nodev")
      word = NextWord(&line);
    if (!word.empty())
      names.push_back(std::string(word));
  }
  return names;
}

}  // namespace livemv::proc
