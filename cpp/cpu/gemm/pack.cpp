#include "cpu/gemm/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "cpu/gemm/scale_kernels.h"
#include "ops/packed.h"

namespace longcat::cpu {

namespace {

// Quantises one row of a block of 32 to integers and a scale.
void quantize_block(int8_t* q, bf16& scale, WeightFormat format, const float* x) {
  if (format == WeightFormat::int4_x8) {
    scale = kernels<ScaleKernels>().int4_block(x);
    const float s = to_float(scale);
    for (int64_t k = 0; k < kQuantBlock; ++k)
      q[k] = s == 0 ? int8_t{0} : static_cast<int8_t>(std::clamp(std::nearbyint(x[k] / s), -8.0f, 7.0f));
    return;
  }
  float largest = 0;
  for (int64_t k = 0; k < kQuantBlock; ++k) largest = std::max(largest, std::abs(x[k]));
  scale = to_bf16(largest / 127);
  const float s = to_float(scale);
  for (int64_t k = 0; k < kQuantBlock; ++k)
    q[k] = s == 0 ? int8_t{0} : static_cast<int8_t>(std::clamp(std::nearbyint(x[k] / s), -127.0f, 127.0f));
}

// Stores q at column k of row r in a group's block.
void put(uint8_t* values, WeightFormat format, int64_t r, int64_t k, int8_t q) {
  const int64_t quad = k / 4;
  if (format == WeightFormat::int8_x8) {
    values[quad * 32 + r * 4 + k % 4] = static_cast<uint8_t>(q);
    return;
  }
  uint8_t& byte = values[quad % 4 * 32 + r * 4 + k % 4];
  const uint8_t nibble = static_cast<uint8_t>(q + 8);
  byte = quad < 4 ? nibble : static_cast<uint8_t>(byte | nibble << 4);
}

void pack_group(uint8_t* group, WeightFormat format, int64_t in_features, const std::vector<float>& rows) {
  const int64_t blocks = num_quant_blocks(in_features), width = blocks * kQuantBlock;
  if (format == WeightFormat::bf16_x8) {
    bf16* values = reinterpret_cast<bf16*>(group);
    for (int64_t k = 0; k < (in_features + 1) / 2 * 2; ++k)
      for (int64_t r = 0; r < kPackedRows; ++r)
        values[k / 2 * 16 + r * 2 + k % 2] = to_bf16(rows[static_cast<size_t>(r * width + k)]);
    return;
  }
  bf16* scales = reinterpret_cast<bf16*>(group + value_bytes_of_group(format, in_features));
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t r = 0; r < kPackedRows; ++r) {
      int8_t q[kQuantBlock];
      quantize_block(q, scales[b * kPackedRows + r], format, rows.data() + r * width + b * kQuantBlock);
      for (int64_t k = 0; k < kQuantBlock; ++k) put(group + b * block_value_bytes(format), format, r, k, q[k]);
    }
}

void pack_table_row(uint8_t* out, WeightFormat format, int64_t in_features, const float* x) {
  const float most = format == WeightFormat::int8_row ? 127.0f : 7.0f;
  float largest = 0;
  for (int64_t k = 0; k < in_features; ++k) largest = std::max(largest, std::abs(x[k]));
  const float scale =
      format == WeightFormat::int4_row ? kernels<ScaleKernels>().int4_row(x, in_features, largest) : largest / most;
  const auto value = [&](int64_t k) {
    return scale == 0 ? 0 : static_cast<int>(std::clamp(std::nearbyint(x[k] / scale), -most, most));
  };
  int64_t bytes = in_features;
  if (format == WeightFormat::int8_row) {
    for (int64_t k = 0; k < in_features; ++k) out[k] = static_cast<uint8_t>(value(k));
  } else {
    bytes = (in_features + 1) / 2;
    for (int64_t i = 0; i < bytes; ++i) {
      const int high = 2 * i + 1 < in_features ? value(2 * i + 1) : 0;
      out[i] = static_cast<uint8_t>((value(2 * i) + 8) | (high + 8) << 4);
    }
  }
  std::memcpy(out + bytes, &scale, sizeof(scale));
}

}  // namespace

void pack(uint8_t* data, WeightFormat format, int64_t out_features, int64_t in_features, const RowReader& read_row) {
  const int64_t stride = packed_stride(format, in_features);
  const int64_t rows_at_once = is_x8(format) ? kPackedRows : 64;
  const int64_t width = num_quant_blocks(in_features) * kQuantBlock;
  ThreadPool pool(available_threads());
  pool.parallel_for((out_features + rows_at_once - 1) / rows_at_once, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> rows(static_cast<size_t>(rows_at_once * width));
    for (int64_t group = begin; group < end; ++group) {
      std::fill(rows.begin(), rows.end(), 0.0f);
      const int64_t first = group * rows_at_once, count = std::min(rows_at_once, out_features - first);
      for (int64_t r = 0; r < count; ++r) {
        float* row = rows.data() + r * width;
        read_row(first + r, row);
        for (int64_t k = 0; k < in_features; ++k)
          if (!std::isfinite(row[k]))
            throw Error(str_cat("row ", first + r, ", column ", k, " is ", row[k], "; expected a finite value"));
      }
      if (is_x8(format)) {
        std::memset(data + group * stride, 0, static_cast<size_t>(stride));
        pack_group(data + group * stride, format, in_features, rows);
      } else {
        for (int64_t r = 0; r < count; ++r)
          pack_table_row(data + (first + r) * stride, format, in_features, rows.data() + r * width);
      }
    }
  });
}

void pack_bf16(uint8_t* data, const Weight& rows, int64_t begin_group, int64_t end_group) {
  const int64_t n = rows.in_features, stride = packed_stride(WeightFormat::bf16_x8, n);
  for (int64_t g = begin_group; g < end_group; ++g) {
    bf16* group = reinterpret_cast<bf16*>(data + g * stride);
    std::memset(group, 0, static_cast<size_t>(stride));
    for (int64_t r = 0; r < std::min(kPackedRows, rows.out_features - g * kPackedRows); ++r) {
      const bf16* row = static_cast<const bf16*>(rows.data) + (g * kPackedRows + r) * n;
      for (int64_t k = 0; k < n; ++k) group[k / 2 * 16 + r * 2 + k % 2] = row[k];
    }
  }
}

void search_int4_scales(float* scales, const float* values, int64_t num_blocks) {
  const ScaleKernels& search = kernels<ScaleKernels>();
  ThreadPool pool(available_threads());
  pool.parallel_for(num_blocks, 64, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) scales[b] = to_float(search.int4_block(values + b * kQuantBlock));
  });
}

void pack_int4(uint8_t* data, int64_t out_features, int64_t in_features, const int8_t* q, const float* scales) {
  constexpr WeightFormat format = WeightFormat::int4_x8;
  const int64_t stride = packed_stride(format, in_features), blocks = num_quant_blocks(in_features);
  const int64_t groups = num_packed_groups(out_features);
  std::memset(data, 0, static_cast<size_t>(groups * stride));
  for (int64_t row = 0; row < groups * kPackedRows; ++row) {
    uint8_t* group = data + row / kPackedRows * stride;
    const int64_t r = row % kPackedRows;
    bf16* group_scales = reinterpret_cast<bf16*>(group + value_bytes_of_group(format, in_features));
    const bool is_there = row < out_features;
    for (int64_t k = 0; k < blocks * kQuantBlock; ++k)
      put(group + k / kQuantBlock * block_value_bytes(format), format, r, k % kQuantBlock,
          is_there && k < in_features ? q[row * in_features + k] : int8_t{0});
    for (int64_t b = 0; is_there && b < blocks; ++b)
      group_scales[b * kPackedRows + r] = to_bf16(scales[row * blocks + b]);
  }
}

}  // namespace longcat::cpu
