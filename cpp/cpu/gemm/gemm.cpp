// Linear layers. A register tile covers a few weight rows and a few inputs. Each output is a dot product of 16 partial
// sums with k ascending, then a fixed tree. That holds for every tile, so the bits do not depend on the number of
// inputs.
//
// With many inputs, a block of inputs stays in the second-level cache during the loop over weight rows. A tile's weight
// rows are then widened to f32 once per block.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/cpu_ops.h"
#include "cpu/gemm/matmul.h"
#include "cpu/gemm/packed_matmul.h"
#include "cpu/rows.h"
#include "cpu/simd/isa.h"
#include "cpu/simd/vec.h"
#include "ops/packed.h"

namespace longcat {

namespace cpu {

namespace {

constexpr int64_t kInputBlockBytes = 256 << 10;  // half of a small second-level cache

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
      if constexpr (kFew) __builtin_prefetch(rows + (r + R) * row_stride + k);  // of the next tile
      const Lanes weights = Lanes::load(rows + r * row_stride + k);
      LC_UNROLL for (int t = 0; t < T; ++t) Lanes::multiply_add(acc[r][t], weights, inputs[t]);
    }
  }
  LC_UNROLL for (int r = 0; r < R; ++r) LC_UNROLL for (int t = 0; t < T; ++t) {
    if (k < n) {
      float sums[kSums];
      Lanes::store(sums, acc[r][t]);
      for (int64_t i = k; i < n; ++i) sums[i - k] += to_float(rows[r * row_stride + i]) * x[t][i];
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
// in place, from memory.
template <bool kFew, class W>
void dot_rows_portable(const W* rows, int64_t in_features, int64_t first_row, int64_t num_rows, int64_t begin,
                       int64_t end, const MatmulBlock& b) {
  dot_rows<kFew, Whole, 2, 2>(rows, in_features, first_row, num_rows, begin, end, b);
}
#ifdef LC_HAS_CLONES
template <bool kFew, class W>
__attribute__((target("avx2,fma,bmi2"))) void dot_rows_avx2(const W* rows, int64_t in_features, int64_t first_row,
                                                            int64_t num_rows, int64_t begin, int64_t end,
                                                            const MatmulBlock& b) {
  if constexpr (kFew) {
    dot_rows<kFew, Halves, 4, 3, 2, 1, 1>(rows, in_features, first_row, num_rows, begin, end, b);
  } else {
    dot_rows<kFew, Halves, 4, 3>(rows, in_features, first_row, num_rows, begin, end, b);
  }
}
template <bool kFew, class W>
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2,prefer-vector-width=512"))) void
dot_rows_avx512(const W* rows, int64_t in_features, int64_t first_row, int64_t num_rows, int64_t begin, int64_t end,
                const MatmulBlock& b) {
  dot_rows<kFew, Whole, 4, 4, 4, 4, 4>(rows, in_features, first_row, num_rows, begin, end, b);
}
#endif

template <class W>
using DotRows = void (*)(const W* rows, int64_t in_features, int64_t first_row, int64_t num_rows, int64_t begin,
                         int64_t end, const MatmulBlock& b);

// Up to this number of inputs, rows are read in place. With more inputs, widening each row to f32 once pays off.
int64_t most_few_inputs() { return cpu_isa() >= Isa::avx512 ? 5 : cpu_isa() >= Isa::avx2 ? 12 : 2; }

template <bool kFew, class W>
DotRows<W> dot_rows_of_this_machine() {
#ifdef LC_HAS_CLONES
  if (cpu_isa() >= Isa::avx512) return dot_rows_avx512<kFew, W>;
  if (cpu_isa() >= Isa::avx2) return dot_rows_avx2<kFew, W>;
#endif
  return dot_rows_portable<kFew, W>;
}

LC_CLONES void widen_bf16(float* out, const bf16* x, int64_t n) {
  for (int64_t k = 0; k < n; ++k) out[k] = to_float(x[k]);
}

void read_fp8_row(float* out, const Weight& weight, int64_t row) {
  const uint8_t* data = static_cast<const uint8_t*>(weight.data) + row * weight.in_features;
  const int64_t blocks_per_row = (weight.in_features + kFp8Block - 1) / kFp8Block;
  const float* scales = weight.scales + (row / kFp8Block) * blocks_per_row;
  for (int64_t k = 0; k < weight.in_features; ++k) out[k] = e4m3_to_float(data[k]) * scales[k / kFp8Block];
}

}  // namespace

namespace {

// Widens a few rows at a time, once per block of inputs.
void matmul_widened(const Weight& weight, const MatmulBlock& block) {
  static const DotRows<float> dot_rows = dot_rows_of_this_machine<false, float>();
  constexpr int64_t kRows = 12;  // a multiple of the tile rows of every instruction set
  const int64_t n = weight.in_features;
  const int64_t inputs_at_once = std::max<int64_t>(8, kInputBlockBytes / (4 * n));
  thread_local std::vector<float> rows;  // grows to the widest layer
  rows.resize(static_cast<size_t>(kRows * n));
  for (int64_t begin = 0; begin < block.num_inputs; begin += inputs_at_once) {
    const int64_t end = std::min(begin + inputs_at_once, block.num_inputs);
    for (int64_t r = 0; r < block.num_rows; r += kRows) {
      const int64_t count = std::min(kRows, block.num_rows - r);
      for (int64_t i = 0; i < count; ++i) read_row(rows.data() + i * n, weight, block.first_row + r + i);
      dot_rows(rows.data(), n, r, count, begin, end, block);
    }
  }
}

template <class W>
void matmul_in_place(const Weight& weight, const MatmulBlock& block) {
  static const DotRows<W> dot_rows = dot_rows_of_this_machine<true, W>();
  dot_rows(static_cast<const W*>(weight.data) + block.first_row * weight.in_features, weight.in_features, 0,
           block.num_rows, 0, block.num_inputs, block);
}

}  // namespace

void matmul_block(const Weight& weight, const MatmulBlock& block) {
  if (is_packed(weight.format)) return packed_matmul_block(weight, block);
  static const int64_t most_few = most_few_inputs();
  if (block.num_inputs > most_few || weight.format == WeightFormat::fp8_block) return matmul_widened(weight, block);
  if (weight.format == WeightFormat::bf16) return matmul_in_place<bf16>(weight, block);
  matmul_in_place<float>(weight, block);
}

void read_row(float* out, const Weight& weight, int64_t row) {
  const int64_t n = weight.in_features;
  switch (weight.format) {
    case WeightFormat::f32:
      std::memcpy(out, static_cast<const float*>(weight.data) + row * n, static_cast<size_t>(n) * 4);
      return;
    case WeightFormat::bf16: {
      widen_bf16(out, static_cast<const bf16*>(weight.data) + row * n, n);
      return;
    }
    case WeightFormat::fp8_block:
      return read_fp8_row(out, weight, row);
    default:
      return unpack_row(out, weight, row);
  }
}

}  // namespace cpu

// Number of weight rows that a thread takes at once, in whole tiles. Many rows reuse the inputs well; few rows keep a
// slow thread from falling behind.
static int64_t row_grain(int64_t num_rows, int num_threads) {
  constexpr int64_t kTileRows = 64, kRangesPerThread = 8;
  return std::max(kTileRows, num_rows / (num_threads * kRangesPerThread) / kTileRows * kTileRows);
}

// Kernels read aligned elements. A plane that is not aligned in the file is copied.
Weight CpuOps::prepare(const Weight& logical, Buffer& storage) {
  const auto misaligned = [](const void* data, size_t alignment) {
    return reinterpret_cast<uintptr_t>(data) % alignment != 0;
  };
  const int64_t count = logical.out_features * logical.in_features;
  Weight weight = logical;
  switch (logical.format) {
    case WeightFormat::f32:
    case WeightFormat::bf16: {
      const int64_t element = logical.format == WeightFormat::f32 ? 4 : 2;
      if (!misaligned(logical.data, static_cast<size_t>(element))) return weight;
      storage = Buffer(device_, count * element);
      std::memcpy(storage.data(), logical.data, static_cast<size_t>(count * element));
      weight.data = storage.data();
      weight.placement = Placement::device;
      return weight;
    }
    case WeightFormat::fp8_block: {
      if (!misaligned(logical.scales, alignof(float))) return weight;
      const int64_t scale_bytes = logical.num_bytes() - count;
      storage = Buffer(device_, scale_bytes);
      std::memcpy(storage.data(), logical.scales, static_cast<size_t>(scale_bytes));
      weight.scales = static_cast<const float*>(storage.data());
      return weight;
    }
    default:  // packed formats need no alignment
      return weight;
  }
}

const cpu::QuantizedInputs* CpuOps::quantize_for(const Weight& weight, Tensor x) {
  if (!cpu::want_quantized_inputs(weight.format)) return nullptr;
  quantized_.quantize(pool_, x.data<float>(), x.stride(0), x.size(0), x.size(1));
  return &quantized_;
}

void CpuOps::linear(Tensor out, Tensor x, const Weight& weight) {
  LC_CHECK(x.size(1) == weight.in_features && out.size(1) == weight.out_features && x.size(0) == out.size(0), "linear ",
           out.shape_string(), " = ", x.shape_string(), " x [", weight.out_features, ", ", weight.in_features, "]");
  const cpu::QuantizedInputs* quantized = quantize_for(weight, x);
  const int64_t grain = row_grain(weight.out_features, pool_.num_threads());
  pool_.parallel_for(weight.out_features, grain, [&](int64_t begin, int64_t end) {
    cpu::matmul_block(weight, {.out = out.data<float>() + begin,
                               .out_stride = out.stride(0),
                               .x = x.data<float>(),
                               .x_stride = x.stride(0),
                               .row_idx = nullptr,
                               .num_inputs = x.size(0),
                               .first_row = begin,
                               .num_rows = end - begin,
                               .quantized = quantized});
  });
}

// One pass over the rows of both weights, without a barrier between them or before the activation.
void CpuOps::linear_silu_mul(Tensor out, Tensor scratch, Tensor x, const Weight& gate_proj, const Weight& up_proj) {
  LC_CHECK(gate_proj.out_features == up_proj.out_features && out.size(1) == up_proj.out_features &&
           x.size(1) == gate_proj.in_features && x.size(1) == up_proj.in_features);
  if (cpu::want_quantized_inputs(gate_proj.format) != cpu::want_quantized_inputs(up_proj.format))
    return Ops::linear_silu_mul(out, scratch, x, gate_proj, up_proj);
  const cpu::QuantizedInputs* quantized = quantize_for(gate_proj, x);
  const int64_t num_inputs = x.size(0);
  pool_.parallel_for(out.size(1), row_grain(out.size(1), pool_.num_threads()), [&](int64_t begin, int64_t end) {
    const auto multiply = [&](Tensor y, const Weight& weight) {
      cpu::matmul_block(weight, {.out = y.data<float>() + begin,
                                 .out_stride = y.stride(0),
                                 .x = x.data<float>(),
                                 .x_stride = x.stride(0),
                                 .row_idx = nullptr,
                                 .num_inputs = num_inputs,
                                 .first_row = begin,
                                 .num_rows = end - begin,
                                 .quantized = quantized});
    };
    multiply(out, gate_proj);
    multiply(scratch, up_proj);
    for (int64_t t = 0; t < num_inputs; ++t)
      cpu::silu_mul_row(out.row<float>(t) + begin, out.row<float>(t) + begin, scratch.row<float>(t) + begin,
                        end - begin);
  });
}

void CpuOps::linear_per_head(Tensor out, Tensor x, const Weight& weight) {
  const int64_t num_heads = x.size(1), out_dim = out.size(2);
  LC_CHECK(x.size(2) == weight.in_features && num_heads * out_dim == weight.out_features && out.size(1) == num_heads,
           "linear_per_head ", out.shape_string(), " = ", x.shape_string(), " x [", weight.out_features, ", ",
           weight.in_features, "]");
  pool_.parallel_for(num_heads, grain_for(x.size(0) * out_dim * x.size(2)), [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      cpu::matmul_block(weight, {.out = out.data<float>() + head * out.stride(1),
                                 .out_stride = out.stride(0),
                                 .x = x.data<float>() + head * x.stride(1),
                                 .x_stride = x.stride(0),
                                 .row_idx = nullptr,
                                 .num_inputs = x.size(0),
                                 .first_row = head * out_dim,
                                 .num_rows = out_dim});
  });
}

}  // namespace longcat
