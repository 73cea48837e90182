#include "migrator/trace/escrow.h"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "core/log.h"

namespace livemv::trace {
namespace {

constexpr size_t Aligned(size_t n) {
  return (n + 63) & ~size_t{63};
}

core::Result<uint32_t> Append(std::atomic<uint32_t>& count, uint32_t n,
                              uint32_t max, const char* what) {
  uint32_t at = count.load();
  do {
    if (n > max - at)
      return core::Fail(
          core::ErrorCode::kUnsupported,
          "more than " + std::to_string(max) + " " + what + " in one freeze");
  } while (!count.compare_exchange_weak(at, at + n));
  return at;
}

}  // namespace

core::Result<std::unique_ptr<Escrow>> Escrow::Create() {
  static_assert(std::atomic<uint32_t>::is_always_lock_free);
  std::unique_ptr<Escrow> escrow(new Escrow);
  size_t header = Aligned(sizeof(EscrowHeader));
  size_t processes = Aligned(sizeof(ProcessRecord) * kMaxProcesses);
  size_t threads = Aligned(sizeof(ThreadRecord) * kMaxThreads);
  size_t moves = Aligned(sizeof(MoveRecord) * kMaxMoves);
  size_t fds = Aligned(sizeof(FdRecord) * kMaxFds);
  size_t locks = Aligned(sizeof(LockRecord) * kMaxLocks);
  size_t bytes = header + processes + threads + moves + fds + locks;
  // Zeroed, which is an empty escrow.
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED)
    return core::FailSys(errno, "map the escrow");
  escrow->base_ = base;
  escrow->bytes_ = bytes;
  // Not swapped out in a freeze; pages are taken when they are needed.
  if (::mlock2(base, bytes, MLOCK_ONFAULT) != 0)
    LOG_WARN("the escrow cannot be locked in memory: {}", strerror(errno));
  char* at = static_cast<char*>(base);
  escrow->header_ = reinterpret_cast<EscrowHeader*>(at);
  escrow->processes_ = reinterpret_cast<ProcessRecord*>(at += header);
  escrow->threads_ = reinterpret_cast<ThreadRecord*>(at += processes);
  escrow->moves_ = reinterpret_cast<MoveRecord*>(at += threads);
  escrow->fds_ = reinterpret_cast<FdRecord*>(at += moves);
  escrow->locks_ = reinterpret_cast<LockRecord*>(at += fds);
  return escrow;
}

Escrow::~Escrow() {
  if (base_ != nullptr)
    ::munmap(base_, bytes_);
}

std::span<ProcessRecord> Escrow::processes() {
  return {processes_, header_->processes.load()};
}
std::span<ThreadRecord> Escrow::threads() {
  return {threads_, header_->threads.load()};
}
std::span<MoveRecord> Escrow::moves() {
  return {moves_, header_->moves.load()};
}
std::span<FdRecord> Escrow::FdsOf(const MoveRecord& move) {
  return {fds_ + move.first_fd, move.fd_count};
}
std::span<LockRecord> Escrow::LocksOf(const MoveRecord& move) {
  return {locks_ + move.first_lock, move.lock_count};
}

core::Result<uint32_t> Escrow::AddProcess() {
  return Append(header_->processes, 1, kMaxProcesses, "processes");
}
core::Result<uint32_t> Escrow::AddThread() {
  return Append(header_->threads, 1, kMaxThreads, "threads");
}
core::Result<uint32_t> Escrow::AddMove() {
  return Append(header_->moves, 1, kMaxMoves, "moves");
}
core::Result<uint32_t> Escrow::AddFds(uint32_t count) {
  return Append(header_->fds, count, kMaxFds, "descriptors");
}
core::Result<uint32_t> Escrow::AddLocks(uint32_t count) {
  return Append(header_->locks, count, kMaxLocks, "POSIX locks");
}

bool Escrow::LeaderTakes(const ThreadRecord& thread, uint64_t signals) {
  for (ThreadRecord& other : threads()) {
    if (other.process == thread.process && other.leader &&
        other.state != ThreadState::kUnused)
      return (signals & ~other.mask) != 0;
  }
  return false;
}

void Escrow::Clear() {
  for (auto& p : processes())
    p.used = 0;
  for (auto& t : threads())
    t.state = ThreadState::kUnused;
  for (auto& m : moves()) {
    m.state = MoveState::kUnused;
    m.temp_count = 0;
    m.mapping = false;
    m.cwd_touched = false;
    m.limit_raised = false;
    m.scratch = RemotePtr();
  }
  header_->committed = false;
  header_->processes = 0;
  header_->threads = 0;
  header_->moves = 0;
  header_->fds = 0;
  header_->locks = 0;
}

}  // namespace livemv::trace
