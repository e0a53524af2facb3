// Register tiles of the packed formats: R groups of 8 outputs times T inputs, one function a shape and instruction set.
// Whatever R and T are, an output is the same sum: over blocks of 32 columns (single columns for bf16), ascending, one
// fused multiply-add each; the integer sum inside a block is exact. So the bits depend neither on the number of inputs
// nor on the width of the registers.
#pragma once

#include <cstdint>

#include "cpu/gemm/packed_matmul.h"
#include "ops/packed.h"

namespace longcat::cpu {

constexpr int kMaxTileInputs = 8, kMaxTileGroups = 8;

// One tile: groups and inputs as pointers, and the columns to add to the outputs.
struct Tile {
  const uint8_t* group[kMaxTileGroups];
  int64_t scales_offset;           // [bytes] from the beginning of a group
  int64_t num_blocks;              // of 32 columns, in all
  int64_t begin_block, end_block;  // of this tile; where begin_block > 0 the sums so far are in `out`
  int64_t in_features;
  const float* x[kMaxTileInputs];
  const int8_t* q[kMaxTileInputs];
  const InputBlock* input_blocks[kMaxTileInputs];
  float* out[kMaxTileInputs];  // of the first group; the next group's outputs follow
  // Weights are read once, so a tile brings near what comes next. With one input: the groups that follow these, so many
  // bytes on. With several, whose tiles read the same weights: each a part of what comes next, at [bytes] from the
  // values and the scales of a block, `ahead_step` bytes of values a block. 0 or null: nothing.
  int64_t next_group;
  int64_t ahead_values, ahead_scales, ahead_step;
};

using TileFunction = void (*)(const Tile& tile);

// Tiles of as many groups, by the number of inputs; null where there is none.
struct TileSet {
  int groups;
  TileFunction of_inputs[kMaxTileInputs + 1];
};

// What one instruction set has for one format.
struct Tiles {
  TileSet several;  // for two inputs or more
  TileSet single;   // for one
  TileSet last;     // for what these leave: as few groups as fill a register
};

Tiles tiles_portable(WeightFormat format);
Tiles tiles_avx2(WeightFormat format);
Tiles tiles_avx512(WeightFormat format);

constexpr int32_t kInt4Offset = 8, kInt8Offset = 128;

}  // namespace longcat::cpu
