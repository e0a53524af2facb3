// Kernels of the softmax over tiles of keys, for many queries at once.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/simd/dispatch.h"

namespace longcat::cpu {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

struct SoftmaxKernels {
  // Replaces scores [num_keys, lanes] by exp(score - running maximum). A lane is a query; lanes is a multiple of 16.
  // max, sum [lanes]: running values, kNothing and 0 before the first tile. keep [lanes]: factor for sums computed
  // under the old maximum. A score of kNothing gets weight 0; a NaN score makes the lane's sum NaN.
  void (*add_scores)(float* scores, int64_t num_keys, int64_t lanes, float* max, float* sum, float* keep);

  // Multiplies each row of acc [num_rows, columns] by keep[row].
  void (*keep_rows)(float* acc, int64_t num_rows, int64_t columns, const float* keep);
};

}  // namespace longcat::cpu
