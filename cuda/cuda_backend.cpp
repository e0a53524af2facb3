// Replaces cpp/ops/no_cuda.cpp and cpp/comm/no_nccl.cpp at link time where CUDA is built.
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "comm/device_communicator.h"
#include "cuda/cuda_ops.h"
#include "cuda/device/cuda_device.h"
#include "cuda/nccl/nccl_communicator.h"
#include "ops/backend.h"

namespace longcat {

namespace {

// LONGCAT_GPU_MEMORY is the default share, for processes with several engines, such as tests.
double share_or_environment(double memory_share) {
  const char* text = std::getenv("LONGCAT_GPU_MEMORY");
  if (!text || memory_share > 0) return memory_share;
  double share = 0;
  const auto [end, status] = std::from_chars(text, text + std::strlen(text), share);
  if (status != std::errc() || *end != 0 || !(share > 0 && share <= 1))
    throw std::invalid_argument(
        str_cat("[cuda] found LONGCAT_GPU_MEMORY=\"", text, "\"; expected a share above 0 and at most 1, such as 0.5"));
  return share;
}

}  // namespace

std::unique_ptr<Ops> make_cuda_ops(int device_idx, double memory_share, int num_communicators) {
  return std::make_unique<CudaOps>(
      std::make_unique<CudaDevice>(device_idx, share_or_environment(memory_share), num_communicators), DType::bf16);
}

bool cuda_is_built() { return true; }
bool has_gpu() { return CudaDevice::count() > 0; }

std::unique_ptr<Communicator> on_device(std::unique_ptr<Communicator> host, Device& device, int64_t max_bytes) {
  if (host->size() == 1) return make_single_communicator();
  const auto gpu = dynamic_cast<GpuDevice*>(&device);
  if (!gpu) return host;
  return make_nccl_communicator(load_nccl(), std::move(host), *gpu, max_bytes);
}

}  // namespace longcat
