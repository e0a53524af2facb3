// Kernel of the index scores: the weighted sum of a key's products over the index heads.
#pragma once

#include <cstdint>

#include "cpu/simd/dispatch.h"

namespace longcat::cpu {

struct IndexKernels {
  // scores[s] = sum_h weights[h] * max(products[s, h], 0). products: [num_keys, lanes]; weights: [lanes]; lanes is a
  // multiple of 16, and unused lanes have weight 0. All keys have the same order of additions. A score is never -0.
  void (*weigh_heads)(float* scores, const float* products, const float* weights, int64_t num_keys, int64_t lanes);
};

}  // namespace longcat::cpu
