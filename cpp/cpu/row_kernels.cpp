#include "cpu/row_kernels.h"

#include <algorithm>
#include <limits>

#include "cpu/simd/vec.h"

namespace longcat::cpu {

namespace {

void add_scaled(float* y, float a, const float* x, int64_t n) { vec::axpy(y, a, x, n); }

float largest(const float* x, int64_t n) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  vec::f32x8 max = vec::f32x8{} + kLowest;
  vec::f32x8 sound = {};  // sum of 0 * x: NaN when an x is NaN or infinite; kLowest counts as 0
  int64_t i = 0;
  for (; i + vec::kLanes <= n; i += vec::kLanes) {
    const vec::f32x8 v = vec::load(x + i);
    max = v > max ? v : max;
    sound += v == kLowest ? vec::f32x8{} : v * 0.0f;
  }
  float lanes[vec::kLanes], flags[vec::kLanes];
  vec::store(lanes, max);
  vec::store(flags, sound);
  float best = kLowest, flag = 0;
  for (int lane = 0; lane < vec::kLanes; ++lane) {
    best = vec::most(best, lanes[lane]);
    flag += flags[lane];
  }
  for (; i < n; ++i) {
    best = vec::most(best, x[i]);
    if (x[i] != kLowest) flag += x[i] * 0.0f;
  }
  return best + flag;
}

float sum_of_squares(const float* x, int64_t n) { return vec::dot(x, x, n); }

// With e = e^-|g|: g / (1 + e) for g >= 0, else g e / (1 + e). No e overflows.
LC_INLINE vec::f32x8 silu(vec::f32x8 g) {
  const vec::f32x8 e = vec::exp(-vec::abs(g));
  return (g < 0 ? g * e : g) / (1.0f + e);
}

void silu_mul(float* out, const float* gate, const float* up, int64_t n) {
  int64_t k = 0;
  for (; k + vec::kLanes <= n; k += vec::kLanes) vec::store(out + k, silu(vec::load(gate + k)) * vec::load(up + k));
  if (k == n) return;
  float g[vec::kLanes] = {}, u[vec::kLanes] = {}, values[vec::kLanes];
  std::copy(gate + k, gate + n, g);
  std::copy(up + k, up + n, u);
  vec::store(values, silu(vec::load(g)) * vec::load(u));
  std::copy(values, values + (n - k), out + k);
}

void widen_bf16(float* out, const bf16* x, int64_t n) {
  for (int64_t k = 0; k < n; ++k) out[k] = vec::widen(x[k]);
}

}  // namespace

template <>
const RowKernels& table_of<RowKernels, Isa::LC_ISA>() {
  static constexpr RowKernels kTable{.add_scaled = add_scaled,
                                     .largest = largest,
                                     .sum_of_squares = sum_of_squares,
                                     .silu_mul = silu_mul,
                                     .widen_bf16 = widen_bf16};
  return kTable;
}

}  // namespace longcat::cpu
