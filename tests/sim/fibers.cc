#include "tests/sim/fibers.h"

#include <algorithm>

namespace livemv::sim {
namespace {
constexpr size_t kStackBytes = 128 * 1024;
}

Fibers::Fibers(uint64_t seed) : rng_(seed) {}

Fibers::~Fibers() {
  if (core::Scheduler::Current() == this)
    core::Scheduler::SetCurrent(nullptr);
}

void Fibers::Enter(unsigned high, unsigned low) {
  auto* self = reinterpret_cast<Fibers*>(
      (static_cast<uintptr_t>(high) << 32) | static_cast<uintptr_t>(low));
  Fiber* f = self->current_;
  f->body();
  f->done = true;
  swapcontext(&f->context, &self->main_);
}

void Fibers::Spawn(std::string name, int group, std::function<void()> body) {
  auto f = std::make_unique<Fiber>();
  f->name = std::move(name);
  f->group = group;
  f->body = std::move(body);
  if (!spare_stacks_.empty()) {
    f->stack = std::move(spare_stacks_.back());
    spare_stacks_.pop_back();
  } else {
    f->stack = std::make_unique_for_overwrite<char[]>(kStackBytes);
  }
  getcontext(&f->context);
  f->context.uc_stack.ss_sp = f->stack.get();
  f->context.uc_stack.ss_size = kStackBytes;
  f->context.uc_link = &main_;
  auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(&f->context, reinterpret_cast<void (*)()>(&Fibers::Enter), 2,
              static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
  fibers_.push_back(std::move(f));
}

void Fibers::Kill(int group) {
  for (auto& f : fibers_)
    if (f->group == group)
      spare_stacks_.push_back(std::move(f->stack));
  std::erase_if(fibers_, [&](const auto& f) { return f->group == group; });
}

bool Fibers::Alive(int group) const {
  return std::any_of(fibers_.begin(), fibers_.end(),
                     [&](const auto& f) { return f->group == group; });
}

bool Fibers::CanRun(const Fiber& f) const {
  return f.ready == nullptr || (*f.ready)() ||
         (f.deadline_ns >= 0 && f.deadline_ns <= now_ns_);
}

bool Fibers::Run(const std::function<bool()>& done, uint64_t max_steps) {
  core::Scheduler* outer = core::Scheduler::Current();
  core::Scheduler::SetCurrent(this);
  uint64_t end = steps_ + max_steps;
  bool finished = false;
  std::vector<Fiber*> can;
  while (true) {
    if (done()) {
      finished = true;
      break;
    }
    if (steps_ >= end)
      break;
    can.clear();
    int64_t wake = -1;
    for (auto& f : fibers_) {
      if (CanRun(*f))
        can.push_back(f.get());
      else if (f->deadline_ns >= 0 && (wake < 0 || f->deadline_ns < wake))
        wake = f->deadline_ns;
    }
    if (can.empty()) {
      if (wake < 0)
        break;
      now_ns_ = wake;
      continue;
    }
    steps_++;
    current_ = can[Draw(can.size())];
    current_->ready = nullptr;
    current_->deadline_ns = -1;
    swapcontext(&main_, &current_->context);
    if (current_->done) {
      spare_stacks_.push_back(std::move(current_->stack));
      std::erase_if(fibers_, [&](const auto& f) { return f.get() == current_; });
    }
    current_ = nullptr;
  }
  core::Scheduler::SetCurrent(outer);
  return finished;
}

std::string Fibers::Stuck() const {
  std::string out;
  for (auto& f : fibers_)
    if (!CanRun(*f))
      out += (out.empty() ? "" : ", ") + f->name;
  return out.empty() ? "nobody waits" : "waiting: " + out;
}

void Fibers::Yield() {
  if (current_ == nullptr)
    return;  // setting up, outside any fiber
  swapcontext(&current_->context, &main_);
}

void Fibers::WaitUntil(const std::function<bool()>& ready,
                       int64_t deadline_ns) {
  if (current_ == nullptr) {
    // Outside a fiber nothing may have to wait.
    return;
  }
  if (ready())
    return;
  current_->ready = &ready;
  current_->deadline_ns = deadline_ns;
  swapcontext(&current_->context, &main_);
}

}  // namespace livemv::sim
