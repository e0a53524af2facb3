#include <cstring>

#include "cuda/kernels/packed_layout.h"

namespace longcat::gpu {

namespace {

uint32_t word_from(const uint8_t* at) {
  uint32_t word;
  std::memcpy(&word, at, 4);
  return word;
}

// The nibbles in the low halves of four bytes, 16 and 4 bits apart as in a unit.
uint32_t spread(uint32_t four) {
  return (four & 0xf) | (four & 0xf00) << 8 | (four >> 12 & 0xf0) | (four >> 4 & 0xf00000);
}

uint32_t middle_swapped(uint32_t word) {
  return (word & 0xff0000ff) | (word << 8 & 0x00ff0000) | (word >> 8 & 0x0000ff00);
}

// The words of lane t of a row: columns 8 t to 8 t + 7 of a block whose values are at `block`.
void int4_words(uint8_t* to, const uint8_t* block, int64_t r, int64_t t) {
  const int64_t pair = t % 2 * 2, shift = t / 2 * 4;  // columns from 16 on are in the high halves
  const uint32_t word = spread(word_from(block + pair * 32 + r * 4) >> shift) |
                        spread(word_from(block + (pair + 1) * 32 + r * 4) >> shift) << 8;
  std::memcpy(to, &word, 4);
}

void int8_words(uint8_t* to, const uint8_t* block, int64_t r, int64_t t) {
  for (int64_t i = 0; i < 2; ++i) {
    const uint32_t word = middle_swapped(word_from(block + (2 * t + i) * 32 + r * 4));
    std::memcpy(to + 4 * i, &word, 4);
  }
}

}  // namespace

void rearrange(uint8_t* to, const uint8_t* from, WeightFormat format, int64_t in_features, int64_t num_groups) {
  const int bits = bits_of(format);
  const int64_t stride = group_bytes(format, in_features), block_bytes = block_value_bytes(format);
  for (int64_t g = 0; g < num_groups; ++g)
    for (int64_t block = 0; block < num_quant_blocks(in_features); ++block) {
      uint8_t* const unit = to + g * stride + block / 4 * unit_bytes(bits);
      const uint8_t* const values = from + g * stride + block * block_bytes;
      const uint8_t* const scales =
          from + g * stride + value_bytes_of_group(format, in_features) + block * kPackedRows * 2;
      const int64_t b = block % 4;
      for (int64_t r = 0; r < kPackedRows; ++r) {
        for (int64_t t = 0; t < 4; ++t) {
          const int64_t lane = 4 * r + t;
          if (bits == 4) {
            int4_words(unit + lane * 16 + b * 4, values, r, t);
          } else {
            int8_words(unit + b / 2 * 512 + lane * 16 + b % 2 * 8, values, r, t);
          }
        }
        std::memcpy(unit + unit_value_bytes(bits) + (r * 4 + b) * 2, scales + r * 2, 2);
      }
    }
}

}  // namespace longcat::gpu
