// A matrix of the model: its logical shape, and how it is stored (format, planes, placement).
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace longcat {

enum class WeightFormat : uint8_t {
  f32,        // data: float
  bf16,       // data: bf16
  fp8_block,  // data: e4m3, scales: one float per 128 x 128 block (Lite-FP8, `weight_scale_inv`)
  bf16_x8,    // bf16_x8 to int4_x8_f16: formats of `longcat convert`, 8 rows interleaved (ops/packed.h)
  int8_x8,
  int4_x8,
  int8_x8_f16,
  int4_x8_f16,
  int8_row,  // int8_row to fp8_row: for tables, read by single rows (ops/packed.h)
  int4_row,
  int8_b32,
  int4_b32,
  fp8_row,
  // Only in memory (Ops::prepare_router). data: two bf16 matrices whose sum is W to 17 bits, the small one first.
  bf16_planes,
};

// Size of a matrix in a packed format [bytes]. ops/packed.h explains the formats.
int64_t packed_bytes(WeightFormat format, int64_t out_features, int64_t in_features);

enum class Placement : uint8_t {
  device,  // memory of the device
  host,    // host memory that the device reads directly (pinned on CUDA)
  disk,    // pages of the mapped checkpoint file; a page becomes resident when it is read
};

constexpr int64_t kFp8Block = 128;

// The scale for values whose largest magnitude is `largest`: 1 when that is not finite, or so small that the scale
// would be 0.
constexpr float fp8_scale(float largest) {
  return largest >= 0x1.cp-141f && largest <= 0x1.fffffep127f ? largest / 448.0f : 1.0f;
}

// W of y = x W^T, row-major [out_features, in_features]. A view: the model owns the planes, which are the arrays `data`
// and `scales`.
struct Weight {
  WeightFormat format = WeightFormat::f32;
  int64_t out_features = 0, in_features = 0;
  const void* data = nullptr;
  const float* scales = nullptr;  // fp8_block: [ceil(out / 128), ceil(in / 128)]
  Placement placement = Placement::device;

  bool empty() const { return data == nullptr; }
  int64_t num_bytes() const {
    const int64_t count = out_features * in_features;
    switch (format) {
      case WeightFormat::f32:
      case WeightFormat::bf16_planes:
        return count * 4;
      case WeightFormat::bf16:
        return count * 2;
      case WeightFormat::fp8_block: {
        const int64_t blocks =
            ((out_features + kFp8Block - 1) / kFp8Block) * ((in_features + kFp8Block - 1) / kFp8Block);
        return count + blocks * 4;
      }
      default:
        return packed_bytes(format, out_features, in_features);
    }
  }
};

constexpr const char* name_of(Placement placement) {
  switch (placement) {
    case Placement::device:
      return "device";
    case Placement::host:
      return "host";
    case Placement::disk:
      return "disk";
  }
  return "?";
}

// Of stored matrices.
constexpr WeightFormat kAllWeightFormats[] = {
    WeightFormat::f32,      WeightFormat::bf16,     WeightFormat::fp8_block,   WeightFormat::bf16_x8,
    WeightFormat::int8_x8,  WeightFormat::int4_x8,  WeightFormat::int8_x8_f16, WeightFormat::int4_x8_f16,
    WeightFormat::int8_row, WeightFormat::int4_row, WeightFormat::int8_b32,    WeightFormat::int4_b32,
    WeightFormat::fp8_row};

constexpr const char* name_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::f32:
      return "f32";
    case WeightFormat::bf16:
      return "bf16";
    case WeightFormat::fp8_block:
      return "fp8_block";
    case WeightFormat::bf16_x8:
      return "bf16_x8";
    case WeightFormat::int8_x8:
      return "int8_x8";
    case WeightFormat::int4_x8:
      return "int4_x8";
    case WeightFormat::int8_x8_f16:
      return "int8_x8_f16";
    case WeightFormat::int4_x8_f16:
      return "int4_x8_f16";
    case WeightFormat::int8_row:
      return "int8_row";
    case WeightFormat::int4_row:
      return "int4_row";
    case WeightFormat::int8_b32:
      return "int8_b32";
    case WeightFormat::int4_b32:
      return "int4_b32";
    case WeightFormat::fp8_row:
      return "fp8_row";
    case WeightFormat::bf16_planes:
      return "bf16_planes";
  }
  return "?";
}

}  // namespace longcat
