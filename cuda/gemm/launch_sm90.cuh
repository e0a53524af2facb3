// Launches a CUTLASS kernel for Hopper without the library's device adapter, which takes seconds to compile.
#pragma once

#include "cutlass/device_kernel.h"
//
#include "cuda/kernels/grid_launch.h"

namespace longcat {

// Whether this kind of kernel waits for the prior grid: CUTLASS's dense kernels do, the grouped ones do not.
enum class Overlap { no, yes };

template <class Kernel>
void launch_sm90(GpuDevice& device, const typename Kernel::Params& params, Overlap overlap) {
  static_assert(Kernel::SharedStorageSize <= 227 << 10, "more than a block of 9.0 has");
  if (overlap == Overlap::no) device.end_overlap();
  gpu::launch_grid(device,
                   {.blocks = Kernel::get_grid_shape(params),
                    .threads = Kernel::get_block_shape(),
                    .shared_bytes = static_cast<size_t>(Kernel::SharedStorageSize)},
                   cutlass::device_kernel<Kernel>, params);
}

}  // namespace longcat
