#include "ops/packed.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace longcat {

namespace {

constexpr int64_t kGroupAlignment = 64;

int64_t value_bytes_of_group(WeightFormat format, int64_t in_features) {
  return num_quant_blocks(in_features) * block_value_bytes(format);
}

// The scale whose rounded multiples in [-8, 7] come closest to x, in bf16 as it is stored. Starts from scales that put
// the extreme at some multiple and refines each by least squares.
bf16 search_int4_scale(const float* x, const float* importance, int64_t n) {
  float extreme = 0;
  for (int64_t k = 0; k < n; ++k)
    if (std::abs(x[k]) > std::abs(extreme)) extreme = x[k];
  if (extreme == 0) return {0};
  bf16 best{0};
  double least = std::numeric_limits<double>::infinity();
  const auto weight_of = [&](int64_t k) { return importance ? double{importance[k]} : 1.0; };
  const auto consider = [&](float scale) {
    const bf16 rounded = to_bf16(scale);
    const float s = to_float(rounded);
    if (s == 0 || !std::isfinite(s)) return 0.0f;
    double error = 0, product = 0, square = 0;
    for (int64_t k = 0; k < n; ++k) {
      const float q = std::clamp(std::nearbyint(x[k] / s), -8.0f, 7.0f);
      const double difference = x[k] - q * s, w = weight_of(k);
      error += w * difference * difference;
      product += w * x[k] * q;
      square += w * q * q;
    }
    if (error < least) {
      least = error;
      best = rounded;
    }
    return square > 0 ? static_cast<float>(product / square) : 0.0f;
  };
  for (int step = -10; step <= 8; ++step) {
    // The extreme at -8 (the sign of the scale makes it negative), and a little beside it.
    const float scale = extreme / (-8.0f + 0.15f * static_cast<float>(step));
    const float refined = consider(scale);
    if (refined != 0) consider(refined);
  }
  return best;
}

// One row of a block of 32: values as integers, and the scale.
void quantize_block(int8_t* q, bf16& scale, WeightFormat format, const float* x, const float* importance) {
  if (format == WeightFormat::int4_x8) {
    scale = search_int4_scale(x, importance, kQuantBlock);
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

void pack_group(uint8_t* group, WeightFormat format, int64_t in_features, const std::vector<float>& rows,
                const float* importance) {
  const int64_t blocks = num_quant_blocks(in_features), width = blocks * kQuantBlock;
  if (format == WeightFormat::bf16_x8) {
    bf16* values = reinterpret_cast<bf16*>(group);
    for (int64_t k = 0; k < (in_features + 1) / 2 * 2; ++k)
      for (int64_t r = 0; r < kPackedRows; ++r)
        values[k / 2 * 16 + r * 2 + k % 2] = to_bf16(rows[static_cast<size_t>(r * width + k)]);
    return;
  }
  bf16* scales = reinterpret_cast<bf16*>(group + value_bytes_of_group(format, in_features));
  for (int64_t b = 0; b < blocks; ++b) {
    uint8_t* values = group + b * block_value_bytes(format);
    for (int64_t r = 0; r < kPackedRows; ++r) {
      int8_t q[kQuantBlock];
      quantize_block(q, scales[b * kPackedRows + r], format, rows.data() + r * width + b * kQuantBlock,
                     importance ? importance + b * kQuantBlock : nullptr);
      for (int64_t k = 0; k < kQuantBlock; ++k) {
        const int64_t quad = k / 4;
        if (format == WeightFormat::int8_x8) {
          values[quad * 32 + r * 4 + k % 4] = static_cast<uint8_t>(q[k]);
        } else {
          uint8_t& byte = values[quad % 4 * 32 + r * 4 + k % 4];
          const uint8_t nibble = static_cast<uint8_t>(q[k] + 8);
          byte = quad < 4 ? nibble : static_cast<uint8_t>(byte | nibble << 4);
        }
      }
    }
  }
}

void pack_table_row(uint8_t* out, WeightFormat format, int64_t in_features, const float* x) {
  const float most = format == WeightFormat::int8_row ? 127.0f : 7.0f;
  float largest = 0;
  for (int64_t k = 0; k < in_features; ++k) largest = std::max(largest, std::abs(x[k]));
  const float scale = largest / most;
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

int64_t packed_stride(WeightFormat format, int64_t in_features) {
  switch (format) {
    case WeightFormat::bf16_x8:
      return ((in_features + 1) / 2 * 32 + kGroupAlignment - 1) / kGroupAlignment * kGroupAlignment;
    case WeightFormat::int8_x8:
    case WeightFormat::int4_x8:
      return (value_bytes_of_group(format, in_features) + num_quant_blocks(in_features) * kPackedRows * 2 +
              kGroupAlignment - 1) /
             kGroupAlignment * kGroupAlignment;
    case WeightFormat::int8_row:
      return in_features + 4;
    case WeightFormat::int4_row:
      return (in_features + 1) / 2 + 4;
    default:
      throw Error(str_cat("[internal] ", name_of(format), " is not a packed format"));
  }
}

int64_t packed_bytes(WeightFormat format, int64_t out_features, int64_t in_features) {
  return (is_x8(format) ? num_packed_groups(out_features) : out_features) * packed_stride(format, in_features);
}

void pack(uint8_t* data, WeightFormat format, int64_t out_features, int64_t in_features, const RowReader& read_row,
          const float* column_importance) {
  const int64_t stride = packed_stride(format, in_features);
  const int64_t rows_at_once = is_x8(format) ? kPackedRows : 64;
  const int64_t width = num_quant_blocks(in_features) * kQuantBlock;
  std::vector<float> importance;
  if (column_importance) {
    importance.assign(column_importance, column_importance + in_features);
    importance.resize(static_cast<size_t>(width), 0.0f);
  }
  ThreadPool pool(available_threads());
  pool.parallel_for((out_features + rows_at_once - 1) / rows_at_once, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> rows(static_cast<size_t>(rows_at_once * width));
    for (int64_t group = begin; group < end; ++group) {
      std::fill(rows.begin(), rows.end(), 0.0f);
      const int64_t first = group * rows_at_once, count = std::min(rows_at_once, out_features - first);
      for (int64_t r = 0; r < count; ++r) read_row(first + r, rows.data() + r * width);
      if (is_x8(format)) {
        std::memset(data + group * stride, 0, static_cast<size_t>(stride));
        pack_group(data + group * stride, format, in_features, rows, importance.empty() ? nullptr : importance.data());
      } else {
        for (int64_t r = 0; r < count; ++r)
          pack_table_row(data + (first + r) * stride, format, in_features, rows.data() + r * width);
      }
    }
  });
}

void unpack_row(float* out, const Weight& weight, int64_t row) {
  const int64_t n = weight.in_features, stride = packed_stride(weight.format, n);
  const uint8_t* data = static_cast<const uint8_t*>(weight.data);
  if (!is_x8(weight.format)) {
    data += row * stride;
    float scale;
    std::memcpy(&scale, data + stride - 4, 4);
    for (int64_t k = 0; k < n; ++k)
      out[k] =
          scale * static_cast<float>(weight.format == WeightFormat::int8_row ? static_cast<int8_t>(data[k])
                                                                             : (data[k / 2] >> k % 2 * 4 & 15) - 8);
    return;
  }
  data += row / kPackedRows * stride;
  const int64_t r = row % kPackedRows;
  const uint8_t* scales = data + value_bytes_of_group(weight.format, n);
  for (int64_t k = 0; k < n; ++k) {
    if (weight.format == WeightFormat::bf16_x8) {
      bf16 value;
      std::memcpy(&value, data + (k / 2 * 16 + r * 2 + k % 2) * 2, 2);
      out[k] = to_float(value);
      continue;
    }
    const int64_t block = k / kQuantBlock, quad = k % kQuantBlock / 4;
    const uint8_t* values = data + block * block_value_bytes(weight.format);
    bf16 scale;
    std::memcpy(&scale, scales + (block * kPackedRows + r) * 2, 2);
    const int q = weight.format == WeightFormat::int8_x8
                      ? static_cast<int8_t>(values[quad * 32 + r * 4 + k % 4])
                      : (values[quad % 4 * 32 + r * 4 + k % 4] >> (quad < 4 ? 0 : 4) & 15) - 8;
    out[k] = to_float(scale) * static_cast<float>(q);
  }
}

}  // namespace longcat
