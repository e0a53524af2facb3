// A tile is R registers of outputs times T inputs. Whatever R and T are, an output is the same sum: over blocks of 32
// columns (columns in pairs for bf16), ascending, one fused multiply-add each; the integer sum inside a block is exact.
// So the bits depend neither on the number of inputs nor on the width of the registers.
#include "cpu/packed_matmul.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "cpu/isa.h"
#include "cpu/vec.h"
#include "ops/packed.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define LC_X86 1
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own avx512fintrin.h (GCC bug 105593)
#endif
#include <immintrin.h>
#define LC_AVX2 __attribute__((target("avx2,fma")))
#define LC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#endif

namespace longcat::cpu {

namespace {

constexpr int64_t kInputBytesAtOnce = 256 << 10;  // of inputs, half of a small second-level cache
constexpr int kMaxTileInputs = 8, kMaxTileGroups = 8;

// One tile: groups and inputs as pointers. `blocks` of 32 columns, or pairs of columns for bf16.
struct Tile {
  const uint8_t* group[kMaxTileGroups];
  int64_t scales_offset;  // [bytes] from the beginning of a group
  int64_t num_blocks;
  const float* x[kMaxTileInputs];
  const int8_t* q[kMaxTileInputs];
  const InputBlock* input_blocks[kMaxTileInputs];
  float* out[kMaxTileInputs];  // of the first group; the next group's outputs follow
  int64_t in_features;
};

constexpr int32_t kInt4Offset = 8, kInt8Offset = 128;

float scale_at(const uint8_t* scales) {
  bf16 scale;
  std::memcpy(&scale, scales, 2);
  return to_float(scale);
}

// --- any machine -----------------------------------------------------------------------------------------------------

template <WeightFormat format, int R, int T>
void tile_portable(const Tile& tile) {
  for (int g = 0; g < R; ++g)
    for (int t = 0; t < T; ++t) {
      float acc[kPackedRows] = {};
      if constexpr (format == WeightFormat::bf16_x8) {
        for (int64_t k = 0; k < tile.in_features; ++k)
          for (int r = 0; r < kPackedRows; ++r) {
            bf16 w;
            std::memcpy(&w, tile.group[g] + (k / 2 * 16 + r * 2 + k % 2) * 2, 2);
            acc[r] = std::fma(to_float(w), tile.x[t][k], acc[r]);
          }
      } else {
        for (int64_t b = 0; b < tile.num_blocks; ++b) {
          const uint8_t* values = tile.group[g] + b * block_value_bytes(format);
          const int8_t* q = tile.q[t] + b * kQuantBlock;
          for (int r = 0; r < kPackedRows; ++r) {
            int32_t sum = 0;
            for (int k = 0; k < kQuantBlock; ++k) {
              const int quad = k / 4;
              if constexpr (format == WeightFormat::int8_x8) {
                sum += static_cast<int8_t>(values[quad * 32 + r * 4 + k % 4]) * q[k];
              } else {
                sum += ((values[quad % 4 * 32 + r * 4 + k % 4] >> (quad < 4 ? 0 : 4) & 15) - kInt4Offset) * q[k];
              }
            }
            const float scale = scale_at(tile.group[g] + tile.scales_offset + (b * kPackedRows + r) * 2);
            acc[r] = std::fma(static_cast<float>(sum), scale * tile.input_blocks[t][b].scale, acc[r]);
          }
        }
      }
      std::memcpy(tile.out[t] + g * kPackedRows, acc, sizeof(acc));
    }
}

#ifdef LC_X86

// --- AVX2: a register holds 8 outputs --------------------------------------------------------------------------------

LC_AVX2 LC_INLINE __m256i broadcast4_avx2(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}

template <int R, int T>
LC_AVX2 void tile_bf16_avx2(const Tile& tile) {
  __m256 acc[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = _mm256_setzero_ps();
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  const int64_t pairs = tile.in_features / 2;
  for (int64_t k = 0; k < pairs; ++k) {
    __m256 w[R];
    for (int r = 0; r < R; ++r) {
      if constexpr (T == 1) _mm_prefetch(reinterpret_cast<const char*>(tile.group[r] + k * 32 + 1024), _MM_HINT_T0);
      w[r] = _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile.group[r] + k * 32)), 16));
    }
    for (int t = 0; t < T; ++t) {
      const __m256 x = _mm256_broadcast_ss(tile.x[t] + 2 * k);
      for (int r = 0; r < R; ++r) acc[r][t] = _mm256_fmadd_ps(w[r], x, acc[r][t]);
    }
    for (int r = 0; r < R; ++r)
      w[r] = _mm256_castsi256_ps(
          _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile.group[r] + k * 32)), high));
    for (int t = 0; t < T; ++t) {
      const __m256 x = _mm256_broadcast_ss(tile.x[t] + 2 * k + 1);
      for (int r = 0; r < R; ++r) acc[r][t] = _mm256_fmadd_ps(w[r], x, acc[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) {
      if (tile.in_features % 2) {
        const __m256 w = _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile.group[r] + pairs * 32)), 16));
        acc[r][t] = _mm256_fmadd_ps(w, _mm256_broadcast_ss(tile.x[t] + 2 * pairs), acc[r][t]);
      }
      _mm256_storeu_ps(tile.out[t] + r * 8, acc[r][t]);
    }
}

template <WeightFormat format, int R, int T>
LC_AVX2 void tile_int_avx2(const Tile& tile) {
  const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
  __m256 acc[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = _mm256_setzero_ps();
  for (int64_t b = 0; b < tile.num_blocks; ++b)
    for (int r = 0; r < R; ++r) {
      const uint8_t* values = tile.group[r] + b * block_value_bytes(format);
      __m256i sum[T];
      if constexpr (T == 1) {
        for (int64_t line = 0; line < block_value_bytes(format); line += 64)
          _mm_prefetch(reinterpret_cast<const char*>(values + line + 1536), _MM_HINT_T0);
      }
      if constexpr (format == WeightFormat::int8_x8) {
        for (int t = 0; t < T; ++t) sum[t] = _mm256_setzero_si256();
        for (int quad = 0; quad < 8; ++quad) {
          const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + quad * 32));
          const __m256i magnitude = _mm256_abs_epi8(w);
          for (int t = 0; t < T; ++t) {
            const __m256i x = broadcast4_avx2(tile.q[t] + b * kQuantBlock + quad * 4);
            const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, w));
            sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(pairs, ones));
          }
        }
      } else {
        __m256i pairs[T];  // 8 sums of two products of at most 15 x 127: below 2^15
        for (int t = 0; t < T; ++t) pairs[t] = _mm256_setzero_si256();
        for (int j = 0; j < 4; ++j) {
          const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + j * 32));
          const __m256i w_low = _mm256_and_si256(w, low), w_high = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
          for (int t = 0; t < T; ++t) {
            const int8_t* q = tile.q[t] + b * kQuantBlock + j * 4;
            pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(w_low, broadcast4_avx2(q)));
            pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(w_high, broadcast4_avx2(q + 16)));
          }
        }
        for (int t = 0; t < T; ++t)
          sum[t] = _mm256_sub_epi32(_mm256_madd_epi16(pairs[t], ones),
                                    _mm256_set1_epi32(kInt4Offset * tile.input_blocks[t][b].sum));
      }
      const __m256 scales = _mm256_castsi256_ps(_mm256_slli_epi32(
          _mm256_cvtepu16_epi32(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile.group[r] + tile.scales_offset + b * 16))),
          16));
      for (int t = 0; t < T; ++t)
        acc[r][t] =
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]),
                            _mm256_mul_ps(scales, _mm256_broadcast_ss(&tile.input_blocks[t][b].scale)), acc[r][t]);
    }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) _mm256_storeu_ps(tile.out[t] + r * 8, acc[r][t]);
}

// --- AVX-512 with VNNI: a register holds 16 outputs, of two groups ---------------------------------------------------

LC_AVX512 LC_INLINE __m512i load_two_avx512(const uint8_t* first, const uint8_t* second) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first))),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)), 1);
}

LC_AVX512 LC_INLINE __m512i broadcast4_avx512(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

template <int R, int T>
LC_AVX512 void tile_bf16_avx512(const Tile& tile) {
  __m512 acc[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = _mm512_setzero_ps();
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const int64_t pairs = tile.in_features / 2;
  for (int64_t k = 0; k < pairs; ++k) {
    __m512i w[R];
    for (int r = 0; r < R; ++r) {
      if constexpr (T == 1) {
        if (k % 2 == 0) {
          _mm_prefetch(reinterpret_cast<const char*>(tile.group[2 * r] + k * 32 + 1024), _MM_HINT_T0);
          _mm_prefetch(reinterpret_cast<const char*>(tile.group[2 * r + 1] + k * 32 + 1024), _MM_HINT_T0);
        }
      }
      w[r] = load_two_avx512(tile.group[2 * r] + k * 32, tile.group[2 * r + 1] + k * 32);
    }
    __m512 value[R];
    for (int r = 0; r < R; ++r) value[r] = _mm512_castsi512_ps(_mm512_slli_epi32(w[r], 16));
    for (int t = 0; t < T; ++t) {
      const __m512 x = _mm512_set1_ps(tile.x[t][2 * k]);
      for (int r = 0; r < R; ++r) acc[r][t] = _mm512_fmadd_ps(value[r], x, acc[r][t]);
    }
    for (int r = 0; r < R; ++r) value[r] = _mm512_castsi512_ps(_mm512_and_si512(w[r], high));
    for (int t = 0; t < T; ++t) {
      const __m512 x = _mm512_set1_ps(tile.x[t][2 * k + 1]);
      for (int r = 0; r < R; ++r) acc[r][t] = _mm512_fmadd_ps(value[r], x, acc[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) {
      if (tile.in_features % 2) {
        const __m512i w = load_two_avx512(tile.group[2 * r] + pairs * 32, tile.group[2 * r + 1] + pairs * 32);
        acc[r][t] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), _mm512_set1_ps(tile.x[t][2 * pairs]),
                                    acc[r][t]);
      }
      _mm512_storeu_ps(tile.out[t] + r * 16, acc[r][t]);
    }
}

template <WeightFormat format, int R, int T>
LC_AVX512 void tile_int_avx512(const Tile& tile) {
  const __m512i low = _mm512_set1_epi8(15), flip = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512 acc[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = _mm512_setzero_ps();
  constexpr int32_t kOffset = format == WeightFormat::int8_x8 ? kInt8Offset : kInt4Offset;
  for (int64_t b = 0; b < tile.num_blocks; ++b) {
    __m512i sum[R][T];
    for (int t = 0; t < T; ++t) {
      const __m512i correction = _mm512_set1_epi32(-kOffset * tile.input_blocks[t][b].sum);
      for (int r = 0; r < R; ++r) sum[r][t] = correction;
    }
    const int64_t at = b * block_value_bytes(format);
    if constexpr (T == 1) {
      for (int g = 0; g < 2 * R; ++g)
        for (int64_t line = 0; line < block_value_bytes(format); line += 64)
          _mm_prefetch(reinterpret_cast<const char*>(tile.group[g] + at + line + 1536), _MM_HINT_T0);
    }
    if constexpr (format == WeightFormat::int8_x8) {
      for (int quad = 0; quad < 8; ++quad) {
        __m512i w[R];
        for (int r = 0; r < R; ++r)
          w[r] = _mm512_xor_si512(
              load_two_avx512(tile.group[2 * r] + at + quad * 32, tile.group[2 * r + 1] + at + quad * 32), flip);
        for (int t = 0; t < T; ++t) {
          const __m512i x = broadcast4_avx512(tile.q[t] + b * kQuantBlock + quad * 4);
          for (int r = 0; r < R; ++r) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], w[r], x);
        }
      }
    } else {
      for (int j = 0; j < 4; ++j) {
        __m512i w_low[R], w_high[R];
        for (int r = 0; r < R; ++r) {
          const __m512i w = load_two_avx512(tile.group[2 * r] + at + j * 32, tile.group[2 * r + 1] + at + j * 32);
          w_low[r] = _mm512_and_si512(w, low);
          w_high[r] = _mm512_and_si512(_mm512_srli_epi16(w, 4), low);
        }
        for (int t = 0; t < T; ++t) {
          const int8_t* q = tile.q[t] + b * kQuantBlock + j * 4;
          const __m512i x_low = broadcast4_avx512(q), x_high = broadcast4_avx512(q + 16);
          for (int r = 0; r < R; ++r) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], w_low[r], x_low);
          for (int r = 0; r < R; ++r) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], w_high[r], x_high);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const __m256i two = _mm256_inserti128_si256(
          _mm256_castsi128_si256(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile.group[2 * r] + tile.scales_offset + b * 16))),
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile.group[2 * r + 1] + tile.scales_offset + b * 16)), 1);
      const __m512 scales = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(two), 16));
      for (int t = 0; t < T; ++t)
        acc[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][t]),
                                    _mm512_mul_ps(scales, _mm512_set1_ps(tile.input_blocks[t][b].scale)), acc[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) _mm512_storeu_ps(tile.out[t] + r * 16, acc[r][t]);
}

#endif

// --- the walk over tiles ---------------------------------------------------------------------------------------------

using TileFunction = void (*)(const Tile& tile);

// Tiles of one instruction set for one format: of many inputs, and of one.
struct Tiles {
  int many_inputs, many_groups, one_groups;
  TileFunction many;         // many_groups x many_inputs
  TileFunction many_fewest;  // fewest_groups x many_inputs
  TileFunction one;          // one_groups x 1
  TileFunction one_fewest;   // fewest_groups x 1
  int fewest_groups;         // that fill a register
};

template <WeightFormat format>
constexpr Tiles tiles_portable() {
  return {4,
          1,
          1,
          tile_portable<format, 1, 4>,
          tile_portable<format, 1, 4>,
          tile_portable<format, 1, 1>,
          tile_portable<format, 1, 1>,
          1};
}

template <WeightFormat format>
Tiles tiles_of_this_machine() {
#ifdef LC_X86
  if (cpu_isa() == Isa::avx512_vnni) {
    if constexpr (format == WeightFormat::bf16_x8)
      return {8, 4, 8, tile_bf16_avx512<2, 8>, tile_bf16_avx512<1, 8>, tile_bf16_avx512<4, 1>, tile_bf16_avx512<1, 1>,
              2};
    else
      return {4,
              4,
              4,
              tile_int_avx512<format, 2, 4>,
              tile_int_avx512<format, 1, 4>,
              tile_int_avx512<format, 2, 1>,
              tile_int_avx512<format, 1, 1>,
              2};
  }
  if (cpu_isa() >= Isa::avx2) {
    if constexpr (format == WeightFormat::bf16_x8)
      return {4, 3, 8, tile_bf16_avx2<3, 4>, tile_bf16_avx2<1, 4>, tile_bf16_avx2<8, 1>, tile_bf16_avx2<1, 1>, 1};
    else
      return {4,
              1,
              4,
              tile_int_avx2<format, 1, 4>,
              tile_int_avx2<format, 1, 4>,
              tile_int_avx2<format, 4, 1>,
              tile_int_avx2<format, 1, 1>,
              1};
  }
#endif
  return tiles_portable<format>();
}

template <WeightFormat format>
void walk(const Weight& weight, const MatmulBlock& b) {
  static const Tiles tiles = tiles_of_this_machine<format>();
  const int64_t stride = packed_stride(format, weight.in_features);
  const uint8_t* data = static_cast<const uint8_t*>(weight.data) + b.first_row / kPackedRows * stride;
  const int64_t num_groups = num_packed_groups(b.num_rows);
  Tile tile{};
  tile.num_blocks = num_quant_blocks(weight.in_features);
  tile.scales_offset = tile.num_blocks * block_value_bytes(format);
  tile.in_features = weight.in_features;

  const auto set_input = [&](int t, int64_t i, int64_t group) {
    const int64_t row = b.row_idx ? b.row_idx[i] : i;
    if constexpr (format == WeightFormat::bf16_x8) {
      tile.x[t] = b.x + row * b.x_stride;
    } else {
      tile.q[t] = b.quantized->values(b.quantized_first + row);
      tile.input_blocks[t] = b.quantized->blocks(b.quantized_first + row);
    }
    tile.out[t] = b.out + i * b.out_stride + group * kPackedRows;
  };
  // A tile at (group, input). What lies beyond the last group, row or input is computed into `spare`.
  const auto compute = [&](TileFunction function, int64_t group, int groups, int64_t input, int inputs, int64_t last) {
    const int count = static_cast<int>(std::min<int64_t>(inputs, last - input));
    const int64_t wanted = std::min<int64_t>(groups * kPackedRows, b.num_rows - group * kPackedRows);
    for (int g = 0; g < groups; ++g) tile.group[g] = data + std::min(group + g, num_groups - 1) * stride;
    for (int t = 0; t < inputs; ++t) set_input(t, input + std::min(t, count - 1), group);
    if (wanted == groups * kPackedRows && count == inputs) return function(tile);
    float spare[kMaxTileInputs][kMaxTileGroups * kPackedRows];
    float* out[kMaxTileInputs];
    for (int t = 0; t < inputs; ++t) {
      out[t] = tile.out[t];
      tile.out[t] = spare[t];
    }
    function(tile);
    for (int t = 0; t < count; ++t) std::memcpy(out[t], spare[t], static_cast<size_t>(wanted) * 4);
  };

  const int64_t input_bytes = weight.in_features * (format == WeightFormat::bf16_x8 ? 4 : 1);
  const int64_t inputs_at_once = std::max<int64_t>(tiles.many_inputs, kInputBytesAtOnce / input_bytes);
  for (int64_t begin = 0; begin < b.num_inputs; begin += inputs_at_once) {
    const int64_t end = std::min(begin + inputs_at_once, b.num_inputs);
    const bool one = end - begin == 1;
    const int inputs = one ? 1 : tiles.many_inputs;
    for (int64_t group = 0; group < num_groups;) {
      const int most = one ? tiles.one_groups : tiles.many_groups;
      const bool full = num_groups - group >= most;
      const TileFunction function = one ? (full ? tiles.one : tiles.one_fewest) : full ? tiles.many : tiles.many_fewest;
      const int groups = full ? most : tiles.fewest_groups;
      for (int64_t i = begin; i < end; i += inputs) compute(function, group, groups, i, inputs, end);
      group += groups;
    }
  }
}

// One row of inputs to 8 bits.
LC_CLONES void quantize_row(int8_t* values, InputBlock* blocks, const float* x, int64_t n) {
  for (int64_t begin = 0; begin < n; begin += kQuantBlock, values += kQuantBlock, ++blocks) {
    float padded[kQuantBlock] = {};
    const float* in = x + begin;
    if (n - begin < kQuantBlock) {
      std::memcpy(padded, in, static_cast<size_t>(n - begin) * 4);
      in = padded;
    }
    vec::f32x16 a = vec::load(in), b = vec::load(in + 16);
    const vec::f32x16 abs_a = a < 0 ? -a : a, abs_b = b < 0 ? -b : b;
    float largest[16], unsound[16];
    vec::store(largest, abs_a > abs_b ? abs_a : abs_b);
    vec::store(unsound, a * 0.0f + b * 0.0f);  // NaN where something is NaN or infinite
    float most = 0, nan = 0;
    for (int i = 0; i < 16; ++i) {
      most = std::max(most, largest[i]);
      nan += unsound[i];
    }
    const float scale = most / 127 + nan, inverse = most > 0 ? 127 / most : 0.0f;
    // Adding 1.5 x 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
    constexpr float kRound = 12582912.0f;
    float rounded[kQuantBlock];
    vec::store(rounded, a * inverse + kRound);
    vec::store(rounded + 16, b * inverse + kRound);
    int32_t sum = 0;
    for (int i = 0; i < kQuantBlock; ++i) {
      const int32_t q = std::bit_cast<int32_t>(rounded[i]) - std::bit_cast<int32_t>(kRound);
      values[i] = static_cast<int8_t>(q);
      sum += values[i];
    }
    *blocks = {scale, sum};
  }
}

}  // namespace

void QuantizedInputs::quantize(ThreadPool& pool, const float* x, int64_t x_stride, int64_t num_rows,
                               int64_t in_features) {
  num_blocks_ = num_quant_blocks(in_features);
  const size_t blocks = static_cast<size_t>(num_rows * num_blocks_);
  if (blocks_.size() < blocks) {
    blocks_.resize(blocks);
    values_.resize(blocks * kQuantBlock);
  }
  pool.parallel_for(num_rows, grain_for(2 * in_features), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      quantize_row(values_.data() + row * num_blocks_ * kQuantBlock, blocks_.data() + row * num_blocks_,
                   x + row * x_stride, in_features);
  });
}

void packed_matmul_block(const Weight& weight, const MatmulBlock& block) {
  LC_CHECK(block.first_row % kPackedRows == 0 && (block.quantized || !want_quantized_inputs(weight.format)));
  switch (weight.format) {
    case WeightFormat::bf16_x8:
      return walk<WeightFormat::bf16_x8>(weight, block);
    case WeightFormat::int8_x8:
      return walk<WeightFormat::int8_x8>(weight, block);
    case WeightFormat::int4_x8:
      return walk<WeightFormat::int4_x8>(weight, block);
    default:
      throw Error(str_cat("[cpu] a ", name_of(weight.format), " weight cannot be multiplied"));
  }
}

}  // namespace longcat::cpu
