// What this machine can do at most: bytes read, multiply-adds of f32, exact 8-bit multiply-adds. Other benches print
// their shares of these, measured in the same run.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "limit_kernels.h"
#include "timing.h"

namespace longcat::bench {

struct Limits {
  double read_bytes_per_s = 0;  // of memory, far more than the caches hold
  double f32_flop_per_s = 0;    // 2 a multiply-add
  // 2 an exact 8-bit multiply-add (LimitKernels); 0: no kernel for this machine.
  double int8_op_per_s = 0;
  double int4_op_per_s = 0;
};

// Measures again and again: a machine that others use too is not the same from one second to the next.
class LimitsMeter {
 public:
  explicit LimitsMeter(ThreadPool& pool) : pool_(pool), memory_(static_cast<size_t>(kMemoryFloats), 1.0f) {}

  // About 10 ms.
  Limits measure() {
    Limits limits;
    limits.read_bytes_per_s = measure_read();
    limits.f32_flop_per_s = rate(kernels_.f32);
    limits.int8_op_per_s = rate(kernels_.int8);
    limits.int4_op_per_s = rate(kernels_.int4);
    for (double Limits::* limit :
         {&Limits::read_bytes_per_s, &Limits::f32_flop_per_s, &Limits::int8_op_per_s, &Limits::int4_op_per_s})
      best_.*limit = std::max(best_.*limit, limits.*limit);
    return limits;
  }

  // The best of all measurements so far, and of some more.
  const Limits& best(int more = 40) {
    for (int i = 0; i < more; ++i) measure();
    return best_;
  }

 private:
  static constexpr int64_t kMemoryFloats = int64_t{256} << 20 >> 2, kReadFloats = kMemoryFloats / 4;

  double measure_read() {
    constexpr int64_t kRange = 1 << 16;
    const float* begin = memory_.data() + next_;
    next_ = (next_ + kReadFloats) % kMemoryFloats;
    const Clock::time_point start = Clock::now();
    pool_.parallel_for(kReadFloats / kRange, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) sink_ = kernels_.sum_of(begin + i * kRange, kRange);
    });
    return static_cast<double>(kReadFloats) * 4 / seconds_since(start);
  }

  // Operations a second of a kernel on every thread at once.
  double rate(const LimitKernels::Rate& kernel) {
    if (!kernel.run) return 0;
    constexpr int64_t kCount = 1 << 13;
    const int64_t times = pool_.num_threads() * 8;
    const Clock::time_point start = Clock::now();
    pool_.parallel_for(times, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) sink_ = static_cast<float>(kernel.run(bytes_.data(), kCount));
    });
    return kernel.each * static_cast<double>(kCount * times) / seconds_since(start);
  }

  const LimitKernels& kernels_ = cpu::kernels<LimitKernels>();
  ThreadPool& pool_;
  Limits best_;
  std::vector<float> memory_;
  std::vector<int8_t> bytes_ = std::vector<int8_t>(4096, 3);
  int64_t next_ = 0;
  static inline volatile float sink_;  // what the compiler must compute
};

}  // namespace longcat::bench
