// Products with matrices as they are in checkpoints, and the choice between these and packed ones.
//
// With many inputs, a chunk of their columns stays in the second-level cache during the loop over weight rows. A few
// rows are then widened to f32 at a time, into the first-level cache.
#include "cpu/gemm/matmul.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/gemm/dot_kernels.h"
#include "cpu/gemm/packed_matmul.h"
#include "cpu/gemm/tile_matmul.h"
#include "cpu/row_kernels.h"
#include "ops/packed.h"

namespace longcat::cpu {

namespace {

// The columns [begin, end) of a row that is not packed, as floats.
void read_columns(float* out, const Weight& weight, int64_t row, int64_t begin, int64_t end) {
  const int64_t n = weight.in_features;
  switch (weight.format) {
    case WeightFormat::f32:
      std::memcpy(out, static_cast<const float*>(weight.data) + row * n + begin, static_cast<size_t>(end - begin) * 4);
      return;
    case WeightFormat::bf16:
      return kernels<RowKernels>().widen_bf16(out, static_cast<const bf16*>(weight.data) + row * n + begin,
                                              end - begin);
    default: {  // fp8_block
      const uint8_t* data = static_cast<const uint8_t*>(weight.data) + row * n;
      const float* scales = weight.scales + row / kFp8Block * ((n + kFp8Block - 1) / kFp8Block);
      for (int64_t k = begin; k < end; ++k) *out++ = e4m3_to_float(data[k]) * scales[k / kFp8Block];
    }
  }
}

// All columns of the inputs [first, first + num_inputs) of a block.
template <class W, class X>
Dots<W, X> dots_of(const MatmulBlock& block, const X* x, int64_t x_stride, const W* rows, int64_t in_features,
                   int64_t first, int64_t num_inputs) {
  return {.out = block.out + first * block.out_stride,
          .out_stride = block.out_stride,
          .rows = rows,
          .row_stride = in_features,
          .num_rows = block.num_rows,
          .x = block.row_idx ? x : x + first * x_stride,
          .x_stride = x_stride,
          .row_idx = block.row_idx ? block.row_idx + first : nullptr,
          .num_inputs = num_inputs,
          .begin = 0,
          .end = in_features};
}

constexpr int64_t kInputsAtOnce = 128;  // a chunk of them takes 256 KB, half of a small second-level cache

void matmul_widened(const Weight& weight, const MatmulBlock& block) {
  constexpr int64_t kRows = 12;  // a multiple of the tile rows of every instruction set
  alignas(64) thread_local float widened[kRows * kF32Chunk];
  const int64_t n = weight.in_features;
  const int64_t value_bytes = weight.format == WeightFormat::f32 ? 4 : weight.format == WeightFormat::bf16 ? 2 : 1;
  for (int64_t first = 0; first < block.num_inputs; first += kInputsAtOnce) {
    Dots<float, float> dots = dots_of<float>(block, block.x, block.x_stride, widened, n, first,
                                             std::min(kInputsAtOnce, block.num_inputs - first));
    float* const out = dots.out;
    dots.row_stride = kF32Chunk;
    dots.ahead = {.row_stride = n * value_bytes, .lines_of_row = kF32Chunk * value_bytes / 64};
    for (; dots.begin < n; dots.begin = dots.end) {
      dots.end = std::min(dots.begin + kF32Chunk, n);
      for (int64_t row = 0; row < block.num_rows; row += kRows) {
        const int64_t weight_row = block.first_row + row, rows_left = block.num_rows - row;
        dots.num_rows = std::min(kRows, rows_left);
        dots.out = out + row;
        dots.ahead.first =
            static_cast<const char*>(weight.data) + ((weight_row + kRows) * n + dots.begin) * value_bytes;
        dots.ahead.num_lines = std::clamp<int64_t>(rows_left - kRows, 0, kRows) * dots.ahead.lines_of_row;
        for (int64_t r = 0; r < dots.num_rows; ++r)
          read_columns(widened + r * kF32Chunk, weight, weight_row + r, dots.begin, dots.end);
        kernels<DotKernels>().many(dots);
      }
    }
  }
}

void matmul_rounded(const Weight& weight, const MatmulBlock& block) {
  constexpr int64_t kFewInputs = 24;  // their whole rows stay in the second-level cache
  const int64_t n = weight.in_features, x_stride = num_quant_blocks(n) * kQuantBlock;
  const bf16* const rows = static_cast<const bf16*>(weight.data) + block.first_row * n;
  const bf16* const x = block.quantized->rounded(block.quantized_first);
  const int64_t columns = block.num_inputs <= kFewInputs ? n : kBf16Chunk;
  for (int64_t first = 0; first < block.num_inputs; first += kInputsAtOnce) {
    Dots<bf16, bf16> dots =
        dots_of(block, x, x_stride, rows, n, first, std::min(kInputsAtOnce, block.num_inputs - first));
    for (; dots.begin < n; dots.begin = dots.end) {
      dots.rows = rows + dots.begin;
      dots.end = std::min(dots.begin + columns, n);
      kernels<DotKernels>().rounded(dots);
    }
  }
}

template <class W>
void matmul_in_place(const Weight& weight, const MatmulBlock& block, void (*kernel)(const Dots<W, float>& dots)) {
  const int64_t n = weight.in_features;
  kernel(dots_of(block, block.x, block.x_stride, static_cast<const W*>(weight.data) + block.first_row * n, n, 0,
                 block.num_inputs));
}

}  // namespace

void matmul_block(const Weight& weight, const MatmulBlock& block) {
  const bool rounded = (weight.format == WeightFormat::bf16 || weight.format == WeightFormat::bf16_x8) &&
                       block.quantized && block.quantized->are_rounded();
  if (const TileKernels* tiles = rounded ? tile_kernels() : nullptr) return tile_matmul_block(weight, block, *tiles);
  if (is_packed(weight.format)) return packed_matmul_block(weight, block);
  if (rounded) return matmul_rounded(weight, block);
  const DotKernels& dot = kernels<DotKernels>();
  if (block.num_inputs > dot.most_few_inputs || weight.format == WeightFormat::fp8_block)
    return matmul_widened(weight, block);
  if (weight.format == WeightFormat::bf16) return matmul_in_place<bf16>(weight, block, dot.few_bf16);
  matmul_in_place<float>(weight, block, dot.few_f32);
}

void read_row(float* out, const Weight& weight, int64_t row) {
  if (is_packed(weight.format)) return unpack_row(out, weight, row);
  read_columns(out, weight, row, 0, weight.in_features);
}

}  // namespace longcat::cpu
