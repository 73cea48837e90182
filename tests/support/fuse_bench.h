#pragma once

// A fake kernel, a fake core and the memory that a supervisor would own, with
// sessions ("workers") on top that can be replaced like killed ones.
//
// Thread contract: one thread.

#include <linux/fuse.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "fusefs/session.h"
#include "tests/support/fake_core.h"
#include "tests/support/fake_fuse.h"

namespace livemv::fake {

// Looks again until ready or 5 s are over.
inline bool Eventually(const std::function<bool()>& ready) {
  for (int i = 0; i < 5000; i++) {
    if (ready())
      return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return ready();
}

struct FuseBench {
  explicit FuseBench(uint64_t offered = ~0ull & ~(1ull << 31))
      : kernel(offered), memory(fusefs::IntentTable::Bytes() / 8 + 1) {
    intents = AttachIntents();
  }
  std::unique_ptr<fusefs::IntentTable> AttachIntents() {
    auto table = fusefs::IntentTable::Attach(memory.data(), memory.size() * 8);
    return table ? std::move(*table) : nullptr;
  }
  core::Status StartFirst(fusefs::SessionOptions options = {}) {
    return Start(false, options);
  }
  // Another worker takes over; the one before must be stopped.
  core::Status StartNext(fusefs::SessionOptions options = {}) {
    session.reset();
    intents = AttachIntents();
    return Start(true, options);
  }
  core::Status Start(bool resume, fusefs::SessionOptions options) {
    session = std::make_unique<fusefs::Session>(kernel.worker_fd(), &core,
                                                &saved, intents.get(), options);
    return session->Start(resume);
  }
  // Sends INIT and returns its reply.
  fuse_init_out Init() {
    auto reply = kernel.Wait(kernel.SendInit());
    return reply ? reply->As<fuse_init_out>() : fuse_init_out{};
  }

  FakeFuse kernel;
  FakeCore core;
  fusefs::SavedInit saved{};
  std::vector<uint64_t> memory;  // of the intent table
  std::unique_ptr<fusefs::IntentTable> intents;
  std::unique_ptr<fusefs::Session> session;
};

}  // namespace livemv::fake
