#pragma once

// New descriptions by the plan: where they come from, and the stock of those
// opened before the freeze.
//
// Thread contract: one thread.

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "migrator/cutover/move_plan.h"
#include "migrator/cutover/seams.h"

namespace livemv::cutover {

// What a want must be opened on to fit: equal keys can stand for each other.
// The object's handle has a generation: a number that the filesystem gave to a
// new file meanwhile does not match.
struct WantKey {
  std::string object;
  int flags = 0;
  uint64_t view = 0;
  auto operator<=>(const WantKey&) const = default;
};

struct Opening {
  const Want* want = nullptr;
  const WantKey* key = nullptr;
  core::UniqueFd fd;     // the result; empty: could not be opened
  std::string why_not;
};

class Opener {
 public:
  virtual ~Opener() = default;
  // Opens what can be opened; an error only if none of it can be.
  virtual core::Status Open(std::vector<Opening>* openings) = 0;
  // Whether Open may be called while processes are frozen: nothing in it may
  // wait for the target. If so, what was opened ahead by a name that is another
  // now is opened again: the overlay at attach is not told of renames on the
  // source and would keep the old name.
  virtual bool AllowedInFreeze() const = 0;
};

// Where directories of holders in other mount namespaces are opened: the path
// of the tree's root there.
using Views = std::map<uint64_t, std::pair<pid_t, std::string>>;

// By path below a directory, told by inode number: the overlay at attach, the
// source at a return. With an overlay, whose files are the source's, what is
// not at its path is opened by the source's handle for it: the overlay shows
// the name a file was opened by, which may be gone while others are not, or be
// one that the kernel has forgotten (proc::TreeRef::names_expire).
class PathOpener : public Opener {
 public:
  PathOpener(DescriptorOps* files, int root_fd, const Views* views,
             OverlayControl* overlay = nullptr, Clock* clock = nullptr)
      : files_(files),
        root_fd_(root_fd),
        views_(views),
        overlay_(overlay),
        clock_(clock) {}
  core::Status Open(std::vector<Opening>* openings) override;
  bool AllowedInFreeze() const override { return true; }

 private:
  void OpenByHandle(const std::vector<Opening*>& openings);

  DescriptorOps* files_;
  int root_fd_;
  const Views* views_;
  OverlayControl* overlay_;
  Clock* clock_;
};

// By the worker, on the target; ids come from the overlay's file handles.
class TargetOpener : public Opener {
 public:
  TargetOpener(OverlayControl* overlay, DescriptorOps* files, Clock* clock,
               const Views* views)
      : overlay_(overlay), files_(files), clock_(clock), views_(views) {}
  core::Status Open(std::vector<Opening>* openings) override;
  bool AllowedInFreeze() const override { return false; }

 private:
  OverlayControl* overlay_;
  DescriptorOps* files_;
  Clock* clock_;
  const Views* views_;
};

// The nodeid in a FUSE file handle as DescriptorOps::ObjectAt gives it;
// kNoFile if it is none. And whose it is: without the bit of a second number.
state::FileId NodeIdOf(const std::string& object);
state::FileId FileIdOf(const std::string& object);
// The handle of a nodeid.
core::FileHandle FuseHandle(state::FileId node);
// ObjectAt's form of a handle: the type in four bytes, then the handle.
std::string ObjectName(int type, const void* bytes, size_t len);

// Descriptions opened before the freeze, by key.
class Stock {
 public:
  struct Opened {
    std::string path;  // by which it was opened
    core::UniqueFd fd;
    Locks locks;  // that it holds
  };
  void Put(WantKey key, Opened opened);
  // One for that want, with the same locks if there is such a one; without a
  // descriptor if there is none. With by_path, none that was opened by another
  // path.
  Opened Take(const WantKey& key, const Want& want, bool by_path);
  void Clear() { stock_.clear(); }

 private:
  std::multimap<WantKey, Opened> stock_;
};

}  // namespace livemv::cutover
