// Which descriptors are one open file description, and which tasks use one
// table: told by kcmp(2), whose answer is an order, so that n of them cost
// n log n calls.

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <map>
#include <tuple>
#include <utility>

#include "migrator/proc/process_snapshot.h"

namespace livemv::proc {
namespace {

// 0 equal, 1 less, 2 greater, -1 with errno.
int64_t Kcmp(pid_t a, pid_t b, int type, uint64_t x, uint64_t y) {
  return syscall(SYS_kcmp, a, b, type, x, y);
}

// A set of kernel objects ordered by kcmp, each with a number.
class Ordered {
 public:
  struct Item {
    pid_t tid;
    uint64_t index;  // the descriptor, for KCMP_FILE
    int number;
  };

  explicit Ordered(int type) : type_(type) {}

  // The number of an equal item, or number after keeping (tid, index) under
  // it. -1 if it cannot be compared because its process ended.
  core::Result<int> FindOrAdd(pid_t tid, uint64_t index, int number) {
    size_t low = 0;
    size_t high = items_.size();
    while (low < high) {
      const size_t middle = low + (high - low) / 2;
      const Item& item = items_[middle];
      const int64_t order = Kcmp(tid, item.tid, type_, index, item.index);
      if (order < 0) {
        if (errno != ESRCH && errno != EBADF)
          return core::FailSys(errno, "kcmp of " + std::to_string(tid) +
                                          " and " + std::to_string(item.tid));
        // One of the two is gone. If it is the item, forget it.
        if (Kcmp(tid, tid, type_, index, index) < 0)
          return -1;
        items_.erase(items_.begin() + static_cast<ptrdiff_t>(middle));
        low = 0;
        high = items_.size();
        continue;
      }
      if (order == 0)
        return item.number;
      if (order == 1)
        high = middle;
      else
        low = middle + 1;
    }
    items_.insert(items_.begin() + static_cast<ptrdiff_t>(low),
                  Item{tid, index, number});
    return number;
  }

 private:
  const int type_;
  std::vector<Item> items_;
};

}  // namespace

core::Status IdentifyDescriptions(std::vector<Holder>* holders, bool frozen) {
  Ordered tables(KCMP_FILES);
  Ordered contexts(KCMP_FS);
  std::map<std::tuple<dev_t, uint64_t, int64_t, int>, Ordered> files;
  int next = 0;
  int next_task = 0;
  for (Holder& holder : *holders) {
    for (Task& task : holder.tasks) {
      const int number = next_task++;
      if (!task.fds.empty()) {
        ASSIGN_OR_RETURN(int same, tables.FindOrAdd(task.tid, 0, number));
        task.own_files = same == number;
      }
      if (task.cwd || task.root) {
        ASSIGN_OR_RETURN(int same, contexts.FindOrAdd(task.tid, 0, number));
        task.own_fs = same == number;
      }
      for (Descriptor& fd : task.fds) {
        Ordered& group =
            files
                .try_emplace({fd.at.dev, fd.at.ino, frozen ? fd.pos : 0,
                              frozen ? fd.flags : 0},
                             KCMP_FILE)
                .first->second;
        ASSIGN_OR_RETURN(
            fd.description,
            group.FindOrAdd(task.tid, static_cast<uint64_t>(fd.number), next));
        if (fd.description == next)
          ++next;
      }
    }
  }
  return {};
}

}  // namespace livemv::proc
