// AVX-512 with VNNI: a register holds 16 outputs, those of two groups.
#include "cpu/gemm/packed_tiles.h"

#if defined(__x86_64__) && defined(__GNUC__)
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own avx512fintrin.h (GCC bug 105593)
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "cpu/simd/vec.h"

#define LC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))

namespace longcat::cpu {

namespace {

constexpr int64_t kPrefetch = 1536;  // [bytes] ahead in one of several streams

LC_AVX512 LC_INLINE void bring_near(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

LC_AVX512 LC_INLINE __m512i load_two(const uint8_t* first, const uint8_t* second) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first))),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)), 1);
}

LC_AVX512 LC_INLINE __m512i broadcast4(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

template <int R, int T>
LC_AVX512 void tile_bf16(const Tile& tile) {
  __m512 acc[R][T];
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] =
      tile.begin_block == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(tile.out[t] + r * 16);
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const int64_t pairs = tile.in_features / 2, end = std::min(pairs, tile.end_block * 16), wrap = pairs - kPrefetch / 32;
  const int64_t ahead_step = tile.ahead_step / 16;
  int64_t ahead = tile.begin_block * 512 + tile.ahead_values;
  for (int64_t k = tile.begin_block * 16; k < end; ++k) {
    if constexpr (T > 1) {
      if (ahead_step) {
        LC_UNROLL for (int g = 0; g < 2 * R; ++g) bring_near(tile.group[g] + ahead);
        ahead += ahead_step;
      }
    } else {
      LC_UNROLL for (int g = 0; g < 2 * R; ++g)
          bring_near(tile.group[g] + k * 32 + kPrefetch + (k < wrap ? 0 : tile.next_group - pairs * 32));
    }
    __m512i w[R];
    LC_UNROLL for (int r = 0; r < R; ++r) {
      w[r] = load_two(tile.group[2 * r] + k * 32, tile.group[2 * r + 1] + k * 32);
    }
    __m512 value[R];
    LC_UNROLL for (int r = 0; r < R; ++r) value[r] = _mm512_castsi512_ps(_mm512_slli_epi32(w[r], 16));
    LC_UNROLL for (int t = 0; t < T; ++t) {
      const __m512 x = _mm512_set1_ps(tile.x[t][2 * k]);
      LC_UNROLL for (int r = 0; r < R; ++r) acc[r][t] = _mm512_fmadd_ps(value[r], x, acc[r][t]);
    }
    LC_UNROLL for (int r = 0; r < R; ++r) value[r] = _mm512_castsi512_ps(_mm512_and_si512(w[r], high));
    LC_UNROLL for (int t = 0; t < T; ++t) {
      const __m512 x = _mm512_set1_ps(tile.x[t][2 * k + 1]);
      LC_UNROLL for (int r = 0; r < R; ++r) acc[r][t] = _mm512_fmadd_ps(value[r], x, acc[r][t]);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t) {
    if (tile.in_features % 2 && tile.end_block == tile.num_blocks) {
      const __m512i w = load_two(tile.group[2 * r] + pairs * 32, tile.group[2 * r + 1] + pairs * 32);
      acc[r][t] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_set1_ps(tile.x[t][2 * pairs]),
                                  acc[r][t]);
    }
    _mm512_storeu_ps(tile.out[t] + r * 16, acc[r][t]);
  }
}

template <WeightFormat format, int R, int T>
LC_AVX512 void tile_int(const Tile& tile) {
  const __m512i low = _mm512_set1_epi8(15), flip = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512 acc[R][T];
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] =
      tile.begin_block == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(tile.out[t] + r * 16);
  constexpr int64_t kLines = block_value_bytes(format) / 64;
  int64_t ahead = tile.begin_block * block_value_bytes(format) + tile.ahead_values;
  constexpr int32_t kOffset = format == WeightFormat::int8_x8 ? kInt8Offset : kInt4Offset;
  for (int64_t b = tile.begin_block; b < tile.end_block; ++b) {
    __m512i sum[R][T];
    LC_UNROLL for (int t = 0; t < T; ++t) {
      const __m512i correction = _mm512_set1_epi32(-kOffset / 8 * tile.input_blocks[t][b].sum_by_8);
      LC_UNROLL for (int r = 0; r < R; ++r) sum[r][t] = correction;
    }
    const int64_t at = b * block_value_bytes(format);
    if constexpr (T > 1) {
      if (tile.ahead_step) {
        LC_UNROLL for (int g = 0; g < 2 * R; ++g) {
          LC_UNROLL for (int line = 0; line < kLines; ++line) bring_near(tile.group[g] + ahead + line * 64);
          bring_near(tile.group[g] + tile.scales_offset + b * 16 + tile.ahead_scales);
        }
        ahead += tile.ahead_step;
      }
    } else {
      const int64_t value_bytes = block_value_bytes(format), next = b + kPrefetch / value_bytes;
      const bool here = next < tile.num_blocks;
      LC_UNROLL for (int g = 0; g < 2 * R; ++g) {
        const uint8_t* values = tile.group[g] + next * value_bytes + (here ? 0 : tile.next_group - tile.scales_offset);
        LC_UNROLL for (int line = 0; line < kLines; ++line) bring_near(values + line * 64);
        bring_near(tile.group[g] + tile.scales_offset + next * 16 +
                   (here ? 0 : tile.next_group - tile.num_blocks * 16));
      }
    }
    if constexpr (format == WeightFormat::int8_x8) {
      LC_UNROLL for (int quad = 0; quad < 8; ++quad) {
        __m512i w[R];
        LC_UNROLL for (int r = 0; r < R; ++r) w[r] = _mm512_xor_si512(
            load_two(tile.group[2 * r] + at + quad * 32, tile.group[2 * r + 1] + at + quad * 32), flip);
        LC_UNROLL for (int t = 0; t < T; ++t) {
          const __m512i x = broadcast4(tile.q[t] + b * kQuantBlock + quad * 4);
          LC_UNROLL for (int r = 0; r < R; ++r) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], w[r], x);
        }
      }
    } else {
      LC_UNROLL for (int j = 0; j < 4; ++j) {
        __m512i w_low[R], w_high[R];
        LC_UNROLL for (int r = 0; r < R; ++r) {
          const __m512i w = load_two(tile.group[2 * r] + at + j * 32, tile.group[2 * r + 1] + at + j * 32);
          w_low[r] = _mm512_and_si512(w, low);
          w_high[r] = _mm512_and_si512(_mm512_srli_epi16(w, 4), low);
        }
        LC_UNROLL for (int t = 0; t < T; ++t) {
          const int8_t* q = tile.q[t] + b * kQuantBlock + j * 4;
          const __m512i x_low = broadcast4(q), x_high = broadcast4(q + 16);
          LC_UNROLL for (int r = 0; r < R; ++r) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], w_low[r], x_low);
          LC_UNROLL for (int r = 0; r < R; ++r) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], w_high[r], x_high);
        }
      }
    }
    LC_UNROLL for (int r = 0; r < R; ++r) {
      const __m256i two = _mm256_inserti128_si256(
          _mm256_castsi128_si256(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile.group[2 * r] + tile.scales_offset + b * 16))),
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile.group[2 * r + 1] + tile.scales_offset + b * 16)), 1);
      const __m512 scales = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(two), 16));
      LC_UNROLL for (int t = 0; t < T; ++t) acc[r][t] =
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][t]),
                          _mm512_mul_ps(scales, _mm512_set1_ps(tile.input_blocks[t][b].scale)), acc[r][t]);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t)
      _mm512_storeu_ps(tile.out[t] + r * 16, acc[r][t]);
}

template <WeightFormat format>
constexpr Tiles kIntTiles{
    .several = {4,
                {nullptr, tile_int<format, 2, 1>, tile_int<format, 2, 2>, tile_int<format, 2, 3>,
                 tile_int<format, 2, 4>}},
    .single = {4, {nullptr, tile_int<format, 2, 1>}},
    .last = {
        2, {nullptr, tile_int<format, 1, 1>, tile_int<format, 1, 2>, tile_int<format, 1, 3>, tile_int<format, 1, 4>}}};

}  // namespace

Tiles tiles_avx512(WeightFormat format) {
  switch (format) {
    case WeightFormat::bf16_x8:
      return {.several = {4,
                          {nullptr, tile_bf16<2, 1>, tile_bf16<2, 2>, tile_bf16<2, 3>, tile_bf16<2, 4>, nullptr,
                           nullptr, nullptr, tile_bf16<2, 8>}},
              .single = {8, {nullptr, tile_bf16<4, 1>}},
              .last = {2,
                       {nullptr, tile_bf16<1, 1>, tile_bf16<1, 2>, tile_bf16<1, 3>, tile_bf16<1, 4>, nullptr, nullptr,
                        nullptr, tile_bf16<1, 8>}}};
    case WeightFormat::int8_x8:
      return kIntTiles<WeightFormat::int8_x8>;
    default:
      return kIntTiles<WeightFormat::int4_x8>;
  }
}

}  // namespace longcat::cpu

#else

namespace longcat::cpu {

Tiles tiles_avx512(WeightFormat format) { return tiles_portable(format); }

}  // namespace longcat::cpu

#endif
