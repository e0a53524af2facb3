#include "cpu/gemm/dot_kernels.h"

#include <cstring>

#include "cpu/simd/vec.h"

namespace longcat::cpu {

namespace {

// The 16 partial sums of a dot product fill two AVX2 registers or one AVX-512 register. GCC 12 keeps a type wider than
// a register on the stack.
constexpr int64_t kSums = 16;

struct Halves {
  vec::f32x8 low{}, high{};

  template <class W>
  static LC_INLINE Halves load(const W* p) {
    return {vec::load(p), vec::load(p + vec::kLanes)};
  }
  static LC_INLINE void store(float* p, const Halves& v) {
    vec::store(p, v.low);
    vec::store(p + vec::kLanes, v.high);
  }
  static LC_INLINE void multiply_add(Halves& sum, const Halves& a, const Halves& b) {
    sum.low += a.low * b.low;
    sum.high += a.high * b.high;
  }
};

struct Whole {
  typedef float f32x16 __attribute__((vector_size(64)));
  f32x16 lanes{};

  static LC_INLINE Whole load(const float* p) {
    Whole v;
    std::memcpy(&v.lanes, p, sizeof(v.lanes));
    return v;
  }
  static LC_INLINE Whole load(const bf16* p) {
    typedef uint16_t u16x16 __attribute__((vector_size(32)));
    typedef uint32_t u32x16 __attribute__((vector_size(64)));
    u16x16 bits;
    std::memcpy(&bits, p, sizeof(bits));
    const u32x16 wide = __builtin_convertvector(bits, u32x16) << 16;
    Whole v;
    std::memcpy(&v.lanes, &wide, sizeof(wide));
    return v;
  }
  static LC_INLINE void store(float* p, const Whole& v) { std::memcpy(p, &v.lanes, sizeof(v.lanes)); }
  static LC_INLINE void multiply_add(Whole& sum, const Whole& a, const Whole& b) { sum.lanes += a.lanes * b.lanes; }
};

// Adds lane i + 8 to lane i, then i + 4, i + 2, i + 1.
template <class Lanes>
LC_INLINE float sum_of(const Lanes& v) {
  typedef float f32x4 __attribute__((vector_size(16)));
  float lanes[kSums];
  Lanes::store(lanes, v);
  f32x4 quarters[4];
  std::memcpy(quarters, lanes, sizeof(lanes));
  const f32x4 four = (quarters[0] + quarters[2]) + (quarters[1] + quarters[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// out[t * out_stride + r] = rows[r] . x[t] for R rows and T inputs of n values.
template <bool kFew, class Lanes, int R, int T, class W>
LC_INLINE void dot_tile(float* out, int64_t out_stride, const W* rows, int64_t row_stride, const float* const* x,
                        int64_t n) {
  Lanes acc[R][T];
  int64_t k = 0;
  for (; k + kSums <= n; k += kSums) {
    Lanes inputs[T];
    LC_UNROLL for (int t = 0; t < T; ++t) inputs[t] = Lanes::load(x[t] + k);
    LC_UNROLL for (int r = 0; r < R; ++r) {
      if constexpr (kFew && R > 1) __builtin_prefetch(rows + (r + R) * row_stride + k, 0, 2);  // of the next tile
      const Lanes weights = Lanes::load(rows + r * row_stride + k);
      LC_UNROLL for (int t = 0; t < T; ++t) Lanes::multiply_add(acc[r][t], weights, inputs[t]);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t) {
    if (k < n) {
      float sums[kSums];
      Lanes::store(sums, acc[r][t]);
      for (int64_t i = k; i < n; ++i) sums[i - k] += vec::widen(rows[r * row_stride + i]) * x[t][i];
      acc[r][t] = Lanes::load(sums);
    }
    out[t * out_stride + r] = sum_of(acc[r][t]);
  }
}

// Multiplies T inputs by num_rows rows, R at a time.
template <bool kFew, class Lanes, int R, int T, class W>
LC_INLINE void dot_inputs(float* out, int64_t out_stride, const W* rows, int64_t num_rows, const float* const* x,
                          int64_t n) {
  int64_t r = 0;
  for (; r + R <= num_rows; r += R) dot_tile<kFew, Lanes, R, T>(out + r, out_stride, rows + r * n, n, x, n);
  for (; r < num_rows; ++r) dot_tile<kFew, Lanes, 1, T>(out + r, out_stride, rows + r * n, n, x, n);
}

// dot_inputs() with `count` >= T inputs. R, More... are the numbers of tile rows for T, T + 1, ... inputs.
template <bool kFew, class Lanes, int T, int R, int... More, class W>
LC_INLINE void dot_count(int64_t count, float* out, int64_t out_stride, const W* rows, int64_t num_rows,
                         const float* const* x, int64_t n) {
  if (count == T) {
    dot_inputs<kFew, Lanes, R, T>(out, out_stride, rows, num_rows, x, n);
  } else if constexpr (sizeof...(More) > 0) {
    dot_count<kFew, Lanes, T + 1, More...>(count, out, out_stride, rows, num_rows, x, n);
  }
}

// Multiplies all inputs [begin, end) of the block, in passes with about equally many inputs, at most sizeof...(Rows)
// each.
template <bool kFew, class Lanes, int... Rows, class W>
LC_INLINE void dot_rows(const W* rows, int64_t in_features, int64_t first_row, int64_t num_rows, int64_t begin,
                        int64_t end, const MatmulBlock& b) {
  constexpr int64_t kMost = sizeof...(Rows);
  const int64_t num_passes = (end - begin + kMost - 1) / kMost;
  for (int64_t pass = num_passes, i = begin; pass > 0; --pass) {
    const int64_t count = (end - i + pass - 1) / pass;
    const float* x[kMost];
    for (int64_t t = 0; t < count; ++t) x[t] = b.x + (b.row_idx ? b.row_idx[i + t] : i + t) * b.x_stride;
    dot_count<kFew, Lanes, 1, Rows...>(count, b.out + i * b.out_stride + first_row, b.out_stride, rows, num_rows, x,
                                       in_features);
    i += count;
  }
}

// Tile shapes by the registers of each instruction set: R * T sums of 16 floats, and the operands. kFew: rows are read
// in place, from memory. One input reads them one by one, in the order of their addresses, which the processor
// prefetches best: several rows at once are read at half that speed, and our own prefetches only slow it down.
template <bool kFew, class W>
void dot_rows_here(const W* rows, int64_t in_features, int64_t first_row, int64_t num_rows, int64_t begin, int64_t end,
                   const MatmulBlock& b) {
#if defined(__AVX512F__)
  dot_rows<kFew, Whole, kFew ? 1 : 4, 4, 4, 4, 4>(rows, in_features, first_row, num_rows, begin, end, b);
#elif defined(__AVX2__)
  if constexpr (kFew) {
    dot_rows<kFew, Halves, 1, 3, 2, 1, 1>(rows, in_features, first_row, num_rows, begin, end, b);
  } else {
    dot_rows<kFew, Halves, 4, 3>(rows, in_features, first_row, num_rows, begin, end, b);
  }
#else
  dot_rows<kFew, Whole, 2, 2>(rows, in_features, first_row, num_rows, begin, end, b);
#endif
}

#if defined(__AVX512F__)
constexpr int64_t kMostFewInputs = 5;
#elif defined(__AVX2__)
constexpr int64_t kMostFewInputs = 12;
#else
constexpr int64_t kMostFewInputs = 2;
#endif

}  // namespace

template <>
const DotKernels& table_of<DotKernels, Isa::LC_ISA>() {
  static constexpr DotKernels kTable{.most_few_inputs = kMostFewInputs,
                                     .few_f32 = dot_rows_here<true, float>,
                                     .few_bf16 = dot_rows_here<true, bf16>,
                                     .many = dot_rows_here<false, float>};
  return kTable;
}

}  // namespace longcat::cpu
