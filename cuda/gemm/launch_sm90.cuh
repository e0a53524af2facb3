// Launches a CUTLASS kernel for Hopper without the library's device adapter, which takes seconds to compile.
#pragma once

#include "cutlass/device_kernel.h"
//
#include "cuda/device/check.h"

namespace longcat {

template <class Kernel>
void launch_sm90(const typename Kernel::Params& params, cudaStream_t stream) {
  static_assert(Kernel::SharedStorageSize <= 227 << 10, "more than a block of 9.0 has");
  CUDA_CHECK(cudaFuncSetAttribute(cutlass::device_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  Kernel::SharedStorageSize));
  cutlass::device_kernel<Kernel>
      <<<Kernel::get_grid_shape(params), Kernel::get_block_shape(), Kernel::SharedStorageSize, stream>>>(params);
  check_launch(stream);
}

}  // namespace longcat
