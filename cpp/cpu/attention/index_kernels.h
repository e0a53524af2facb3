// Kernels of the index scores: index keys and queries as integers, and the weighted sum of a key's products over the
// index heads.
#pragma once

#include <cstdint>

#include "cpu/simd/dispatch.h"
#include "cpu/simd/vec.h"

namespace longcat::cpu {

using vec::Int16Pair;

struct IndexKernels {
  // One key [n] as 8-bit values, and one query [n] as 16-bit values. Both return the scale.
  float (*round_key)(int8_t* out, const float* key, int64_t n);
  float (*round_query)(int16_t* out, const float* query, int64_t n);

  // pairs [ceil(n / 2)] = adjacent values of a key. An odd last value is paired with 0.
  void (*widen_key)(Int16Pair* pairs, const int8_t* values, int64_t n);

  // scores[s] = sum_h weights[h] * max(products[s, h], 0). products: [num_keys, lanes]; weights: [lanes]; lanes is a
  // multiple of 16, and unused lanes have weight 0. All keys have the same order of additions. A score is never -0.
  void (*weigh_heads)(float* scores, const float* products, const float* weights, int64_t num_keys, int64_t lanes);
};

}  // namespace longcat::cpu
