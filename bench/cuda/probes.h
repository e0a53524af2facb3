// Small kernels that show the bits that the hardware makes. Call them inside submitted work, on a GPU of 8.0 or later.
#pragma once

#include "base/dtype.h"
#include "cuda/device/gpu_device.h"

namespace longcat {

// Computes out[t, o] = x[t] . w[o] by mma.sync m16n8k16, along K in ascending order with one accumulator. out: [tokens,
// out_features] f32; x: [tokens, in_features]; w: [out_features, in_features], both extents multiples of 16.
void mma_sync_linear(GpuDevice& device, float* out, const bf16* x, const bf16* w, int64_t tokens, int64_t out_features,
                     int64_t in_features);

// Moves a tile of latents, [64, 576] bf16, by cp.async of 16 bytes into shared memory, and out of it by ldmatrix.
// `plain` gets the values read without .trans, `transposed` those read with it, both in the order of the tile.
constexpr int64_t kProbeRows = 64, kProbeCols = 576;
void read_tile(GpuDevice& device, bf16* plain, bf16* transposed, const bf16* tile);

}  // namespace longcat
