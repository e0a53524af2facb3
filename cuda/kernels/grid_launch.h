// Launches a kernel on a GPU, where it can as a programmatic dependent launch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/device/check.h"
#include "cuda/device/gpu_device.h"

namespace longcat::gpu {

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes;  // dynamic
};

// The kernel must wait for the prior grid before it touches anything that a kernel has written or reads, and in every
// block. Its machine code for 9.0 and 12.0 does so; other devices run that of 8.0, or its PTX, which does not, and are
// never told to overlap.
template <class Params>
void launch_grid(GpuDevice& device, const Grid& grid, void (*kernel)(Params), const Params& params) {
  constexpr size_t kDefaultShared = 48 << 10;  // [bytes]; larger sizes need an attribute
  if (grid.shared_bytes > kDefaultShared)
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes)));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(device.stream());
  config.attrs = &attribute;
  config.numAttrs = device.next_kernel_overlaps() ? 1 : 0;
  CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, params));
  check_launch(config.stream);
}

}  // namespace longcat::gpu
