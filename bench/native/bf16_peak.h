// Multiply-adds of bf16 as fast as AVX512_BF16 makes them.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own avx512fintrin.h (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace longcat::bench::detail {

constexpr double kBf16Each = 16 * 64;  // operations of one count: 16 registers of 16 sums, 2 multiply-adds each

#if defined(__x86_64__) && defined(__GNUC__)

inline bool has_bf16() { return __builtin_cpu_supports("avx512bf16"); }

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) inline int32_t bf16_multiply_adds(const int8_t*,
                                                                                                  int64_t count) {
  __m512 acc[16];
  for (auto& a : acc) a = _mm512_set1_ps(1);
  const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
  for (int64_t i = 0; i < count; ++i)
    for (auto& a : acc) a = _mm512_dpbf16_ps(a, x, x);
  float total = 0;
  for (const auto& a : acc) total += _mm512_cvtss_f32(a);
  return static_cast<int32_t>(total);
}

#else

inline bool has_bf16() { return false; }
inline int32_t bf16_multiply_adds(const int8_t*, int64_t) { return 0; }

#endif

}  // namespace longcat::bench::detail
