// AVX-512 with VNNI as a Register (simd/registers.h): 16 lanes, two groups.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/intrinsics.h"
#include "cpu/simd/vec.h"

namespace longcat::vec {

struct Avx512 {
  using Floats = __m512;
  using Ints = __m512i;
  static constexpr int kLanes = 16, kGroups = 2;
  static constexpr bool kFewRegisters = false;

  static LC_INLINE Floats zero() { return _mm512_setzero_ps(); }
  static LC_INLINE Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static LC_INLINE void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  static LC_INLINE f32x8 eight(Floats v, int i) {
    return i == 0 ? _mm512_castps512_ps256(v) : _mm512_extractf32x8_ps(v, 1);
  }
  static LC_INLINE Floats broadcast(float x) { return _mm512_set1_ps(x); }
  static LC_INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static LC_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static LC_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return fma(a, b, c); }
  static LC_INLINE Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }

  static LC_INLINE Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
  static LC_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static LC_INLINE Ints shift_left(Ints v, unsigned bits) { return _mm512_slli_epi32(v, bits); }
  static LC_INLINE Ints zero_ints() { return _mm512_setzero_si512(); }
  static LC_INLINE Ints load_pairs(const Int16Pair* p) { return _mm512_loadu_si512(p); }
  static LC_INLINE Ints broadcast_pair(const Int16Pair& pair) { return broadcast_bytes(&pair); }
  static LC_INLINE void dot_pairs(Ints& sum, Ints a, Ints b) { sum = _mm512_dpwssd_epi32(sum, a, b); }

  using Bytes = __m512i;
  static LC_INLINE Bytes load_bytes(const uint8_t* const* group, int64_t at) {
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group[0] + at))),
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group[1] + at)), 1);
  }
  static LC_INLINE Bytes reload_bytes(const uint8_t* const* group, int64_t at) { return load_bytes(group, at); }
  static LC_INLINE Floats low_bf16(Bytes v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
  static LC_INLINE Floats high_bf16(Bytes v) {
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
#if defined(__AVX512BF16__)
  // sum + the products of a lane's two bf16, each rounded to f32 in the instruction's own order.
  static LC_INLINE Floats dot_bf16(Floats sum, Bytes w, Bytes x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
  // 32 values, rounded to the nearest bf16, ties to even.
  static LC_INLINE void round_bf16(bf16* out, const float* x) {
    _mm512_storeu_si512(out, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(load(x + 16), load(x))));
  }
  // Lane i: a[i] and b[i] as a pair of bf16.
  static LC_INLINE Bytes round_pairs(Floats a, Floats b) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i order = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16));
    return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
  }
  // The same of 16 values that are bf16 already.
  static LC_INLINE Bytes pair_bf16(const bf16* a, const bf16* b) {
    const __m512i first = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
    const __m512i second = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
    return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
  }
  static LC_INLINE void round_bf16_lanes(bf16* out, Floats v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }
  static LC_INLINE void store_pairs(Bf16Pair* p, Bytes v) { _mm512_storeu_si512(p, v); }
  // 32 values of a row; or the first n of them, and zeros.
  static LC_INLINE Bytes load_bf16(const bf16* p) { return _mm512_loadu_si512(p); }
  static LC_INLINE Bytes load_bf16(const bf16* p, int64_t n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
  }
  // The sums of the lanes of a, b, c, d: in each quarter lane i + 2 is added to lane i, then i + 1. Quarters are added
  // in the same order.
  static LC_INLINE void sum_four(float* sums, Floats a, Floats b, Floats c, Floats d) {
    const __m512d ab = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    const __m512d cd = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
    const Floats all =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), upper);
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
  // 64 bytes of one group: two columns of its 8 outputs, then the next two.
  static LC_INLINE Bytes load_group(const uint8_t* p) { return _mm512_loadu_si512(p); }
  // The inputs of these: two in each of the lower lanes, the next two in the upper ones.
  static LC_INLINE Bytes broadcast_pairs(const bf16* x) {
    const __m512i lanes = _mm512_set_epi64(0x100000001, 0x100000001, 0x100000001, 0x100000001, 0, 0, 0, 0);
    const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
    return _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(four));
  }
  // Adds the upper lanes to the lower ones, and stores these 8.
  static LC_INLINE void store_halves(float* p, Floats v) {
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    _mm256_storeu_ps(p, _mm256_add_ps(_mm512_castps512_ps256(v), high));
  }
#endif
  static LC_INLINE Floats scales_bf16(const uint8_t* const* group, int64_t at) {
    return low_bf16(_mm512_cvtepu16_epi32(load_halves(group, at)));
  }
  static LC_INLINE Floats scales_f16(const uint8_t* const* group, int64_t at) {
    return _mm512_cvtph_ps(load_halves(group, at));
  }
  static LC_INLINE Bytes broadcast4(const int8_t* p) { return broadcast_bytes(p); }

  // dpbusd takes one unsigned factor: the weight plus 128, or an int4 weight plus 8 as it is stored.
  static LC_INLINE Ints begin_int8(int32_t sum_by_8) { return _mm512_set1_epi32(-128 / 8 * sum_by_8); }
  static LC_INLINE Bytes int8_weights(Bytes w) {
    return _mm512_xor_si512(w, _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static LC_INLINE void dot_int8(Ints& sum, Bytes w, Bytes x) { sum = _mm512_dpbusd_epi32(sum, w, x); }

  static LC_INLINE Ints begin_int4(int32_t sum_by_8) { return _mm512_set1_epi32(-sum_by_8); }
  static LC_INLINE Bytes low_int4(Bytes w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
  static LC_INLINE Bytes high_int4(Bytes w) { return low_int4(_mm512_srli_epi16(w, 4)); }
  static LC_INLINE void dot_int4(Ints& sum, Bytes w, Bytes x) { sum = _mm512_dpbusd_epi32(sum, w, x); }
  static LC_INLINE Ints end_int4(Ints sum, int32_t) { return sum; }

 private:
  static LC_INLINE __m256i load_halves(const uint8_t* const* group, int64_t at) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(group[0] + at))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(group[1] + at)), 1);
  }
  static LC_INLINE __m512i broadcast_bytes(const void* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
};

}  // namespace longcat::vec
