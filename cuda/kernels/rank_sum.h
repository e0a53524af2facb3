// Sums over ranks: fp32, in ascending rank, rounded once. NCCL's own sums round bf16 at every hop.
#pragma once

#include "base/tensor.h"
#include "cuda/device/gpu_device.h"
#include "cuda/kernels/peer_sum.h"

namespace longcat::gpu {

// out [count] = sum of `blocks` [num_blocks, count], both f32 or bf16. out may be the first block.
void sum_blocks(GpuDevice& device, Tensor out, Tensor blocks, int64_t num_blocks);

// x [count] = sum of all ranks' x: f32, bf16 or i32. Every rank launches it: see peer_sum.h.
void sum_over_peers(GpuDevice& device, Tensor x, const PeerMemory& peers);

}  // namespace longcat::gpu
