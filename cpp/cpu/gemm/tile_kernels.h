// Products of bf16 in tiles (simd/tiles.h), of the instruction set amx_bf16. An output adds blocks of 32 columns in
// ascending order, and each block as the instruction adds it. That holds for one input and for many, so the bits do not
// depend on their number. All inputs are padded with zeros to whole blocks.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "cpu/simd/isa.h"

namespace longcat::cpu {

constexpr int64_t kPairedInputs = 16;  // inputs of a tile

// Weights as they are in checkpoints: a tile of A is 16 rows of them, in place.
struct TiledRows {
  float* out;  // [num_inputs, num_rows]
  int64_t out_stride;
  const bf16* rows;  // [num_rows, in_features]
  int64_t num_rows, in_features;
  // Tiles of B: [ceil(num_inputs / 16)][blocks][16 pairs of columns][16 inputs][2]. One input: the input itself.
  const bf16* pairs;
  int64_t num_inputs;
};

// bf16_x8 (ops/packed.h): a tile of B is 16 pairs of columns of a group, in place.
struct TiledGroups {
  float* out;  // [num_inputs, num_rows]
  int64_t out_stride;
  const uint8_t* groups;  // of 8 rows
  int64_t group_stride;   // [bytes]
  int64_t num_rows, in_features;
  const bf16* x;  // [num_inputs, blocks of 32 columns]
  int64_t x_stride;
  int64_t num_inputs;
};

// A thread configures its tiles at the beginning of a product, and releases them at the end.
struct TileKernels {
  void (*rows)(const TiledRows& product);
  void (*groups)(const TiledGroups& product);
  // Stores up to 16 inputs as a tile of B for each block of 32 columns. Zeros fill the other columns of B.
  void (*pair)(bf16* pairs, const bf16* const* inputs, int64_t num_inputs, int64_t num_blocks);
};

// Those of cpu_isa(); null on other sets.
const TileKernels* tile_kernels();

}  // namespace longcat::cpu
