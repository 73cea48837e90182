#pragma once

// One schedule: a host with three filesystems, a worker (the real code), two
// applications behind a kernel that keeps their requests, and a fate that
// kills, cuts the power and breaks things as the plan says. Whatever an
// application sees is compared with the model; at the end the tree must have
// moved, or come back, whole.
//
// Thread contract: one World, one thread; Run once.

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "fusefs/once.h"
#include "fusefs/transport.h"
#include "tests/sim/fibers.h"
#include "tests/sim/kernel_files.h"
#include "tests/sim/model.h"
#include "tests/sim/plan.h"
#include "tests/sim/sim_worker.h"

namespace livemv::sim {

class World {
 public:
  World(const Plan& plan, const Switches& on, bool trace);
  ~World();
  // Empty, or what went wrong.
  std::string Run();
  uint64_t steps() const { return fibers_.steps(); }
  // Mishaps that happened.
  size_t mishaps() const { return mishaps_; }

 private:
  enum Group { kOutside = 0, kApplications = 1, kFirstWorker = 10 };

  // --- the kernel: requests, and the locks under which it sends them
  struct Request {
    uint64_t unique = 0;
    uint32_t opcode = 0;
    std::string text;
    bool resent = false, done = false;
    std::function<void(SimWorker*, Request*)> serve;
  };
  fusefs::Once MakeOnce(SimWorker* w, const Request& request);
  void Post(uint32_t opcode, std::string text,
            std::function<void(SimWorker*, Request*)> serve);
  template <class R>
  R Ask(uint32_t opcode, std::string text,
        std::function<R(SimWorker*, Request*)> serve);
  void Serve(SimWorker* w);
  void Lock(std::set<uint64_t> keys);
  void Unlock(const std::set<uint64_t>& keys);

  // --- applications
  void Application(int who);
  void Act(int who, const Op& op);
  // Files that have a path, or (if the world wants it) are open without one.
  std::vector<Node*> Usable();
  Node* Pick(const std::vector<Node*>& from, uint64_t draw);
  core::Result<fusefs::Entry> Lookup(Node* dir, const std::string& name);
  // Null if it failed.
  std::shared_ptr<OpenFile> Open(Node* file, int flags);
  void Close(Node* file, const std::shared_ptr<OpenFile>& open);
  core::Result<size_t> Write(Node* file, const DataOp& op,
                             const std::shared_ptr<OpenFile>& open);
  void LastNameGone(Node* node);
  void Change(Node* file, const DataOp& op);
  void ReadSome(Node* file, const Op& op);
  void StatIt(Node* node);
  void SyncIt(Node* node, bool data_only);
  void MakeObject(const Op& op);
  void Remove(const Op& op);
  void Rename(const Op& op);
  void LinkIt(const Op& op);
  void Attributes(const Op& op);
  void List(Node* dir);
  bool MayFail() const { return trouble_; }
  std::optional<std::string> ReadAll(FileId id);
  // Changes names: locks, effects, request, and what is true if it failed.
  void NameChange(const std::set<uint64_t>& keys, std::vector<NameEffect> e,
                  const std::function<bool()>& valid,
                  const std::function<core::Status(size_t)>& act,
                  const std::function<void()>& happened);
  uint64_t AnyOffset(const Node* file, uint64_t draw) const;

  // --- the observer after applications died
  void Observe();
  bool Look(FileId dir, Model::Seen* seen);

  // --- fate
  void Fate();
  void StartWorker();
  void Settled();
  void LandOne();
  void PostRelease(Node* file, uint64_t fh);
  void CloseAll(Node* file);
  void Bury();
  void Kill(bool applications);
  void PowerCut();
  void Happen(const Event& event);
  int OnCall(const fake::FakeSyscalls::Call& call);
  bool Is(const CallAt& at, const fake::FakeSyscalls::Call& call) const;
  // Until the worker has made the call, or for a while.
  void AwaitCall(const CallAt& call, uint64_t times);
  void AwaitStall();
  void LandGhosts();
  void LoseWriteback(uint64_t draw);
  void StartApplications();
  // What is direct is opened again during an abort: the worker asks, and the
  // re-anchorer does it.
  void AskToReopen();
  void Reopen();

  // --- the end
  void Finish();
  void CheckMoved();
  void CheckBack();
  void CheckTree(fake::FakeSyscalls::FsId fs, const char* where);
  void Plant();

  void Fail(const std::string& why);
  bool Failed() const { return !failure_.empty(); }
  template <class... T>
  void Say(const T&... parts);

  const Plan& plan_;
  const Switches on_;
  const bool trace_;
  Fibers fibers_;
  fake::FakeSyscalls sys_;
  fake::FakeSyscalls::FsId source_, target_, journal_;
  KernelFiles kernel_;
  bool served_ = false;  // a worker has served this mount
  std::vector<FileId> to_reopen_;
  std::unique_ptr<Orphans> orphans_;
  std::unique_ptr<char[]> intents_;
  fusefs::SavedInit saved_init_{};
  fusefs::Transport transport_;
  std::unique_ptr<SimWorker> worker_;
  std::vector<std::unique_ptr<SimWorker>> dead_;
  bool ready_ = false;  // the worker serves
  bool scanned_ = false;  // the last worker had compared the whole tree
  int lives_ = 0, boots_ = 1;
  int group_ = kFirstWorker;
  bool aborting_ = false;

  Model model_;
  std::deque<std::shared_ptr<Request>> queue_;
  std::deque<FileId> forgets_;
  std::vector<std::shared_ptr<Request>> taken_;
  uint64_t next_unique_ = 2;
  std::set<uint64_t> locked_;
  size_t next_op_[2] = {0, 0};
  int applications_ = 0;  // that have not finished
  bool observing_ = false, after_cut_ = false;
  uint64_t ops_begun_ = 0;
  int value_ = 0, made_ = 0;
  bool trouble_ = false;    // operations may fail
  size_t mishaps_ = 0;

  struct Ghost {  // a call of a dead worker that has not landed
    core::UniqueFd fd;
    std::string bytes;
    uint64_t off = 0;
    int64_t when = 0;
  };
  struct Hanging {
    int group = 0;
    Ghost ghost;
  };
  std::deque<std::shared_ptr<Hanging>> hanging_;
  std::deque<Ghost> ghosts_;
  struct Stall {
    const CallAt* call = nullptr;
    uint64_t skip = 0;
    int64_t ns = 0;
  };
  std::deque<Stall> stalls_;
  int stalling_ = 0;  // calls that stall now
  const CallAt* awaited_ = nullptr;  // by fate; null again once it happened
  int hangs_left_ = 0;
  int64_t hang_ns_ = 0;
  bool over_ = false;
  bool writeback_ = false;  // fsync may fail
  bool source_full_ = false;
  fuse_in_header header_{};
  fusefs::Entry made_entry_;  // of the creation that has just ended
  std::string failure_;
};

}  // namespace livemv::sim
