#include "migrator/trace/descriptor_swap.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "core/fault_points.h"
#include "core/unique_fd.h"

namespace livemv::trace {
namespace {

using core::ErrorCode;
using core::Fail;
using core::FailSys;

// SCM_MAX_FD of include/net/scm.h.
constexpr size_t kMaxFdsPerMessage = 253;
constexpr size_t kControlBytes = CMSG_SPACE(kMaxFdsPerMessage * sizeof(int));
// More are taken one by one.
constexpr size_t kMaxTableLocks = 32;
constexpr size_t kMaxTableCalls =
    kMaxFdsPerMessage + kMaxTempRanges + kMaxTableLocks + 3;
constexpr uint64_t kPage = 4096;

// How the scratch mapping is used.
struct Scratch {
  int sockets[2];
  struct rlimit limit;
  struct flock locks[kMaxTableLocks];
  struct msghdr message;
  struct iovec vec;
  char byte;
  alignas(16) char control[kControlBytes];
  TableCall table[kMaxTableCalls];
};
constexpr uint64_t kScratchBytes = (sizeof(Scratch) + kPage - 1) & ~(kPage - 1);
// Not a result that a system call gives.
constexpr int64_t kNotMade = INT64_MIN;

struct flock RangeOf(const LockRecord& lock) {
  struct flock range = {};
  range.l_type = lock.write ? F_WRLCK : F_RDLCK;
  range.l_whence = SEEK_SET;
  range.l_start = static_cast<off_t>(lock.start);
  if (lock.end != UINT64_MAX)  // 0: to the end, wherever it will be
    range.l_len = static_cast<off_t>(lock.end - lock.start + 1);
  return range;
}

core::Status SendFds(int socket, std::span<const int> fds) {
  char byte = 0;
  struct iovec vec = {&byte, 1};
  alignas(16) char control[kControlBytes] = {};
  struct msghdr message = {};
  message.msg_iov = &vec;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_SPACE(fds.size_bytes());
  struct cmsghdr* head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(fds.size_bytes());
  std::memcpy(CMSG_DATA(head), fds.data(), fds.size_bytes());
  if (::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == 1)
    return {};
  return FailSys(errno, "send " + std::to_string(fds.size()) + " descriptors");
}

// The points are on the way there; the way back has none.
core::Status Fault(const char* name, Side side) {
  return side == Side::kNew ? core::FaultPoint(name) : core::Status{};
}

// A message header in the scratch mapping, to receive `count` descriptors.
void FillMessage(Scratch& scratch, RemotePtr at, size_t count) {
  auto remote = [at](size_t offset) {
    return reinterpret_cast<void*>(at.address() + offset);
  };
  scratch.vec.iov_base = remote(offsetof(Scratch, byte));
  scratch.vec.iov_len = 1;
  scratch.message.msg_iov =
      static_cast<struct iovec*>(remote(offsetof(Scratch, vec)));
  scratch.message.msg_iovlen = 1;
  scratch.message.msg_control = remote(offsetof(Scratch, control));
  scratch.message.msg_controllen = CMSG_SPACE(count * sizeof(int));
}

core::Result<std::vector<uint32_t>> OpenNumbers(pid_t pid, pid_t tid) {
  std::string path =
      "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/fd";
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) {
    int err = errno;
    if (err == ENOENT || err == ESRCH)
      return std::unexpected(
          core::Error{ErrorCode::kGone, err, "open " + path});
    return FailSys(err, "open " + path);
  }
  std::vector<uint32_t> numbers;
  while (struct dirent* entry = ::readdir(dir)) {
    if (entry->d_name[0] != '.')
      numbers.push_back(
          static_cast<uint32_t>(std::strtoul(entry->d_name, nullptr, 10)));
  }
  ::closedir(dir);
  std::ranges::sort(numbers);
  return numbers;
}

}  // namespace

std::vector<NumberRange> LowestFree(const std::vector<uint32_t>& used,
                                    size_t count, size_t max_ranges) {
  std::vector<NumberRange> ranges;
  uint32_t next = 0;
  size_t i = 0;
  while (count > 0 && ranges.size() < max_ranges) {
    while (i < used.size() && used[i] == next) {
      ++next;
      ++i;
    }
    uint32_t room = i < used.size() ? used[i] - next : UINT32_MAX - next;
    uint32_t take = static_cast<uint32_t>(std::min<size_t>(room, count));
    ranges.push_back({next, next + take - 1});
    next += take;
    count -= take;
  }
  return ranges;
}

core::Result<bool> DescriptorSwap::Holds(int at, int ours) {
  long order =
      ::syscall(SYS_kcmp, calls_.tid(), ::getpid(), KCMP_FILE, at, ours);
  if (order >= 0)
    return order == 0;
  if (errno == EBADF)
    return false;
  std::string what = "compare descriptor " + std::to_string(at) +
                     " of thread " + std::to_string(calls_.tid());
  if (errno == ESRCH)
    return std::unexpected(core::Error{ErrorCode::kGone, ESRCH, what});
  return FailSys(errno, what);
}

bool DescriptorSwap::IsWorkingDirectory(int ours) {
  std::string link = "/proc/" + std::to_string(calls_.pid()) + "/task/" +
                     std::to_string(calls_.tid()) + "/cwd";
  constexpr unsigned kMask = STATX_INO;
  struct statx is = {}, want = {};
  return ::statx(AT_FDCWD, link.c_str(), AT_STATX_DONT_SYNC, kMask, &is) == 0 &&
         ::statx(ours, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, kMask, &want) ==
             0 &&
         is.stx_ino == want.stx_ino && is.stx_dev_major == want.stx_dev_major &&
         is.stx_dev_minor == want.stx_dev_minor;
}

std::vector<DescriptorSwap::Item> DescriptorSwap::Missing(Side side) {
  std::vector<Item> items;
  bool fresh = move_.state == MoveState::kRecorded;
  for (const FdRecord& fd : escrow_.FdsOf(move_)) {
    int with = side == Side::kNew ? fd.new_fd : fd.old_fd;
    // Close-on-exec is set with each dup3, so a number that holds the right
    // description has it right too.
    if (!fresh) {
      auto holds = Holds(fd.at, with);
      if (holds && *holds)
        continue;
    }
    items.push_back({fd.at, with, fd.cloexec});
  }
  // Looking where it is could ask the server; changing to the directory where
  // it already is does no harm.
  int cwd = side == Side::kNew ? move_.new_cwd : move_.old_cwd;
  if (cwd >= 0 && (side == Side::kNew || move_.cwd_touched))
    items.push_back({kCwd, cwd, true});
  return items;
}

core::Status DescriptorSwap::MapScratch() {
  if (move_.scratch)
    return {};
  move_.mapping = true;
  auto mapped =
      calls_.Call("mmap", SYS_mmap,
                  {0, kScratchBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, static_cast<uint64_t>(-1), 0},
                  deadline_ns_);
  if (mapped)
    move_.scratch = RemotePtr(*mapped);
  if (!calls_.hung())
    move_.mapping = false;
  TRY(mapped);
  return {};
}

core::Status DescriptorSwap::CloseTemps() {
  uint32_t count = move_.temp_count;
  for (uint32_t i = 0; i < count; ++i) {
    TRY(calls_.Call("close_range", SYS_close_range,
                    {move_.temps[i].first, move_.temps[i].last, 0},
                    deadline_ns_));
  }
  move_.temp_count = 0;
  return {};
}

// What an attempt that failed, or a tracer that died, left in the process.
core::Status DescriptorSwap::CleanUp() {
  if (move_.mapping) {
    // It died around the call that maps; the registers tell what came of it.
    ASSIGN_OR_RETURN(Registers regs, calls_.GetRegisters());
    constexpr uint64_t kUserEnd = uint64_t{1} << 47;
    bool made = regs.rdi == 0 && regs.rsi == kScratchBytes &&
                regs.r10 == (MAP_PRIVATE | MAP_ANONYMOUS) &&
                regs.rax % kPage == 0 && regs.rax != 0 && regs.rax < kUserEnd;
    if (made)
      move_.scratch = RemotePtr(regs.rax);
    move_.mapping = false;
  }
  // A program that made all its calls has unmapped it.
  if (move_.scratch && !memory_.Read<char>(move_.scratch))
    move_.scratch = RemotePtr();
  return CloseTemps();
}

core::Result<std::vector<uint32_t>> DescriptorSwap::ExpectFree(size_t count) {
  ASSIGN_OR_RETURN(auto used, OpenNumbers(calls_.pid(), calls_.tid()));
  auto ranges = LowestFree(used, count, kMaxTempRanges);
  std::ranges::copy(ranges, move_.temps.begin());
  move_.temp_count = static_cast<uint32_t>(ranges.size());
  std::vector<uint32_t> numbers;
  for (const NumberRange& range : ranges) {
    for (uint32_t n = range.first; n <= range.last; ++n)
      numbers.push_back(n);
  }
  return numbers;
}

core::Status DescriptorSwap::SendItems(int socket_in_process,
                                       std::span<const Item> items) {
  core::UniqueFd ours(static_cast<int>(
      ::syscall(SYS_pidfd_getfd, move_.task_fd, socket_in_process, 0)));
  if (!ours)
    return FailSys(
        errno, "take a socket from process " + std::to_string(calls_.pid()));
  std::vector<int> fds;
  for (const Item& item : items)
    fds.push_back(item.with);
  return SendFds(ours.Get(), fds);
}

core::Status DescriptorSwap::RaiseLimit() {
  if (move_.limit_raised)
    return Fail(ErrorCode::kUnsupported, "the descriptor table of process " +
                                             std::to_string(calls_.pid()) +
                                             " is full");
  // Read and set by the thread itself: no privilege is needed for that.
  RemotePtr limit_at = move_.scratch + offsetof(Scratch, limit);
  TRY(calls_.Call("prlimit64", SYS_prlimit64,
                  {0, RLIMIT_NOFILE, 0, limit_at.address()}, deadline_ns_));
  ASSIGN_OR_RETURN(struct rlimit limit, memory_.Read<struct rlimit>(limit_at));
  move_.limit_soft = limit.rlim_cur;
  move_.limit_hard = limit.rlim_max;
  // Two sockets and one descriptor at a time are enough.
  rlim_t needed = limit.rlim_cur + 3;
  rlim_t wanted = limit.rlim_cur + kMaxFdsPerMessage + 3;
  if (needed <= limit.rlim_max)
    wanted = std::min(wanted, limit.rlim_max);
  struct rlimit more = {wanted, std::max(wanted, limit.rlim_max)};
  move_.limit_raised = true;
  // Beyond the hard limit only we may go, and only with CAP_SYS_RESOURCE.
  if (wanted > limit.rlim_max) {
    if (::prlimit(calls_.pid(), RLIMIT_NOFILE, &more, nullptr) == 0)
      return {};
    move_.limit_raised = false;
    return FailSys(EMFILE, "the descriptor table of process " +
                               std::to_string(calls_.pid()) +
                               " is full and its limit cannot be raised");
  }
  TRY(memory_.Write(limit_at, more));
  TRY(calls_.Call("prlimit64", SYS_prlimit64,
                  {0, RLIMIT_NOFILE, limit_at.address(), 0}, deadline_ns_));
  return {};
}

core::Status DescriptorSwap::LowerLimit() {
  if (!move_.limit_raised)
    return {};
  struct rlimit former = {move_.limit_soft, move_.limit_hard};
  RemotePtr limit_at = move_.scratch + offsetof(Scratch, limit);
  TRY(memory_.Write(limit_at, former));
  TRY(calls_.Call("prlimit64", SYS_prlimit64,
                  {0, RLIMIT_NOFILE, limit_at.address(), 0}, deadline_ns_));
  move_.limit_raised = false;
  return {};
}

core::Status DescriptorSwap::Place(const Item& item, int temp) {
  uint64_t number = static_cast<uint64_t>(temp);
  if (item.at == kCwd) {
    ASSIGN_OR_RETURN(bool ours, Holds(temp, item.with));
    if (!ours)
      return Fail(ErrorCode::kConflict,
                  "thread " + std::to_string(calls_.tid()) +
                      " received another directory than was sent");
    move_.cwd_touched = true;
    auto changed = calls_.Call("fchdir", SYS_fchdir, {number}, deadline_ns_);
    // It was refused on the way there, and so it is on the way back (a
    // directory that the process may not search), but it never left.
    if (!changed && side_ == Side::kOld && !calls_.hung() &&
        IsWorkingDirectory(item.with))
      return {};
    TRY(changed);
    return {};
  }
  TRY(calls_.Call("dup3", SYS_dup3,
                  {number, static_cast<uint64_t>(item.at),
                   static_cast<uint64_t>(item.cloexec ? O_CLOEXEC : 0)},
                  deadline_ns_));
  ASSIGN_OR_RETURN(bool ours, Holds(item.at, item.with));
  if (!ours)
    return Fail(ErrorCode::kConflict, "descriptor " + std::to_string(item.at) +
                                          " of thread " +
                                          std::to_string(calls_.tid()) +
                                          " is not what was put there");
  return {};
}

core::Status DescriptorSwap::TakeLocks(bool* lost) {
  for (const LockRecord& lock : escrow_.LocksOf(move_)) {
    RemotePtr at = move_.scratch + offsetof(Scratch, locks);
    TRY(memory_.Write(at, RangeOf(lock)));
    auto taken = calls_.Call(
        "fcntl", SYS_fcntl,
        {static_cast<uint64_t>(lock.at), F_SETLK, at.address()}, deadline_ns_);
    const int err = taken ? 0 : taken.error().sys_errno;
    if (side_ == Side::kOld && (err == EAGAIN || err == EACCES)) {
      *lost = true;
      continue;
    }
    if (!taken)
      return Fail(std::move(taken).error().With(
          "take the POSIX lock of descriptor " + std::to_string(lock.at) +
          " of process " + std::to_string(calls_.pid()) + " again"));
  }
  return {};
}

core::Result<size_t> DescriptorSwap::Install(std::span<const Item> items) {
  items = items.first(std::min(items.size(), kMaxFdsPerMessage));
  ASSIGN_OR_RETURN(auto numbers, ExpectFree(2 + items.size()));
  items = items.first(std::min(items.size(), numbers.size() - 2));

  RemotePtr sockets_at = move_.scratch + offsetof(Scratch, sockets);
  TRY(calls_.Call("socketpair", SYS_socketpair,
                  {AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sockets_at.address()},
                  deadline_ns_));
  ASSIGN_OR_RETURN(auto sockets,
                   (memory_.Read<std::array<int, 2>>(sockets_at)));
  TRY(SendItems(sockets[0], items));

  auto scratch = std::make_unique<Scratch>();
  FillMessage(*scratch, move_.scratch, items.size());
  TRY(memory_.Write(move_.scratch, scratch.get(), offsetof(Scratch, control)));
  RemotePtr message_at = move_.scratch + offsetof(Scratch, message);
  TRY(calls_.Call("recvmsg", SYS_recvmsg,
                  {static_cast<uint64_t>(sockets[1]), message_at.address(),
                   MSG_CMSG_CLOEXEC | MSG_DONTWAIT},
                  deadline_ns_));
  TRY(memory_.Read(
      move_.scratch, scratch.get(),
      offsetof(Scratch, control) + CMSG_SPACE(items.size() * sizeof(int))));
  struct cmsghdr head;
  std::memcpy(&head, scratch->control, sizeof head);
  size_t received = scratch->message.msg_controllen < CMSG_LEN(sizeof(int))
                        ? 0
                        : (head.cmsg_len - CMSG_LEN(0)) / sizeof(int);
  // Fewer: the table is full (net/core/scm.c cuts the rest off).
  if (received == 0 || received > items.size())
    return FailSys(EMFILE, "receive descriptors in process " +
                               std::to_string(calls_.pid()));
  std::vector<int> temps(received);
  std::memcpy(temps.data(), scratch->control + CMSG_LEN(0),
              received * sizeof(int));
  for (size_t i = 0; i < received; ++i) {
    TRY(Place(items[i], temps[i]));
    TRY(Fault("trace.placed", side_));
  }
  TRY(CloseTemps());
  return received;
}

core::Status DescriptorSwap::To(Side side, int64_t deadline_ns) {
  side_ = side;
  deadline_ns_ = deadline_ns;
  TRY(calls_.Settle(deadline_ns));
  std::vector<Item> missing = Missing(side);
  move_.state = side == Side::kNew ? MoveState::kMoving : MoveState::kReturning;
  TRY(CleanUp());
  if (!missing.empty() || move_.lock_count != 0) {
    TRY(MapScratch());
    std::span<const Item> rest = missing;
    while (!rest.empty()) {
      TRY(Fault("trace.mid_swap", side));
      auto installed = Install(rest);
      if (!installed) {
        bool full = installed.error().sys_errno == EMFILE;
        if (!full || calls_.hung())
          return std::unexpected(std::move(installed).error());
        TRY(CloseTemps());
        TRY(RaiseLimit());
        continue;
      }
      rest = rest.subspan(*installed);
    }
  }
  bool lost = false;
  if (move_.lock_count != 0) {
    TRY(Fault("trace.unlocked", side));
    TRY(TakeLocks(&lost));
  }
  // Also for an earlier attempt that got no further than this.
  if (move_.scratch) {
    TRY(LowerLimit());
    TRY(calls_.Call("munmap", SYS_munmap,
                    {move_.scratch.address(), kScratchBytes}, deadline_ns_));
    move_.scratch = RemotePtr();
  }
  move_.state = side == Side::kNew ? MoveState::kMoved : MoveState::kReturned;
  if (lost)
    return Fail(ErrorCode::kConflict,
                "a POSIX lock of process " + std::to_string(calls_.pid()) +
                    " was taken by another while it was being put back");
  return {};
}

core::Status DescriptorSwap::WriteTable(const std::vector<uint32_t>& numbers) {
  auto scratch = std::make_unique<Scratch>();
  FillMessage(*scratch, move_.scratch, items_.size());
  size_t n = 0;
  auto add = [&](long nr, const Arguments& args) {
    scratch->table[n++] = {nr, args, kNotMade};
  };
  add(SYS_socketpair, {AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0,
                       move_.scratch.address() + offsetof(Scratch, sockets)});
  // Waits for what we send once we have taken the other end.
  add(SYS_recvmsg,
      {numbers[1], move_.scratch.address() + offsetof(Scratch, message),
       MSG_CMSG_CLOEXEC});
  for (size_t i = 0; i < items_.size(); ++i) {
    uint64_t temp = numbers[2 + i];
    if (items_[i].at == kCwd)
      add(SYS_fchdir, {temp});
    else
      add(SYS_dup3, {temp, static_cast<uint64_t>(items_[i].at),
                     items_[i].cloexec ? uint64_t{O_CLOEXEC} : 0});
  }
  for (uint32_t i = 0; i < move_.temp_count; ++i)
    add(SYS_close_range, {move_.temps[i].first, move_.temps[i].last, 0});
  auto locks = escrow_.LocksOf(move_);
  for (size_t i = 0; i < locks.size(); ++i) {
    scratch->locks[i] = RangeOf(locks[i]);
    add(SYS_fcntl,
        {static_cast<uint64_t>(locks[i].at), F_SETLK,
         move_.scratch.address() + offsetof(Scratch, locks) +
             i * sizeof(struct flock)});
  }
  table_calls_ = n;
  scratch->table[n++].nr = kTableEnd;
  return memory_.Write(move_.scratch, scratch.get(),
                       offsetof(Scratch, table) + n * sizeof(TableCall));
}

bool DescriptorSwap::StartRun(Side side, int64_t deadline_ns) {
  side_ = side;
  deadline_ns_ = deadline_ns;
  if (!calls_.MayRunProgram() || calls_.hung() || move_.scratch ||
      move_.mapping || move_.temp_count != 0)
    return false;
  items_ = Missing(side);
  if (items_.empty() || items_.size() > kMaxFdsPerMessage ||
      move_.lock_count > kMaxTableLocks)
    return false;
  move_.state = side == Side::kNew ? MoveState::kMoving : MoveState::kReturning;
  move_.mapping = true;
  return calls_
      .Start("mmap", SYS_mmap,
             {0, kScratchBytes, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS, static_cast<uint64_t>(-1), 0})
      .has_value();
}

bool DescriptorSwap::PassEntry() {
  return calls_.PassEntry(deadline_ns_).has_value();
}

bool DescriptorSwap::Launch() {
  auto mapped = calls_.Finish("mmap", deadline_ns_);
  if (mapped)
    move_.scratch = RemotePtr(*mapped);
  if (!calls_.hung())
    move_.mapping = false;
  if (!mapped)
    return false;
  auto numbers = ExpectFree(2 + items_.size());
  if (!numbers || numbers->size() < 2 + items_.size())
    return false;
  socket_number_ = static_cast<int>((*numbers)[0]);
  RemotePtr table = move_.scratch + offsetof(Scratch, table);
  if (move_.old_cwd >= 0)
    move_.cwd_touched = true;
  return WriteTable(*numbers) &&
         calls_.StartProgram(move_.scratch, kScratchBytes, table);
}

DescriptorSwap::Progress DescriptorSwap::Look() {
  if (!calls_.KeepRunning())
    return Progress::kFailed;
  if (socket_number_ >= 0) {
    auto sent = SendItems(socket_number_, items_);
    if (sent)
      socket_number_ = -1;
    else if (sent.error().sys_errno != EBADF)  // EBADF: not made yet
      return Progress::kFailed;
  }
  std::vector<TableCall> table(table_calls_);
  auto read = memory_.Read(move_.scratch + offsetof(Scratch, table),
                           table.data(), table.size() * sizeof(TableCall));
  // Unmapped: all calls have succeeded.
  if (!read)
    return read.error().sys_errno == EFAULT ? Progress::kDone
                                            : Progress::kFailed;
  for (const TableCall& call : table) {
    if (call.ret == kNotMade)
      break;
    if (call.ret < 0)
      return Progress::kFailed;
  }
  return Progress::kBusy;
}

void DescriptorSwap::StartEnd() {
  // A thread that is gone shows that in End.
  (void)calls_.InterruptProgram();
}

bool DescriptorSwap::End() {
  if (!calls_.Settle(deadline_ns_) || memory_.Read<char>(move_.scratch))
    return false;
  move_.scratch = RemotePtr();
  for (const Item& item : items_) {
    auto holds =
        item.at == kCwd ? core::Result<bool>(true) : Holds(item.at, item.with);
    if (!holds || !*holds)
      return false;
  }
  // The program has closed them. A directory it changed to is the right one:
  // its number could hold nothing but what was sent in that place.
  move_.temp_count = 0;
  move_.state = side_ == Side::kNew ? MoveState::kMoved : MoveState::kReturned;
  return true;
}

core::Status SwapTogether(
    std::span<const std::unique_ptr<DescriptorSwap>> swaps, Side side,
    int64_t deadline_ns) {
  std::vector<DescriptorSwap*> running;
  for (auto& swap : swaps) {
    if (swap->StartRun(side, deadline_ns))
      running.push_back(swap.get());
  }
  std::erase_if(running, [](auto* swap) { return !swap->PassEntry(); });
  core::Status status;
  std::vector<DescriptorSwap*> launched;
  for (DescriptorSwap* swap : running) {
    // All that were started are seen through.
    if (swap->Launch())
      launched.push_back(swap);
    if (auto fault = Fault("trace.mid_swap", side); !fault)
      status = std::move(fault);
  }
  running = launched;
  while (!running.empty()) {
    size_t before = running.size();
    std::erase_if(running, [&](DescriptorSwap* swap) {
      if (swap->Look() == DescriptorSwap::Progress::kBusy)
        return false;
      swap->StartEnd();
      if (auto fault = Fault("trace.placed", side); !fault)
        status = std::move(fault);
      return true;
    });
    if (running.size() == before) {
      if (MonotonicNs() >= deadline_ns)
        break;
      struct timespec nap = {0, 20'000};
      ::nanosleep(&nap, nullptr);
    }
  }
  for (DescriptorSwap* swap : running)
    swap->StartEnd();
  for (DescriptorSwap* swap : launched)
    (void)swap->End();  // its state says what came of it
  return status;
}

}  // namespace livemv::trace
