// The sum of all ranks' blocks: fp32, in ascending rank, rounded once. NCCL's own sums round bf16 at every hop.
#pragma once

#include "base/tensor.h"
#include "cuda/device/gpu_device.h"

namespace longcat::gpu {

// out [count] = sum of `blocks` [num_blocks, count], both f32 or bf16. out may be the first block.
void sum_blocks(GpuDevice& device, Tensor out, Tensor blocks, int64_t num_blocks);

}  // namespace longcat::gpu
