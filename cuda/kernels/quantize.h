// Memory layout of fp8 values and their scales.
#pragma once

#include "cuda/kernels/block.h"
#include "ops/weight.h"

namespace longcat {

// A prepared fp8 weight has a plane of values, then the scales at this offset [bytes].
constexpr int64_t scales_offset_of(int64_t num_values) { return (num_values + 255) / 256 * 256; }

// e4m3 rows with one scale per 128 values. The scales of an expert's rows are contiguous, one group after the other, as
// the CUTLASS kernel reads them.
struct Fp8Rows {
  uint8_t* data = nullptr;  // [num_rows, dim] e4m3
  float* scales = nullptr;  // per expert [dim / 128, its rows] f32
  int64_t num_rows = 0, dim = 0;

  Fp8Rows() = default;
  // `memory` has at least num_rows * dim * 33 / 32 bytes; dim is a multiple of 128.
  Fp8Rows(void* memory, int64_t rows, int64_t width)
      : data(static_cast<uint8_t*>(memory)),
        scales(reinterpret_cast<float*>(data + rows * width)),
        num_rows(rows),
        dim(width) {}
  static int64_t num_bytes(int64_t rows, int64_t width) { return rows * width + rows * (width / kFp8Block) * 4; }
};

// Index of the scale of a row's group. The row's expert has `count` rows from `first` on.
LC_HD constexpr int64_t input_scale_at(int64_t first, int64_t count, int64_t row, int64_t group, int64_t dim) {
  return first * (dim / kFp8Block) + group * count + row - first;
}

}  // namespace longcat
