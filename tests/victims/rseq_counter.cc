// Threads increment per-CPU counters in restartable sequences; the sum must
// be the number of increments. A sequence that goes on after an interruption
// instead of being aborted loses increments.

#include <linux/rseq.h>
#include <pthread.h>
#include <sys/rseq.h>

#include <atomic>

#include "victim.h"

namespace {

constexpr int kThreads = 4;
struct alignas(128) Counter {
  volatile long value;
};
Counter counters[1024];
std::atomic<bool> stop{false};
std::atomic<long> total{0};

// True if the increment was made on this CPU without interruption. The wide
// sequence gives interruptions something to hit.
bool Increment(struct rseq* area, uint32_t cpu) {
  volatile long* value = &counters[cpu].value;
  asm goto(
      ".pushsection __rseq_cs, \"aw\"\n"
      ".balign 32\n"
      "3: .long 0, 0\n"
      ".quad 1f, 2f - 1f, 4f\n"
      ".popsection\n"
      "leaq 3b(%%rip), %%rax\n"
      "movq %%rax, 8(%[area])\n"
      "1: cmpl %[cpu], 4(%[area])\n"
      "jne 4f\n"
      "movq (%[value]), %%rax\n"
      "movl $400, %%ecx\n"
      "5: decl %%ecx\n"
      "jnz 5b\n"
      "incq %%rax\n"
      "movq %%rax, (%[value])\n"
      "2:\n"
      ".pushsection __rseq_failure, \"ax\"\n"
      ".byte 0x0f, 0xb9, 0x3d\n"
      ".long 0x53053053\n"
      "4: jmp %l[aborted]\n"
      ".popsection\n"
      :
      : [area] "r"(area), [cpu] "r"(cpu), [value] "r"(value)
      : "rax", "rcx", "memory", "cc"
      : aborted);
  return true;
aborted:
  return false;
}

void* Run(void*) {
  auto* area = reinterpret_cast<struct rseq*>(
      static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset);
  long mine = 0;
  while (!stop) {
    uint32_t cpu = *const_cast<volatile __u32*>(&area->cpu_id_start);
    if (cpu < 1024 && Increment(area, cpu))
      ++mine;
  }
  total += mine;
  return nullptr;
}

}  // namespace

int main() {
  if (__rseq_size == 0)
    victim::Die("no rseq registered");
  pthread_t threads[kThreads];
  for (auto& thread : threads)
    pthread_create(&thread, nullptr, Run, nullptr);
  victim::Ready();
  char c;
  while (read(0, &c, 1) > 0) {
  }
  stop = true;
  for (auto& thread : threads)
    pthread_join(thread, nullptr);
  long sum = 0;
  for (auto& counter : counters)
    sum += counter.value;
  if (sum != total)
    victim::Die("%ld increments, counted %ld", total.load(), sum);
  victim::Ok("%ld", sum);
}
