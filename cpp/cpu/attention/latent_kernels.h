// Kernels of latent rows in 8 bits (Int8Latent), and of absorbed attention over them.
#pragma once

#include <cstdint>

#include "cpu/simd/dispatch.h"
#include "cpu/simd/vec.h"
#include "ops/batch.h"

namespace longcat::cpu {

using vec::Int16Pair;

// Calls body(group, first value, number of values) for each group of 128.
template <class Body>
LC_INLINE void for_groups(int64_t n, Body&& body) {
  for (int64_t k = 0; k < n; k += Int8Latent::kGroup)
    body(k / Int8Latent::kGroup, k, vec::least<int64_t>(Int8Latent::kGroup, n - k));
}

struct LatentShape;
struct LatentQueries;

struct LatentKernels {
  // One row to 8 bits, and back.
  void (*pack_int8)(uint8_t* row, const float* values, Int8Latent layout);
  void (*unpack_int8)(float* values, const uint8_t* row, Int8Latent layout);

  // The row as pairs of adjacent values that are multiplied together. A latent of odd length is padded with a zero.
  void (*widen_int8)(Int16Pair* pairs, const uint8_t* row, Int8Latent layout);

  // Pairs the latents of two rows, column by column. Without `second`, the other half is zero.
  void (*interleave_int8)(Int16Pair* pairs, const int8_t* first, const int8_t* second, int64_t n);

  // out [pairs, lanes] = the queries times `scale`, as integers with one of the scales [lanes] per head. row: space for
  // (2 + num_heads) * pairs floats.
  void (*round_queries)(Int16Pair* out, float* scales, const LatentQueries& queries, const LatentShape& shape,
                        float scale, int64_t pairs, float* row);

  // out [ceil(n / 2), lanes] = weights [n, lanes] * row_scales[row * stride], as integers of at most 32767 with one
  // scale per lane. A pair holds two consecutive rows.
  void (*round_weights)(Int16Pair* out, float* lane_scales, const float* weights, const float* row_scales,
                        int64_t stride, int64_t n, int64_t lanes);

  // scores [n, lanes] *= scales [lanes].
  void (*scale_lanes)(float* scores, const float* scales, int64_t n, int64_t lanes);
};

}  // namespace longcat::cpu
