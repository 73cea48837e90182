#pragma once

// The barrier of rules 1 to 3: at least every 5 s the source's metadata and
// then the journal are made durable, hot marks are taken off, sizes of grown
// files are recorded; less often, on a thread of its own because it waits for
// the target, hot chunks are unmarked and dead objects destroyed.
//
// Thread contract: Step and Run from one thread, TargetStep and RunTarget from
// another one; Now and the rest from any.

#include <atomic>
#include <cstdint>
#include <string>

#include "core/result.h"
#include "core/sync.h"
#include "fusefs/byte_ledger.h"
#include "migrator/copy/name_lane.h"
#include "migrator/copy/victims.h"

namespace livemv::copy {

class Barrier {
 public:
  struct Options {
    int64_t every_ns = 4'000'000'000;
    int64_t target_every_ns = 10'000'000'000;
    // The target's metadata is durable when a call returns (NFS). Otherwise
    // the target is synced before a hot mark goes.
    bool target_is_durable = false;
  };
  // All must outlive this.
  Barrier(const NameLane* lane, fusefs::ByteLedger* ledger, Victims* victims,
          const Options& options);

  // A barrier if it is due. Blocks on source and journal only.
  core::Status Step();
  // What waits for the target, if it is due.
  core::Status TargetStep();
  // A barrier now: what had changed before the call is durable on the source
  // and in the journal after it.
  core::Status Now();
  void Run(const std::atomic<bool>& stop);
  void RunTarget(const std::atomic<bool>& stop);
  void WakeAll();
  uint64_t finished() const { return finished_.load(); }
  // The last error of either part; empty when the last ones went well.
  std::string last_error();

 private:
  core::Status SyncSource();
  void Remember(std::string* last, const core::Status& status);

  const NameLane* const lane_;
  fusefs::ByteLedger* const ledger_;
  Victims* const victims_;
  const Options options_;
  core::Syscalls* const sys_;
  std::atomic<uint64_t> finished_{0};
  core::Mutex one_;  // one barrier at a time
  core::Mutex mu_;
  core::CondVar wake_;
  std::string last_error_, last_target_error_;  // guarded by mu_
  int64_t next_ns_ = 0;         // Step's thread
  int64_t next_target_ns_ = 0;  // TargetStep's thread
};

}  // namespace livemv::copy
