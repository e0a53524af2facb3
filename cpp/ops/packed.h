// Weight formats that `longcat convert` writes and the CPU kernels read: packed once, then mapped, never unpacked.
// docs/formats.md describes each byte.
//
// The x8 formats are for matrices that are multiplied. Rows are in groups of 8 with interleaved values, so that one
// vector register holds the same few columns of 8 outputs. There are no horizontal sums, and one input row has the same
// order of sums as many. Rows of zeros fill the last group, and zeros fill the last columns.
//
//   bf16_x8      [groups][ceil(in / 2)][8 rows][2 columns] bf16
//   int8_x8      a group: [blocks][8 quads][8 rows][4 columns] int8, then [blocks][8 rows] bf16 scales
//   int4_x8      a group: [blocks][4][8 rows][4 columns] bytes, then the scales alike. A byte holds column
//                4 j + i of the block in its low half and column 4 j + 16 + i in its high half, as value + 8.
//   int8_x8_f16, int4_x8_f16
//                the same with scales in IEEE half, as other projects store them
//
// with blocks = ceil(in / 32). The 32 columns of a block share one scale per row, which makes 8.5 and 4.5 bits per
// weight. Each group begins at a multiple of 64 bytes.
//
// The other formats are for tables that are read by single rows: the row's values, then its scales.
//
//   int8_row     [rows][in] int8 + f32
//   int4_row     [rows][ceil(in / 2)] bytes + f32; column 2 i in the low half, as value + 8
//   int8_b32, int4_b32
//                the same values + [blocks] IEEE half, one scale per 32 columns
//   fp8_row      [rows][in] e4m3 + f32
#pragma once

#include <cstdint>
#include <string>

#include "ops/weight.h"

namespace longcat {

constexpr int64_t kPackedRows = 8;
constexpr int64_t kQuantBlock = 32;  // number of columns that share a scale

constexpr int64_t num_quant_blocks(int64_t in_features) { return (in_features + kQuantBlock - 1) / kQuantBlock; }
constexpr int64_t num_packed_groups(int64_t out_features) { return (out_features + kPackedRows - 1) / kPackedRows; }

constexpr bool is_int8_x8(WeightFormat format) {
  return format == WeightFormat::int8_x8 || format == WeightFormat::int8_x8_f16;
}
constexpr bool is_int4_x8(WeightFormat format) {
  return format == WeightFormat::int4_x8 || format == WeightFormat::int4_x8_f16;
}
constexpr bool is_int_x8(WeightFormat format) { return is_int8_x8(format) || is_int4_x8(format); }
constexpr bool is_x8(WeightFormat format) { return format == WeightFormat::bf16_x8 || is_int_x8(format); }
constexpr bool is_b32(WeightFormat format) {
  return format == WeightFormat::int8_b32 || format == WeightFormat::int4_b32;
}
constexpr bool is_packed(WeightFormat format) {
  return is_x8(format) || is_b32(format) || format == WeightFormat::int8_row || format == WeightFormat::int4_row ||
         format == WeightFormat::fp8_row;
}
constexpr bool is_int4(WeightFormat format) {
  return is_int4_x8(format) || format == WeightFormat::int4_row || format == WeightFormat::int4_b32;
}
// Whether scales of blocks are IEEE half. The others are bf16.
constexpr bool has_half_scales(WeightFormat format) {
  return is_b32(format) || format == WeightFormat::int8_x8_f16 || format == WeightFormat::int4_x8_f16;
}

// A block's scale as the format stores it.
constexpr float scale_value(WeightFormat format, uint16_t bits) {
  return has_half_scales(format) ? half_to_float(bits) : to_float(bf16{bits});
}

// Size of the values of one block of a group [bytes]. The scales of the group follow the values of all blocks.
constexpr int64_t block_value_bytes(WeightFormat format) {
  return kPackedRows * kQuantBlock / (is_int4(format) ? 2 : 1);
}

// Offset of a group's scales from its beginning [bytes].
constexpr int64_t value_bytes_of_group(WeightFormat format, int64_t in_features) {
  return num_quant_blocks(in_features) * block_value_bytes(format);
}

// Offset of the scales of a table's row from its beginning [bytes].
constexpr int64_t value_bytes_of_row(WeightFormat format, int64_t in_features) {
  return is_int4(format) ? (in_features + 1) / 2 : in_features;
}

// The format by its name. Throws std::invalid_argument for a format that is not packed.
WeightFormat packed_format(const std::string& name);

// Size of a group of 8 rows (x8 formats) or of a row (the other formats) [bytes].
int64_t packed_stride(WeightFormat format, int64_t in_features);

// out[0..in_features) = row `row` of packed data.
void unpack_row(float* out, const Weight& weight, int64_t row);

}  // namespace longcat
