// Fibers: functions with stacks of their own that switch when they say so, all on one thread of the host.
#pragma once

#include <cstddef>
#include <vector>

namespace longcat::emulation {

class Fibers {
 public:
  explicit Fibers(size_t stack_bytes = size_t{64} << 10) : stack_bytes_(stack_bytes) {}
  ~Fibers();
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  // Makes fibers 0 .. count - 1. What ran in them before is forgotten; they must hold nothing that wants a destructor.
  void reset(int count);
  // Lets fiber `index` begin with entry(argument), which must not return.
  void start(int index, void (*entry)(void*), void* argument);
  // Runs fiber `index` until it calls pause().
  void resume(int index);
  void pause();

 private:
  struct Fiber {
    void* stack_pointer = nullptr;
    void (*entry)(void*) = nullptr;
    void* argument = nullptr;
  };
  static void enter(Fibers* self);
  void unmap();
  char* stack_of(int index) const { return memory_ + static_cast<size_t>(index) * (stack_bytes_ + kGuard); }

  static constexpr size_t kGuard = 4096;  // [bytes] below each stack: an overflow crashes there
  size_t stack_bytes_;
  char* memory_ = nullptr;
  size_t memory_bytes_ = 0;
  std::vector<Fiber> fibers_;
  int current_ = -1;
  void* caller_stack_pointer_ = nullptr;
  const void* caller_stack_ = nullptr;  // for ASan
  size_t caller_stack_bytes_ = 0;
};

}  // namespace longcat::emulation
