#include "migrator/trace/frozen_set.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "core/fault_points.h"
#include "core/log.h"
#include "core/unique_fd.h"
#include "migrator/trace/descriptor_swap.h"
#include "migrator/trace/escrow.h"
#include "migrator/trace/guardian.h"
#include "migrator/trace/lane.h"

namespace livemv::trace {
namespace {

using core::ErrorCode;
using core::Fail;
using core::FailSys;

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL  // Linux 6.9
#endif

// What putting back and thawing may take beyond the deadline: it must be done
// in any case, and takes milliseconds unless a thread hangs.
constexpr int64_t kGraceNs = 2'000'000'000;
constexpr size_t kMaxLanes = 4;

bool IsGone(const core::Error& error) {
  return error.code == ErrorCode::kGone;
}

class FrozenSetImpl final : public FrozenSet {
 public:
  FrozenSetImpl(std::unique_ptr<Escrow> escrow,
                std::unique_ptr<Guardian> guardian)
      : escrow_(std::move(escrow)), guardian_(std::move(guardian)) {}

  ~FrozenSetImpl() override {
    if (lanes_.empty())
      return;
    if (!escrow_->header().committed) {
      auto undone = Undo();
      if (!undone)
        LOG_ERROR("undo: {}", undone.error().ToString());
    }
    auto thawed = Thaw();
    if (!thawed)
      LOG_ERROR("thaw: {}", thawed.error().ToString());
  }

  core::Status Freeze(const std::vector<pid_t>& pids, int64_t deadline_ns,
                      std::vector<Unstopped>* unstopped) override;
  core::Status Swap(const std::vector<Move>& moves) override;
  core::Status Undo() override;
  void Commit() override;
  core::Result<std::vector<Pause>> Thaw() override;

 private:
  using Lanes = std::vector<std::unique_ptr<Lane>>;
  using Swaps = std::vector<std::unique_ptr<DescriptorSwap>>;

  core::Result<Lanes> Distribute(const std::vector<pid_t>& pids);
  core::Status ParkAll(Lanes& lanes);
  static core::Status ForAll(Lanes& lanes,
                             const std::function<core::Status(Lane&)>& job);
  core::Status RecordMoves(Lane& lane, const std::vector<Move>& moves);
  core::Status RecordMove(const TracedProcess& process, uint32_t process_record,
                          const Move& move, Lane& lane);
  core::Status TakeInverse(MoveRecord& record, const ThreadRecord& thread,
                           const Move& move, std::vector<core::UniqueFd>* keep);
  core::Result<int> TaskFd(const TracedProcess& process,
                           const ThreadRecord& thread,
                           std::vector<core::UniqueFd>* keep);
  int64_t Grace() const {
    return std::max(deadline_ns_, MonotonicNs() + kGraceNs);
  }
  void EndFreeze();

  std::unique_ptr<Escrow> escrow_;
  // Destroyed before the escrow.
  std::unique_ptr<Guardian> guardian_;
  Lanes lanes_;
  std::unordered_set<pid_t> pids_;
  int64_t deadline_ns_ = 0;
  std::mutex keep_mu_;
  // The inverse, and pidfds; guarded by keep_mu_.
  std::vector<core::UniqueFd> keep_;
  // Of freezes that have ended. Closed last: the close of a file on the overlay
  // waits for whoever writes to it (fs/fuse/file.c, fuse_flush takes the inode's
  // lock), and a writer that was thawed waits for the gate, which our caller
  // opens after us.
  std::vector<core::UniqueFd> discarded_;
};

core::Status FrozenSetImpl::ForAll(
    Lanes& lanes, const std::function<core::Status(Lane&)>& job) {
  for (auto& lane : lanes)
    lane->Start([&job, &lane = *lane] { return job(lane); });
  core::Status first;
  for (auto& lane : lanes) {
    auto status = lane->Finish();
    if (!status && first)
      first = std::move(status);
  }
  return first;
}

core::Result<FrozenSetImpl::Lanes> FrozenSetImpl::Distribute(
    const std::vector<pid_t>& pids) {
  size_t cpus = std::max(1u, std::thread::hardware_concurrency());
  size_t count = std::min({cpus, kMaxLanes, std::max<size_t>(1, pids.size())});
  Lanes lanes;
  for (size_t i = 0; i < count; ++i)
    lanes.push_back(std::make_unique<Lane>(*escrow_));
  size_t next = 0;
  auto tasks = MakeTaskView();
  SleepClock sleep_clock(*tasks);
  std::unordered_map<pid_t, size_t> lane_of;
  const std::unordered_set<pid_t> together(pids.begin(), pids.end());
  for (pid_t pid : pids) {
    // A child of vfork goes into its parent's lane: the parent stops only when
    // the child is let go, which the lane of the child has to do.
    pid_t eldest = pid;
    for (;;) {
      auto stat = tasks->Stat(eldest, eldest);
      if (!stat || !together.contains(stat->parent) ||
          !tasks->SharesMemory(eldest, stat->parent))
        break;
      eldest = stat->parent;
    }
    TracedProcess process;
    process.pid = pid;
    process.sleeps = sleep_clock.Look(pid);
    core::UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (!pidfd) {
      if (errno == ESRCH)
        continue;  // gone
      return FailSys(errno, "pidfd_open of process " + std::to_string(pid));
    }
    ASSIGN_OR_RETURN(uint32_t record, escrow_->AddProcess());
    ProcessRecord& entry = escrow_->processes()[record];
    entry.pid = pid;
    entry.pidfd = process.pidfd = pidfd.Get();
    keep_.push_back(std::move(pidfd));
    entry.used = 1;
    auto [place, fresh] = lane_of.try_emplace(eldest, next % count);
    if (fresh)
      ++next;
    Lane& lane = *lanes[place->second];
    lane.processes.push_back(std::move(process));
    lane.records.push_back(record);
  }
  return lanes;
}

core::Status FrozenSetImpl::Freeze(const std::vector<pid_t>& pids,
                                   int64_t deadline_ns,
                                   std::vector<Unstopped>* unstopped) {
  std::vector<pid_t> wanted;
  for (pid_t pid : pids) {
    if (!pids_.contains(pid) && !std::ranges::count(wanted, pid))
      wanted.push_back(pid);
  }
  if (wanted.empty())
    return {};
  if (!guardian_)
    return Fail(ErrorCode::kInvalid,
                "an earlier freeze has left processes to the guardian");
  deadline_ns_ = deadline_ns;
  ASSIGN_OR_RETURN(Lanes lanes, Distribute(wanted));
  if (lanes_.empty())
    core::HoldLogs();
  auto frozen =
      ForAll(lanes, [&](Lane& lane) { return lane.Freeze(deadline_ns); });
  if (frozen)
    frozen = core::FaultPoint("trace.seized");
  if (!frozen) {
    // Release cannot fail: what it cannot let go of goes with the lane.
    (void)ForAll(lanes, [](Lane& lane) -> core::Status {
      lane.Release();
      return {};
    });
  } else {
    frozen = ParkAll(lanes);
  }
  if (!frozen) {
    for (auto& lane : lanes)
      std::ranges::move(lane->unstopped, std::back_inserter(*unstopped));
    lanes.clear();
    if (lanes_.empty())
      EndFreeze();
    return frozen;
  }
  pids_.insert(wanted.begin(), wanted.end());
  std::ranges::move(lanes, std::back_inserter(lanes_));
  return {};
}

core::Status FrozenSetImpl::ParkAll(Lanes& lanes) {
  auto parked = ForAll(lanes, [](Lane& lane) { return lane.Park(); });
  if (parked)
    parked = core::FaultPoint("trace.parked");
  if (parked)
    return {};
  auto thawed = ForAll(lanes, [&](Lane& lane) {
    std::vector<Pause> pauses;
    return lane.Thaw({}, Grace(), &pauses);
  });
  if (!thawed)
    LOG_ERROR("thaw after a failed parking: {}", thawed.error().ToString());
  return parked;
}

core::Result<int> FrozenSetImpl::TaskFd(const TracedProcess& process,
                                        const ThreadRecord& thread,
                                        std::vector<core::UniqueFd>* keep) {
  if (thread.tid == process.pid)
    return process.pidfd;
  core::UniqueFd fd(
      static_cast<int>(::syscall(SYS_pidfd_open, thread.tid, PIDFD_THREAD)));
  if (fd) {
    keep->push_back(std::move(fd));
    return keep->back().Get();
  }
  // Older kernels know only processes; the table of the leader will do if it
  // is the same.
  if (::syscall(SYS_kcmp, process.pid, thread.tid, KCMP_FILES, 0, 0) == 0)
    return process.pidfd;
  return Fail(ErrorCode::kUnsupported,
              "thread " + std::to_string(thread.tid) + " of process " +
                  std::to_string(process.pid) +
                  " has a descriptor table of its own, which needs Linux 6.9");
}

core::Status FrozenSetImpl::TakeInverse(MoveRecord& record,
                                        const ThreadRecord& thread,
                                        const Move& move,
                                        std::vector<core::UniqueFd>* keep) {
  auto fds = escrow_->FdsOf(record);
  for (size_t i = 0; i < move.fds.size(); ++i) {
    const FdMove& fd = move.fds[i];
    core::UniqueFd old(
        static_cast<int>(::syscall(SYS_pidfd_getfd, record.task_fd, fd.at, 0)));
    if (!old)
      return FailSys(errno, "take descriptor " + std::to_string(fd.at) +
                                " of process " + std::to_string(move.pid));
    fds[i] = {fd.at, old.Get(), fd.with, fd.cloexec};
    keep->push_back(std::move(old));
  }
  if (move.cwd) {
    std::string path = "/proc/" + std::to_string(thread.pid) + "/task/" +
                       std::to_string(thread.tid) + "/cwd";
    core::UniqueFd old(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!old)
      return FailSys(errno, "open " + path);
    record.old_cwd = old.Get();
    record.new_cwd = *move.cwd;
    keep->push_back(std::move(old));
  }
  return {};
}

core::Status FrozenSetImpl::RecordMove(const TracedProcess& process,
                                       uint32_t process_record,
                                       const Move& move, Lane& lane) {
  // The thread asked for; for a whole process its leader or, if that has
  // ended, any other.
  const Tracee* chosen = nullptr;
  for (const Tracee& thread : process.threads) {
    if (thread.record < 0)
      continue;
    bool asked = thread.tid == (move.tid != 0 ? move.tid : move.pid);
    if (asked || (chosen == nullptr && (move.tid == 0 || move.tid == move.pid)))
      chosen = &thread;
  }
  if (chosen == nullptr)
    return {};  // gone
  uint32_t thread_index = static_cast<uint32_t>(chosen->record);
  ThreadRecord& thread = escrow_->threads()[thread_index];
  ASSIGN_OR_RETURN(uint32_t first,
                   escrow_->AddFds(static_cast<uint32_t>(move.fds.size())));
  ASSIGN_OR_RETURN(uint32_t first_lock,
                   escrow_->AddLocks(static_cast<uint32_t>(move.locks.size())));
  ASSIGN_OR_RETURN(uint32_t index, escrow_->AddMove());
  MoveRecord& record = escrow_->moves()[index];
  record.process = process_record;
  record.thread = thread_index;
  record.first_fd = first;
  record.fd_count = static_cast<uint32_t>(move.fds.size());
  record.first_lock = first_lock;
  record.lock_count = static_cast<uint32_t>(move.locks.size());
  std::ranges::transform(move.locks, escrow_->LocksOf(record).begin(),
                         [](const PosixLock& lock) {
                           return LockRecord{lock.at, lock.write, lock.start,
                                             lock.end};
                         });
  record.old_cwd = record.new_cwd = -1;
  record.scratch = RemotePtr();
  record.mapping = false;
  record.cwd_touched = false;
  record.limit_raised = false;
  record.temp_count = 0;

  std::vector<core::UniqueFd> keep;
  auto take = [&]() -> core::Status {
    ASSIGN_OR_RETURN(record.task_fd, TaskFd(process, thread, &keep));
    return TakeInverse(record, thread, move, &keep);
  };
  auto taken = take();
  {
    std::lock_guard lock(keep_mu_);
    std::ranges::move(keep, std::back_inserter(keep_));
  }
  if (!taken)
    return lane.CallsOf(thread_index).Killed() ? core::Status{} : taken;
  record.state = MoveState::kRecorded;
  lane.moves.push_back(index);
  return {};
}

core::Status FrozenSetImpl::RecordMoves(Lane& lane,
                                        const std::vector<Move>& moves) {
  lane.moves.clear();
  std::unordered_map<pid_t, size_t> at;
  for (size_t i = 0; i < lane.processes.size(); ++i)
    at[lane.processes[i].pid] = i;
  for (const Move& move : moves) {
    auto found = at.find(move.pid);
    if (found != at.end())
      TRY(RecordMove(lane.processes[found->second], lane.records[found->second],
                     move, lane));
  }
  return {};
}

core::Status FrozenSetImpl::Swap(const std::vector<Move>& moves) {
  if (escrow_->header().committed)
    return Fail(ErrorCode::kInvalid, "swap after the commit");
  for (const Move& move : moves) {
    if (!pids_.contains(move.pid))
      return Fail(ErrorCode::kInvalid,
                  "process " + std::to_string(move.pid) + " is not frozen");
  }
  auto swapped =
      ForAll(lanes_, [&](Lane& lane) { return RecordMoves(lane, moves); });
  if (swapped)
    swapped = core::FaultPoint("trace.before_swap");
  std::atomic<bool> failed = false;
  if (swapped) {
    swapped = ForAll(lanes_, [&](Lane& lane) -> core::Status {
      Swaps swaps;
      for (uint32_t index : lane.moves) {
        MoveRecord& move = escrow_->moves()[index];
        swaps.push_back(std::make_unique<DescriptorSwap>(
            lane.CallsOf(move.thread), *escrow_, move));
      }
      auto together = SwapTogether(swaps, Side::kNew, deadline_ns_);
      for (size_t i = 0; i < swaps.size() && together && !failed; ++i) {
        MoveRecord& move = escrow_->moves()[lane.moves[i]];
        if (move.state == MoveState::kMoved)
          continue;
        together = swaps[i]->To(Side::kNew, deadline_ns_);
        if (!together && (IsGone(together.error()) ||
                          lane.CallsOf(move.thread).Killed())) {
          move.state = MoveState::kReturned;
          together = {};
        }
      }
      if (!together)
        failed = true;
      return together;
    });
  }
  if (swapped)
    swapped = core::FaultPoint("trace.swapped");
  if (swapped)
    return {};
  auto undone = Undo();
  if (!undone)
    return std::unexpected(
        std::move(swapped).error().With("and putting back is not complete (" +
                                        undone.error().ToString() + ")"));
  return swapped;
}

core::Status FrozenSetImpl::Undo() {
  if (escrow_->header().committed)
    return Fail(ErrorCode::kInvalid, "undo after the commit");
  int64_t until = Grace();
  return ForAll(lanes_, [&](Lane& lane) -> core::Status {
    core::Status result;
    Swaps swaps;
    std::vector<MoveRecord*> records;
    auto moves = escrow_->moves();
    for (size_t i = moves.size(); i-- > 0;) {
      MoveRecord& move = moves[i];
      if (std::ranges::count(lane.records, move.process) == 0)
        continue;
      if (move.state == MoveState::kRecorded)
        move.state = MoveState::kReturned;
      if (move.state != MoveState::kMoving && move.state != MoveState::kMoved &&
          move.state != MoveState::kReturning)
        continue;
      swaps.push_back(std::make_unique<DescriptorSwap>(
          lane.CallsOf(move.thread), *escrow_, move));
      records.push_back(&move);
    }
    // Its fault points are for the way there.
    (void)SwapTogether(swaps, Side::kOld, until);
    for (size_t i = 0; i < swaps.size(); ++i) {
      if (records[i]->state == MoveState::kReturned)
        continue;
      auto undone = swaps[i]->To(Side::kOld, until);
      if (!undone && (IsGone(undone.error()) ||
                      lane.CallsOf(records[i]->thread).Killed()))
        records[i]->state = MoveState::kReturned;
      else if (!undone)
        result = std::move(undone);
    }
    return result;
  });
}

void FrozenSetImpl::Commit() {
  for (MoveRecord& move : escrow_->moves()) {
    if (move.state == MoveState::kMoving ||
        move.state == MoveState::kReturning) {
      // A successor would leave it as it is. Thaw will refuse too.
      LOG_ERROR("not committed: a process is half moved");
      return;
    }
  }
  escrow_->header().committed = true;
  // Armed to fail, it has nothing that it could stop any more.
  (void)core::FaultPoint("trace.committed");
}

core::Result<std::vector<Pause>> FrozenSetImpl::Thaw() {
  if (lanes_.empty())
    return std::vector<Pause>{};
  // Processes that could not be put back wholly stay parked, in the hands of
  // the guardian.
  std::vector<uint32_t> stays;
  bool moved = false;
  for (MoveRecord& move : escrow_->moves()) {
    if (move.state == MoveState::kMoving || move.state == MoveState::kReturning)
      stays.push_back(move.process);
    moved = moved || move.state == MoveState::kMoved;
  }
  if (moved && !escrow_->header().committed) {
    if (!stays.empty())
      return Fail(ErrorCode::kConflict,
                  "some processes are moved and others half: undo first");
    Commit();
  }
  int64_t until = Grace();
  std::vector<Pause> pauses;
  std::mutex mu;
  auto thawed = ForAll(lanes_, [&](Lane& lane) {
    std::vector<Pause> mine;
    auto status = lane.Thaw(stays, until, &mine);
    std::lock_guard lock(mu);
    std::ranges::move(mine, std::back_inserter(pauses));
    return status;
  });
  lanes_.clear();
  pids_.clear();
  EndFreeze();
  TRY(thawed);
  if (!stays.empty())
    return Fail(ErrorCode::kTimeout,
                std::to_string(stays.size()) +
                    " processes hang in a call and are put back when it "
                    "returns");
  return pauses;
}

void FrozenSetImpl::EndFreeze() {
  core::ReleaseLogs();
  bool leftovers = std::ranges::any_of(escrow_->threads(), [](auto& t) {
    return t.state == ThreadState::kEscrowed || t.state == ThreadState::kParked;
  });
  if (leftovers) {
    // The guardian does the rest from the escrow and with the descriptors; a
    // new set needs new ones.
    guardian_.reset();
    for (auto& fd : keep_)
      (void)fd.Release();
    keep_.clear();
    return;
  }
  escrow_->Clear();
  std::ranges::move(keep_, std::back_inserter(discarded_));
  keep_.clear();
}

}  // namespace

core::Result<std::unique_ptr<FrozenSet>> FrozenSet::Create() {
  ASSIGN_OR_RETURN(auto threads, MakeTaskView()->Threads(::getpid()));
  if (threads.size() != 1)
    return Fail(ErrorCode::kInvalid,
                "a frozen set is created before other threads");
  PrepareProcessForFreeze();
  ASSIGN_OR_RETURN(auto escrow, Escrow::Create());
  ASSIGN_OR_RETURN(auto guardian, Guardian::Start(*escrow));
  return std::unique_ptr<FrozenSet>(
      std::make_unique<FrozenSetImpl>(std::move(escrow), std::move(guardian)));
}

}  // namespace livemv::trace
