// Kernels of the index scores: index keys and queries as integers, and the scores of many keys.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "cpu/simd/dispatch.h"
#include "cpu/simd/vec.h"

namespace longcat::cpu {

using vec::Bf16Pair;
using vec::Int16Pair;

// Adjacent values of a key or query, 32 bits of them.
struct Int8Quad {
  int8_t values[4];
};

// scores[s] = sum_h weights[h] * max(keys[s] . queries[h], 0). Value is what one lane of a register multiplies at once:
// float, Bf16Pair, Int16Pair or Int8Quad.
template <class Value>
struct IndexScores {
  float* scores;      // [num_keys]
  const void* keys;   // [num_keys, depth]
  int64_t key_bytes;  // from a key to the next
  const void* scales;
  int64_t scale_bytes;   // from the scale of an integer key to the next
  const Value* queries;  // [depth, lanes]; Int8Quad: [depth, 2, lanes], high and low bytes
  const float* weights;  // [lanes]; a multiple of 16, and unused lanes have weight 0
  int64_t num_keys, depth, lanes;
  const int32_t* begin = nullptr;  // Int8Quad: [2, lanes] -kKeyOffset times the sums of the high and low bytes
  // The stored keys after these, which are prefetched. ahead_step: the bytes of one for each step along depth, rounded
  // up.
  const char* ahead = nullptr;
  int64_t ahead_key_bytes = 0, ahead_step = 0;
};

constexpr int64_t kIndexGroup = 512;  // values whose sum of integer products is below 2^31: 127 * 32767 * 512
constexpr int32_t kKeyOffset = 128;   // bytes() adds it to a key's values: the instruction takes them unsigned

struct IndexKernels {
  // One key [n] as 8-bit values, and one query [n] as 16-bit values. Both return the scale.
  float (*round_key)(int8_t* out, const float* key, int64_t n);
  float (*round_query)(int16_t* out, const float* query, int64_t n);

  // pairs [ceil(n / 2)] = adjacent values of a key. An odd last value is paired with 0.
  void (*widen_key)(Int16Pair* pairs, const int8_t* values, int64_t n);

  // A score's bits do not depend on the other keys. Products of a key and a head are one sum over ascending values,
  // exact for integers. All keys have the same order of additions over heads. A score is never -0.
  void (*floats)(const IndexScores<float>& scores);
  void (*int16s)(const IndexScores<Int16Pair>& scores);

  // Where the set has an instruction for it, else null. The products of bf16 are added as that instruction adds them.
  // Those of bytes are the same integers as of int16s, of at most kIndexGroup values.
  void (*bf16s)(const IndexScores<Bf16Pair>& scores);
  void (*bytes)(const IndexScores<Int8Quad>& scores);
};

// Splits queries [2 * depth, lanes] of 16 bits for bytes(): each value is 256 times its high byte, plus its low byte.
inline void split_query(Int8Quad* out, int32_t* begin, const Int16Pair* queries, int64_t depth, int64_t lanes) {
  for (int64_t i = 0; i < 2 * lanes; ++i) begin[i] = 0;
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const Int16Pair* const pair = queries + 2 * k * lanes + lane;
      const int values[] = {pair[0].first, pair[0].second, pair[lanes].first, pair[lanes].second};
      Int8Quad* const high = out + 2 * k * lanes + lane;
      for (int i = 0; i < 4; ++i) {
        const int nearest = (values[i] + 128) >> 8, rest = values[i] - 256 * nearest;
        high[0].values[i] = static_cast<int8_t>(nearest);
        high[lanes].values[i] = static_cast<int8_t>(rest);
        begin[lane] -= kKeyOffset * nearest;
        begin[lanes + lane] -= kKeyOffset * rest;
      }
    }
}

}  // namespace longcat::cpu
