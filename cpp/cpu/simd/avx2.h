// AVX2 as a Register (simd/registers.h): 8 lanes, one group.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/intrinsics.h"
#include "cpu/simd/vec.h"

namespace longcat::vec {

struct Avx2 {
  using Floats = __m256;
  using Ints = __m256i;
  static constexpr int kLanes = 8, kGroups = 1;
  static constexpr bool kFewRegisters = true;

  static LC_INLINE Floats zero() { return _mm256_setzero_ps(); }
  static LC_INLINE Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static LC_INLINE void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
  static LC_INLINE f32x8 eight(Floats v, int) { return v; }
  static LC_INLINE Floats broadcast(const float& x) { return _mm256_broadcast_ss(&x); }
  static LC_INLINE Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static LC_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static LC_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return fma(a, b, c); }
  static LC_INLINE Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }

  static LC_INLINE Ints zero_ints() { return _mm256_setzero_si256(); }
  static LC_INLINE Ints load_pairs(const Int16Pair* p) { return load_ints(p); }
  static LC_INLINE Ints broadcast_pair(const Int16Pair& pair) { return broadcast_bytes(&pair); }
  static LC_INLINE void dot_pairs(Ints& sum, Ints a, Ints b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    settle(sum);
  }

  using Bytes = __m256i;
  static LC_INLINE Bytes load_bytes(const uint8_t* const* group, int64_t at) { return load_ints(group[0] + at); }
  static LC_INLINE Bytes reload_bytes(const uint8_t* const* group, int64_t at) {
    const uint8_t* p = group[0] + at;
    asm("" : "+r"(p));  // otherwise the compiler keeps the register
    return load_ints(p);
  }
  static LC_INLINE Floats low_bf16(Bytes v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); }
  static LC_INLINE Floats high_bf16(Bytes v) {
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  // 8 adjacent values.
  static LC_INLINE Floats load_bf16(const void* p) {
    return low_bf16(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
  }
  static LC_INLINE Floats scales_bf16(const uint8_t* const* group, int64_t at) { return load_bf16(group[0] + at); }
  static LC_INLINE Floats scales_f16(const uint8_t* const* group, int64_t at) {
    return _mm256_cvtph_ps(load_halves(group[0] + at));
  }
  static LC_INLINE Bytes broadcast4(const int8_t* p) { return broadcast_bytes(p); }

  // maddubs takes one unsigned factor: the sign of the weight goes to the input.
  struct Int8Weights {
    __m256i value, magnitude;
  };
  static LC_INLINE Ints begin_int8(int32_t) { return zero_ints(); }
  static LC_INLINE Int8Weights int8_weights(Bytes w) { return {w, _mm256_abs_epi8(w)}; }
  static LC_INLINE void dot_int8(Ints& sum, const Int8Weights& w, Bytes x) {
    const __m256i products = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(x, w.value));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
    settle(sum);
  }

  // 16-bit sums: 8 times two products of at most 15 x 127 are below 2^15.
  static LC_INLINE Ints begin_int4(int32_t) { return zero_ints(); }
  static LC_INLINE Bytes low_int4(Bytes w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
  static LC_INLINE Bytes high_int4(Bytes w) { return low_int4(_mm256_srli_epi16(w, 4)); }
  static LC_INLINE void dot_int4(Ints& sum, Bytes w, Bytes x) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
    settle(sum);
  }
  static LC_INLINE Ints end_int4(Ints sum, int32_t sum_by_8) {
    return _mm256_sub_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), _mm256_set1_epi32(sum_by_8));
  }

 private:
  static LC_INLINE __m128i load_halves(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static LC_INLINE __m256i load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static LC_INLINE __m256i broadcast_bytes(const void* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
  // Makes the compiler compute `sum` at this point. Otherwise GCC 12 gathers a block's additions at its end and runs
  // out of registers.
  static LC_INLINE void settle(__m256i& sum) { asm("" : "+x"(sum)); }
};

}  // namespace longcat::vec
