#include "cpu/gemm/scale_kernels.h"

#include <limits>

#include "cpu/simd/vec.h"
#include "ops/packed.h"

namespace longcat::cpu {

namespace {

// Adding 1.5 x 2^23 rounds to the nearest integer, ties to even.
constexpr float kRound = 12582912.0f;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The bf16 scale whose rounded multiples in [-8, 7] come closest to x. The search starts from scales that put the
// extreme value near -8 and refines each by least squares.
bf16 int4_block(const float* x) {
  constexpr int kParts = kQuantBlock / vec::kLanes;
  vec::f32x8 parts[kParts];
  for (int i = 0; i < kParts; ++i) parts[i] = vec::load(x + i * vec::kLanes);
  const auto sum = [](vec::f32x8 v) {
    float lanes[vec::kLanes], total = 0;
    vec::store(lanes, v);
    for (const float lane : lanes) total += lane;
    return total;
  };
  float extreme = 0;
  for (int64_t k = 0; k < kQuantBlock; ++k)
    if (__builtin_fabsf(x[k]) > __builtin_fabsf(extreme)) extreme = x[k];
  // This remains where no step has a finite error: squares of large errors and 1 / s of small scales overflow.
  bf16 best = to_bf16(extreme != 0 ? extreme / -8.0f : 0.0f);
  float least = kInfinity;
  for (int step = -10; step <= 8 && extreme != 0; ++step) {
    float scale = extreme / (-8.0f + 0.15f * static_cast<float>(step));  // the scale's sign puts the extreme at -8
    for (int refined = 0; refined < 2; ++refined) {
      const bf16 rounded = to_bf16(scale);
      const float s = vec::widen(rounded);
      if (s == 0 || !__builtin_isfinite(1 / s)) break;
      vec::f32x8 errors{}, squares{}, products{};
      LC_UNROLL for (int i = 0; i < kParts; ++i) {
        vec::f32x8 q = parts[i] * (1 / s) + kRound - kRound;
        q = q < -8.0f ? vec::f32x8{} - 8.0f : q;
        q = q > 7.0f ? vec::f32x8{} + 7.0f : q;
        const vec::f32x8 e = parts[i] - q * s;
        errors += e * e;
        squares += q * q;
        products += parts[i] * q;
      }
      const float error = sum(errors);
      if (error < least) {
        least = error;
        best = rounded;
      }
      const float square = sum(squares);
      if (square == 0) break;
      scale = sum(products) / square;
    }
  }
  return best;
}

// The scale of a row whose multiples in [-7, 7] come closest to it. Larger magnitudes may be clipped.
float int4_row(const float* x, int64_t n, float largest) {
  float best = largest / 7, least = kInfinity;
  for (int step = -10; step <= 20 && largest > 0; ++step) {
    const float scale = largest / (7.0f + 0.1f * static_cast<float>(step)), inverse = 1 / scale;
    if (!__builtin_isfinite(inverse)) break;
    float error = 0;
    for (int64_t k = 0; k < n; ++k) {
      const float q = vec::least(vec::most(x[k] * inverse + kRound - kRound, -7.0f), 7.0f), e = x[k] - q * scale;
      error += e * e;
    }
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

}  // namespace

template <>
const ScaleKernels& table_of<ScaleKernels, Isa::LC_ISA>() {
  static constexpr ScaleKernels kTable{.int4_block = int4_block, .int4_row = int4_row};
  return kTable;
}

}  // namespace longcat::cpu
