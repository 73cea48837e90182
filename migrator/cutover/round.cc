#include "migrator/cutover/round.h"

#include <fcntl.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "core/fault_points.h"
#include "core/log.h"
#include "core/thread_priority.h"

namespace livemv::cutover {

using core::ErrorCode;
using core::Fail;
using core::Result;
using core::Status;
using core::UniqueFd;

namespace {

Status Pass(const char* fault) {
  return fault[0] == '\0' ? Status{} : core::FaultPoint(fault);
}

// A child that was forked between the scan and the freeze shares its parent's
// descriptions; it may have forked too. A fork bomb is left to the next round.
constexpr int kGenerations = 8;

class Round {
 public:
  Round(const Deps& deps, const RoundRequest& request, RoundReport* report)
      : deps_(deps), request_(request), report_(report) {}

  Status Run() {
    // The guardian is forked before anything is opened on the target: a
    // process that has such files cannot exit while the server is away.
    if (!request_.holders.empty()) {
      ASSIGN_OR_RETURN(frozen_set_, deps_.make_frozen_set());
    }
    TRY(OpenAhead());
    TRY(Pass(request_.faults.opened));
    TRY(deps_.Continue("before the freeze"));
    core::HoldLogs();
    core::ScopedRank rank(core::Rank::kAheadOfApplications);
    Status status = Freeze();
    if (status)
      status = Change();
    if (!status)
      PutBack();
    else
      Finish();
    core::ReleaseLogs();
    return status;
  }

 private:
  Status OpenAhead() {
    std::vector<proc::Holder> all = request_.holders;
    all.insert(all.end(), request_.bystanders.begin(),
               request_.bystanders.end());
    MovePlan plan = PlanMoves(all, request_.rules);
    std::vector<WantKey> keys = Keys(plan, nullptr);
    std::vector<Opening> openings;
    for (size_t i = 0; i < plan.wants.size(); ++i) {
      if (keys[i].object.empty())
        continue;  // its process is gone, or has closed or replaced it
      openings.push_back({&plan.wants[i], &keys[i], {}, {}});
      if (!plan.wants[i].cwd && deps_.files->HasOwner(plan.wants[i].sample))
        owned_.insert(keys[i]);
    }
    TRY(request_.opener->Open(&openings));
    for (Opening& o : openings)
      TRY(Stash(o));
    return {};
  }

  Status Stash(Opening& o) {
    if (const KeptOld* old = KeptFor(*o.want)) {
      ASSIGN_OR_RETURN(UniqueFd same, deps_.files->Duplicate(old->fd.Get()));
      stock_.Put(*o.key, {o.want->path, std::move(same), old->locks});
      return {};
    }
    Locks locks;
    if (o.fd && !o.want->locks.empty()) {
      // Nobody else can get at these files yet, and some filesystems ask a
      // server for a lock.
      Status set = SetLocks(*o.want, o.fd.Get(), {});
      if (set)
        locks = o.want->locks;
      // One that another of these had by the time it was seen: the look in the
      // freeze tells whose it is.
      else if (set.error().code != ErrorCode::kConflict)
        TRY(Without(o, std::move(set)));
    }
    if (o.fd && !o.want->posix.empty()) {
      // That whoever keeps the locks there answers, and nobody has one of these,
      // is found out while nobody waits for it.
      Status probed = deps_.files->SetLocks(o.fd.Get(), locks,
                                            Together(locks, o.want->posix));
      if (probed)
        probed = deps_.files->SetLocks(
            o.fd.Get(), Together(locks, o.want->posix), locks);
      if (!probed && probed.error().code != ErrorCode::kConflict)
        TRY(Without(o, std::move(probed)));
    }
    if (o.fd)
      stock_.Put(*o.key, {o.want->path, std::move(o.fd), std::move(locks)});
    else
      why_not_[*o.key] = o.why_not;
    return {};
  }

  static Locks Together(Locks a, const Locks& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }

  Status Without(Opening& o, Status why) {
    if (request_.all_must_move)
      return why;
    o.fd.Reset();
    o.why_not = why.error().ToString();
    return {};
  }

  // Each once: two descriptions with the same locks stay two.
  const KeptOld* KeptFor(const Want& want) {
    if (request_.kept == nullptr || want.locks.empty())
      return nullptr;
    for (const KeptOld& old : *request_.kept)
      if (!old.stand_in && old.ino == want.ino && old.flags == want.flags &&
          SameLocks(old.locks, want.locks) && given_back_.insert(&old).second)
        return &old;
    return nullptr;
  }

  Status SetLocks(const Want& want, int fd, const Locks& have) {
    Status set = deps_.files->SetLocks(fd, have, want.locks);
    if (set)
      return set;
    return Fail(std::move(set).error().With(
        "\"" + want.path + "\", which process " +
        std::to_string(want.sample.pid) + " has locked"));
  }

  // The key of every want; an empty object for one that cannot be told, with
  // the reason in *left.
  std::vector<WantKey> Keys(const MovePlan& plan,
                            std::vector<std::string>* reasons) {
    std::vector<WantKey> keys(plan.wants.size());
    if (reasons != nullptr)
      reasons->resize(plan.wants.size());
    for (size_t i = 0; i < plan.wants.size(); ++i) {
      const Want& want = plan.wants[i];
      auto object = deps_.files->ObjectAt(want.sample);
      if (!object) {
        if (reasons != nullptr)
          (*reasons)[i] = object.error().ToString();
        continue;
      }
      // Before the freeze the number may stand for another file by now, which
      // must not be found under what is opened for this one.
      if (object->ino == want.ino)
        keys[i] = {std::move(object->name), want.flags, want.view};
      else if (reasons != nullptr)
        (*reasons)[i] = "it is another file than a moment ago";
    }
    return keys;
  }

  Status Freeze() {
    start_ns_ = deps_.clock->NowNs();
    deadline_ns_ = start_ns_ + request_.pause_ns;
    std::vector<pid_t> pids;
    seen_ = request_.own;
    for (const proc::Holder& holder : request_.bystanders)
      seen_.insert(holder.pid);
    for (const proc::Holder& holder : request_.holders)
      pids.push_back(holder.pid);
    TRY(FreezeFamilies(std::move(pids)));
    if (request_.gate || request_.gate_for_locks || request_.shut)
      TRY(FreezeOthers());
    return Pass(request_.faults.frozen);
  }

  Status FreezeFamilies(std::vector<pid_t> pids) {
    for (int i = 0; i < kGenerations && !pids.empty(); ++i) {
      TRY(FreezeThese(pids));
      ASSIGN_OR_RETURN(pids, LookAgain(pids));
    }
    return {};
  }

  // A POSIX lock is free for as long as the swap takes. Whoever has a
  // descriptor by then that the scan before the freeze has not seen could take
  // it: so there must be no such process. Here most are found while nobody
  // waits for a gate; NobodyElse is the proof.
  Status FreezeOthers() {
    if (!AnyLockOfProcess(frozen_))
      return {};
    ASSIGN_OR_RETURN(std::vector<proc::Holder> others, Unseen());
    std::vector<pid_t> pids;
    for (const proc::Holder& other : others)
      pids.push_back(other.pid);
    return FreezeFamilies(std::move(pids));
  }

  // Who has something there and is not among the frozen and the bystanders.
  Result<std::vector<proc::Holder>> Unseen() {
    proc::Options options = Quick();
    options.exclude = seen_;
    ASSIGN_OR_RETURN(proc::Snapshot now,
                     deps_.scanner->Capture(request_.from, options));
    std::erase_if(now.holders, [&](const proc::Holder& holder) {
      return seen_.contains(holder.pid) || request_.own.contains(holder.ppid) ||
             !HasSeats(holder);
    });
    return std::move(now.holders);
  }

  Status NobodyElse() {
    std::set<pid_t> still(request_.own);
    std::set<std::pair<dev_t, uint64_t>> locked;
    for (const auto& [seat, fd] : locked_)
      locked.insert({fd->at.dev, fd->at.ino});
    for (const proc::Holder& holder : frozen_) {
      if (!IsBystander(holder.pid)) {
        still.insert(holder.pid);
        continue;
      }
      for (const proc::Task& task : holder.tasks)
        for (const proc::Descriptor& fd : task.fds)
          if (!fd.PathOnly() && locked.contains({fd.at.dev, fd.at.ino}))
            return Fail(ErrorCode::kConflict,
                        "process " + std::to_string(holder.pid) + " (" +
                            holder.comm + ") goes on running and could get "
                            "a POSIX lock that another holds on \"" +
                            fd.at.path + "\"");
    }
    TRY(deps_.scanner->LetOpensPass(still, deadline_ns_));
    ASSIGN_OR_RETURN(std::vector<proc::Holder> others, Unseen());
    if (others.empty())
      return {};
    return Fail(ErrorCode::kConflict,
                "process " + std::to_string(others.front().pid) + " (" +
                    others.front().comm +
                    ") has opened a file just now, and could get a POSIX lock "
                    "that another holds");
  }

  // What is left out was looked at by the scan and will be by the next.
  proc::Options Quick() const {
    proc::Options options;
    options.root_fd = request_.from_root_fd;
    options.mappings = false;
    options.watches = false;
    options.sockets = false;
    options.descriptions = false;
    return options;
  }

  Status FreezeThese(const std::vector<pid_t>& pids) {
    report_->froze = true;
    std::vector<trace::Unstopped> unstopped;
    Status status = frozen_set_->Freeze(pids, deadline_ns_, &unstopped);
    if (status)
      return status;
    constexpr size_t kNamed = 4;
    std::string names;
    for (size_t i = 0; i < std::min(unstopped.size(), kNamed); ++i)
      names += (i == 0 ? ": process " : ", process ") +
               std::to_string(unstopped[i].pid) + " " + unstopped[i].reason;
    if (unstopped.size() > kNamed)
      names += " and " + std::to_string(unstopped.size() - kNamed) + " more";
    core::Error error = std::move(status).error();
    error.what += names;
    return Fail(std::move(error));
  }

  // Reads what the frozen processes hold now; gives their children that hold
  // something too.
  Result<std::vector<pid_t>> LookAgain(const std::vector<pid_t>& pids) {
    std::vector<pid_t> children;
    for (pid_t pid : pids) {
      seen_.insert(pid);
      auto holder = Look(pid, true);
      if (!holder && holder.error().code == ErrorCode::kGone)
        continue;
      if (!holder)
        return Fail(std::move(holder).error());
      frozen_.push_back(std::move(*holder));
    }
    for (pid_t pid : pids)
      for (pid_t child : deps_.scanner->ChildrenOf(pid)) {
        if (!seen_.insert(child).second)
          continue;
        auto holder = Look(child, false);
        if (holder && HasSeats(*holder))
          children.push_back(child);
      }
    return children;
  }

  Result<proc::Holder> Look(pid_t pid, bool frozen) {
    proc::Options options = Quick();
    options.frozen = frozen;
    // Kept short, the others wait. A new mapping matters before the commit of
    // a cutover, after which it could not be served from the source.
    options.mappings = request_.gate;
    ASSIGN_OR_RETURN(proc::Holder holder,
                     deps_.scanner->CaptureOne(request_.from, pid, options));
    if (frozen)
      holder.tracer = 0;  // that is us
    return holder;
  }

  Status Change() {
    const bool locks = AnyLockOfProcess(frozen_);
    if (request_.gate || (locks && request_.gate_for_locks)) {
      // Closed also by a call that failed late; OpenGate does no harm.
      gated_ = true;
      ASSIGN_OR_RETURN(FlushReport drained,
                       deps_.overlay->DrainAndGate(deadline_ns_));
      if (drained.redo_left != 0 || drained.bytes_left != 0)
        return Fail(ErrorCode::kConflict,
                    "the target lacks " + std::to_string(drained.bytes_left) +
                        " bytes and " + std::to_string(drained.redo_left) +
                        " records after the drain");
      TRY(Pass(request_.faults.gated));
    }
    TRY(Supply());
    if (locks && request_.shut) {
      gated_ = shut_ = steps_begun_ = true;
      TRY(request_.shut(deadline_ns_));
      TRY(Pass(request_.faults.gated));
    }
    if (locks && gated_)
      TRY(NobodyElse());
    if (request_.before_swap)
      TRY(request_.before_swap(deadline_ns_));
    if (locks)
      TRY(MakeRoom());
    if (!moves_.empty())
      TRY(frozen_set_->Swap(moves_));
    TRY(Pass(request_.faults.swapped));
    for (const auto& [seat, fd] : installed_)
      TRY(deps_.files->Verify(seat, fd));
    TRY(deps_.Continue("before the commit"));
    if (deps_.clock->NowNs() > deadline_ns_)
      return Fail(ErrorCode::kTimeout,
                  "the pause of " +
                      std::to_string(request_.pause_ns / 1'000'000) +
                      " ms was not enough");
    if (request_.before_commit) {
      steps_begun_ = true;
      TRY(request_.before_commit(deadline_ns_));
    }
    return {};
  }

  // Gives every want its description and sets the positions.
  Status Supply() {
    if (request_.all_must_move)
      TRY(RefuseStragglers());
    TRY(AddBystanders());
    FindLocks();
    MovePlan plan = PlanMoves(frozen_, request_.rules);
    std::vector<std::string> reasons;
    std::vector<WantKey> keys = Keys(plan, &reasons);
    // What is not used is closed after the thaw: that may ask the target.
    std::vector<UniqueFd>& fds = supplied_;
    fds.resize(plan.wants.size());
    std::vector<Locks> locks(plan.wants.size());
    std::vector<Opening> missing;
    std::vector<size_t> missing_at;
    const bool may_open = request_.opener->AllowedInFreeze();
    for (size_t i = 0; i < plan.wants.size(); ++i) {
      if (keys[i].object.empty())
        continue;
      Stock::Opened opened = stock_.Take(keys[i], plan.wants[i], may_open);
      fds[i] = std::move(opened.fd);
      locks[i] = std::move(opened.locks);
      if (fds[i])
        continue;
      auto before = why_not_.find(keys[i]);
      reasons[i] = before != why_not_.end()
                       ? before->second
                       : "opened while the move was being prepared";
      if (may_open) {
        missing.push_back({&plan.wants[i], &keys[i], {}, {}});
        missing_at.push_back(i);
      }
    }
    if (!missing.empty())
      TRY(request_.opener->Open(&missing));
    if (may_open)
      stock_.Clear();  // what is open keeps its name and its locks
    for (size_t n = 0; n < missing.size(); ++n) {
      fds[missing_at[n]] = std::move(missing[n].fd);
      if (!missing[n].why_not.empty())
        reasons[missing_at[n]] = missing[n].why_not;
    }
    TRY(BringLocksUpToDate(plan, fds, locks));
    for (size_t i = 0; i < fds.size(); ++i)
      if (fds[i])
        TRY(Prepare(plan.wants[i], keys[i], fds[i].Get()));
    TRY(NotWhereLocked(plan, fds, reasons));
    MakeMoves(plan, fds, reasons);
    report_->left.insert(report_->left.end(), plan.left.begin(),
                         plan.left.end());
    TRY(NoLockIsDropped());
    return request_.all_must_move ? NoLockIsLeft() : Status{};
  }

  // The temporary descriptors that a move takes would let go of the POSIX locks
  // that a process has where its file is to go: by another descriptor, moved in
  // an earlier round. What belongs to such a file waits until they are gone.
  Status NotWhereLocked(const MovePlan& plan, std::vector<UniqueFd>& fds,
                        std::vector<std::string>& reasons) {
    if (request_.all_must_move)
      return {};  // nobody is there yet
    ASSIGN_OR_RETURN(Locks all, deps_.files->AllOfProcesses());
    std::set<pid_t> lockers;
    for (const proc::LockLine& lock : all)
      lockers.insert(lock.pid);
    std::map<std::pair<pid_t, uint64_t>, Locks> elsewhere;
    for (const Placement& p : plan.placements) {
      if (p.seat.number < 0 || !fds[p.want] || !lockers.contains(p.seat.pid))
        continue;
      ASSIGN_OR_RETURN(uint64_t ino, deps_.files->InodeOf(fds[p.want].Get()));
      auto [at, fresh] = elsewhere.try_emplace({p.seat.pid, ino});
      if (fresh)
        for (const proc::LockLine& lock : all)
          if (lock.pid == p.seat.pid && lock.ino == ino)
            at->second.push_back(lock);
      // Those that are moved now may lie on a file of that number, too.
      at->second = LocksLess(at->second, LocksThrough(p.seat));
    }
    for (const Placement& p : plan.placements) {
      if (p.seat.number < 0 || !fds[p.want] || !lockers.contains(p.seat.pid))
        continue;
      ASSIGN_OR_RETURN(uint64_t ino, deps_.files->InodeOf(fds[p.want].Get()));
      if (elsewhere[{p.seat.pid, ino}].empty())
        continue;
      unused_.push_back(std::move(fds[p.want]));
      reasons[p.want] = "process " + std::to_string(p.seat.pid) +
                        " has locked its file where it is to go";
    }
    return {};
  }

  // Replacing a descriptor lets go of the POSIX locks that the process has on
  // the file by another one, which stays.
  Status NoLockIsDropped() {
    for (const Left& left : report_->left) {
      if (LocksThrough(left.seat).empty())
        continue;
      const proc::Descriptor* locked = FindDescriptor(left.seat);
      for (const auto& [seat, fd] : installed_) {
        if (seat.pid != left.seat.pid || seat.tid != left.seat.tid)
          continue;
        const proc::Descriptor* moved = FindDescriptor(seat);
        if (locked != nullptr && moved != nullptr &&
            moved->at.dev == locked->at.dev && moved->at.ino == locked->at.ino)
          return CannotLeave(left, *locked);
      }
    }
    return {};
  }

  // POSIX locks taken through that descriptor.
  Locks LocksThrough(const Seat& seat) {
    auto locked = locked_.find({seat.pid, seat.tid, seat.number});
    return locked != locked_.end() ? LocksOfProcess(*locked->second) : Locks{};
  }

  void FindLocks() {
    for (const proc::Holder& holder : frozen_)
      for (const proc::Task& task : holder.tasks)
        for (const proc::Descriptor& fd : task.fds)
          if (!LocksOfProcess(fd).empty())
            locked_[{holder.pid, task.tid, fd.number}] = &fd;
  }

  bool IsBystander(pid_t pid) const {
    return std::any_of(request_.bystanders.begin(), request_.bystanders.end(),
                       [&](const proc::Holder& b) { return b.pid == pid; });
  }

  // One file's locks are one: a descriptor that stays behind would lock another
  // file than the one that its process takes it for.
  Status NothingLockedIsSplit() {
    for (const Left& left : report_->left) {
      const proc::Descriptor* fd = FindDescriptor(left.seat);
      if (fd == nullptr || fd->PathOnly() || IsBystander(left.seat.pid))
        continue;
      for (const auto& [seat, locked] : locked_)
        if (locked->at.dev == fd->at.dev && locked->at.ino == fd->at.ino)
          return CannotLeave(left, *fd);
    }
    return {};
  }

  static Status CannotLeave(const Left& left, const proc::Descriptor& fd) {
    return Fail(ErrorCode::kConflict,
                "process " + std::to_string(left.seat.pid) +
                    " has descriptor " + std::to_string(fd.number) + " of \"" +
                    fd.at.path +
                    "\", which is locked, and it cannot be moved yet: " +
                    left.reason);
  }

  // They run on, so which descriptions they share cannot be told by position.
  Status AddBystanders() {
    bool all_frozen = true;
    for (const proc::Holder& bystander : request_.bystanders) {
      auto holder = Look(bystander.pid, false);
      if (!holder && holder.error().code == ErrorCode::kGone)
        continue;
      if (!holder)
        return Fail(std::move(holder).error());
      frozen_.push_back(std::move(*holder));
      all_frozen = false;
    }
    return deps_.scanner->Identify(&frozen_, all_frozen);
  }

  // An accepted straggler is not among the frozen; these are new ones.
  Status RefuseStragglers() {
    std::set<uint64_t> written = proc::WrittenInodes(frozen_);
    for (const proc::Holder& holder : frozen_) {
      proc::Verdict verdict = JudgeBy(request_.rules, holder, written);
      if (verdict.Blocks())
        return Fail(ErrorCode::kConflict,
                    "process " + std::to_string(holder.pid) + " (" +
                        holder.comm + ") cannot be moved any more: " +
                        verdict.Line());
    }
    return {};
  }

  // Since the look before the freeze some were taken and let go. Where that
  // may wait for the target it is left to a quieter moment.
  Status BringLocksUpToDate(const MovePlan& plan,
                            const std::vector<UniqueFd>& fds,
                            std::vector<Locks>& have) {
    for (size_t i = 0; i < fds.size(); ++i) {
      if (!fds[i])
        continue;
      const Want& want = plan.wants[i];
      if (!want.locks.empty())
        TRY(KeepOld(want));
      if (SameLocks(have[i], want.locks))
        continue;
      if (!request_.opener->AllowedInFreeze())
        return Fail(ErrorCode::kConflict,
                    "\"" + want.path +
                        "\" was locked or let go of just now by process " +
                        std::to_string(want.sample.pid));
      // First what is let go of: another of these may have taken it.
      Locks less = LocksLess(have[i], LocksLess(have[i], want.locks));
      TRY(deps_.files->SetLocks(fds[i].Get(), have[i], less));
      have[i] = std::move(less);
    }
    for (size_t i = 0; i < fds.size(); ++i)
      if (fds[i])
        TRY(SetLocks(plan.wants[i], fds[i].Get(), have[i]));
    return {};
  }

  // Somebody who holds a lock where it was would not keep others from it where
  // everybody is now.
  Status NoLockIsLeft() {
    if (!locked_.empty())
      TRY(NothingLockedIsSplit());
    for (const Left& left : report_->left) {
      if (IsBystander(left.seat.pid))
        continue;  // it was accepted with them
      const proc::Descriptor* fd = FindDescriptor(left.seat);
      if (fd != nullptr &&
          (!HeldLocks(*fd).empty() || !LocksOfProcess(*fd).empty()))
        return CannotLeave(left, *fd);
    }
    return {};
  }

  const proc::Descriptor* FindDescriptor(const Seat& seat) {
    for (const proc::Holder& holder : frozen_)
      for (const proc::Task& task : holder.tasks)
        for (const proc::Descriptor& fd : task.fds)
          if (holder.pid == seat.pid && task.tid == seat.tid &&
              fd.number == seat.number)
            return &fd;
    return nullptr;
  }

  // For those who get their locks back themselves.
  Status MakeRoom() {
    if (request_.kept == nullptr)
      return {};
    for (const KeptOld& old : *request_.kept) {
      if (!old.stand_in)
        continue;
      TRY(deps_.files->SetLocks(old.fd.Get(), old.locks, {}));
      made_room_.push_back(&old);
    }
    return {};
  }

  // POSIX locks are gone from where they were; whom the gate lets in there now
  // must find them held all the same, until nobody is there.
  void StandIn() {
    for (KeptOld& old : stand_ins_) {
      Status taken = deps_.files->SetLocks(old.fd.Get(), {}, old.locks);
      Tell(taken, "keep a POSIX lock where it was");
      if (taken)
        report_->kept.push_back(std::move(old));
    }
  }

  // With its locks, until nobody is where it was: who opens the file there
  // until then and asks for a lock waits for the holder as before, and is moved
  // too.
  Status KeepOld(const Want& want) {
    ASSIGN_OR_RETURN(UniqueFd old, deps_.files->Share(want.sample));
    report_->kept.push_back(
        {want.ino, want.flags, want.locks, std::move(old)});
    return {};
  }

  Status Prepare(const Want& want, const WantKey& key, int fd) {
    if (want.cwd)
      return {};
    if (!want.directory && (want.flags & O_PATH) == 0)
      TRY(deps_.files->SetPosition(fd, want.position));
    if (owned_.contains(key))
      TRY(deps_.files->CopyOwner(want.sample, fd));
    return {};
  }

  void MakeMoves(const MovePlan& plan, const std::vector<UniqueFd>& fds,
                 const std::vector<std::string>& reasons) {
    std::map<std::pair<pid_t, pid_t>, trace::Move> moves;
    for (const Placement& p : plan.placements) {
      if (!fds[p.want]) {
        report_->left.push_back({p.seat, reasons[p.want]});
        continue;
      }
      int fd = fds[p.want].Get();
      trace::Move& move = moves[{p.seat.pid, p.seat.tid}];
      move.pid = p.seat.pid;
      move.tid = p.seat.tid;
      if (p.seat.number < 0)
        move.cwd = fd;
      else
        move.fds.push_back({p.seat.number, fd, p.cloexec});
      const Locks locks = LocksThrough(p.seat);
      for (const proc::LockLine& lock : locks)
        move.locks.push_back(
            {p.seat.number, lock.write, lock.start, lock.end});
      if (!locks.empty())
        if (auto old = deps_.files->Share(p.seat))
          stand_ins_.push_back({plan.wants[p.want].ino, plan.wants[p.want].flags,
                                AsOfDescription(locks), std::move(*old), true});
      installed_.push_back({p.seat, fd});
    }
    for (auto& [key, move] : moves)
      moves_.push_back(std::move(move));
  }

  void Tell(const Status& status, const char* what) {
    if (!status)
      report_->warnings.push_back(std::string(what) + ": " +
                                  status.error().ToString());
  }

  void Thaw() {
    if (!report_->froze)
      return;
    auto pauses = frozen_set_->Thaw();
    if (pauses)
      report_->pauses = std::move(*pauses);
    else
      Tell(Fail(std::move(pauses).error()), "let the processes go on");
  }

  // Everybody as before. A step that fails here has nothing left to fall back
  // on, so all are taken and their failures reported.
  void PutBack() {
    if (report_->froze)
      Tell(frozen_set_->Undo(), "put the processes back");
    for (const KeptOld* old : made_room_)
      Tell(deps_.files->SetLocks(old->fd.Get(), {}, old->locks),
           "keep a POSIX lock where it was");
    if (steps_begun_ && request_.take_back)
      request_.take_back();
    bool revoke = steps_begun_ && request_.revoke;
    if (gated_ && !revoke)
      Tell(shut_ ? deps_.overlay->RefuseOpens() : deps_.overlay->OpenGate(),
           "open the gate again");
    Thaw();
    if (revoke) {
      request_.revoke();
      if (gated_)
        Tell(deps_.overlay->OpenGate(), "open the gate again");
    }
    report_->left.clear();
  }

  // The commit. From here on nothing is taken back.
  void Finish() {
    if (report_->froze)
      frozen_set_->Commit();
    report_->committed = true;
    Tell(Pass(request_.faults.committed), "after the commit");
    StandIn();
    if (request_.after_commit)
      request_.after_commit();
    Thaw();
    if (gated_)
      Tell(deps_.overlay->OpenGate(), "open the gate");
    std::set<pid_t> pids;
    for (const auto& [seat, fd] : installed_)
      pids.insert(seat.pid);
    report_->moved.assign(pids.begin(), pids.end());
    report_->seats = installed_.size();
  }

  const Deps& deps_;
  const RoundRequest& request_;
  RoundReport* report_;
  std::unique_ptr<trace::FrozenSet> frozen_set_;
  Stock stock_;
  std::map<WantKey, std::string> why_not_;
  std::set<WantKey> owned_;
  std::set<const KeptOld*> given_back_;
  int64_t start_ns_ = 0, deadline_ns_ = 0;
  std::set<pid_t> seen_;
  std::vector<proc::Holder> frozen_;
  // Through which the frozen have POSIX locks; into frozen_.
  std::map<std::tuple<pid_t, pid_t, int>, const proc::Descriptor*> locked_;
  std::vector<UniqueFd> supplied_, unused_;
  std::vector<KeptOld> stand_ins_;
  std::vector<const KeptOld*> made_room_;
  std::vector<trace::Move> moves_;
  std::vector<std::pair<Seat, int>> installed_;
  bool gated_ = false;
  bool shut_ = false;
  bool steps_begun_ = false;
};

}  // namespace

Status Deps::Continue(const char* what) const {
  if (cancelled && cancelled())
    return Fail(ErrorCode::kAborted, std::string("asked to stop ") + what);
  return {};
}

Status RunRound(const Deps& deps, const RoundRequest& request,
                RoundReport* report) {
  return Round(deps, request, report).Run();
}

}  // namespace livemv::cutover
