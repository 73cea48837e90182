#pragma once

// One tracer thread and the processes that it traces. Several lanes work side
// by side, so that many processes stop and go on within a few milliseconds.
// When a lane is destroyed its thread ends, and with it the kernel lets go of
// every thread it still holds: this is the only way to let go of one that
// cannot be stopped.
//
// Thread contract: Start and Finish from the thread that owns the lane, in
// turn; everything else inside the job, which runs in the lane's thread.

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/result.h"
#include "migrator/trace/escrow.h"
#include "migrator/trace/freezer.h"
#include "migrator/trace/injected_calls.h"
#include "migrator/trace/parking.h"
#include "migrator/trace/tracee.h"

namespace livemv::trace {

class Lane {
 public:
  explicit Lane(Escrow& escrow);
  ~Lane();  // waits for the thread, which is idle
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // Begins the job in the lane's thread; Finish waits for it.
  void Start(std::function<core::Status()> job);
  core::Status Finish();

  // ---- in jobs
  core::Status Freeze(int64_t deadline_ns);
  core::Status Park();
  void Release() { freezer_.Release(processes); }
  // The calls of a parked thread, kept over several jobs.
  InjectedCalls& CallsOf(uint32_t thread_record);
  // Restores and detaches every thread of every process but those in
  // `stays` (indices of process records), which need more.
  core::Status Thaw(const std::vector<uint32_t>& stays, int64_t deadline_ns,
                    std::vector<Pause>* pauses);

  std::vector<TracedProcess> processes;
  std::vector<uint32_t> records;     // of processes, in the escrow
  std::vector<Unstopped> unstopped;  // after Freeze
  std::vector<uint32_t> moves;       // to do, in the escrow

 private:
  core::Status ParkProcess(TracedProcess& process, uint32_t record);
  core::Status RestoreProcess(TracedProcess& process, int64_t deadline_ns);
  void DetachProcess(TracedProcess& process, std::vector<Pause>* pauses);
  void Run();

  Escrow& escrow_;
  std::unique_ptr<PtraceOps> ops_;
  std::unique_ptr<TaskView> tasks_;
  Freezer freezer_;
  Parking parking_;
  std::unordered_map<uint32_t, std::unique_ptr<InjectedCalls>> calls_;

  std::mutex mu_;
  std::condition_variable changed_;
  std::function<core::Status()> job_;  // guarded by mu_, as the next two
  bool done_ = true;
  bool ends_ = false;
  core::Status status_;
  std::thread thread_;
};

}  // namespace livemv::trace
