// Makes devices by name: those of the product, and those that only tests have.
#pragma once

#include <atomic>

#include "cpu/cpu_device.h"
#include "engine/load_model.h"

namespace longcat {

// As make_ops, and:
// - cuda-emulated: the CUDA backend walked on the host, activations in bf16
// - cuda-emulated-f32: activations in f32, so only the order of additions differs from the CPU
// - cuda-emulated-fp8: inputs rounded as on a GPU that multiplies fp8
// - cuda-emulated-reversed: blocks and threads walked backwards, in little scratch memory; no bit may change
// - cuda-emulated-small: blocks have 99 KiB of shared memory, as on 8.6, 8.9 and 12.x
// - cpu-padded: the CPU, with steps of decodes padded to powers of two
// - cpu-counting: the CPU, whose device is a CountingDevice
std::unique_ptr<Ops> make_test_ops(const std::string& device, int num_threads);

// A device in host memory that adds up its allocations.
class CountingDevice final : public CpuDevice {
 public:
  using CpuDevice::CpuDevice;
  void* allocate(int64_t bytes) override {
    bytes_ += bytes;
    return CpuDevice::allocate(bytes);
  }
  int64_t bytes() const { return bytes_; }  // allocated so far

 private:
  std::atomic<int64_t> bytes_ = 0;
};

// Returns the ops and communicators of an engine with these options. Ranks on emulated devices exchange data by NCCL,
// or by its stand-in.
Backend make_test_backend(const EngineOptions& options, bool fake_nccl);

}  // namespace longcat
