#include "ops/packed.h"

#include <algorithm>
#include <cstring>

#include "base/dtype.h"
#include "base/error.h"

namespace longcat {

namespace {

constexpr int64_t kGroupAlignment = 64;

uint16_t read_16(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return bits;
}

// The value of column k in the values of a table's row. Scales are left out.
float table_value(WeightFormat format, const uint8_t* values, int64_t k) {
  if (format == WeightFormat::fp8_row) return e4m3_to_float(values[k]);
  if (is_int4(format)) return static_cast<float>((values[k / 2] >> k % 2 * 4 & 15) - 8);
  return static_cast<float>(static_cast<int8_t>(values[k]));
}

void unpack_table_row(float* out, WeightFormat format, int64_t n, const uint8_t* values) {
  const uint8_t* scales = values + value_bytes_of_row(format, n);
  if (is_b32(format)) {
    for (int64_t k = 0; k < n; ++k)
      out[k] = scale_value(format, read_16(scales + k / kQuantBlock * 2)) * table_value(format, values, k);
    return;
  }
  float scale;
  std::memcpy(&scale, scales, 4);
  for (int64_t k = 0; k < n; ++k) out[k] = scale * table_value(format, values, k);
}

}  // namespace

WeightFormat packed_format(const std::string& name) {
  std::string expected;
  for (const WeightFormat format : kAllWeightFormats) {
    if (!is_packed(format)) continue;
    if (name == name_of(format)) return format;
    expected += str_cat(expected.empty() ? "" : ", ", name_of(format));
  }
  throw std::invalid_argument(str_cat("[packed] found format \"", name, "\"; expected one of ", expected));
}

int64_t packed_stride(WeightFormat format, int64_t in_features) {
  const auto aligned = [](int64_t bytes) { return (bytes + kGroupAlignment - 1) / kGroupAlignment * kGroupAlignment; };
  if (format == WeightFormat::bf16_x8) return aligned((in_features + 1) / 2 * 32);
  if (is_int_x8(format))
    return aligned(value_bytes_of_group(format, in_features) + num_quant_blocks(in_features) * kPackedRows * 2);
  if (is_b32(format)) return value_bytes_of_row(format, in_features) + num_quant_blocks(in_features) * 2;
  if (is_packed(format)) return value_bytes_of_row(format, in_features) + 4;
  throw Error(str_cat("[internal] ", name_of(format), " is not a packed format"));
}

int64_t packed_bytes(WeightFormat format, int64_t out_features, int64_t in_features) {
  return (is_x8(format) ? num_packed_groups(out_features) : out_features) * packed_stride(format, in_features);
}

void unpack_row(float* out, const Weight& weight, int64_t row) {
  const int64_t n = weight.in_features, stride = packed_stride(weight.format, n);
  const uint8_t* data = static_cast<const uint8_t*>(weight.data);
  if (!is_x8(weight.format)) return unpack_table_row(out, weight.format, n, data + row * stride);
  data += row / kPackedRows * stride;
  const int64_t r = row % kPackedRows;
  if (weight.format == WeightFormat::bf16_x8) {  // two columns at once: attention over prompts reads many rows
    bf16 pair[2];
    for (int64_t k = 0; k < n; k += 2) {
      std::memcpy(pair, data + k * 16 + r * 4, 4);
      out[k] = to_float(pair[0]);
      if (k + 1 < n) out[k + 1] = to_float(pair[1]);
    }
    return;
  }
  const uint8_t* scales = data + value_bytes_of_group(weight.format, n);
  for (int64_t block = 0; block < num_quant_blocks(n); ++block) {
    const uint8_t* values = data + block * block_value_bytes(weight.format);
    const float scale = scale_value(weight.format, read_16(scales + (block * kPackedRows + r) * 2));
    for (int64_t k = 0; k < std::min(kQuantBlock, n - block * kQuantBlock); ++k) {
      const int64_t quad = k / 4;
      const int q = is_int8_x8(weight.format) ? static_cast<int8_t>(values[quad * 32 + r * 4 + k % 4])
                                              : (values[quad % 4 * 32 + r * 4 + k % 4] >> (quad < 4 ? 0 : 4) & 15) - 8;
      out[block * kQuantBlock + k] = scale * static_cast<float>(q);
    }
  }
}

}  // namespace longcat
