// AVX2 with AVX-VNNI as a Register (simd/registers.h): one instruction for each of its integer products. As in AVX-512
// with VNNI, the factor that is a weight is unsigned.
#pragma once

#include <cstdint>

#include "cpu/simd/avx2.h"

namespace longcat::vec {

struct AvxVnni : Avx2 {
  static LC_INLINE void dot_pairs(Ints& sum, Ints a, Ints b) { sum = _mm256_dpwssd_avx_epi32(sum, a, b); }

  static LC_INLINE Ints begin_int8(int32_t sum_by_8) { return _mm256_set1_epi32(-128 / 8 * sum_by_8); }
  static LC_INLINE Bytes int8_weights(Bytes w) {
    return _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
  }
  static LC_INLINE void dot_int8(Ints& sum, Bytes w, Bytes x) { sum = _mm256_dpbusd_avx_epi32(sum, w, x); }

  static LC_INLINE Ints begin_int4(int32_t sum_by_8) { return _mm256_set1_epi32(-sum_by_8); }
  static LC_INLINE void dot_int4(Ints& sum, Bytes w, Bytes x) { sum = _mm256_dpbusd_avx_epi32(sum, w, x); }
  static LC_INLINE Ints end_int4(Ints sum, int32_t) { return sum; }
};

}  // namespace longcat::vec
