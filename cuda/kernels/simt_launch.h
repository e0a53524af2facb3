// Launches kernels over simt.h on a GPU, or on the emulated device: one order of threads, without the emulator's
// checks.
#pragma once

#include "base/error.h"
#include "cuda/device/gpu_device.h"
#include "cuda/kernels/simt.h"

#ifdef __CUDACC__
#include "cuda/kernels/grid_launch.h"
#endif

namespace longcat::simt {

#ifdef __CUDACC__
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1) run_threads(const __grid_constant__ Kernel kernel) {
  extern __shared__ __align__(128) unsigned char memory[];
  kernel(static_cast<uint32_t>(__cvta_generic_to_shared(memory)));
}
#endif

// A kernel may say how many blocks it can have: kMaxBlocks.
template <class Kernel>
constexpr int64_t most_blocks() {
  if constexpr (requires { Kernel::kMaxBlocks; }) {
    return Kernel::kMaxBlocks;
  } else {
    return 0x7fffffff;
  }
}

// Runs the kernel's blocks, on a GPU by launch_grid(): every block calls wait_for_prior_grid().
template <class Kernel>
void launch(GpuDevice& device, int64_t num_blocks, const Kernel& kernel) {
  static_assert(Kernel::kThreads % 32 == 0 && Kernel::kThreads >= 32 && Kernel::kThreads <= 1024);
  static_assert(Kernel::kSharedBytes <= 227 << 10);
  if (num_blocks == 0) return;
  LC_CHECK(num_blocks <= most_blocks<Kernel>(), num_blocks, " blocks");
#ifdef __CUDACC__
  if (!device.emulated())
    return gpu::launch_grid(device,
                            {.blocks = dim3(static_cast<unsigned>(num_blocks)),
                             .threads = dim3(Kernel::kThreads),
                             .shared_bytes = Kernel::kSharedBytes},
                            run_threads<Kernel>, kernel);
#endif
  LC_CHECK(device.emulated());
  device.run_threads(
      num_blocks, Kernel::kThreads, Kernel::kSharedBytes,
      [](const void* of, uint32_t shared) { (*static_cast<const Kernel*>(of))(shared); }, &kernel);
}

}  // namespace longcat::simt
