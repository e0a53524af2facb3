// The two inner loops of the plain CPU backend: dot product and scaled addition, over f32 or bf16 rows.
//
// One accumulation order for every caller (invariance contract, ops.h): 64 partial sums, k ascending in steps of 64,
// then a fixed tree. The compiler makes one clone an instruction set and picks one when the library is loaded, so the
// bits depend on the machine, never on the batch.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/dtype.h"

// Levels, not processors: "arch=skylake-avx512" is that processor alone, and every later one would run the default.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define LC_HAS_CLONES 1
#define LC_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define LC_CLONES
#endif
#define LC_INLINE inline __attribute__((always_inline))
#define LC_UNROLL \
  _Pragma("GCC unroll 8")  // sums in an array stay in registers only when all loops over it are unrolled

namespace longcat::vec {

constexpr int kLanes = 16;
typedef float f32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

LC_INLINE f32x16 load(const float* p) {
  f32x16 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

LC_INLINE f32x16 load(const bf16* p) {
  u16x16 v;
  std::memcpy(&v, p, sizeof(v));
  const u32x16 wide = __builtin_convertvector(v, u32x16) << 16;
  f32x16 out;
  std::memcpy(&out, &wide, sizeof(out));
  return out;
}

LC_INLINE void store(float* p, f32x16 v) { std::memcpy(p, &v, sizeof(v)); }

LC_INLINE f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }

// e^x for x <= 0, within an ulp or two; 0 below the smallest normal result, NaN of NaN. Every lane is computed alike.
LC_INLINE f32x16 exp(f32x16 x) {
  constexpr float kMagic = 0x1.8p23f;  // its sum with a small number is that number, rounded, in the low bits
  const f32x16 shifted = x * 1.44269504f + kMagic, n = shifted - kMagic;
  const f32x16 r = x - n * 0.693359375f + n * 2.12194440e-4f;  // log 2 in two parts, the first exact in 10 bits
  f32x16 y = 1.9875691500e-4f * r + 1.3981999507e-3f;          // coefficients of the Cephes library's expf
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  u32x16 power;
  std::memcpy(&power, &shifted, sizeof(power));
  power = (power + 127) << 23;
  f32x16 two_to_n;
  std::memcpy(&two_to_n, &power, sizeof(two_to_n));
  return x < -87.3f ? f32x16{} : y * two_to_n;
}

// sum_k a[k] * b[k].
template <class T>
LC_INLINE float dot(const float* a, const T* b, int64_t n) {
  f32x16 acc0{}, acc1{}, acc2{}, acc3{};
  int64_t k = 0;
  for (; k + 4 * kLanes <= n; k += 4 * kLanes) {
    acc0 += load(a + k) * load(b + k);
    acc1 += load(a + k + kLanes) * load(b + k + kLanes);
    acc2 += load(a + k + 2 * kLanes) * load(b + k + 2 * kLanes);
    acc3 += load(a + k + 3 * kLanes) * load(b + k + 3 * kLanes);
  }
  for (; k + kLanes <= n; k += kLanes) acc0 += load(a + k) * load(b + k);
  float sums[kLanes];
  store(sums, (acc0 + acc1) + (acc2 + acc3));
  for (int lane = 0; k < n; ++k, ++lane) sums[lane] += a[k] * to_float(b[k]);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  return sums[0];
}

// y[k] += a * x[k].
template <class T>
LC_INLINE void axpy(float* y, float a, const T* x, int64_t n) {
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) store(y + k, load(y + k) + a * load(x + k));
  for (; k < n; ++k) y[k] += a * to_float(x[k]);
}

}  // namespace longcat::vec
