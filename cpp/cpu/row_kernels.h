// Kernels over single rows of values.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "cpu/simd/dispatch.h"

namespace longcat::cpu {

struct RowKernels {
  // y[k] += a * x[k].
  void (*add_scaled)(float* y, float a, const float* x, int64_t n);
  // The largest of n > 0 values; NaN when a value is NaN or +infinity.
  float (*largest)(const float* x, int64_t n);
  // The sum of x[k]^2.
  float (*sum_of_squares)(const float* x, int64_t n);
  // out[k] = silu(gate[k]) * up[k], silu(g) = g / (1 + e^-g); out may be gate.
  void (*silu_mul)(float* out, const float* gate, const float* up, int64_t n);
  // out[k] = x[k].
  void (*widen_bf16)(float* out, const bf16* x, int64_t n);
};

}  // namespace longcat::cpu
