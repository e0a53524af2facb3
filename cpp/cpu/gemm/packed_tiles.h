// Register tiles of the packed formats: R groups of 8 outputs times T inputs, one function per shape and instruction
// set. An output is the same sum for every R and T: over blocks of 32 columns (bf16: single columns) in ascending
// order, one fused multiply-add each. The integer sum in a block is exact. So the bits depend neither on the number of
// inputs nor on the register width.
#pragma once

#include <cstdint>

#include "cpu/gemm/packed_matmul.h"
#include "ops/packed.h"

namespace longcat::cpu {

constexpr int kMaxTileInputs = 8, kMaxTileGroups = 8;

// The arguments of one tile: pointers to groups and inputs, and the range of columns to add to the outputs.
struct Tile {
  const uint8_t* group[kMaxTileGroups];  // R groups of the weight, each 8 rows
  int64_t scales_offset;                 // [bytes] from the beginning of a group
  int64_t num_blocks;                    // number of blocks of 32 columns in a row
  int64_t begin_block, end_block;        // the range of this tile; with begin_block > 0, `out` holds the sums so far
  int64_t in_features;
  const float* x[kMaxTileInputs];                  // T rows of in_features floats (bf16_x8)
  const int8_t* q[kMaxTileInputs];                 // T rows of 8-bit inputs (int8_x8, int4_x8)
  const InputBlock* input_blocks[kMaxTileInputs];  // their scales, one entry per block
  float* out[kMaxTileInputs];                      // outputs of the first group; those of the next groups follow
  // Weights are read once, so a tile prefetches later ones. With one input, it prefetches the next groups, next_group
  // [bytes] after these. With several inputs, tiles share the same weights, and each prefetches a part of the next
  // ones: `ahead_step` bytes of values per block, at ahead_values and ahead_scales [bytes] from the values and scales
  // of a block. 0 or null: no prefetch.
  int64_t next_group;
  int64_t ahead_values, ahead_scales, ahead_step;
};

using TileFunction = void (*)(const Tile& tile);

// Tile functions with the same number of groups, by number of inputs; null where there is none.
struct TileSet {
  int groups;
  TileFunction of_inputs[kMaxTileInputs + 1];
};

// The tiles of one instruction set for one format.
struct Tiles {
  TileSet several;  // for two inputs or more
  TileSet single;   // for one input
  TileSet last;     // for remaining groups: as few groups as fill a register
};

Tiles tiles_portable(WeightFormat format);
Tiles tiles_avx2(WeightFormat format);
Tiles tiles_avx512(WeightFormat format);

constexpr int32_t kInt4Offset = 8, kInt8Offset = 128;

}  // namespace longcat::cpu
