#include "migrator/cutover/move_plan.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <map>
#include <tuple>

namespace livemv::cutover {

namespace {

constexpr const char* kDeleted = "has been deleted";

std::string Who(const proc::Holder& holder) {
  return "process " + std::to_string(holder.pid) + " (" + holder.comm + ")";
}

// Descriptions that a holder which stays where it is shares with others.
std::map<int, std::string> HeldBack(const std::vector<proc::Holder>& holders,
                                    const std::vector<std::string>& stays) {
  std::map<int, std::string> held;
  for (size_t i = 0; i < holders.size(); ++i) {
    if (stays[i].empty())
      continue;
    for (const proc::Task& task : holders[i].tasks)
      for (const proc::Descriptor& fd : task.fds)
        if (fd.description >= 0)
          held.emplace(fd.description,
                       "shared with " + Who(holders[i]) + ": " + stays[i]);
  }
  return held;
}

class Planner {
 public:
  Planner(const std::vector<proc::Holder>& holders, const PlanRules& rules)
      : holders_(holders), rules_(rules) {}

  MovePlan Make() {
    std::set<uint64_t> written = proc::WrittenInodes(holders_);
    std::vector<std::string> stays(holders_.size());
    for (size_t i = 0; i < holders_.size(); ++i) {
      proc::Verdict verdict = JudgeBy(rules_, holders_[i], written);
      if (verdict.Blocks())
        stays[i] = verdict.Line();
    }
    held_back_ = HeldBack(holders_, stays);
    for (size_t i = 0; i < holders_.size(); ++i)
      for (const proc::Task& task : holders_[i].tasks)
        Add(holders_[i], task, stays[i]);
    return std::move(plan_);
  }

 private:
  bool Foreign(const proc::Holder& holder) const {
    return holder.mnt_ns != rules_.own_namespace;
  }

  void Leave(const Seat& seat, const std::string& reason) {
    plan_.left.push_back({seat, reason});
  }

  void Add(const proc::Holder& holder, const proc::Task& task,
           const std::string& stays) {
    if (task.cwd) {
      Seat seat{holder.pid, task.tid, -1};
      if (!stays.empty())
        Leave(seat, stays);
      else if (task.cwd->deleted)
        Leave(seat, kDeleted);
      else if (Foreign(holder) && rules_.defer_foreign_directories)
        Leave(seat, "waits for the mount in its own mount namespace");
      else
        AddCwd(holder, seat, *task.cwd);
    }
    for (const proc::Descriptor& fd : task.fds) {
      Seat seat{holder.pid, task.tid, fd.number};
      auto held = held_back_.find(fd.description);
      if (!stays.empty())
        Leave(seat, stays);
      else if (held != held_back_.end())
        Leave(seat, held->second);
      else if (fd.at.deleted)
        Leave(seat, kDeleted);
      else
        AddDescriptor(holder, seat, fd);
    }
  }

  void AddCwd(const proc::Holder& holder, const Seat& seat,
              const proc::Place& at) {
    uint64_t view = Foreign(holder) ? holder.mnt_ns : 0;
    auto [entry, fresh] =
        cwds_.try_emplace({view, at.dev, at.ino}, plan_.wants.size());
    if (fresh) {
      Want want;
      want.sample = seat;
      want.ino = at.ino;
      want.path = at.path;
      want.flags = O_PATH | O_DIRECTORY;
      want.directory = want.cwd = true;
      want.view = view;
      plan_.wants.push_back(std::move(want));
    }
    plan_.placements.push_back({seat, false, entry->second});
  }

  void AddDescriptor(const proc::Holder& holder, const Seat& seat,
                     const proc::Descriptor& fd) {
    bool directory = S_ISDIR(fd.at.mode);
    if (directory && Foreign(holder) && rules_.defer_foreign_directories) {
      Leave(seat, "waits for the mount in its own mount namespace");
      return;
    }
    size_t index = plan_.wants.size();
    if (fd.description >= 0) {
      auto [entry, fresh] = descriptions_.try_emplace(fd.description, index);
      index = entry->second;
      if (!fresh) {
        plan_.placements.push_back({seat, fd.cloexec, index});
        return;
      }
    }
    Want want;
    want.sample = seat;
    want.ino = fd.at.ino;
    want.path = fd.at.path;
    want.flags = ReopenFlags(fd.flags, directory);
    want.position = fd.pos;
    want.locks = HeldLocks(fd);
    want.posix = AsOfDescription(LocksOfProcess(fd));
    want.directory = directory;
    want.view = directory && Foreign(holder) ? holder.mnt_ns : 0;
    plan_.wants.push_back(std::move(want));
    plan_.placements.push_back({seat, fd.cloexec, index});
  }

  const std::vector<proc::Holder>& holders_;
  const PlanRules& rules_;
  MovePlan plan_;
  std::map<int, std::string> held_back_;
  std::map<int, size_t> descriptions_;
  std::map<std::tuple<uint64_t, dev_t, uint64_t>, size_t> cwds_;
};

}  // namespace

proc::Verdict JudgeBy(const PlanRules& rules, const proc::Holder& holder,
                      const std::set<uint64_t>& written) {
  return rules.leave_deleted ? proc::Judge(WithoutDeleted(holder), written)
                             : proc::Judge(holder, written);
}

MovePlan PlanMoves(const std::vector<proc::Holder>& holders,
                   const PlanRules& rules) {
  return Planner(holders, rules).Make();
}

int ReopenFlags(int flags, bool directory) {
  flags &= ~(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_CLOEXEC);
  // O_PATH keeps only these (fs/open.c, build_open_flags); openat2 refuses
  // the others beside it.
  if (flags & O_PATH)
    return flags & (O_PATH | O_DIRECTORY | O_NOFOLLOW);
  // O_TMPFILE contains O_DIRECTORY, and F_GETFL keeps both for a file.
  if ((flags & O_TMPFILE) == O_TMPFILE)
    flags &= ~O_TMPFILE;
  if (!directory)
    flags &= ~O_DIRECTORY;
  return flags;
}

proc::Holder WithoutDeleted(proc::Holder holder) {
  std::erase_if(holder.mappings,
                [](const proc::Mapping& m) { return m.at.nlink == 0; });
  for (proc::Task& task : holder.tasks) {
    if (task.cwd && task.cwd->deleted)
      task.cwd.reset();
    std::erase_if(task.fds,
                  [](const proc::Descriptor& fd) { return fd.at.deleted; });
  }
  return holder;
}

bool HasSeats(const proc::Holder& holder) {
  for (const proc::Task& task : holder.tasks)
    if (task.cwd || !task.fds.empty())
      return true;
  return false;
}

}  // namespace livemv::cutover
