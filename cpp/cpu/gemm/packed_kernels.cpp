#include "cpu/gemm/packed_kernels.h"

#include <cstring>

#include "cpu/simd/registers.h"
#include "cpu/simd/vec.h"
#include "ops/packed.h"

namespace longcat::cpu {

namespace {

using V = vec::Register;

// Weights come from memory, from several groups at once, and are prefetched into the second-level cache. Prefetches
// into the first level take the places of the reads' own misses, which are few: with them one core read a third less.
// One input prefetches kPrefetch [bytes] ahead in each group.
constexpr int64_t kPrefetch = 2048;

LC_INLINE void bring_closer(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

// For several inputs. On sets with few registers a tile has more arithmetic, and misses are fewer.
LC_INLINE void bring_shared(const uint8_t* p) { __builtin_prefetch(p, 0, V::kFewRegisters ? 3 : 2); }

// The part of the next weights that a tile prefetches: `step` [bytes] of each group, kAll if there is no other tile.
template <int groups, int64_t kAll>
LC_INLINE void prefetch_part(const uint8_t* const* group, int64_t at, int64_t step) {
  if (step == kAll) {
    LC_UNROLL for (int g = 0; g < groups; ++g) LC_UNROLL for (int64_t line = 0; line < kAll; line += 64)
        bring_closer(group[g] + at + line);
  } else if (step) {
    LC_UNROLL for (int g = 0; g < groups; ++g) LC_UNROLL for (int64_t line = 0; line < (kAll + 1) / 2; line += 64)
        bring_shared(group[g] + at + line);
  }
}

// Groups as bf16, single columns.
template <int R, int T>
void tile_bf16(const Tile& tile) {
  V::Floats acc[R][T];
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] =
      tile.begin_block == 0 ? V::zero() : V::load(tile.out[t] + r * V::kLanes);
  const int64_t pairs = tile.in_features / 2, end = vec::least(pairs, tile.end_block * 16);
  const int64_t wrap = pairs - kPrefetch / 32, ahead_step = tile.ahead_step / 16;
  int64_t ahead = tile.begin_block * 512 + tile.ahead_values;
  for (int64_t k = tile.begin_block * 16; k < end; ++k) {
    if constexpr (T > 1) {
      prefetch_part<R * V::kGroups, 32>(tile.group, ahead, ahead_step);
      ahead += ahead_step;
    }
    V::Floats value[R];
    LC_UNROLL for (int r = 0; r < R; ++r) {
      const uint8_t* const* group = tile.group + r * V::kGroups;
      if constexpr (T == 1)
        LC_UNROLL for (int g = 0; g < V::kGroups; ++g)
            bring_closer(group[g] + k * 32 + kPrefetch + (k < wrap ? 0 : tile.next_group - pairs * 32));
      value[r] = V::low_bf16(V::load_bytes(group, k * 32));
    }
    LC_UNROLL for (int t = 0; t < T; ++t) {
      const V::Floats x = V::broadcast(tile.x[t][2 * k]);
      LC_UNROLL for (int r = 0; r < R; ++r) acc[r][t] = V::fma(value[r], x, acc[r][t]);
    }
    LC_UNROLL for (int r = 0; r < R; ++r) value[r] = V::high_bf16(V::reload_bytes(tile.group + r * V::kGroups, k * 32));
    LC_UNROLL for (int t = 0; t < T; ++t) {
      const V::Floats x = V::broadcast(tile.x[t][2 * k + 1]);
      LC_UNROLL for (int r = 0; r < R; ++r) acc[r][t] = V::fma(value[r], x, acc[r][t]);
    }
  }
  if (tile.in_features % 2 && tile.end_block == tile.num_blocks) {
    LC_UNROLL for (int r = 0; r < R; ++r) {
      const V::Floats w = V::low_bf16(V::load_bytes(tile.group + r * V::kGroups, pairs * 32));
      LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] = V::fma(w, V::broadcast(tile.x[t][2 * pairs]), acc[r][t]);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t)
      V::store(tile.out[t] + r * V::kLanes, acc[r][t]);
}

#if defined(__AVX512BF16__)
// R groups as bf16, times rounded inputs. A register holds two pairs of columns of one group, so that an output is two
// partial sums. With one input, few instructions read the weights in the order of their addresses. The processor's
// own prefetches then reach the speed of the memory.
template <int R, int T>
void tile_rounded(const Tile& tile) {
  constexpr int64_t kStepsPerBlock = kQuantBlock / 4;
  V::Floats acc[R][T];
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] = V::zero();
  const int64_t steps = (tile.in_features + 3) / 4, ahead_step = tile.ahead_step / kStepsPerBlock;
  int64_t ahead = tile.ahead_values;
  for (int64_t k = 0; k < steps; ++k) {
    if constexpr (T > 1) {
      prefetch_part<R, 64>(tile.group, ahead, ahead_step);
      ahead += ahead_step;
    }
    V::Bytes w[R];
    LC_UNROLL for (int r = 0; r < R; ++r) w[r] = V::load_group(tile.group[r] + k * 64);
    LC_UNROLL for (int t = 0; t < T; ++t) {
      const V::Bytes x = V::broadcast_pairs(tile.rounded[t] + 4 * k);
      LC_UNROLL for (int r = 0; r < R; ++r) acc[r][t] = V::dot_bf16(acc[r][t], w[r], x);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t)
      V::store_halves(tile.out[t] + r * kPackedRows, acc[r][t]);
}

template <int R, int... T>
constexpr TileSet rounded_set() {
  TileSet set{.groups = R, .of_inputs = {}};
  ((set.of_inputs[T] = tile_rounded<R, T>), ...);
  return set;
}
constexpr Tiles kRounded{.several = rounded_set<4, 1, 2, 3, 4, 5, 6>(),
                         .single = rounded_set<1, 1>(),
                         .last = rounded_set<1, 1, 2, 3, 4, 5, 6>()};

void round_row(bf16* values, const float* x, int64_t n) {
  int64_t k = 0;
  for (; k + kQuantBlock <= n; k += kQuantBlock) V::round_bf16(values + k, x + k);
  if (k == n) return;
  float padded[kQuantBlock] = {};
  std::memcpy(padded, x + k, static_cast<size_t>(n - k) * 4);
  V::round_bf16(values + k, padded);
}
constexpr auto kRoundRow = round_row;
#else
constexpr Tiles kRounded{};
constexpr decltype(PackedKernels::round_row) kRoundRow = nullptr;
#endif

// Adds the exact integer products of block b of R registers of outputs, for each input.
template <WeightFormat format, int R, int T>
LC_INLINE void sum_block(V::Ints (&sum)[R][T], const uint8_t* const* group, const Tile& tile, int64_t b) {
  constexpr int64_t kValueBytes = block_value_bytes(format);
  if constexpr (is_int8_x8(format)) {
    LC_UNROLL for (int quad = 0; quad < 8; ++quad) {
      decltype(V::int8_weights(V::Bytes{})) w[R];
      LC_UNROLL for (int r = 0; r < R; ++r) w[r] =
          V::int8_weights(V::load_bytes(group + r * V::kGroups, b * kValueBytes + quad * 32));
      LC_UNROLL for (int t = 0; t < T; ++t) {
        const auto x = V::broadcast4(tile.q[t] + b * kQuantBlock + quad * 4);
        LC_UNROLL for (int r = 0; r < R; ++r) V::dot_int8(sum[r][t], w[r], x);
      }
    }
  } else {
    LC_UNROLL for (int j = 0; j < 4; ++j) {
      V::Bytes low[R], high[R];
      LC_UNROLL for (int r = 0; r < R; ++r) {
        const V::Bytes w = V::load_bytes(group + r * V::kGroups, b * kValueBytes + j * 32);
        low[r] = V::low_int4(w);
        high[r] = V::high_int4(w);
      }
      LC_UNROLL for (int t = 0; t < T; ++t) {
        const int8_t* q = tile.q[t] + b * kQuantBlock + j * 4;
        const auto x_low = V::broadcast4(q);
        LC_UNROLL for (int r = 0; r < R; ++r) V::dot_int4(sum[r][t], low[r], x_low);
        const auto x_high = V::broadcast4(q + 16);
        LC_UNROLL for (int r = 0; r < R; ++r) V::dot_int4(sum[r][t], high[r], x_high);
      }
    }
    LC_UNROLL for (int t = 0; t < T; ++t) LC_UNROLL for (int r = 0; r < R; ++r) sum[r][t] =
        V::end_int4(sum[r][t], tile.input_blocks[t][b].sum_by_8);
  }
}

// The scales of one block of a register's groups, at `at` [bytes] in each.
template <WeightFormat format>
LC_INLINE V::Floats block_scales(const uint8_t* const* group, int64_t at) {
  if constexpr (has_half_scales(format)) {
    return V::scales_f16(group, at);
  } else {
    return V::scales_bf16(group, at);
  }
}

// Groups as integers, blocks of 32 columns.
template <WeightFormat format, int R, int T>
void tile_int(const Tile& tile) {
  constexpr int64_t kValueBytes = block_value_bytes(format), kLines = kValueBytes / 64;
  constexpr int64_t kScalesPerLine = 4;  // blocks whose scales share a line of the cache
  // Registers of outputs whose integer sums are held at once.
  constexpr int kTogether = !V::kFewRegisters || T > 1 ? R : is_int4_x8(format) && R % 2 == 0 ? 2 : 1;
  V::Floats acc[R][T];
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] =
      tile.begin_block == 0 ? V::zero() : V::load(tile.out[t] + r * V::kLanes);
  int64_t ahead = tile.begin_block * kValueBytes + tile.ahead_values;
  for (int64_t b = tile.begin_block; b < tile.end_block; ++b) {
    LC_UNROLL for (int first = 0; first < R; first += kTogether) {
      const uint8_t* const* group = tile.group + first * V::kGroups;
      V::Ints sum[kTogether][T];
      LC_UNROLL for (int t = 0; t < T; ++t) {
        const int32_t sum_by_8 = tile.input_blocks[t][b].sum_by_8;
        const V::Ints begin = is_int8_x8(format) ? V::begin_int8(sum_by_8) : V::begin_int4(sum_by_8);
        LC_UNROLL for (int r = 0; r < kTogether; ++r) sum[r][t] = begin;
      }
      if constexpr (T > 1) {
        constexpr int kGroups = kTogether * V::kGroups;
        prefetch_part<kGroups, kValueBytes>(group, ahead, tile.ahead_step);
        if (b % kScalesPerLine == 0 && tile.ahead_step)
          LC_UNROLL for (int g = 0; g < kGroups; ++g)
              bring_closer(group[g] + tile.scales_offset + b * 16 + tile.ahead_scales);
      } else {
        const int64_t at = b + kPrefetch / kValueBytes;
        const bool here = at < tile.num_blocks;
        LC_UNROLL for (int g = 0; g < kTogether * V::kGroups; ++g) {
          const uint8_t* values = group[g] + at * kValueBytes + (here ? 0 : tile.next_group - tile.scales_offset);
          LC_UNROLL for (int line = 0; line < kLines; ++line) bring_closer(values + line * 64);
          if (b % kScalesPerLine == 0) bring_closer(group[g] + tile.scales_offset + b * 16 + tile.next_group);
        }
      }
      sum_block<format, kTogether, T>(sum, group, tile, b);
      LC_UNROLL for (int r = 0; r < kTogether; ++r) {
        const V::Floats scales = block_scales<format>(group + r * V::kGroups, tile.scales_offset + b * 16);
        LC_UNROLL for (int t = 0; t < T; ++t) acc[first + r][t] =
            V::fma(V::to_floats(sum[r][t]), V::multiply(scales, V::broadcast(tile.input_blocks[t][b].scale)),
                   acc[first + r][t]);
      }
    }
    ahead += tile.ahead_step;
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t)
      V::store(tile.out[t] + r * V::kLanes, acc[r][t]);
}

// The tile functions for R registers of outputs, one for each number of inputs in T.
template <WeightFormat format, int R, int... T>
constexpr TileSet tile_set() {
  TileSet set{.groups = R * V::kGroups, .of_inputs = {}};
  if constexpr (format == WeightFormat::bf16_x8) {
    ((set.of_inputs[T] = tile_bf16<R, T>), ...);
  } else {
    ((set.of_inputs[T] = tile_int<format, R, T>), ...);
  }
  return set;
}

// R * T sums, R weights, an input, and a constant or two fit in the registers.
#if defined(__AVX512VNNI__)
constexpr Tiles kBf16{.several = tile_set<WeightFormat::bf16_x8, 2, 1, 2, 3, 4, 8>(),
                      .single = tile_set<WeightFormat::bf16_x8, 2, 1>(),
                      .last = tile_set<WeightFormat::bf16_x8, 1, 1, 2, 3, 4, 8>()};
template <WeightFormat format>
constexpr Tiles kInts{.several = tile_set<format, 2, 1, 2, 3, 4, 5, 6>(),
                      .single = tile_set<format, 2, 1>(),
                      .last = tile_set<format, 1, 1, 2, 3, 4, 5, 6>()};
#elif defined(__AVX2__) || defined(__ARM_FEATURE_DOTPROD)
#if defined(__AVX2__)
constexpr int kSingleBf16 = 8, kSeveralInts = 2;  // two groups share the loads of an input
#else
constexpr int kSingleBf16 = 4, kSeveralInts = 1;
#endif
constexpr Tiles kBf16{.several = tile_set<WeightFormat::bf16_x8, 2, 1, 2, 3, 4, 5>(),
                      .single = tile_set<WeightFormat::bf16_x8, kSingleBf16, 1>(),
                      .last = tile_set<WeightFormat::bf16_x8, 1, 1, 2, 3, 4, 5>()};
#if defined(__AVXVNNI__)  // 10 sums, for the latency of the instruction; not measured
template <WeightFormat format, int R>
constexpr TileSet kIntSet = tile_set<format, R, 1, 2, 3, 4, 5>();
#else
template <WeightFormat format, int R>
constexpr TileSet kIntSet = tile_set<format, R, 1, 2, 3, 4>();
#endif
template <WeightFormat format>
constexpr Tiles kInts{
    .several = kIntSet<format, kSeveralInts>, .single = tile_set<format, 4, 1>(), .last = kIntSet<format, 1>};
#else
template <WeightFormat format>
constexpr Tiles kInts{
    .several = tile_set<format, 1, 1, 4>(), .single = tile_set<format, 1, 1>(), .last = tile_set<format, 1, 1, 4>()};
constexpr Tiles kBf16 = kInts<WeightFormat::bf16_x8>;
#endif

void quantize_row(int8_t* values, InputBlock* blocks, const float* x, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kQuantBlock, values += kQuantBlock, ++blocks) {
    float padded[kQuantBlock] = {};
    const float* in = x + begin;
    if (n - begin < kQuantBlock) {
      std::memcpy(padded, in, static_cast<size_t>(n - begin) * 4);
      in = padded;
    }
    constexpr int kParts = kQuantBlock / vec::kLanes;
    vec::f32x8 most_lanes{}, unsound_lanes{};  // NaN where a value is NaN or infinite
    LC_UNROLL for (int i = 0; i < kParts; ++i) {
      const vec::f32x8 v = vec::load(in + i * vec::kLanes);
      most_lanes = vec::max(vec::abs(v), most_lanes);
      unsound_lanes += v * 0.0f;
    }
    float largest[vec::kLanes], unsound[vec::kLanes];
    vec::store(largest, most_lanes);
    vec::store(unsound, unsound_lanes);
    float most = 0, nan = 0;
    for (int i = 0; i < vec::kLanes; ++i) {
      most = vec::most(most, largest[i]);
      nan += unsound[i];
    }
    const float scale = most / 127 + nan, inverse = most > 0 ? 127 / most : 0.0f;
    // Adding 1.5 x 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits. Fused, so that all
    // machines round alike.
    constexpr float kRound = 12582912.0f;
    constexpr int32_t kRoundBits = 0x4b400000;
    int32_t rounded[kQuantBlock];
    LC_UNROLL for (int i = 0; i < kQuantBlock; i += V::kLanes) {
      float lanes[V::kLanes];
      V::store(lanes, V::fma(V::load(in + i), V::broadcast(inverse), V::broadcast(kRound)));
      std::memcpy(rounded + i, lanes, sizeof(lanes));
    }
    int32_t sum = 0;
    for (int i = 0; i < kQuantBlock; ++i) {
      const int32_t q = rounded[i] - kRoundBits;
      values[i] = static_cast<int8_t>(q);
      sum += values[i];
    }
    *blocks = {scale, 8 * sum};
  }
}

}  // namespace

template <>
const PackedKernels& table_of<PackedKernels, Isa::LC_ISA>() {
  static constexpr PackedKernels kTable{.bf16 = kBf16,
                                        .int8 = kInts<WeightFormat::int8_x8>,
                                        .int4 = kInts<WeightFormat::int4_x8>,
                                        .int8_f16 = kInts<WeightFormat::int8_x8_f16>,
                                        .int4_f16 = kInts<WeightFormat::int4_x8_f16>,
                                        .rounded = kRounded,
                                        .quantize_row = quantize_row,
                                        .round_row = kRoundRow};
  return kTable;
}

}  // namespace longcat::cpu
