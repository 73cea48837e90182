#pragma once

// Gives one process (or one thread with tables of its own) other descriptors
// and another working directory, or the former ones back, by calls made in a
// parked thread:
//   mmap of a scratch page, socketpair (one end is taken by pidfd_getfd and
//   the descriptors are sent through it), recvmsg, dup3 each into place,
//   fchdir, close_range of the temporaries, F_SETLK of each POSIX lock, munmap.
// Whatever it takes temporarily is in the escrow first, so that a successor
// can tell and clean up: descriptor numbers are predicted, since nobody else
// uses the table meanwhile and the kernel gives the lowest free ones.
//
// The close of any descriptor of a file lets go of the POSIX locks that the
// process has on it (fs/locks.c, locks_remove_posix): so they are taken when
// everything is in its place and nothing temporary is open any more.
//
// Errors: kGone: the process was killed; kTimeout: a call did not return
// until the deadline; kSystem with what the thread was told, for example
// EMFILE, or EACCES of fchdir; kConflict: the process is not as expected, or,
// on the way back, a lock is somebody else's and everything else in place.
//
// Thread contract: the thread that traces the process.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/result.h"
#include "migrator/trace/escrow.h"
#include "migrator/trace/injected_calls.h"
#include "migrator/trace/remote_memory.h"

namespace livemv::trace {

enum class Side { kOld, kNew };

class DescriptorSwap {
 public:
  DescriptorSwap(InjectedCalls& calls, Escrow& escrow, MoveRecord& move)
      : calls_(calls),
        escrow_(escrow),
        move_(move),
        memory_(calls.pid(), calls.tid()) {}

  // The steps of SwapTogether. Each false or kFailed leaves the move to To.
  bool StartRun(Side side, int64_t deadline_ns);
  bool PassEntry();
  bool Launch();
  enum class Progress { kBusy, kDone, kFailed };
  Progress Look();
  // Stops the thread, in two steps; true if everything is in place.
  void StartEnd();
  bool End();

  // Brings everything of the move to one side, from any state in which an
  // earlier attempt or tracer left it, and verifies it from outside.
  core::Status To(Side side, int64_t deadline_ns);

 private:
  struct Item {
    int at;  // number, or kCwd
    int with;
    bool cloexec;
  };
  static constexpr int kCwd = -1;

  std::vector<Item> Missing(Side side);
  core::Status CleanUp();
  core::Status MapScratch();
  core::Status CloseTemps();
  // Installs the first items of the span; returns how many.
  core::Result<size_t> Install(std::span<const Item> items);
  // Notes the lowest free numbers as temporaries, and returns them.
  core::Result<std::vector<uint32_t>> ExpectFree(size_t count);
  core::Status WriteTable(const std::vector<uint32_t>& numbers);
  core::Status SendItems(int socket_in_process, std::span<const Item> items);
  core::Status RaiseLimit();
  core::Status LowerLimit();
  core::Status Place(const Item& item, int temp);
  core::Status TakeLocks(bool* lost);
  core::Result<bool> Holds(int at, int ours);
  // Whether the thread is in the directory ours; asks no filesystem.
  bool IsWorkingDirectory(int ours);

  InjectedCalls& calls_;
  Escrow& escrow_;
  MoveRecord& move_;
  RemoteMemory memory_;
  int64_t deadline_ns_ = 0;
  Side side_ = Side::kOld;
  // Of a run.
  std::vector<Item> items_;
  size_t table_calls_ = 0;
  int socket_number_ = -1;  // in the process; -1: the descriptors are sent
};

// Brings many moves to one side at once, as far as nothing unusual comes up:
// each thread makes all its calls in one run, and the runs overlap. What is
// not on that side afterwards (its state says so) is for DescriptorSwap::To,
// which also finds out the reason. Fails only at a fault point.
core::Status SwapTogether(
    std::span<const std::unique_ptr<DescriptorSwap>> swaps, Side side,
    int64_t deadline_ns);

// The lowest `count` numbers that are not in `used` (sorted), as ranges; fewer
// when they would need more than max_ranges ranges.
std::vector<NumberRange> LowestFree(const std::vector<uint32_t>& used,
                                    size_t count, size_t max_ranges);

}  // namespace livemv::trace
