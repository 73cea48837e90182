#pragma once

// One directory of files in memory, behind the Syscalls seam, that can lose
// power: what was not synced survives in part, as a seed decides. Only the
// calls that the journal makes; every other one fails with ENOSYS.
//
// Thread contract: methods from any thread (one big lock).

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "core/syscalls.h"

namespace livemv::state {

class MemoryDisk final : public core::Syscalls {
 public:
  static constexpr int kDir = 3;  // the descriptor of the directory
  static constexpr size_t kBlock = 512;

  // ---- what a test does to it

  // From the n-th changing call on (counted from 1, that one included) nothing
  // has an effect any more: the process was killed there.
  void KillAt(uint64_t call) { kill_at_ = call; }
  bool Killed() const { return kill_at_ != 0 && calls_ >= kill_at_; }
  uint64_t calls() const { return calls_; }
  // A new process: descriptors are gone, what is in the page cache is not.
  void Restart() {
    std::lock_guard lock(mu_);
    calls_ = 0;
    kill_at_ = 0;
    fds_.clear();
  }
  // The host: every block written since its file's last sync survives or not;
  // so do the last changes of the directory, in order.
  void PowerCut(uint32_t seed) {
    Restart();
    std::mt19937 rng(seed);
    for (auto& inode : all_) {
      std::string after = inode->durable;
      if (rng() % 2 != 0 || inode->data.size() < after.size())
        after.resize(inode->data.size(), '\0');
      for (size_t at = 0; at < inode->data.size(); at += kBlock) {
        size_t n = std::min(kBlock, inode->data.size() - at);
        if (at + n <= after.size() && rng() % 2 != 0)
          after.replace(at, n, inode->data, at, n);
      }
      inode->data = inode->durable = after;
    }
    size_t keep = history_.empty() ? 0 : rng() % history_.size();
    names_ = history_.empty() ? names_ : history_[keep];
    history_ = {names_};
  }
  // The next calls of that name fail with err, count times.
  void FailNext(const std::string& call, int err, int count = 1) {
    fail_call_ = call;
    fail_errno_ = err;
    fail_count_ = count;
  }
  // Bytes that all files together may have allocated.
  void SetCapacity(uint64_t bytes) { capacity_ = bytes; }
  uint64_t Used() const {
    uint64_t sum = 0;
    for (const auto& [name, inode] : names_)
      sum += inode->data.size();
    return sum;
  }
  std::string& Content(const std::string& name) {
    return names_.at(name)->data;
  }
  bool Has(const std::string& name) const { return names_.contains(name); }
  // Called at the beginning of every fdatasync, without the lock.
  std::function<void()> on_sync;
  uint64_t syncs = 0;

  // ---- the seam

  core::Result<core::UniqueFd> OpenAt(int, const char* path, int flags,
                                      mode_t) override {
    std::lock_guard lock(mu_);
    if (std::string(path) == ".")
      return core::UniqueFd(kDir, this);
    if (auto s = (flags & O_CREAT) != 0 ? Changing("openat") : Alive(); !s)
      return std::unexpected(s.error());
    auto it = names_.find(path);
    if (it == names_.end()) {
      if ((flags & O_CREAT) == 0)
        return core::FailSys(ENOENT, "openat");
      all_.push_back(std::make_shared<Inode>());
      it = names_.emplace(path, all_.back()).first;
      history_.push_back(names_);
    } else if ((flags & O_TRUNC) != 0) {
      it->second->data.clear();
    }
    fds_[next_fd_] = it->second;
    return core::UniqueFd(next_fd_++, this);
  }
  core::Result<size_t> PRead(int fd, void* buf, size_t len,
                             off_t off) override {
    std::lock_guard lock(mu_);
    const std::string& data = fds_.at(fd)->data;
    if (static_cast<size_t>(off) >= data.size())
      return size_t{0};
    size_t n = std::min(len, data.size() - static_cast<size_t>(off));
    std::memcpy(buf, data.data() + off, n);
    return n;
  }
  core::Result<size_t> PWrite(int fd, const void* buf, size_t len,
                              off_t off) override {
    std::lock_guard lock(mu_);
    if (auto s = Changing("pwrite"); !s)
      return std::unexpected(s.error());
    Inode& inode = *fds_.at(fd);
    // Short at a page's end, as a signal or a full disk may make it.
    len = std::min<size_t>(len, 4096 - static_cast<size_t>(off) % 4096);
    size_t end = static_cast<size_t>(off) + len;
    if (end > inode.data.size()) {
      if (Used() + end - inode.data.size() > capacity_)
        return core::FailSys(ENOSPC, "pwrite");
      inode.data.resize(end, '\0');
    }
    std::memcpy(inode.data.data() + off, buf, len);
    return len;
  }
  core::Status FSync(int fd) override { return FDataSync(fd); }
  core::Status FDataSync(int fd) override {
    if (on_sync)
      on_sync();
    std::lock_guard lock(mu_);
    if (auto s = Changing("fdatasync"); !s)
      return s;
    syncs++;
    if (fd == kDir)
      history_ = {names_};
    else
      fds_.at(fd)->durable = fds_.at(fd)->data;
    return {};
  }
  core::Status FAllocate(int fd, int, uint64_t off, uint64_t len) override {
    std::lock_guard lock(mu_);
    if (auto s = Changing("fallocate"); !s)
      return s;
    Inode& inode = *fds_.at(fd);
    if (off + len <= inode.data.size())
      return {};
    if (Used() + off + len - inode.data.size() > capacity_)
      return core::FailSys(ENOSPC, "fallocate");
    inode.data.resize(off + len, '\0');
    return {};
  }
  core::Result<core::Stat> StatAt(int dirfd, const char* path,
                                  unsigned) override {
    std::lock_guard lock(mu_);
    core::Stat st{};
    if (*path == '\0') {
      st.stx_size = fds_.at(dirfd)->data.size();
      return st;
    }
    auto it = names_.find(path);
    if (it == names_.end())
      return core::FailSys(ENOENT, "statx");
    st.stx_size = it->second->data.size();
    return st;
  }
  core::Status UnlinkAt(int, const char* path, int) override {
    std::lock_guard lock(mu_);
    if (auto s = Changing("unlinkat"); !s)
      return s;
    if (names_.erase(path) == 0)
      return core::FailSys(ENOENT, "unlinkat");
    history_.push_back(names_);
    return {};
  }
  core::Status RenameAt(int, const char* from, int, const char* to,
                        unsigned) override {
    std::lock_guard lock(mu_);
    if (auto s = Changing("renameat2"); !s)
      return s;
    auto it = names_.find(from);
    if (it == names_.end())
      return core::FailSys(ENOENT, "renameat2");
    names_[to] = it->second;
    names_.erase(from);
    history_.push_back(names_);
    return {};
  }
  void CloseFd(int fd) noexcept override {
    std::lock_guard lock(mu_);
    fds_.erase(fd);
  }
  int64_t MonotonicNs() override { return now_ns += 1000; }
  int64_t RealtimeNs() override { return now_ns += 1000; }
  int64_t now_ns = 1'000'000'000;

  core::Result<core::UniqueFd> OpenByHandle(int, const core::FileHandle&,
                                            int) override {
    return None();
  }
  core::Result<core::FileHandle> NameToHandle(int, const char*) override {
    return None();
  }
  core::Result<size_t> WriteAppend(int, const void*, size_t) override {
    return None();
  }
  core::Status SyncFs(int) override { return None(); }
  core::Status FTruncate(int, uint64_t) override { return None(); }
  core::Result<off_t> LSeek(int, off_t, int) override { return None(); }
  core::Status FAdvise(int, uint64_t, uint64_t, int) override { return None(); }
  core::Result<struct statfs> FStatFs(int) override { return None(); }
  core::Result<std::vector<core::DirEntry>> ReadDir(int, int64_t,
                                                    size_t) override {
    return None();
  }
  core::Status MkDirAt(int, const char*, mode_t) override { return None(); }
  core::Status MkNodAt(int, const char*, mode_t, dev_t) override {
    return None();
  }
  core::Status SymLinkAt(const char*, int, const char*) override {
    return None();
  }
  core::Result<std::string> ReadLinkAt(int, const char*) override {
    return None();
  }
  core::Status LinkFd(int, int, const char*) override { return None(); }
  core::Status ChMod(int, mode_t) override { return None(); }
  core::Result<core::Identity> ActAs(const core::Identity&) override {
    return core::Identity();
  }
  core::Status ChOwn(int, uid_t, gid_t) override { return None(); }
  core::Status UTimens(int, const struct timespec[2]) override {
    return None();
  }
  core::Result<std::string> GetXattr(int, const char*) override {
    return None();
  }
  core::Status SetXattr(int, const char*, std::string_view, int) override {
    return None();
  }
  core::Result<std::vector<std::string>> ListXattr(int) override {
    return None();
  }
  core::Status RemoveXattr(int, const char*) override { return None(); }

 private:
  struct Inode {
    std::string data;     // what reads show
    std::string durable;  // what a power cut surely leaves
  };
  using Names = std::map<std::string, std::shared_ptr<Inode>>;

  static std::unexpected<core::Error> None() {
    return core::FailSys(ENOSYS, "not in this disk");
  }
  core::Status Alive() const {
    if (Killed())
      return core::FailSys(EINTR, "killed");
    return {};
  }
  core::Status Changing(const char* call) {
    calls_++;
    if (auto s = Alive(); !s)
      return s;
    if (fail_count_ > 0 && fail_call_ == call) {
      fail_count_--;
      return core::FailSys(fail_errno_, call);
    }
    return {};
  }

  std::mutex mu_;
  Names names_;
  std::vector<Names> history_ = {Names()};  // front: durable; back: now
  std::vector<std::shared_ptr<Inode>> all_;
  std::map<int, std::shared_ptr<Inode>> fds_;
  int next_fd_ = 10;
  uint64_t calls_ = 0, kill_at_ = 0;
  uint64_t capacity_ = ~0ull;
  std::string fail_call_;
  int fail_errno_ = 0, fail_count_ = 0;
};

}  // namespace livemv::state
