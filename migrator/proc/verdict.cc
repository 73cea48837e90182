#include "migrator/proc/verdict.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>
#include <utility>

#include "migrator/proc/anchors.h"

namespace livemv::proc {
namespace {

// Frozen, these hold up the very calls that the freeze may need: the NFS
// client asks them for credentials and names, and PID 1 reaps and restarts
// everybody (hazard H20).
constexpr std::array<std::string_view, 9> kNeverFrozen = {
    "rpc.gssd", "nfsidmap", "rpc.idmapd", "rpc.statd",  "rpcbind",
    "gssproxy", "sssd",     "sssd_be",    "request-key"};

class Reasons {
 public:
  // Keeps the first three of each code; Take adds the count of the others.
  void Add(Reason reason) {
    int& count = counts_[reason.code];
    if (++count <= 3)
      reasons_.push_back(std::move(reason));
  }

  std::vector<Reason> Take() {
    for (const auto& [code, count] : counts_) {
      if (count <= 3)
        continue;
      auto last = std::find_if(
          reasons_.rbegin(), reasons_.rend(),
          [&code = code](const Reason& r) { return r.code == code; });
      last->what += " and " + std::to_string(count - 3) + " more";
    }
    return std::move(reasons_);
  }
  bool Empty() const { return reasons_.empty(); }

 private:
  std::vector<Reason> reasons_;
  std::map<std::string, int> counts_;
};

}  // namespace

const char* MovabilityName(Movability movability) {
  switch (movability) {
    case Movability::kMovable:
      return "movable";
    case Movability::kStays:
      return "stays on the overlay until it exits";
    case Movability::kBlocks:
      return "blocks";
  }
  return "blocks";
}

std::string Verdict::Line() const {
  std::string line;
  for (const Reason& reason : reasons) {
    if (!line.empty())
      line += "; ";
    line += reason.what;
  }
  return line;
}

std::set<uint64_t> WrittenInodes(const std::vector<Holder>& holders) {
  std::set<uint64_t> written;
  for (const Holder& holder : holders) {
    for (const Mapping& mapping : holder.mappings) {
      if (mapping.line.shared && mapping.line.write)
        written.insert(mapping.at.ino);
    }
    for (const Task& task : holder.tasks) {
      for (const Descriptor& fd : task.fds) {
        if (fd.Writable())
          written.insert(fd.at.ino);
      }
    }
  }
  return written;
}

Verdict Judge(const Holder& holder, const std::set<uint64_t>& written) {
  Reasons block;
  Reasons stay;
  if (holder.pid == 1)
    block.Add({"never-frozen", "it is PID 1 and must never be frozen",
               "make it leave the directory; see systemctl for the unit"});
  else if (std::find(kNeverFrozen.begin(), kNeverFrozen.end(), holder.comm) !=
           kNeverFrozen.end())
    block.Add({"never-frozen",
               holder.comm + " must never be frozen: NFS needs its answers",
               "stop it, or move its files out of the tree"});
  if (holder.tracer != 0)
    block.Add({"traced",
               "it is traced by process " + std::to_string(holder.tracer) +
                   " (a debugger or strace)",
               "detach the tracer"});
  for (Anchor& anchor : AnchorsOf(holder, written))
    for (Reason& reason : anchor.reasons)
      (anchor.movability == Movability::kBlocks ? block : stay)
          .Add(std::move(reason));

  Verdict verdict;
  verdict.movability = !block.Empty()  ? Movability::kBlocks
                       : !stay.Empty() ? Movability::kStays
                                       : Movability::kMovable;
  verdict.reasons = block.Take();
  for (Reason& reason : stay.Take())
    verdict.reasons.push_back(std::move(reason));
  return verdict;
}

}  // namespace livemv::proc
