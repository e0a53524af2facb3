// The order in device memory of the integers that `longcat convert` writes, and their values.
//
// Matrices of blocks of integers (int8_x8, int4_x8 and the like, ops/packed.h) whose K is a multiple of 128 are
// rearranged at load, in the same bytes. A group of 8 rows is a run of units of 128 columns. A unit has the values,
// then [8 rows][4 blocks] scales of 16 bits. A warp reads it 16 bytes a lane: lane 4 r + t has of row r the columns 8 t
// to 8 t + 7 of each of the four blocks of 32.
//
//   int4   [32 lanes][4 blocks] words; column j of the 8 is the nibble value + 8 from bit 16 (j % 2) + 4 (j / 2) on
//   int8   [2 pairs of blocks][32 lanes][2 blocks][2] words; of columns 4 i to 4 i + 3 in word i, the middle two are
//          swapped
//
// So one mask makes a pair of neighbours of each word. All other formats keep the order of the file.
#pragma once

#include "cuda/kernels/qualifiers.h"
#include "ops/packed.h"

namespace longcat::gpu {

constexpr int64_t kUnitColumns = 128, kUnitScaleBytes = 64;

// Size of the values of a unit, and of all of it [bytes].
constexpr int64_t unit_value_bytes(int bits) { return kPackedRows * kUnitColumns * bits / 8; }
constexpr int64_t unit_bytes(int bits) { return unit_value_bytes(bits) + kUnitScaleBytes; }

constexpr bool has_units(WeightFormat format, int64_t in_features) {
  return is_int_x8(format) && in_features % kUnitColumns == 0;
}
constexpr int bits_of(WeightFormat format) { return is_int4(format) ? 4 : 8; }

// Writes `num_groups` groups in the order of the file as units.
void rearrange(uint8_t* to, const uint8_t* from, WeightFormat format, int64_t in_features, int64_t num_groups);

LC_HD constexpr uint32_t word_at(const uint8_t* at) {
  return at[0] | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24;
}

// The value of row `row` and column `col` in units.
LC_HD constexpr float unit_value(const uint8_t* data, WeightFormat format, int64_t in_features, int64_t row,
                                 int64_t col) {
  const int bits = bits_of(format);
  const uint8_t* const unit =
      data + (row / kPackedRows * (in_features / kUnitColumns) + col / kUnitColumns) * unit_bytes(bits);
  const int64_t r = row % kPackedRows, block = col % kUnitColumns / kQuantBlock, j = col % 8;
  const int64_t lane = 4 * r + col % kQuantBlock / 8;
  const uint8_t* const scale = unit + unit_value_bytes(bits) + (r * 4 + block) * 2;
  int q = 0;
  if (bits == 4) {
    q = static_cast<int>(word_at(unit + lane * 16 + block * 4) >> (16 * (j % 2) + 4 * (j / 2)) & 15) - 8;
  } else {
    const uint8_t* const words = unit + block / 2 * 512 + lane * 16 + block % 2 * 8;
    q = static_cast<int8_t>(words[j / 4 * 4 + j % 2 * 2 + j / 2 % 2]);
  }
  return scale_value(format, static_cast<uint16_t>(scale[0] | scale[1] << 8)) * static_cast<float>(q);
}

// The value of column `col` of a row of a table, which begins at `row`.
LC_HD constexpr float table_value(const uint8_t* row, WeightFormat format, int64_t in_features, int64_t col) {
  const uint8_t* const scales = row + value_bytes_of_row(format, in_features);
  float scale = 0;
  if (is_b32(format)) {
    const uint8_t* const of_block = scales + col / kQuantBlock * 2;
    scale = scale_value(format, static_cast<uint16_t>(of_block[0] | of_block[1] << 8));
  } else {
    scale = std::bit_cast<float>(word_at(scales));
  }
  const float value = format == WeightFormat::fp8_row ? e4m3_to_float(row[col])
                      : is_int4(format)               ? static_cast<float>((row[col / 2] >> col % 2 * 4 & 15) - 8)
                                                      : static_cast<float>(static_cast<int8_t>(row[col]));
  return scale * value;
}

// Sizes of a row of a table, and of a group of 8 rows in the order of the file: packed_stride() [bytes].
constexpr int64_t table_row_bytes(WeightFormat format, int64_t in_features) {
  return value_bytes_of_row(format, in_features) + (is_b32(format) ? 2 * num_quant_blocks(in_features) : 4);
}
constexpr int64_t group_bytes(WeightFormat format, int64_t in_features) {
  const int64_t bytes = value_bytes_of_group(format, in_features) + num_quant_blocks(in_features) * kPackedRows * 2;
  return (bytes + 63) / 64 * 64;
}

// The value of row `r` of a group in the order of the file.
LC_HD constexpr float group_value(const uint8_t* group, WeightFormat format, int64_t in_features, int64_t r,
                                  int64_t col) {
  const int64_t block = col / kQuantBlock, k = col % kQuantBlock, quad = k / 4;
  const uint8_t* const values = group + block * block_value_bytes(format);
  const uint8_t* const scale = group + value_bytes_of_group(format, in_features) + (block * kPackedRows + r) * 2;
  const int q = is_int8_x8(format) ? static_cast<int8_t>(values[quad * 32 + r * 4 + k % 4])
                                   : (values[quad % 4 * 32 + r * 4 + k % 4] >> (quad < 4 ? 0 : 4) & 15) - 8;
  return scale_value(format, static_cast<uint16_t>(scale[0] | scale[1] << 8)) * static_cast<float>(q);
}

}  // namespace longcat::gpu
