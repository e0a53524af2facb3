// Quantises matrices to fp8 blocks.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/cpu_ops.h"

namespace longcat {

Weight CpuOps::quantize_fp8(const Weight& logical, Buffer& storage) {
  Weight weight{
      .format = WeightFormat::fp8_block, .out_features = logical.out_features, .in_features = logical.in_features};
  const int64_t rows = weight.out_features, cols = weight.in_features, count = rows * cols;
  const int64_t scales_offset = (count + 3) / 4 * 4;
  storage = Buffer(device_, scales_offset + weight.num_bytes() - count);
  uint8_t* values = static_cast<uint8_t*>(storage.data());
  float* scales = reinterpret_cast<float*>(values + scales_offset);
  weight.data = values;
  weight.scales = scales;

  // In a mapped file the values may be unaligned.
  const auto value = [&](int64_t at) {
    const char* plane = static_cast<const char*>(logical.data);
    if (logical.format == WeightFormat::bf16) {
      bf16 stored;
      std::memcpy(&stored, plane + 2 * at, 2);
      return to_float(stored);
    }
    float stored;
    std::memcpy(&stored, plane + 4 * at, 4);
    return stored;
  };
  const int64_t row_blocks = (rows + kFp8Block - 1) / kFp8Block, col_blocks = (cols + kFp8Block - 1) / kFp8Block;
  pool_.parallel_for(row_blocks * col_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first_row = b / col_blocks * kFp8Block, first_col = b % col_blocks * kFp8Block;
      const int64_t last_row = std::min(rows, first_row + kFp8Block), last_col = std::min(cols, first_col + kFp8Block);
      float largest = 0;
      for (int64_t r = first_row; r < last_row; ++r)
        for (int64_t c = first_col; c < last_col; ++c) largest = std::max(largest, std::fabs(value(r * cols + c)));
      const float scale = scales[b] = fp8_scale(largest);
      for (int64_t r = first_row; r < last_row; ++r)
        for (int64_t c = first_col; c < last_col; ++c) values[r * cols + c] = to_e4m3(value(r * cols + c) / scale);
    }
  });
  return weight;
}

}  // namespace longcat
