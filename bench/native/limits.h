// What this machine can do at most: bytes read, multiply-adds of f32, bf16 and exact 8 bits. The program `limits`
// measures them; other benches ask it (machine_limits.h).
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "bf16_peak.h"
#include "huge_memory.h"
#include "limit_kernels.h"
#include "timing.h"

namespace longcat::bench {

struct Limits {
  double read_bytes_per_s = 0;  // of memory, far more than the caches hold
  double f32_flop_per_s = 0;    // 2 a multiply-add
  // 2 an exact 8-bit multiply-add (LimitKernels); 0: no kernel for this machine.
  double int8_op_per_s = 0;
  double int4_op_per_s = 0;
  double bf16_flop_per_s = 0;  // 2 a multiply-add of bf16, summed in f32; where no instruction has it, as f32

  static constexpr double Limits::* kAll[] = {&Limits::read_bytes_per_s, &Limits::f32_flop_per_s,
                                              &Limits::int8_op_per_s, &Limits::int4_op_per_s, &Limits::bf16_flop_per_s};
};

// Measures again and again: a machine that others use too is not the same from one second to the next.
class LimitsMeter {
 public:
  explicit LimitsMeter(ThreadPool& pool) : pool_(pool), memory_(kMemoryFloats) {}

  // About 20 ms.
  Limits measure() {
    Limits limits;
    for (const int64_t ahead : {0, 256, 1024})
      limits.read_bytes_per_s = std::max(limits.read_bytes_per_s, measure_read(ahead));
    limits.f32_flop_per_s = rate(kernels_.f32);
    limits.int8_op_per_s = rate(kernels_.int8);
    limits.int4_op_per_s = rate(kernels_.int4);
    if (cpu_isa() >= Isa::avx512 && detail::has_bf16())
      limits.bf16_flop_per_s = rate({detail::bf16_multiply_adds, detail::kBf16Each});
    limits.bf16_flop_per_s = std::max(limits.bf16_flop_per_s, limits.f32_flop_per_s);
    for (double Limits::* limit : Limits::kAll) best_.*limit = std::max(best_.*limit, limits.*limit);
    return limits;
  }

  // The best of all measurements so far, and of some more.
  const Limits& best(int more = 40) {
    for (int i = 0; i < more; ++i) measure();
    return best_;
  }

 private:
  static constexpr int64_t kMemoryFloats = int64_t{256} << 20 >> 2, kReadFloats = kMemoryFloats / 4;

  // ahead: [floats] how far to prefetch; 0: left to the processor.
  double measure_read(int64_t ahead) {
    constexpr int64_t kRange = 256;
    const float* begin = memory_.data() + next_;
    next_ = (next_ + kReadFloats) % kMemoryFloats;
    const Clock::time_point start = Clock::now();
    pool_.parallel_for(kReadFloats / kRange, 256, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const float* range = begin + i * kRange;
        for (int64_t line = 0; ahead > 0 && line < kRange; line += 16) __builtin_prefetch(range + ahead + line);
        sink_ = kernels_.sum_of(range, kRange);
      }
    });
    return static_cast<double>(kReadFloats) * 4 / seconds_since(start);
  }

  // Operations a second of a kernel on every thread at once.
  double rate(const LimitKernels::Rate& kernel) {
    if (!kernel.run) return 0;
    constexpr int64_t kCount = 1 << 13;
    const int64_t times = pool_.num_threads() * 16;
    const Clock::time_point start = Clock::now();
    pool_.parallel_for(times, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) sink_ = static_cast<float>(kernel.run(bytes_.data(), kCount));
    });
    return kernel.each * static_cast<double>(kCount * times) / seconds_since(start);
  }

  const LimitKernels& kernels_ = cpu::kernels<LimitKernels>();
  ThreadPool& pool_;
  Limits best_;
  HugeMemory memory_;
  std::vector<int8_t> bytes_ = std::vector<int8_t>(4096, 3);
  int64_t next_ = 0;
  static inline volatile float sink_;  // what the compiler must compute
};

}  // namespace longcat::bench
