// The work of a warp on a unit of an fp8 layer: 16 rows of W and 128 of its columns, one block of scales.
//
// A code is exact in bf16. The products of a unit begin at zero, K ascending in steps of 16 columns; then
// sum = fma(scale, product, sum) in f32. So neither W nor x is rounded. A result is one chain: units ascending, one
// accumulator.
//
// A product may take any 16 of a unit's columns. Of each 32 columns, lane t of four gives 8 t to 8 t + 3 to the first
// product, and 8 t + 4 to 8 t + 7 to the second, in both operands. So a lane's inputs are 16 bytes, as they lie in x.
//
// Rows of W lie as in the file, because CUTLASS reads them too. In shared memory a row has 128 bytes, of which pieces
// of 16 are exchanged against bank conflicts. Inputs are there by tiles of 8 tokens: [4 blocks][32 lanes] 16 bytes.
#pragma once

#include "cuda/kernels/e4m3_pairs.h"

namespace longcat::gpu {

using namespace simt;

constexpr int kFp8Columns = 128, kFp8Blocks = kFp8Columns / 32;
constexpr uint32_t kFp8Piece = 32 * 16, kFp8Codes = 16 * kFp8Columns, kFp8Inputs = kFp8Blocks * kFp8Piece;  // [bytes]

// Where a matrix has its scales, [depth / 128, row_blocks] f32.
struct Fp8Scales {
  int64_t at;          // from the first code on [bytes]
  int32_t row_blocks;  // out_features / 128, rounded up

  // Of the rows around `row`, in the unit. matrix: its first code.
  LC_HD float of(const unsigned char* matrix, int64_t row, int unit) const {
    return load_global(reinterpret_cast<const float*>(matrix + at) + int64_t{unit} * row_blocks + row / 128);
  }
};

// Copies the codes of a unit. rows: the first of 8 rows of W, and the first of the other 8.
LC_HD inline void copy_fp8_codes(uint32_t to, const unsigned char* const (&rows)[2], int32_t depth, int unit) {
  const int lane = lane_idx(), row = lane / 8, piece = lane % 8;
  LC_UNROLL for (int i = 0; i < 4; ++i)
      cp_async(to + (i * 4 + row) * kFp8Columns + (piece ^ 2 * row) * 16,
               rows[i / 2] + int64_t{i % 2 * 4 + row} * depth + unit * kFp8Columns + piece * 16);
}

// Copies the inputs of 8 tokens, lane / 4 of each lane, whose row of x begins at `row`. Zeros where not `valid`.
LC_HD inline void copy_fp8_inputs(uint32_t to, const bf16* row, bool valid, int unit) {
  const int lane = lane_idx();
  LC_UNROLL for (int b = 0; b < kFp8Blocks; ++b)
      cp_async(to + b * kFp8Piece + lane * 16, row + unit * kFp8Columns + b * 32 + lane % 4 * 8, valid);
}

// Adds the products of a unit, without its scales: of 16 rows at `codes`, and kTiles times 8 tokens at `inputs`.
template <int kTiles>
LC_HD inline void multiply_fp8(float (&products)[kTiles][4], uint32_t codes, uint32_t inputs) {
  const int lane = lane_idx(), row = lane / 4;
  LC_UNROLL for (int b = 0; b < kFp8Blocks; ++b) {
    uint32_t a[2][4];
    LC_UNROLL for (int group = 0; group < 2; ++group) {
      const int piece = (2 * b + lane % 4 / 2) ^ 2 * (row % 4);
      const Word2 eight = load_shared<Word2>(codes + (row + group * 8) * kFp8Columns + piece * 16 + lane % 2 * 8);
      LC_UNROLL for (int i = 0; i < 2; ++i) {
        const Word2 pairs = bf16_of_e4m3(eight.v[i]);
        a[i][group] = pairs.v[0];
        a[i][2 + group] = pairs.v[1];
      }
    }
    LC_UNROLL for (int n = 0; n < kTiles; ++n) {
      const Word4 x = load_shared<Word4>(inputs + n * kFp8Inputs + b * kFp8Piece + lane * 16);
      mma_bf16(products[n], a[0], x.v[0], x.v[1]);
      mma_bf16(products[n], a[1], x.v[2], x.v[3]);
    }
  }
}

}  // namespace longcat::gpu
