#include "ops/packed.h"

#include <cstring>

#include "base/dtype.h"
#include "base/error.h"

namespace longcat {

namespace {

constexpr int64_t kGroupAlignment = 64;

}  // namespace

WeightFormat packed_format(const std::string& name) {
  for (const WeightFormat format : kAllWeightFormats)
    if (is_packed(format) && name == name_of(format)) return format;
  throw std::invalid_argument(
      str_cat("[packed] found format \"", name, "\"; expected bf16_x8, int8_x8, int4_x8, int8_row or int4_row"));
}

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
  for (int64_t k = 0; k < n; ++k) {
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
