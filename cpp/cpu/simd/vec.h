// Vector types of the CPU kernels, and their inner loops: dot product and scaled addition over f32 or bf16 rows. The
// same source for each instruction set: the compiler maps these types to its registers (simd/dispatch.h).
//
// All callers share one accumulation order (invariance contract, ops.h): 64 partial sums with k ascending in steps of
// 64, then a fixed tree. Sets with fused multiply-adds give the same bits; `portable` has none and rounds more often.
// So the bits depend on the machine, never on the batch.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/dtype.h"

#define LC_INLINE inline __attribute__((always_inline))
#define LC_UNROLL \
  _Pragma("GCC unroll 8")  // sums in an array stay in registers only when all loops over it are unrolled

namespace longcat::vec {

// 32 bytes. GCC 12 keeps a type wider than a register on the stack: 16 lanes in an AVX2 loop are five times slower than
// 8.
constexpr int kLanes = 8;
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));

// Two adjacent values along k, whose products one instruction adds.
struct Int16Pair {
  int16_t first, second;
};
struct Bf16Pair {
  bf16 first, second;
};

// As std::min, std::max and to_float, but never a function of its own (simd/dispatch.h).
template <class T>
LC_INLINE T least(T a, T b) {
  return b < a ? b : a;
}

template <class T>
LC_INLINE T most(T a, T b) {
  return a < b ? b : a;
}

LC_INLINE float widen(float x) { return x; }

LC_INLINE float widen(bf16 x) {
  const uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &wide, sizeof(out));
  return out;
}

LC_INLINE f32x8 load(const float* p) {
  f32x8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

LC_INLINE f32x8 load(const bf16* p) {
  typedef uint16_t u16x8 __attribute__((vector_size(16)));
  u16x8 v;
  std::memcpy(&v, p, sizeof(v));
  const u32x8 wide = __builtin_convertvector(v, u32x8) << 16;
  f32x8 out;
  std::memcpy(&out, &wide, sizeof(out));
  return out;
}

LC_INLINE void store(float* p, f32x8 v) { std::memcpy(p, &v, sizeof(v)); }

LC_INLINE f32x8 abs(f32x8 v) { return v < 0 ? -v : v; }

LC_INLINE f32x8 max(f32x8 a, f32x8 b) { return a > b ? a : b; }

// The sums of the lanes of 8 vectors. Lanes are added as ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)).
LC_INLINE f32x8 sum_lanes(const f32x8 (&v)[8]) {
  f32x8 half[4], quarter[2];
  LC_UNROLL for (int i = 0; i < 4; ++i) half[i] = __builtin_shufflevector(v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
                                                  __builtin_shufflevector(v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  LC_UNROLL for (int i = 0; i < 2; ++i) quarter[i] =
      __builtin_shufflevector(half[2 * i], half[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
      __builtin_shufflevector(half[2 * i], half[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  return __builtin_shufflevector(quarter[0], quarter[1], 0, 2, 8, 10, 4, 6, 12, 14) +
         __builtin_shufflevector(quarter[0], quarter[1], 1, 3, 9, 11, 5, 7, 13, 15);
}

// e^x for x <= 0, within one or two ulp. Returns 0 below the smallest normal result, and NaN for NaN. All lanes have
// the same arithmetic.
LC_INLINE f32x8 exp(f32x8 x) {
  constexpr float kMagic = 0x1.8p23f;  // its sum with a small number holds that number, rounded, in the low bits
  const f32x8 shifted = x * 1.44269504f + kMagic, n = shifted - kMagic;
  const f32x8 r = x - n * 0.693359375f + n * 2.12194440e-4f;  // log 2 in two parts, the first exact in 10 bits
  f32x8 y = 1.9875691500e-4f * r + 1.3981999507e-3f;          // coefficients of the Cephes library's expf
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  u32x8 power;
  std::memcpy(&power, &shifted, sizeof(power));
  power = (power + 127) << 23;
  f32x8 two_to_n;
  std::memcpy(&two_to_n, &power, sizeof(two_to_n));
  return x < -87.3f ? f32x8{} : y * two_to_n;
}

// sum_k a[k] * b[k].
template <class T>
LC_INLINE float dot(const float* a, const T* b, int64_t n) {
  f32x8 acc[8] = {};
  int64_t k = 0;
  for (; k + 64 <= n; k += 64)
    LC_UNROLL for (int i = 0; i < 8; ++i) acc[i] += load(a + k + i * kLanes) * load(b + k + i * kLanes);
  for (; k + 16 <= n; k += 16)
    LC_UNROLL for (int i = 0; i < 2; ++i) acc[i] += load(a + k + i * kLanes) * load(b + k + i * kLanes);
  float sums[16];
  store(sums, (acc[0] + acc[2]) + (acc[4] + acc[6]));
  store(sums + 8, (acc[1] + acc[3]) + (acc[5] + acc[7]));
  for (int lane = 0; k < n; ++k, ++lane) sums[lane] += a[k] * widen(b[k]);
  for (int width = 8; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  return sums[0];
}

// y[k] += a * x[k].
template <class T>
LC_INLINE void axpy(float* y, float a, const T* x, int64_t n) {
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) store(y + k, load(y + k) + a * load(x + k));
  for (; k < n; ++k) y[k] += a * widen(x[k]);
}

}  // namespace longcat::vec
