#include "cpu/attention/latent_kernels.h"

#include <cstring>

#include "cpu/attention/latents.h"
#include "cpu/attention/round_to_levels.h"

namespace longcat::cpu {

namespace {

void pack_int8(uint8_t* row, const float* values, Int8Latent layout) {
  float* scales = reinterpret_cast<float*>(row);
  int8_t* latent = reinterpret_cast<int8_t*>(row + layout.values_offset());
  int16_t* rope = reinterpret_cast<int16_t*>(row + layout.rope_offset());
  for_groups(layout.kv_lora_rank, [&](int64_t g, int64_t k, int64_t n) {
    scales[g] = round_to_levels(latent + k, values + k, n, Int8Latent::kLevels);
  });
  for_groups(layout.rope_dim, [&](int64_t g, int64_t k, int64_t n) {
    scales[Int8Latent::groups_of(layout.kv_lora_rank) + g] =
        round_to_levels(rope + k, values + layout.kv_lora_rank + k, n, Int8Latent::kRopeLevels);
  });
}

void unpack_int8(float* values, const uint8_t* row, Int8Latent layout) {
  const float* scales = reinterpret_cast<const float*>(row);
  const int8_t* latent = reinterpret_cast<const int8_t*>(row + layout.values_offset());
  const int16_t* rope = reinterpret_cast<const int16_t*>(row + layout.rope_offset());
  for_groups(layout.kv_lora_rank, [&](int64_t g, int64_t first, int64_t n) {
    for (int64_t k = first; k < first + n; ++k) values[k] = static_cast<float>(latent[k]) * scales[g];
  });
  for_groups(layout.rope_dim, [&](int64_t g, int64_t first, int64_t n) {
    for (int64_t k = first; k < first + n; ++k)
      values[layout.kv_lora_rank + k] =
          static_cast<float>(rope[k]) * scales[Int8Latent::groups_of(layout.kv_lora_rank) + g];
  });
}

void widen_int8(Int16Pair* pairs, const uint8_t* row, Int8Latent layout) {
  const int8_t* latent = reinterpret_cast<const int8_t*>(row + layout.values_offset());
  int16_t* wide = &pairs->first;
  for (int64_t k = 0; k < layout.kv_lora_rank; ++k) wide[k] = latent[k];
  if (layout.kv_lora_rank % 2) wide[layout.kv_lora_rank] = 0;
  std::memcpy(wide + (layout.kv_lora_rank + 1) / 2 * 2, row + layout.rope_offset(),
              static_cast<size_t>(2 * layout.rope_dim));
}

void interleave_int8(Int16Pair* pairs, const int8_t* first, const int8_t* second, int64_t n) {
  typedef uint32_t __attribute__((may_alias)) PairBits;
  PairBits* out = reinterpret_cast<PairBits*>(pairs);
  if (!second) {
    for (int64_t k = 0; k < n; ++k) out[k] = static_cast<uint32_t>(static_cast<int32_t>(first[k])) & 0xffff;
    return;
  }
  for (int64_t k = 0; k < n; ++k)
    out[k] = (static_cast<uint32_t>(static_cast<int32_t>(first[k])) & 0xffff) |
             static_cast<uint32_t>(static_cast<int32_t>(second[k])) << 16;
}

void round_weights(Int16Pair* out, float* lane_scales, const float* weights, const float* row_scales, int64_t stride,
                   int64_t n, int64_t lanes) {
  for (int64_t lane = 0; lane < lanes; lane += vec::kLanes) {
    const auto scaled = [&](int64_t s) { return vec::load(weights + s * lanes + lane) * row_scales[s * stride]; };
    vec::f32x8 largest{};
    for (int64_t s = 0; s < n; ++s) largest = vec::max(scaled(s), largest);
    vec::store(lane_scales + lane, largest * (1.0f / 32767));
    const vec::f32x8 inverse = largest > kTiny ? 32767.0f / largest : vec::f32x8{};
    for (int64_t s = 0; s < n; s += 2) {
      vec::i32x8 pairs = __builtin_convertvector(scaled(s) * inverse + 0.5f, vec::i32x8) & 0xffff;
      if (s + 1 < n) pairs |= __builtin_convertvector(scaled(s + 1) * inverse + 0.5f, vec::i32x8) << 16;
      std::memcpy(out + s / 2 * lanes + lane, &pairs, sizeof(pairs));
    }
  }
}

void scale_lanes(float* scores, const float* scales, int64_t n, int64_t lanes) {
  for (int64_t s = 0; s < n; ++s)
    for (int64_t lane = 0; lane < lanes; ++lane) scores[s * lanes + lane] *= scales[lane];
}

// Queries of magnitude 8191 or less, so that a group's sum fits in 32 bits: 8191 * 2047 * 128 < 2^31.
void round_queries(Int16Pair* out, float* scales, const LatentQueries& queries, const LatentShape& shape, float scale,
                   int64_t pairs, float* row) {
  constexpr float kQueryLevels = 8191;
  constexpr int64_t kAtOnce = 16;  // lines of `out` that stay in the cache during the loop over heads
  const int64_t lanes = shape.lanes(), padded_latent = (shape.kv_lora_rank + 1) / 2 * 2;
  Int16Pair* rounded = reinterpret_cast<Int16Pair*>(row + 2 * pairs);
  for (int64_t h = 0; h < shape.num_heads; ++h) {
    std::memcpy(row, queries.latent + h * queries.latent_stride,
                static_cast<size_t>(shape.kv_lora_rank) * sizeof(float));
    std::memcpy(row + padded_latent, queries.rope + h * queries.rope_stride,
                static_cast<size_t>(shape.rope_dim) * sizeof(float));
    scales[h] = scale * round_to_levels(&rounded[h * pairs].first, row, 2 * pairs, kQueryLevels);
  }
  for (int64_t begin = 0; begin < pairs; begin += kAtOnce)
    for (int64_t h = 0; h < shape.num_heads; ++h)
      for (int64_t p = begin; p < vec::least(begin + kAtOnce, pairs); ++p) out[p * lanes + h] = rounded[h * pairs + p];
}

}  // namespace

template <>
const LatentKernels& table_of<LatentKernels, Isa::LC_ISA>() {
  static constexpr LatentKernels kTable{.pack_int8 = pack_int8,
                                        .unpack_int8 = unpack_int8,
                                        .widen_int8 = widen_int8,
                                        .interleave_int8 = interleave_int8,
                                        .round_queries = round_queries,
                                        .round_weights = round_weights,
                                        .scale_lanes = scale_lanes};
  return kTable;
}

}  // namespace longcat::cpu
