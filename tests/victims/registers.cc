// Spins with known values in registers, flags, a vector register and the red
// zone, and checks them all the time. Makes no system calls while it does.

#include <pthread.h>

#include "victim.h"

namespace {

volatile int stop = 0;

// 0 if everything was as it should be until stop.
uint64_t Spin() {
  uint64_t bad = 0;
  asm volatile(
      "mov $0x1111, %%rbx\n mov $0x2222, %%rcx\n mov $0x3333, %%rdx\n"
      "mov $0x5555, %%r8\n mov $0x6666, %%r9\n mov $0x7777, %%r10\n"
      "mov $0x8888, %%r11\n mov $0x9999, %%r12\n mov $0xaaaa, %%r13\n"
      "mov $-516, %%rax\n movq %%r13, %%xmm7\n movq $0x1234, -64(%%rsp)\n"
      "1: cmpl $0, (%[stop])\n je 1b\n"
      "cmp $0x1111, %%rbx\n je 2f\n or $1, %[bad]\n"
      "2: cmp $0x2222, %%rcx\n je 2f\n or $2, %[bad]\n"
      "2: cmp $0x3333, %%rdx\n je 2f\n or $4, %[bad]\n"
      "2: cmp $0x8888, %%r11\n je 2f\n or $8, %[bad]\n"
      "2: cmp $0x9999, %%r12\n je 2f\n or $16, %[bad]\n"
      "2: cmp $-516, %%rax\n je 2f\n or $32, %[bad]\n"
      "2: cmpq $0x1234, -64(%%rsp)\n je 2f\n or $64, %[bad]\n"
      "2: movq %%xmm7, %%r14\n cmp $0xaaaa, %%r14\n je 2f\n or $128, %[bad]\n"
      "2: cmp $0x7777, %%r10\n je 2f\n or $256, %[bad]\n"
      "2:\n"
      : [bad] "+D"(bad)
      : [stop] "S"(&stop)
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "xmm7", "cc", "memory");
  return bad;
}

void* Watch(void*) {
  char c;
  while (read(0, &c, 1) > 0) {
  }
  stop = 1;
  return nullptr;
}

}  // namespace

int main() {
  pthread_t watcher;
  if (pthread_create(&watcher, nullptr, Watch, nullptr) != 0)
    victim::Die("thread");
  victim::Ready();
  uint64_t bad = Spin();
  if (bad != 0)
    victim::Die("registers changed: %lx", static_cast<unsigned long>(bad));
  victim::Ok("0");
}
