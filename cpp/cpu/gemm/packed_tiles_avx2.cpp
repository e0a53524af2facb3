// AVX2: a register holds 8 outputs. The 16 registers hold R * T sums, R weights, an input, and a constant or two.
#include "cpu/gemm/packed_tiles.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "cpu/simd/vec.h"

#define LC_AVX2 __attribute__((target("avx2,fma")))

namespace longcat::cpu {

namespace {

constexpr int64_t kPrefetch = 1024;  // [bytes] ahead in one of several streams

LC_AVX2 LC_INLINE __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

LC_AVX2 LC_INLINE __m256i broadcast4(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}

// Makes the compiler compute `sum` at this point. Otherwise GCC 12 gathers a block's additions at its end and runs out
// of registers.
LC_AVX2 LC_INLINE void settle(__m256i& sum) { asm("" : "+x"(sum)); }

// Returns `p`, and makes the compiler reload what it points to: cheaper than keeping a register.
LC_INLINE const uint8_t* reload(const uint8_t* p) {
  asm("" : "+r"(p));
  return p;
}

LC_AVX2 LC_INLINE void bring_near(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

template <int R, int T>
LC_AVX2 void tile_bf16(const Tile& tile) {
  __m256 acc[R][T];
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] =
      tile.begin_block == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(tile.out[t] + r * 8);
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const int64_t pairs = tile.in_features / 2, end = std::min(pairs, tile.end_block * 16), wrap = pairs - kPrefetch / 32;
  const int64_t ahead_step = tile.ahead_step / 16;
  int64_t ahead = tile.begin_block * 512 + tile.ahead_values;
  for (int64_t k = tile.begin_block * 16; k < end; ++k) {
    if constexpr (T > 1) {
      if (ahead_step) {
        LC_UNROLL for (int r = 0; r < R; ++r) bring_near(tile.group[r] + ahead);
        ahead += ahead_step;
      }
    }
    __m256 value[R];
    LC_UNROLL for (int r = 0; r < R; ++r) {
      if constexpr (T == 1)
        bring_near(tile.group[r] + k * 32 + kPrefetch + (k < wrap ? 0 : tile.next_group - pairs * 32));
      value[r] = _mm256_castsi256_ps(_mm256_slli_epi32(load(tile.group[r] + k * 32), 16));
    }
    LC_UNROLL for (int t = 0; t < T; ++t) {
      const __m256 x = _mm256_broadcast_ss(tile.x[t] + 2 * k);
      LC_UNROLL for (int r = 0; r < R; ++r) acc[r][t] = _mm256_fmadd_ps(value[r], x, acc[r][t]);
    }
    LC_UNROLL for (int r = 0; r < R; ++r) value[r] =
        _mm256_castsi256_ps(_mm256_and_si256(load(reload(tile.group[r] + k * 32)), high));
    LC_UNROLL for (int t = 0; t < T; ++t) {
      const __m256 x = _mm256_broadcast_ss(tile.x[t] + 2 * k + 1);
      LC_UNROLL for (int r = 0; r < R; ++r) acc[r][t] = _mm256_fmadd_ps(value[r], x, acc[r][t]);
    }
  }
  if (tile.in_features % 2 && tile.end_block == tile.num_blocks) {
    LC_UNROLL for (int r = 0; r < R; ++r) {
      const __m256 w = _mm256_castsi256_ps(_mm256_slli_epi32(load(tile.group[r] + pairs * 32), 16));
      LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] =
          _mm256_fmadd_ps(w, _mm256_broadcast_ss(tile.x[t] + 2 * pairs), acc[r][t]);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t)
      _mm256_storeu_ps(tile.out[t] + r * 8, acc[r][t]);
}

// The exact integer sum of a block of 32 columns of one group, for each input.
template <WeightFormat format, int T>
LC_AVX2 LC_INLINE void sum_block(__m256i* sum, const uint8_t* values, const Tile& tile, int64_t b) {
  const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
  if constexpr (format == WeightFormat::int8_x8) {
    LC_UNROLL for (int quad = 0; quad < 8; ++quad) {
      const __m256i w = load(values + quad * 32), magnitude = _mm256_abs_epi8(w);
      LC_UNROLL for (int t = 0; t < T; ++t) {
        const __m256i x = broadcast4(tile.q[t] + b * kQuantBlock + quad * 4);
        const __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w)), ones);
        sum[t] = quad == 0 ? products : _mm256_add_epi32(sum[t], products);
        settle(sum[t]);
      }
    }
  } else {
    LC_UNROLL for (int j = 0; j < 4; ++j) {  // 8 sums of two products of at most 15 x 127: below 2^15
      const __m256i w = load(values + j * 32);
      const __m256i w_low = _mm256_and_si256(w, low), w_high = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
      LC_UNROLL for (int t = 0; t < T; ++t) {
        const int8_t* q = tile.q[t] + b * kQuantBlock + j * 4;
        const __m256i products = _mm256_maddubs_epi16(w_low, broadcast4(q));
        sum[t] = j == 0 ? products : _mm256_add_epi16(sum[t], products);
        settle(sum[t]);
        sum[t] = _mm256_add_epi16(sum[t], _mm256_maddubs_epi16(w_high, broadcast4(q + 16)));
        settle(sum[t]);
      }
    }
    LC_UNROLL for (int t = 0; t < T; ++t) sum[t] =
        _mm256_sub_epi32(_mm256_madd_epi16(sum[t], ones), _mm256_set1_epi32(tile.input_blocks[t][b].sum_by_8));
  }
}

template <WeightFormat format, int R, int T>
LC_AVX2 void tile_int(const Tile& tile) {
  constexpr int64_t kLines = block_value_bytes(format) / 64;
  __m256 acc[R][T];
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] =
      tile.begin_block == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(tile.out[t] + r * 8);
  int64_t ahead = tile.begin_block * block_value_bytes(format) + tile.ahead_values;
  for (int64_t b = tile.begin_block; b < tile.end_block; ++b) {
    if constexpr (T > 1) {
      if (tile.ahead_step) {
        LC_UNROLL for (int r = 0; r < R; ++r) {
          LC_UNROLL for (int line = 0; line < kLines; ++line) bring_near(tile.group[r] + ahead + line * 64);
          bring_near(tile.group[r] + tile.scales_offset + b * 16 + tile.ahead_scales);
        }
        ahead += tile.ahead_step;
      }
    }
    LC_UNROLL for (int r = 0; r < R; ++r) {
      __m256i sum[T];
      if constexpr (T == 1) {
        const int64_t value_bytes = block_value_bytes(format), at = b + kPrefetch / value_bytes;
        const bool here = at < tile.num_blocks;
        const uint8_t* values = tile.group[r] + at * value_bytes + (here ? 0 : tile.next_group - tile.scales_offset);
        LC_UNROLL for (int line = 0; line < kLines; ++line) bring_near(values + line * 64);
        bring_near(tile.group[r] + tile.scales_offset + at * 16 + (here ? 0 : tile.next_group - tile.num_blocks * 16));
      }
      sum_block<format, T>(sum, tile.group[r] + b * block_value_bytes(format), tile, b);
      const __m256 scales = _mm256_castsi256_ps(_mm256_slli_epi32(
          _mm256_cvtepu16_epi32(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile.group[r] + tile.scales_offset + b * 16))),
          16));
      LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] =
          _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]),
                          _mm256_mul_ps(scales, _mm256_broadcast_ss(&tile.input_blocks[t][b].scale)), acc[r][t]);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t)
      _mm256_storeu_ps(tile.out[t] + r * 8, acc[r][t]);
}

template <WeightFormat format>
constexpr Tiles kIntTiles{
    .several = {1,
                {nullptr, tile_int<format, 1, 1>, tile_int<format, 1, 2>, tile_int<format, 1, 3>,
                 tile_int<format, 1, 4>}},
    .single = {4, {nullptr, tile_int<format, 4, 1>}},
    .last = {
        1, {nullptr, tile_int<format, 1, 1>, tile_int<format, 1, 2>, tile_int<format, 1, 3>, tile_int<format, 1, 4>}}};

}  // namespace

Tiles tiles_avx2(WeightFormat format) {
  switch (format) {
    case WeightFormat::bf16_x8:
      return {
          .several = {2,
                      {nullptr, tile_bf16<2, 1>, tile_bf16<2, 2>, tile_bf16<2, 3>, tile_bf16<2, 4>, tile_bf16<2, 5>}},
          .single = {8, {nullptr, tile_bf16<8, 1>}},
          .last = {1, {nullptr, tile_bf16<1, 1>, tile_bf16<1, 2>, tile_bf16<1, 3>, tile_bf16<1, 4>, tile_bf16<1, 5>}}};
    case WeightFormat::int8_x8:
      return kIntTiles<WeightFormat::int8_x8>;
    default:
      return kIntTiles<WeightFormat::int4_x8>;
  }
}

}  // namespace longcat::cpu

#else

namespace longcat::cpu {

Tiles tiles_avx2(WeightFormat format) { return tiles_portable(format); }

}  // namespace longcat::cpu

#endif
