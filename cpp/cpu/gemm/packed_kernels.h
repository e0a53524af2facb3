// Kernels of the packed formats (ops/packed.h): register tiles of R registers of outputs times T inputs, one function
// per shape, and 8-bit inputs. An output is the same sum for every R and T and on every instruction set. It adds blocks
// of 32 columns (bf16: single columns) in ascending order, with one fused multiply-add each. The integer sum in a block
// is exact. So the bits depend neither on the number of inputs nor on the machine.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "cpu/simd/dispatch.h"

namespace longcat::cpu {

// Data shared by 32 columns of an input: x = scale * q. Products that need one unsigned factor give int4 and int8
// weights an offset (8 and 128). The sum of q corrects for it.
struct InputBlock {
  float scale;
  int32_t sum_by_8;  // 8 times the sum of the block's q
};

constexpr int kMaxTileInputs = 8, kMaxTileGroups = 8;

// The arguments of one tile: pointers to groups and inputs, and the range of columns to add to the outputs.
struct Tile {
  const uint8_t* group[kMaxTileGroups];  // groups of the weight, each 8 rows
  int64_t scales_offset;                 // [bytes] from the beginning of a group
  int64_t num_blocks;                    // number of blocks of 32 columns in a row
  int64_t begin_block, end_block;        // the range of this tile; with begin_block > 0, `out` holds the sums so far
  int64_t in_features;
  const float* x[kMaxTileInputs];                  // T rows of in_features floats (bf16_x8)
  const bf16* rounded[kMaxTileInputs];             // the same rounded to bf16, with an even number of values
  const int8_t* q[kMaxTileInputs];                 // T rows of 8-bit inputs (formats of integers)
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

// The tiles of one format.
struct Tiles {
  TileSet several;  // for two inputs or more
  TileSet single;   // for one input
  TileSet last;     // for remaining groups: as few groups as fill a register
};

struct PackedKernels {
  Tiles bf16, int8, int4;    // bf16_x8, int8_x8, int4_x8
  Tiles int8_f16, int4_f16;  // int8_x8_f16, int4_x8_f16

  // bf16_x8 times inputs rounded to bf16, on sets with an instruction for it; else empty. An output is two sums,
  // of columns 0, 1, 4, 5, 8, ... and of the others, in ascending pairs as the instruction adds them. A tile computes
  // whole rows.
  Tiles rounded;

  // Quantises one row x [n] to 8 bits, padded with zeros to whole blocks. A NaN or an infinity makes the scale of its
  // block NaN.
  void (*quantize_row)(int8_t* values, InputBlock* blocks, const float* x, int64_t n);

  // Rounds one row x [n] to bf16, ties to even, padded with zeros to whole blocks of 32. Null where `rounded` is empty.
  void (*round_row)(longcat::bf16* values, const float* x, int64_t n);
};

}  // namespace longcat::cpu
