#include "cpu/gemm/dot_kernels.h"

#include <cstring>
#include <utility>

#include "cpu/simd/registers.h"
#include "cpu/simd/vec.h"

namespace longcat::cpu {

namespace {

constexpr int kMaxTileInputs = 6;

// One tile: a few rows, a few inputs, the columns of one chunk.
template <class W, class X>
struct Tile {
  const W* rows;
  int64_t row_stride;
  const X* x[kMaxTileInputs];
  float* out[kMaxTileInputs];
  int64_t columns;
  bool adds;  // to the sums of earlier chunks
};

template <class W, class X>
using TileFunction = void (*)(const Tile<W, X>& tile);

// Products in f32.
//
// The 16 partial sums of a dot product fill two AVX2 registers or one AVX-512 register. GCC 12 keeps a type wider than
// a register on the stack.
constexpr int64_t kSums = 16;

#if defined(__AVX2__) && !defined(__AVX512F__)
struct Lanes {
  using Part = vec::f32x8;
  static constexpr int kParts = 2;
  static constexpr int64_t kAheadOfOne = 2048;  // [bytes] that one input prefetches ahead

  static LC_INLINE Part load(const float* p) { return vec::load(p); }
  static LC_INLINE Part load(const bf16* p) { return vec::Register::load_bf16(p); }
  // Otherwise the compiler loads a weight again for each input.
  static LC_INLINE void settle(Part& weights) { asm("" : "+x"(weights)); }
  static LC_INLINE vec::f32x8 fold(const Part (&sum)[kParts]) { return sum[0] + sum[1]; }
};
#else
struct Lanes {
  typedef float Part __attribute__((vector_size(64)));
  static constexpr int kParts = 1;
  static constexpr int64_t kAheadOfOne = 0;

  static LC_INLINE Part load(const float* p) {
    Part v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static LC_INLINE Part load(const bf16* p) {
    typedef uint16_t u16x16 __attribute__((vector_size(32)));
    typedef uint32_t u32x16 __attribute__((vector_size(64)));
    u16x16 bits;
    std::memcpy(&bits, p, sizeof(bits));
    const u32x16 wide = __builtin_convertvector(bits, u32x16) << 16;
    Part v;
    std::memcpy(&v, &wide, sizeof(wide));
    return v;
  }
  static LC_INLINE void settle(Part&) {}
  static LC_INLINE vec::f32x8 fold(const Part (&sum)[kParts]) {
    return __builtin_shufflevector(sum[0], sum[0], 0, 1, 2, 3, 4, 5, 6, 7) +
           __builtin_shufflevector(sum[0], sum[0], 8, 9, 10, 11, 12, 13, 14, 15);
  }
};
#endif

LC_INLINE vec::f32x8 add_pairs(vec::f32x8 a, vec::f32x8 b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
         __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
}

// out[r] (+)= the sum of row r's partial sums, for R rows: lane i + 8 is added to lane i, then i + 2 in each half of
// these, then i + 1, then i + 4.
template <int R>
LC_INLINE void put_sums(float* out, const vec::f32x8* rows, bool adds) {
  const vec::f32x8 a = add_pairs(rows[0], rows[1 % R]), b = add_pairs(rows[2 % R], rows[3 % R]);
  float lanes[vec::kLanes];
  vec::store(lanes, __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
                        __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15));
  LC_UNROLL for (int r = 0; r < R; ++r) {
    const float sum = lanes[r] + lanes[r + 4];
    out[r] = adds ? out[r] + sum : sum;
  }
}

template <bool kFew, int R, int T, class W>
void tile_f32(const Tile<W, float>& tile) {
  constexpr int kParts = Lanes::kParts, kPartLanes = kSums / kParts;
  using Part = typename Lanes::Part;
  const W* const rows = tile.rows;
  const int64_t stride = tile.row_stride, n = tile.columns;
  Part acc[T][R][kParts] = {};
  int64_t k = 0;
  for (; k + kSums <= n; k += kSums) {
    if constexpr (kFew && R > 1)
      LC_UNROLL for (int r = 0; r < R; ++r) __builtin_prefetch(rows + (r + R) * stride + k, 0, 2);  // of the next tile
    if constexpr (kFew && R == 1 && T == 1 && Lanes::kAheadOfOne > 0)
      __builtin_prefetch(rows + k + Lanes::kAheadOfOne / static_cast<int64_t>(sizeof(W)), 0, 2);
    LC_UNROLL for (int part = 0; part < kParts; ++part) {
      Part inputs[T];
      LC_UNROLL for (int t = 0; t < T; ++t) inputs[t] = Lanes::load(tile.x[t] + k + part * kPartLanes);
      LC_UNROLL for (int r = 0; r < R; ++r) {
        Part weights = Lanes::load(rows + r * stride + k + part * kPartLanes);
        Lanes::settle(weights);
        LC_UNROLL for (int t = 0; t < T; ++t) acc[t][r][part] += weights * inputs[t];
      }
    }
  }
  LC_UNROLL for (int t = 0; t < T; ++t) {
    vec::f32x8 folded[R];
    LC_UNROLL for (int r = 0; r < R; ++r) {
      if (k < n) {
        float sums[kSums];
        std::memcpy(sums, acc[t][r], sizeof(sums));
        for (int64_t i = k; i < n; ++i) sums[i - k] += vec::widen(rows[r * stride + i]) * tile.x[t][i];
        std::memcpy(acc[t][r], sums, sizeof(sums));
      }
      folded[r] = Lanes::fold(acc[t][r]);
    }
    put_sums<R>(tile.out[t], folded, tile.adds);
  }
}

#if defined(__AVX512BF16__)
// bf16 times bf16. Several rows are read from the first-level cache, and a tile prefetches the next ones. One row comes
// from memory, and makes room for the inputs in the first-level cache soon after.
template <int R, int T>
void tile_rounded(const Tile<bf16, bf16>& tile) {
  constexpr int64_t kStep = 32, kAhead = 512;
  const bf16* const rows = tile.rows;
  const int64_t stride = tile.row_stride, n = tile.columns;
  using V = vec::Register;
  V::Floats acc[T][R];
  LC_UNROLL for (int t = 0; t < T; ++t) LC_UNROLL for (int r = 0; r < R; ++r) acc[t][r] = V::zero();
  int64_t k = 0;
  for (; k + kStep <= n; k += kStep) {
    if constexpr (R == 1) __builtin_prefetch(rows + k + kAhead, 0, 0);
    V::Bytes w[R];
    LC_UNROLL for (int r = 0; r < R; ++r) {
      if constexpr (R > 1) __builtin_prefetch(rows + (r + R) * stride + k, 0, 2);
      w[r] = V::load_bf16(rows + r * stride + k);
    }
    LC_UNROLL for (int t = 0; t < T; ++t) {
      const V::Bytes x = V::load_bf16(tile.x[t] + k);
      LC_UNROLL for (int r = 0; r < R; ++r) acc[t][r] = V::dot_bf16(acc[t][r], w[r], x);
    }
  }
  if (k < n) {
    V::Bytes w[R];
    LC_UNROLL for (int r = 0; r < R; ++r) w[r] = V::load_bf16(rows + r * stride + k, n - k);
    LC_UNROLL for (int t = 0; t < T; ++t) {
      const V::Bytes x = V::load_bf16(tile.x[t] + k);
      LC_UNROLL for (int r = 0; r < R; ++r) acc[t][r] = V::dot_bf16(acc[t][r], w[r], x);
    }
  }
  LC_UNROLL for (int t = 0; t < T; ++t) {
    float sums[4];
    V::sum_four(sums, acc[t][0], acc[t][1 % R], acc[t][2 % R], acc[t][3 % R]);
    LC_UNROLL for (int r = 0; r < R; ++r) tile.out[t][r] = tile.adds ? tile.out[t][r] + sums[r] : sums[r];
  }
}
#endif

// The tiles of R rows, and of one row, and of 1 to kInputs inputs.
template <class W, class X, int R, int kInputs>
struct Tiles {
  TileFunction<W, X> whole[kInputs], single[kInputs];
};

// Computes all tiles. kFew: rows are outermost, and come from memory once. Otherwise inputs are outermost; rows and
// inputs are one chunk wide.
template <bool kFew, class W, class X, int R, int kInputs>
LC_INLINE void walk(const Dots<W, X>& d, int64_t chunk, const Tiles<W, X, R, kInputs>& tiles) {
  Tile<W, X> tile;
  tile.row_stride = d.row_stride;
  const auto take_chunk = [&](int64_t row, int64_t begin) __attribute__((always_inline)) {
    tile.rows = d.rows + row * d.row_stride + (begin - d.begin);
    tile.columns = vec::least(chunk, d.end - begin);
    tile.adds = begin > 0;
  };
  // Inputs are split evenly, so that every tile is wide enough to fill the pipelines.
  const auto take_inputs = [&](int64_t first, int64_t row, int64_t begin) __attribute__((always_inline)) {
    const int64_t left = d.num_inputs - first, parts = (left + kInputs - 1) / kInputs;
    const int64_t count = (left + parts - 1) / parts;
    for (int64_t t = 0; t < count; ++t) {
      tile.x[t] = d.x + (d.row_idx ? d.row_idx[first + t] : first + t) * d.x_stride + begin;
      tile.out[t] = d.out + (first + t) * d.out_stride + row;
    }
    return count;
  };
  // The rows from `row` on, R at most.
  const auto multiply = [&](int64_t row, int64_t count) __attribute__((always_inline)) {
    if (row + R <= d.num_rows) return tiles.whole[count - 1](tile);
    const W* const first = tile.rows;
    for (int64_t left = d.num_rows - row; left > 0; --left) {
      tiles.single[count - 1](tile);
      tile.rows += d.row_stride;
      for (int64_t t = 0; t < count; ++t) ++tile.out[t];
    }
    tile.rows = first;
  };
  if constexpr (kFew) {
    for (int64_t row = 0; row < d.num_rows; row += R)
      for (int64_t begin = d.begin; begin < d.end; begin += chunk) {
        take_chunk(row, begin);
        for (int64_t first = 0; first < d.num_inputs;) {
          const int64_t count = take_inputs(first, row, begin);
          multiply(row, count);
          first += count;
        }
      }
  } else {
    const int64_t num_tiles = (d.num_inputs + kInputs - 1) / kInputs * ((d.num_rows + R - 1) / R);
    const int64_t lines_of_tile = (d.ahead.num_lines + num_tiles - 1) / num_tiles;
    for (int64_t first = 0, line = 0; first < d.num_inputs;) {
      int64_t count = 0;
      for (int64_t row = 0; row < d.num_rows; row += R) {
        for (const int64_t end = vec::least(line + lines_of_tile, d.ahead.num_lines); line < end; ++line)
          __builtin_prefetch(
              d.ahead.first + line / d.ahead.lines_of_row * d.ahead.row_stride + line % d.ahead.lines_of_row * 64, 0,
              2);
        take_chunk(row, d.begin);
        count = take_inputs(first, row, d.begin);
        multiply(row, count);
      }
      first += count;
    }
  }
}

// Tile shapes by the registers of each instruction set: R * T sums, and the operands.
#if defined(__AVX512F__)
constexpr int kFewRows = 4, kFewInputs = 5, kManyRows = 4, kManyInputs = 5;
constexpr int64_t kMostFewInputs = 5;
#elif defined(__AVX2__)
constexpr int kFewRows = 2, kFewInputs = 3, kManyRows = 3, kManyInputs = 2;
constexpr int64_t kMostFewInputs = 9;
#else
constexpr int kFewRows = 1, kFewInputs = 2, kManyRows = 1, kManyInputs = 2;
constexpr int64_t kMostFewInputs = 2;
#endif

template <bool kFew, class W, int R, int... T>
constexpr Tiles<W, float, R, sizeof...(T)> f32_tiles(std::integer_sequence<int, T...>) {
  return {{tile_f32<kFew, R, T + 1, W>...}, {tile_f32<kFew, 1, T + 1, W>...}};
}

template <class W>
void few_f32(const Dots<W, float>& dots) {
  // One input reads rows one by one, in the order of their addresses. The processor prefetches that best. Several rows
  // at once are read at half that speed.
  static constexpr auto kOne = f32_tiles<true, W, 1>(std::make_integer_sequence<int, 1>());
  static constexpr auto kSeveral = f32_tiles<true, W, kFewRows>(std::make_integer_sequence<int, kFewInputs>());
  if (dots.num_inputs == 1) return walk<true>(dots, kF32Chunk, kOne);
  walk<true>(dots, kF32Chunk, kSeveral);
}

void many_f32(const Dots<float, float>& dots) {
  static constexpr auto kMany = f32_tiles<false, float, kManyRows>(std::make_integer_sequence<int, kManyInputs>());
  walk<false>(dots, kF32Chunk, kMany);
}

#if defined(__AVX512BF16__)
template <int R, int... T>
constexpr Tiles<bf16, bf16, R, sizeof...(T)> rounded_tiles(std::integer_sequence<int, T...>) {
  return {{tile_rounded<R, T + 1>...}, {tile_rounded<1, T + 1>...}};
}

void rounded(const Dots<bf16, bf16>& dots) {
  static constexpr auto kTwo = rounded_tiles<1>(std::make_integer_sequence<int, 2>());
  static constexpr auto kSeveral = rounded_tiles<4>(std::make_integer_sequence<int, kMaxTileInputs>());
  if (dots.num_inputs <= 2) return walk<true>(dots, kBf16Chunk, kTwo);
  walk<true>(dots, kBf16Chunk, kSeveral);
}
constexpr auto kRounded = rounded;
#else
constexpr decltype(DotKernels::rounded) kRounded = nullptr;
#endif

}  // namespace

template <>
const DotKernels& table_of<DotKernels, Isa::LC_ISA>() {
  static constexpr DotKernels kTable{.most_few_inputs = kMostFewInputs,
                                     .few_f32 = few_f32<float>,
                                     .few_bf16 = few_f32<bf16>,
                                     .many = many_f32,
                                     .rounded = kRounded};
  return kTable;
}

}  // namespace longcat::cpu
