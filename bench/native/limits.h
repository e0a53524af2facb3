// What this machine can do at most: bytes read, multiply-adds of f32, bf16 and exact 8 bits. The program `limits`
// measures them; other benches ask it (machine_limits.h).
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "bf16_peak.h"
#include "cpu/simd/isa.h"
#include "cpu/simd/vec.h"
#include "huge_memory.h"
#include "timing.h"

#if defined(__x86_64__) && defined(__GNUC__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own avx512fintrin.h (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace longcat::bench {

struct Limits {
  double read_bytes_per_s = 0;  // of memory, far more than the caches hold
  double f32_flop_per_s = 0;    // 2 a multiply-add
  // 2 an exact 8-bit multiply-add, summed in 32 bits; 0: no kernel for this machine. Of two signed factors, and of one
  // unsigned factor so small that two products fit 16 bits, such as a weight of 4 bits.
  double int8_op_per_s = 0;
  double int4_op_per_s = 0;
  double bf16_flop_per_s = 0;  // 2 a multiply-add of bf16, summed in f32; where no instruction has it, as f32

  static constexpr double Limits::* kAll[] = {&Limits::read_bytes_per_s, &Limits::f32_flop_per_s,
                                              &Limits::int8_op_per_s, &Limits::int4_op_per_s, &Limits::bf16_flop_per_s};
};

namespace detail {

inline volatile float sink_float;
inline volatile int32_t sink_int;

LC_CLONES inline float sum_of(const float* p, int64_t n) {
  vec::f32x8 sums[8] = {};
  for (int64_t i = 0; i + 64 <= n; i += 64)
    LC_UNROLL for (int j = 0; j < 8; ++j) sums[j] += vec::load(p + i + j * vec::kLanes);
  float lanes[vec::kLanes];
  vec::store(lanes, ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
  return lanes[0] + lanes[7];
}

#if defined(__x86_64__) && defined(__GNUC__)

__attribute__((target("avx2,fma"))) inline float fma_avx2(int64_t count) {
  __m256 acc[12];
  for (auto& a : acc) a = _mm256_set1_ps(1);
  const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
  for (int64_t i = 0; i < count; ++i)
    for (auto& a : acc) a = _mm256_fmadd_ps(a, x, y);
  float total = 0;
  for (const auto& a : acc) total += _mm256_cvtss_f32(a);
  return total;
}
// 16 sums: the compiler unrolls no more, and then keeps them in memory, which halves the rate.
__attribute__((target("avx512f"))) inline float fma_avx512(int64_t count) {
  __m512 acc[16];
  for (auto& a : acc) a = _mm512_set1_ps(1);
  const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
  for (int64_t i = 0; i < count; ++i)
    for (auto& a : acc) a = _mm512_fmadd_ps(a, x, y);
  float total = 0;
  for (const auto& a : acc) total += _mm512_cvtss_f32(a);
  return total;
}
// 4 registers of inputs against a weight from the first-level cache. Two signed factors of 8 bits need the sign trick.
template <bool both_signed>
__attribute__((target("avx2"))) inline int32_t int8_avx2(const int8_t* w, int64_t count) {
  __m256i sum[4], x[4];
  const __m256i ones = _mm256_set1_epi16(1);
  for (int t = 0; t < 4; ++t) {
    sum[t] = _mm256_setzero_si256();
    x[t] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32 * t));
  }
  for (int64_t i = 0; i < count; ++i) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + i % 128 * 32));
    const __m256i magnitude = both_signed ? _mm256_abs_epi8(v) : v;
    for (int t = 0; t < 4; ++t) {
      const __m256i factor = both_signed ? _mm256_sign_epi8(x[t], v) : x[t];
      sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, factor), ones));
    }
  }
  return _mm256_extract_epi32(_mm256_add_epi32(_mm256_add_epi32(sum[0], sum[1]), _mm256_add_epi32(sum[2], sum[3])), 0);
}
__attribute__((target("avx512f,avx512bw,avx512vnni"))) inline int32_t int8_vnni(const int8_t* w, int64_t count) {
  __m512i sum[16];
  for (auto& s : sum) s = _mm512_setzero_si512();
  const __m512i x = _mm512_loadu_si512(w);
  for (int64_t i = 0; i < count; ++i) {
    const __m512i v = _mm512_loadu_si512(w + i % 64 * 64);
    for (auto& s : sum) s = _mm512_dpbusd_epi32(s, v, x);
  }
  __m512i total = sum[0];
  for (int t = 1; t < 16; ++t) total = _mm512_add_epi32(total, sum[t]);
  return _mm_cvtsi128_si32(_mm512_castsi512_si128(total));
}

#endif

}  // namespace detail

// Measures again and again: a machine that others use too is not the same from one second to the next.
class LimitsMeter {
 public:
  explicit LimitsMeter(ThreadPool& pool) : pool_(pool), memory_(kMemoryFloats) {}

  // About 20 ms.
  Limits measure() {
    Limits limits;
    for (const int64_t ahead : {0, 256, 1024})
      limits.read_bytes_per_s = std::max(limits.read_bytes_per_s, measure_read(ahead));
#if defined(__x86_64__) && defined(__GNUC__)
    if (cpu_isa() >= Isa::avx512) {
      limits.f32_flop_per_s = rate(1 << 13, 16 * 32, [](int64_t n) { detail::sink_float = detail::fma_avx512(n); });
    } else if (cpu_isa() == Isa::avx2) {
      limits.f32_flop_per_s = rate(1 << 13, 12 * 16, [](int64_t n) { detail::sink_float = detail::fma_avx2(n); });
    }
    if (cpu_isa() == Isa::avx512_vnni) {
      limits.int8_op_per_s = limits.int4_op_per_s =
          rate(1 << 12, 16 * 128, [&](int64_t n) { detail::sink_int = detail::int8_vnni(bytes_.data(), n); });
    } else if (cpu_isa() >= Isa::avx2) {
      limits.int8_op_per_s =
          rate(1 << 13, 4 * 64, [&](int64_t n) { detail::sink_int = detail::int8_avx2<true>(bytes_.data(), n); });
      limits.int4_op_per_s =
          rate(1 << 13, 4 * 64, [&](int64_t n) { detail::sink_int = detail::int8_avx2<false>(bytes_.data(), n); });
    }
#endif
    if (cpu_isa() >= Isa::avx512 && detail::has_bf16())
      limits.bf16_flop_per_s =
          rate(1 << 13, detail::kBf16Each, [](int64_t n) { detail::sink_float = detail::bf16_multiply_adds(n); });
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
        detail::sink_float = detail::sum_of(range, kRange);
      }
    });
    return static_cast<double>(kReadFloats) * 4 / seconds_since(start);
  }

  // Operations a second of work(count) on every thread at once, `each` a count.
  template <class Work>
  double rate(int64_t count, double each, Work&& work) {
    const int64_t times = pool_.num_threads() * 16;
    const Clock::time_point start = Clock::now();
    pool_.parallel_for(times, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) work(count);
    });
    return each * static_cast<double>(count * times) / seconds_since(start);
  }

  ThreadPool& pool_;
  Limits best_;
  HugeMemory memory_;
  std::vector<int8_t> bytes_ = std::vector<int8_t>(4096, 3);
  int64_t next_ = 0;
};

}  // namespace longcat::bench
