// Kernels that search the scales of packed formats.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "cpu/simd/dispatch.h"

namespace longcat::cpu {

struct ScaleKernels {
  // The bf16 scale whose rounded multiples in [-8, 7] come closest to x [32].
  bf16 (*int4_block)(const float* x);
  // The scale of a row x [n] whose multiples in [-7, 7] come closest to it. Larger magnitudes may be clipped. `largest`
  // is the largest magnitude.
  float (*int4_row)(const float* x, int64_t n, float largest);
};

}  // namespace longcat::cpu
