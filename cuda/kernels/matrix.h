// A weight in a kernel.
#pragma once

#include "cuda/kernels/block.h"
#include "cuda/kernels/packed_layout.h"
#include "ops/weight.h"

namespace longcat::gpu {

struct Matrix {
  const void* data = nullptr;     // [out_features, in_features]
  const float* scales = nullptr;  // fp8_block: [ceil(in / 128), ceil(out / 128)], see CudaOps::prepare
  WeightFormat format = WeightFormat::f32;
  int64_t out_features = 0, in_features = 0;

  Matrix() = default;
  explicit Matrix(const Weight& w)
      : data(w.data), scales(w.scales), format(w.format), out_features(w.out_features), in_features(w.in_features) {}

  LC_HD float get(int64_t row, int64_t col) const {
    const int64_t at = row * in_features + col;
    switch (format) {
      case WeightFormat::f32:
        return static_cast<const float*>(data)[at];
      case WeightFormat::bf16:
        return to_float(static_cast<const bf16*>(data)[at]);
      case WeightFormat::fp8_block:
        return e4m3_to_float(static_cast<const uint8_t*>(data)[at]) *
               scales[col / kFp8Block * ((out_features + kFp8Block - 1) / kFp8Block) + row / kFp8Block];
      default:
        return packed(row, col);
    }
  }

  // The logical value of a packed format, as unpack_row() gives it.
  LC_HD float packed(int64_t row, int64_t col) const {
    const uint8_t* const bytes = static_cast<const uint8_t*>(data);
    if (has_units(format, in_features)) return unit_value(bytes, format, in_features, row, col);
    if (is_int_x8(format))
      return group_value(bytes + row / kPackedRows * group_bytes(format, in_features), format, in_features,
                         row % kPackedRows, col);
    return table_value(bytes + row * table_row_bytes(format, in_features), format, in_features, col);
  }
};

}  // namespace longcat::gpu
