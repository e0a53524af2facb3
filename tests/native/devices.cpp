#include "tests/native/devices.h"

#include "base/available_threads.h"
#include "cpu/cpu_ops.h"
#include "cuda/emulation/emulated_ops.h"
#include "cuda/nccl/nccl_communicator.h"
#include "ops/backend.h"
#include "tests/native/fake_nccl.h"

namespace longcat {

namespace {

class PaddingDevice final : public CpuDevice {
 public:
  using CpuDevice::CpuDevice;
  int64_t padded_rows(int64_t rows) const override {
    int64_t padded = 1;
    while (padded < rows) padded *= 2;
    return padded;
  }
};

class PaddingOps final : public CpuOps {
 public:
  explicit PaddingOps(int num_threads) : CpuOps(num_threads), device_(num_threads) {}
  Device& device() override { return device_; }

 private:
  PaddingDevice device_;
};

class CountingOps final : public CpuOps {
 public:
  explicit CountingOps(int num_threads) : CpuOps(num_threads), device_(num_threads) {}
  Device& device() override { return device_; }

 private:
  CountingDevice device_;
};

// Returns null for a device of the product.
std::unique_ptr<Ops> make_test_only_ops(const std::string& device, int num_threads) {
  if (device == "cuda-emulated") return make_emulated_cuda_ops(DType::bf16, false, false);
  if (device == "cuda-emulated-f32") return make_emulated_cuda_ops(DType::f32, false, false);
  if (device == "cuda-emulated-fp8") return make_emulated_cuda_ops(DType::bf16, true, false);
  if (device == "cuda-emulated-reversed") return make_emulated_cuda_ops(DType::bf16, false, true);
  if (device == "cuda-emulated-small") return make_emulated_cuda_ops(DType::bf16, false, false, true);
  if (device == "cpu-padded") return std::make_unique<PaddingOps>(num_threads > 0 ? num_threads : available_threads());
  if (device == "cpu-counting") return std::make_unique<CountingOps>(num_threads > 0 ? num_threads : 1);
  return nullptr;
}

}  // namespace

std::unique_ptr<Ops> make_test_ops(const std::string& device, int num_threads) {
  std::unique_ptr<Ops> ops = make_test_only_ops(device, num_threads);
  return ops ? std::move(ops) : make_ops(device, num_threads);
}

Backend make_test_backend(const EngineOptions& options, bool fake_nccl) {
  Backend backend{.ops = make_test_only_ops(options.device, options.num_threads)};
  backend.communicator = [fake_nccl](std::unique_ptr<Communicator> host, Device& device, int64_t max_bytes) {
    const auto gpu = dynamic_cast<GpuDevice*>(&device);
    if (!gpu || !gpu->emulated() || host->size() == 1) return on_device(std::move(host), device, max_bytes);
    return make_nccl_communicator(fake_nccl ? kFakeNccl : load_nccl(), std::move(host), *gpu, max_bytes);
  };
  return backend;
}

}  // namespace longcat
