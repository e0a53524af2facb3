// Quantises values to e4m3: rows of activations with a scale per 128 values, and matrices with a scale per 128 x 128
// block.
//
// Bound by bytes: 3 read and written per value. A block takes one group of 128 values, or one 128 x 128 block of a
// matrix (at load only).
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/gemm/gemm.h"
#include "cuda/kernels/block.h"
#include "cuda/kernels/matrix.h"
#include "cuda/kernels/quantize.h"

namespace longcat {

namespace {

using gpu::Block;
using gpu::Matrix;
using gpu::View;

LC_HD float larger(float a, float b) { return b > a ? b : a; }

struct QuantizeRows {
  static constexpr int kThreads = 128;
  uint8_t* out;            // [num_rows, dim] e4m3
  float* scales;           // see input_scale_at
  View x;                  // [any, dim]
  const int32_t* rows;     // [num_rows] row i of out is row rows[i] of x; null: row i
  const int32_t* offsets;  // [num_experts + 1]; null: one expert has all rows
  int64_t num_experts, num_rows, dim;

  LC_HD void operator()(const Block& block) const {
    const int64_t groups = dim / kFp8Block, row = block.index / groups, group = block.index % groups;
    int64_t first = 0, end = num_rows;
    if (offsets) {
      if (row >= offsets[num_experts]) return;
      const int64_t expert = expert_of_row(offsets, num_experts, row);
      first = offsets[expert];
      end = offsets[expert + 1];
    }
    const int64_t from = (rows ? rows[row] : row) * x.stride0 + group * kFp8Block;
    const float scale = fp8_scale(block.reduce(
        kFp8Block, 0.0f, [&](int64_t k) { return fabsf(x.get(from + k)); },
        [](float a, float b) { return larger(a, b); }));
    block.for_each(kFp8Block, [&](int64_t k) {
      out[row * dim + group * kFp8Block + k] = to_e4m3(x.get(from + k) / scale);
      if (k == 0) scales[input_scale_at(first, end - first, row, group, dim)] = scale;
    });
  }
};

struct QuantizeBlocks {
  static constexpr int kThreads = 256;
  uint8_t* out;   // [out_features, in_features] e4m3
  float* scales;  // [ceil(in / 128), ceil(out / 128)]
  Matrix matrix;  // [out_features, in_features]

  LC_HD void operator()(const Block& block) const {
    const int64_t row_blocks = (matrix.out_features + kFp8Block - 1) / kFp8Block;
    const int64_t first_row = block.index % row_blocks * kFp8Block, first_col = block.index / row_blocks * kFp8Block;
    const int64_t rows = matrix.out_features - first_row < kFp8Block ? matrix.out_features - first_row : kFp8Block;
    const int64_t cols = matrix.in_features - first_col < kFp8Block ? matrix.in_features - first_col : kFp8Block;
    const float scale = fp8_scale(block.reduce(
        rows * cols, 0.0f, [&](int64_t i) { return fabsf(matrix.get(first_row + i / cols, first_col + i % cols)); },
        [](float a, float b) { return larger(a, b); }));
    block.for_each(rows * cols, [&](int64_t i) {
      const int64_t row = first_row + i / cols, col = first_col + i % cols;
      out[row * matrix.in_features + col] = to_e4m3(matrix.get(row, col) / scale);
    });
    block.for_each(1, [&](int64_t) { scales[block.index] = scale; });
  }
};

// Where a block of 128 x 128 has a NaN, its scale becomes NaN, too: Fp8Linear reads such a code as a number.
struct SpreadNans {
  static constexpr int kThreads = 256;
  const uint8_t* codes;  // [out_features, in_features] e4m3
  float* scales;         // [ceil(in / 128), ceil(out / 128)]
  int64_t out_features, in_features;

  LC_HD void operator()(const Block& block) const {
    const int64_t row_blocks = (out_features + kFp8Block - 1) / kFp8Block;
    const int64_t first_row = block.index % row_blocks * kFp8Block, first_col = block.index / row_blocks * kFp8Block;
    const int64_t rows = out_features - first_row < kFp8Block ? out_features - first_row : kFp8Block;
    const int64_t cols = in_features - first_col < kFp8Block ? in_features - first_col : kFp8Block;
    const int32_t nans = block.sum<int32_t>(rows * cols, [&](int64_t i) {
      return (codes[(first_row + i / cols) * in_features + first_col + i % cols] & 0x7f) == 0x7f ? 1 : 0;
    });
    if (nans > 0) block.for_each(1, [&](int64_t) { scales[block.index] = NAN; });
  }
};

}  // namespace

void CudaOps::spread_nans(const Weight& weight, int64_t num_scales) {
  device_->wait(device_->submit([&] {
    gpu::launch(*device_, num_scales, 0,
                SpreadNans{.codes = static_cast<const uint8_t*>(weight.data),
                           .scales = const_cast<float*>(weight.scales),
                           .out_features = weight.out_features,
                           .in_features = weight.in_features});
  }));
}

void CudaOps::quantize_rows(const Fp8Rows& out, Tensor x, const int32_t* rows, const int32_t* offsets,
                            int64_t num_experts) {
  gpu::launch(*device_, out.num_rows * (out.dim / kFp8Block), 0,
              QuantizeRows{.out = out.data,
                           .scales = out.scales,
                           .x = View(x),
                           .rows = rows,
                           .offsets = offsets,
                           .num_experts = num_experts,
                           .num_rows = out.num_rows,
                           .dim = out.dim});
}

Weight CudaOps::quantize_fp8(const Weight& logical, Buffer& storage) {
  Buffer plane;
  const Weight source = prepare(logical, plane);
  Weight weight{
      .format = WeightFormat::fp8_block, .out_features = logical.out_features, .in_features = logical.in_features};
  const int64_t count = weight.out_features * weight.in_features, scales_offset = scales_offset_of(count);
  const int64_t scale_bytes = weight.num_bytes() - count;
  storage = Buffer(*device_, scales_offset + scale_bytes);
  float* scales = reinterpret_cast<float*>(static_cast<char*>(storage.data()) + scales_offset);
  weight.data = storage.data();
  weight.scales = scales;
  device_->wait(device_->submit([&] {
    gpu::launch(
        *device_, scale_bytes / 4, 0,
        QuantizeBlocks{.out = static_cast<uint8_t*>(storage.data()), .scales = scales, .matrix = Matrix(source)});
  }));
  spread_nans(weight, scale_bytes / 4);
  return weight;
}

}  // namespace longcat
