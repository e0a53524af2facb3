// Launches kernels over simt.h on a GPU, or on the emulated device: one order of threads, without the emulator's
// checks.
#pragma once

#include "base/error.h"
#include "cuda/device/gpu_device.h"
#include "cuda/kernels/simt.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include "cuda/device/check.h"
#endif

namespace longcat::simt {

#ifdef __CUDACC__
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1) run_threads(const __grid_constant__ Kernel kernel) {
  extern __shared__ __align__(128) unsigned char memory[];
  kernel(static_cast<uint32_t>(__cvta_generic_to_shared(memory)));
}

template <class Kernel>
void launch_on_gpu(GpuDevice& device, int64_t num_blocks, const Kernel& kernel, bool overlaps_prior) {
  constexpr int kDefaultShared = 48 << 10;  // [bytes]; larger sizes need an attribute
  if constexpr (Kernel::kSharedBytes > kDefaultShared)
    CUDA_CHECK(cudaFuncSetAttribute(run_threads<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(Kernel::kSharedBytes)));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(num_blocks));
  config.blockDim = dim3(Kernel::kThreads);
  config.dynamicSmemBytes = Kernel::kSharedBytes;
  config.stream = static_cast<cudaStream_t>(device.stream());
  config.attrs = &attribute;
  // Only the code for 9.0 waits for the prior grid: newer devices run the PTX of 8.0.
  config.numAttrs = overlaps_prior && device.compute_capability() == 90 ? 1 : 0;
  CUDA_CHECK(cudaLaunchKernelEx(&config, run_threads<Kernel>, kernel));
  check_launch(config.stream);
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

// Runs the kernel's blocks. overlaps_prior: a programmatic dependent launch; the kernel calls wait_for_prior_grid().
template <class Kernel>
void launch(GpuDevice& device, int64_t num_blocks, const Kernel& kernel, bool overlaps_prior = false) {
  static_assert(Kernel::kThreads % 32 == 0 && Kernel::kThreads >= 32 && Kernel::kThreads <= 1024);
  static_assert(Kernel::kSharedBytes <= 227 << 10);
  if (num_blocks == 0) return;
  LC_CHECK(num_blocks <= most_blocks<Kernel>(), num_blocks, " blocks");
#ifdef __CUDACC__
  if (!device.emulated()) return launch_on_gpu(device, num_blocks, kernel, overlaps_prior);
#endif
  LC_CHECK(device.emulated());
  (void)overlaps_prior;
  device.run_threads(
      num_blocks, Kernel::kThreads, Kernel::kSharedBytes,
      [](const void* of, uint32_t shared) { (*static_cast<const Kernel*>(of))(shared); }, &kernel);
}

}  // namespace longcat::simt
