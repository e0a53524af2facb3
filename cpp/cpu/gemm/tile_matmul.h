// Products with bf16 and bf16_x8 weights in tiles (gemm/tile_kernels.h).
#pragma once

#include "cpu/gemm/matmul.h"
#include "cpu/gemm/tile_kernels.h"

namespace longcat::cpu {

// Like matmul_block, for inputs that block.quantized has rounded to bf16.
void tile_matmul_block(const Weight& weight, const MatmulBlock& block, const TileKernels& kernels);

}  // namespace longcat::cpu
