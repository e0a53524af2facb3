#include "cuda/emulation/fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define LC_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LC_ASAN 1
#endif
#endif
#ifdef LC_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the registers that a function must keep on this stack, and takes up the other. It is ten times faster than
// swapcontext(), which also asks the kernel for the signal mask.
extern "C" void longcat_switch_stack(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.globl longcat_switch_stack
.hidden longcat_switch_stack
.type longcat_switch_stack, @function
longcat_switch_stack:
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
.size longcat_switch_stack, .-longcat_switch_stack
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl longcat_switch_stack
.hidden longcat_switch_stack
.type longcat_switch_stack, %function
longcat_switch_stack:
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
.size longcat_switch_stack, .-longcat_switch_stack
)");
#else
#error "fibers: x86-64 and aarch64 only"
#endif

namespace longcat::emulation {

namespace {

thread_local Fibers* entering = nullptr;  // a new fiber begins without arguments

}  // namespace

Fibers::~Fibers() { unmap(); }

// ASan marks the frames of fibers that never return. Other memory may get these addresses.
void Fibers::unmap() {
  if (!memory_) return;
#ifdef LC_ASAN
  __asan_unpoison_memory_region(memory_, memory_bytes_);
#endif
  ::munmap(memory_, memory_bytes_);
  memory_ = nullptr;
}

void Fibers::reset(int count) {
  const size_t bytes = static_cast<size_t>(count) * (stack_bytes_ + kGuard);
  if (bytes > memory_bytes_) {
    unmap();
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    memory_bytes_ = bytes;
    for (int i = 0; i < count; ++i) ::mprotect(stack_of(i), kGuard, PROT_NONE);
  }
  fibers_.assign(static_cast<size_t>(count), {});
}

void Fibers::start(int index, void (*entry)(void*), void* argument) {
  char* const top = stack_of(index) + kGuard + stack_bytes_;  // pages: aligned to 16
#if defined(__x86_64__)
  // A return address that enter() never uses, which aligns the stack as a call does; then enter(), and six registers.
  void** slot = reinterpret_cast<void**>(top) - 1;
  *slot = nullptr;
  *--slot = reinterpret_cast<void*>(+[] { enter(entering); });
  for (int i = 0; i < 6; ++i) *--slot = nullptr;
#else
  void** slot = reinterpret_cast<void**>(top) - 20;
  for (int i = 0; i < 20; ++i) slot[i] = nullptr;
  slot[11] = reinterpret_cast<void*>(+[] { enter(entering); });  // x30, where `ret` goes
#endif
  fibers_[static_cast<size_t>(index)] = {slot, entry, argument};
}

void Fibers::enter(Fibers* self) {
#ifdef LC_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_stack_bytes_);
#endif
  const Fiber& fiber = self->fibers_[static_cast<size_t>(self->current_)];
  fiber.entry(fiber.argument);
  std::abort();
}

void Fibers::resume(int index) {
  current_ = index;
  entering = this;
#ifdef LC_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_of(index) + kGuard, stack_bytes_);
#endif
  longcat_switch_stack(&caller_stack_pointer_, fibers_[static_cast<size_t>(index)].stack_pointer);
#ifdef LC_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fibers::pause() {
#ifdef LC_ASAN
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, caller_stack_, caller_stack_bytes_);
#endif
  longcat_switch_stack(&fibers_[static_cast<size_t>(current_)].stack_pointer, caller_stack_pointer_);
#ifdef LC_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, &caller_stack_, &caller_stack_bytes_);
#endif
}

}  // namespace longcat::emulation
