#include "ops/packed_scan.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/packed.h"

namespace longcat {

namespace {

// Whether one of `count` 16-bit floats, which may be unaligned, is NaN or infinite: all bits of its exponent are set.
bool any_not_finite(const uint8_t* p, int64_t count, uint16_t exponent) {
  bool found = false;
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, p + 2 * i, 2);
    found |= (bits & exponent) == exponent;
  }
  return found;
}

bool is_finite(const uint8_t* unit, WeightFormat format, int64_t n) {
  const uint16_t exponent = has_half_scales(format) ? 0x7c00 : 0x7f80;
  if (format == WeightFormat::bf16_x8) return !any_not_finite(unit, packed_stride(format, n) / 2, exponent);
  const int64_t blocks = num_quant_blocks(n);
  if (is_x8(format)) return !any_not_finite(unit + value_bytes_of_group(format, n), blocks * kPackedRows, exponent);
  const uint8_t* scales = unit + value_bytes_of_row(format, n);
  if (is_b32(format)) return !any_not_finite(scales, blocks, exponent);
  float scale;
  std::memcpy(&scale, scales, 4);
  const bool has_nan =
      format == WeightFormat::fp8_row && std::any_of(unit, scales, [](uint8_t code) { return (code & 0x7f) == 0x7f; });
  return std::isfinite(scale) && !has_nan;
}

}  // namespace

int64_t first_not_finite(const uint8_t* data, int64_t count, WeightFormat format, int64_t in_features) {
  const int64_t stride = packed_stride(format, in_features);
  for (int64_t i = 0; i < count; ++i)
    if (!is_finite(data + i * stride, format, in_features)) return i;
  return -1;
}

}  // namespace longcat
