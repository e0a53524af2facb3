// Kernels that pair values in bf16 for Bf16Product (gemm/product_kernels.h). All are null on sets that do not multiply
// bf16.
#pragma once

#include <cstdint>

#include "cpu/simd/dispatch.h"
#include "cpu/simd/vec.h"

namespace longcat::cpu {

using vec::Bf16Pair;

struct Bf16Kernels {
  // out[k] = first[k] and second[k], for k < n. Without `second`, the other half is zero.
  void (*pair_bf16)(Bf16Pair* out, const bf16* first, const bf16* second, int64_t n);
  // The same of floats, rounded to the nearest bf16, ties to even. n is a multiple of 16.
  void (*pair_floats)(Bf16Pair* out, const float* first, const float* second, int64_t n);
  // out[k] = x[k], rounded in the same way. n is a multiple of 16.
  void (*round)(bf16* out, const float* x, int64_t n);
};

}  // namespace longcat::cpu
