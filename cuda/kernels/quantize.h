// How fp8 values and their scales lie in memory.
#pragma once

#include "cuda/kernels/block.h"
#include "ops/weight.h"

namespace longcat {

// Planes of a prepared fp8 weight: values, then scales.
constexpr int64_t scales_offset_of(int64_t num_values) { return (num_values + 255) / 256 * 256; }

// e4m3 rows and their scales, one for every 128 values. Scales of an expert's rows lie together, group by group, as the
// CUTLASS kernel reads them.
struct Fp8Rows {
  uint8_t* data = nullptr;
  float* scales = nullptr;
  int64_t num_rows = 0, dim = 0;

  Fp8Rows() = default;
  // In memory of at least num_rows * dim * 33 / 32 bytes; dim is a multiple of 128.
  Fp8Rows(void* memory, int64_t rows, int64_t width)
      : data(static_cast<uint8_t*>(memory)),
        scales(reinterpret_cast<float*>(data + rows * width)),
        num_rows(rows),
        dim(width) {}
  static int64_t num_bytes(int64_t rows, int64_t width) { return rows * width + rows * (width / kFp8Block) * 4; }
};

// Where the scale of a row's group lies, of an expert that has the `count` rows from `first` on.
LC_HD constexpr int64_t input_scale_at(int64_t first, int64_t count, int64_t row, int64_t group, int64_t dim) {
  return first * (dim / kFp8Block) + group * count + row - first;
}

}  // namespace longcat
