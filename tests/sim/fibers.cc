#include "tests/sim/fibers.h"

#include <algorithm>
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace livemv::sim {
namespace {

constexpr size_t kStackBytes = 128 * 1024;

// The fiber that Enter is to begin.
thread_local Fibers* entering = nullptr;

}  // namespace

// Saves what a called function must preserve, leaves the stack pointer in
// *from and goes on where `to` was left. swapcontext(3) would do, but makes
// two system calls for the signal mask each time.
extern "C" void livemv_sim_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl livemv_sim_switch
.type livemv_sim_switch, @function
livemv_sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size livemv_sim_switch, .-livemv_sim_switch
)");
constexpr size_t kSavedWords = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl livemv_sim_switch
.type livemv_sim_switch, %function
livemv_sim_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size livemv_sim_switch, .-livemv_sim_switch
)");
#else
#error "fibers: no switch for this architecture"
#endif

Fibers::Fibers(uint64_t seed) : rng_(seed) {}

Fibers::~Fibers() {
  if (core::Scheduler::Current() == this)
    core::Scheduler::SetCurrent(nullptr);
}

void Fibers::Enter() {
  Fibers* self = entering;
  Fiber* f = self->current_;
  f->body();
  f->done = true;
  self->SwitchToMain();
}

void Fibers::SwitchToMain() {
  livemv_sim_switch(&current_->at, main_);
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
#if defined(__SANITIZE_ADDRESS__)
  // A fiber that was dropped left its frames' marks behind.
  __asan_unpoison_memory_region(f->stack.get(), kStackBytes);
#endif
  // As if Enter had called livemv_sim_switch: the stack is aligned as it is
  // after a call (16 bytes and a return address).
  auto top = (reinterpret_cast<uintptr_t>(f->stack.get()) + kStackBytes) &
             ~uintptr_t{63};
#if defined(__x86_64__)
  auto* words = reinterpret_cast<uintptr_t*>(top) - 2;
  *words = reinterpret_cast<uintptr_t>(&Fibers::Enter);
  f->at = words - kSavedWords;
#else
  auto* words = reinterpret_cast<uintptr_t*>(top) - 20;
  words[11] = reinterpret_cast<uintptr_t>(&Fibers::Enter);  // x30
  f->at = words;
#endif
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
    entering = this;
    livemv_sim_switch(&main_, current_->at);
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
  SwitchToMain();
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
  SwitchToMain();
}

}  // namespace livemv::sim
